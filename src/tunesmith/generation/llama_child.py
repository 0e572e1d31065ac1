"""llama.cpp's server in a process of its own, so that a file that crashes it takes nothing else along.

Run by path, by generation/llama_process.py alone; it imports nothing of the package. One line of JSON comes in on stdin
(see `Settings` there), one goes out on stdout once the model is loaded: {"address": …, "seconds": …}. Everything else
that is said, the runtime's chatter on stdout included, goes to stderr. It lives as long as its stdin is open.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOG_SECONDS = 0.2  # for the last lines of the runtime's log


def main() -> None:
    """Serves until stdin ends. Exit code 1: the model could not be loaded; why is on stderr."""
    settings = json.loads(sys.stdin.buffer.readline())
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _die_with_parent(signal.SIGKILL)  # stdin's end is not seen while loading holds the interpreter
    began = time.perf_counter()
    server = _load(settings)
    ready = {"address": server.listening_address, "seconds": time.perf_counter() - began}
    _die_with_parent(0)  # the signal comes when the thread that started us ends, which it may from now on
    answer.write(json.dumps(ready) + "\n")
    answer.close()
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError):
        Path(settings["host"]).unlink()
        Path(settings["host"]).parent.rmdir()
    os._exit(0)  # the server's own way out waits for requests that nobody will read


def _load(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    if settings["lora"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(settings["lora"], 1.0)]
    params.n_parallel, params.n_ctx = settings["slots"], settings["slots"] * settings["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.hostnames, params.port, params.api_keys = [settings["host"]], 0, [settings["key"]]
    params.offline, params.ui, params.warmup = True, False, False
    params.special = settings["special"]  # where special tokens separate a thought from the reply
    params.fit_params = False  # it would lessen the context without a word
    params.cache_ram_mib = params.n_ctx_checkpoints = 0  # else up to 8 GiB of earlier prompts are kept
    params.sse_ping_interval = 0  # pings would hide that no token comes
    params.verbosity = 1  # errors
    try:
        return xllamacpp.Server(params)
    except RuntimeError:  # the reason is on its way to stderr, by a thread whose lines an exit may lose
        time.sleep(LOG_SECONDS)
        sys.exit(1)


def _die_with_parent(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


if __name__ == "__main__":
    main()
