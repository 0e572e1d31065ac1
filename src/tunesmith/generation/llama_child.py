"""Runs llama.cpp's server in a separate process, so that a file that crashes it does not affect the caller.

Run by path, only by generation/llama_process.py; it imports nothing of the package. It reads one line of JSON from
stdin (see LlamaSettings) and writes one line to stdout once the model is loaded: {"address": …, "seconds": …}. All
other output, including the runtime's messages on stdout, goes to stderr. The process ends when its stdin is closed.
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
LOG_SECONDS = 0.2  # for the last lines of the runtime's log to arrive


def main() -> None:
    """Serve until stdin is closed. Exit code 1: the model could not be loaded; the reason is on stderr."""
    settings = json.loads(sys.stdin.buffer.readline())
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _die_with_parent(signal.SIGKILL)  # while loading holds the GIL, the end of stdin is not noticed
    started = time.perf_counter()
    server = _load(settings)
    ready = {"address": server.listening_address, "seconds": time.perf_counter() - started}
    _die_with_parent(0)  # it is also sent when the thread that started us ends, which it may from now on
    answer.write(json.dumps(ready) + "\n")
    answer.close()
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError):
        Path(settings["host"]).unlink()
        Path(settings["host"]).parent.rmdir()
    os._exit(0)  # the server's own exit waits for requests that nobody will read


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
    params.special = settings["special"]  # if special tokens separate a thought from the reply
    params.fit_params = False  # it would shrink the context silently
    params.cache_ram_mib = params.n_ctx_checkpoints = 0  # otherwise up to 8 GiB of earlier prompts are kept
    params.sse_ping_interval = 0  # pings would hide that no token arrives
    params.verbosity = 1  # errors
    try:
        return xllamacpp.Server(params)
    except RuntimeError:  # a thread still writes the reason to stderr; an immediate exit may lose it
        time.sleep(LOG_SECONDS)
        sys.exit(1)


def _die_with_parent(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


if __name__ == "__main__":
    main()
