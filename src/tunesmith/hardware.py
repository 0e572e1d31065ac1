"""What this machine has: device, free memory, number type, and why that one."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "rouge-score", "tokenizers")


@dataclass(frozen=True)
class Machine:
    """One device to compute on. Sizes in bytes; `precision` is the name of a torch dtype."""

    device: str
    name: str
    cores: int
    memory_total: int
    memory_free: int
    precision: str
    why: str

    def describe(self) -> dict[str, Any]:
        """Plain values for machine.json."""
        return asdict(self)


def look(precision: str = "auto") -> Machine:
    """The machine that this process runs on; `precision` is a wish (`auto`, `float32`, `bfloat16`, `float16`).

    Raises RecipeError when the wish cannot be honoured here.
    """
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        properties = torch.cuda.get_device_properties(0)
        has_bf16 = properties.major >= 8  # Ampere and newer multiply bfloat16 on their matrix units
        kind, why = ("bfloat16", "the card has bfloat16 units") if has_bf16 else ("float16", "the card has no bfloat16")
        device, name = "cuda", properties.name
        if precision == "bfloat16" and not has_bf16:
            raise RecipeError(f"{name} has no bfloat16", where="train.precision", next="Set it to auto or float16")
    else:
        total, free = _host_memory()
        has_bf16 = _fast_bfloat16()
        kind = "bfloat16" if has_bf16 else "float32"
        why = "the processor has bfloat16 products" if has_bf16 else "the processor has no bfloat16 products"
        device, name = "cpu", processor()
        if precision == "float16":
            raise RecipeError(
                "float16 is not for training on a processor", where="train.precision", next="Set it to auto"
            )
    if precision != "auto":
        kind, why = precision, "the recipe says so"
    return Machine(device, name, cores(), total, free, kind, why)


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in ("tunesmith", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _fast_bfloat16() -> bool:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return False
    flags = info.read_text(encoding="utf-8", errors="replace")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _host_memory() -> tuple[int, int]:
    """Total and free bytes, the container's limit respected."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
        free = min(free, max(0, int(text) - int(used.read_text())))
    return total, free
