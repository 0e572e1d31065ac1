"""What this machine has: device, free memory, number type, and why that one."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
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
    eight: bool = False  # whether it multiplies 8-bit floating point numbers with a scale a row
    gpus: int = 0  # how many GPUs the machine has

    def describe(self) -> dict[str, Any]:
        """Plain values for machine.json."""
        return asdict(self)


@dataclass(frozen=True)
class Speed:
    """What a device does: FLOP/s of products in its number type and in 8 bits, bytes/s moved, seconds a launch."""

    products: float
    eight: float
    bandwidth: float
    launch: float


def measure_speed(machine: Machine) -> Speed:
    """Times a large product, an 8-bit one where the card has them, and a copy: half a second in all."""
    import torch

    dtype = getattr(torch, machine.precision)
    card = machine.device == "cuda"
    many, inner, out = (2048, 4096, 12288) if card else (512, 1024, 2048)
    x, w = (torch.randn(rows, inner, device=machine.device).to(dtype) for rows in (many, out))
    flops = 2.0 * many * inner * out
    steady = 0.93 if card else 0.57  # of this test's rate, as whole steps showed it
    products = steady * flops / _seconds(lambda: x @ w.T, card)
    eight = products
    if card and machine.eight:
        left, right = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
        scales = torch.ones(many, 1, device="cuda"), torch.ones(1, out, device="cuda")
        eight = flops / _seconds(
            lambda: torch._scaled_mm(left, right.T, scale_a=scales[0], scale_b=scales[1], out_dtype=dtype), card
        )
    block = torch.empty((256 if card else 64) << 20, dtype=torch.uint8, device=machine.device)
    other = torch.empty_like(block)
    bandwidth = 2 * block.numel() / _seconds(lambda: other.copy_(block), card)
    return Speed(products, eight, bandwidth, 2.5e-6 if card else 5e-6)


def _seconds(work: Callable[[], object], card: bool) -> float:
    import torch

    for _ in range(3):
        work()
    times = []
    for _ in range(5):
        if card:
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(4):
            work()
        if card:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / 4)
    return sorted(times)[2]


def detect_hardware(precision: str = "auto") -> Machine:
    """The machine that this process runs on; `precision` is a wish (`auto`, `float32`, `bfloat16`, `float16`, `fast`).

    Raises RecipeError when the wish cannot be honoured here.
    """
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        has_bf16 = properties.major >= 8  # Ampere and newer multiply bfloat16 on their matrix units
        kind, why = ("bfloat16", "the card has bfloat16 units") if has_bf16 else ("float16", "the card has no bfloat16")
        device, name, eight = "cuda", properties.name, properties.major >= 9
    else:
        total, free = _host_memory()
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes share it
        has_bf16 = _fast_bfloat16()
        kind = "bfloat16" if has_bf16 else "float32"
        why = "the processor has bfloat16 products" if has_bf16 else "the processor has no bfloat16 products"
        device, name, eight = "cpu", cpu_name(), False
    if error := precision_error(precision, device, name, bfloat16=has_bf16, eight=eight):
        raise error
    if precision == "fast":
        why = "and frozen products in 8 bits, as the recipe says"
    elif precision != "auto":
        kind, why = precision, "the recipe says so"
    return Machine(device, name, core_count(), total, free, kind, why, eight, torch.cuda.device_count())


def precision_error(precision: str, device: str, name: str, *, bfloat16: bool, eight: bool) -> RecipeError | None:
    """The error that the device called `name` cannot train in `precision`, or None when it can.

    `bfloat16` and `eight` say what a GPU multiplies fast; a CPU has every type but float16, at some speed.
    """
    if device == "cpu":
        what, advice = {
            "fast": ("fast needs a card with 8-bit products", "Set it to auto or bfloat16"),
            "float16": ("float16 is not for training on a processor", "Set it to auto"),
        }.get(precision, ("", ""))
    elif precision == "fast" and not eight:
        what, advice = f"{name} has no 8-bit products", "Set it to auto; 8-bit products need an H100, H200 or newer"
    elif precision == "bfloat16" and not bfloat16:
        what, advice = f"{name} has no bfloat16", "Set it to auto or float16"
    else:
        what = advice = ""
    return RecipeError(what, where="train.precision", next=advice) if what else None


def core_count() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def idle_cores() -> int:
    """Of the cores for this process those that nobody uses just now, one at least; looks for a tenth of a second.

    For threads that wait spinning, as llama.cpp's do: one that shares its core holds up all others.
    """
    import psutil

    busy = float(psutil.cpu_percent(interval=0.1)) / 100
    return max(1, min(core_count(), round((os.cpu_count() or 1) * (1 - busy))))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in ("tunesmith", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def watch_memory(device: str, budget: int | None) -> Callable[[], int]:
    """From now on torch takes no more than `budget` bytes of the card; the function returned gives the peak so far."""
    if device != "cuda":
        return peak_memory
    import torch

    torch.cuda.reset_peak_memory_stats()
    if budget is not None:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total))
    return torch.cuda.max_memory_allocated


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
