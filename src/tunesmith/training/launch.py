"""Starts a tunesmith command in several processes with torchrun's launcher."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence

from tunesmith.errors import ResourceError
from tunesmith.hardware import core_count


def launch(words: Sequence[str], process_count: int) -> int:
    """Runs `tunesmith WORDS` in `process_count` processes, one per GPU, or on the CPU without GPUs.

    Returns the exit code that all processes agree on (`process_group`). Raises ResourceError for too few GPUs.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and gpus < process_count:
        raise ResourceError(
            f"this machine has {gpus} GPUs, not {process_count}", where="--gpus", next=f"Use --gpus {gpus}"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, core_count() // process_count)))
    for name in ("torch.distributed.run", "torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each process reports its own error
    port = "localhost:0"  # any that is free
    launcher_arguments = ["--rdzv-backend", "c10d", "--rdzv-endpoint", port, "--rdzv-id", uuid.uuid4().hex]
    launcher_arguments += ["--nproc-per-node", str(process_count), "-m", "tunesmith", *words]
    config, command, arguments = config_from_args(parse_args(launcher_arguments))
    try:
        elastic_launch(config=config, entrypoint=command)(*arguments)
    except ChildFailedError as error:
        return max(1, *(failure.exitcode for failure in error.failures.values()))  # negative if ended by a signal
    except SignalException:
        return 130
    return 0
