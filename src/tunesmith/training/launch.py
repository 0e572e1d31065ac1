"""Starts a command of ours in several processes of this machine, by torchrun's launcher."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence

from tunesmith.errors import ResourceError
from tunesmith.hardware import core_count


def launch(words: Sequence[str], many: int) -> int:
    """Runs `tunesmith WORDS` in `many` processes, one a card (or on the processor, where there is no card).

    Returns the exit code that all processes agree on (`spread.joined`). Raises ResourceError when cards are too few.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    cards = torch.cuda.device_count()
    if torch.cuda.is_available() and cards < many:
        raise ResourceError(f"this machine has {cards} cards, not {many}", where="--gpus", next=f"Give --gpus {cards}")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, core_count() // many)))
    for name in ("torch.distributed.run", "torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a process says itself why it ended
    port = "localhost:0"  # any that is free
    given = ["--rdzv-backend", "c10d", "--rdzv-endpoint", port, "--rdzv-id", uuid.uuid4().hex]
    given += ["--nproc-per-node", str(many), "-m", "tunesmith", *words]
    config, command, arguments = config_from_args(parse_args(given))  # type: ignore[no-untyped-call]
    try:
        elastic_launch(config=config, entrypoint=command)(*arguments)
    except ChildFailedError as error:
        return max(1, *(failure.exitcode for failure in error.failures.values()))  # one ended by a signal is below 0
    except SignalException:
        return 130
    return 0
