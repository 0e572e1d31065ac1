"""Detects this machine's device, free memory and dtype, and measures its speed."""

from __future__ import annotations

import gc
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.errors import RecipeError

REPORTED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "rouge-score", "tokenizers")


@dataclass(frozen=True)
class Machine:
    """A device to compute on. Sizes are in bytes; `precision` is the name of a torch dtype."""

    device: str
    name: str
    cores: int
    memory_total: int
    memory_free: int
    precision: str
    why: str
    eight: bool = False  # whether it has FP8 products with a scale per row
    gpus: int = 0  # number of GPUs in the machine

    def describe(self) -> dict[str, Any]:
        """Returns plain values for machine.json."""
        return asdict(self)


@dataclass(frozen=True)
class Speed:
    """Speed of a device: FLOP/s of products in its dtype and in FP8, bytes/s copied, seconds per launch."""

    products: float
    eight: float
    bandwidth: float
    launch: float


def measure_speed(machine: Machine) -> Speed:
    """Measures a large product, an FP8 one if supported, and a copy in about half a second."""
    import torch

    dtype = getattr(torch, machine.precision)
    is_cuda = machine.device == "cuda"
    rows, inner, out = (2048, 4096, 12288) if is_cuda else (512, 1024, 2048)
    x, w = (torch.randn(height, inner, device=machine.device).to(dtype) for height in (rows, out))
    flops = 2.0 * rows * inner * out
    sustained = 0.93 if is_cuda else 0.57  # share of this rate that whole steps reach
    products = sustained * flops / _median_seconds(lambda: x @ w.T, is_cuda)
    fp8_products = products
    if is_cuda and machine.eight:
        left, right = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
        scales = torch.ones(rows, 1, device="cuda"), torch.ones(1, out, device="cuda")
        fp8_products = flops / _median_seconds(
            lambda: torch._scaled_mm(left, right.T, scale_a=scales[0], scale_b=scales[1], out_dtype=dtype), is_cuda
        )
    block = torch.empty((256 if is_cuda else 64) << 20, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(block)
    bandwidth = 2 * block.numel() / _median_seconds(lambda: target.copy_(block), is_cuda)
    return Speed(products, fp8_products, bandwidth, 2.5e-6 if is_cuda else 5e-6)


def _median_seconds(work: Callable[[], object], is_cuda: bool) -> float:
    import torch

    for _ in range(3):
        work()
    times = []
    for _ in range(5):
        if is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(4):
            work()
        if is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 4)
    return sorted(times)[2]


def detect_hardware(precision: str = "auto") -> Machine:
    """Returns the machine that this process runs on, with the dtype for `precision`.

    `precision` is auto, float32, bfloat16, float16 or fast. Raises RecipeError if the device does not support it.
    """
    gpu = _detect_gpu()
    if gpu is not None:
        total, free = gpu.memory_total, gpu.memory_free
        has_bf16 = gpu.major >= 8  # Ampere and newer
        kind, why = (
            ("bfloat16", "the GPU has bfloat16 units") if has_bf16 else ("float16", "the GPU has no bfloat16 units")
        )
        device, name, eight = "cuda", gpu.name, gpu.major >= 9
    else:
        total, free = _host_memory()
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # shared by torchrun's processes
        has_bf16 = _cpu_has_bfloat16()
        kind = "bfloat16" if has_bf16 else "float32"
        why = "the CPU has bfloat16 instructions" if has_bf16 else "the CPU has no bfloat16 instructions"
        device, name, eight = "cpu", cpu_name(), False
    if error := precision_error(precision, device, name, bfloat16=has_bf16, eight=eight):
        raise error
    if precision == "fast":
        why = "with FP8 products of the frozen base, as set in the recipe"
    elif precision != "auto":
        kind, why = precision, "set in the recipe"
    return Machine(device, name, core_count(), total, free, kind, why, eight, gpu.gpus if gpu else 0)


class _Gpu(NamedTuple):
    """The GPU in use; memory in bytes, `major` of its compute capability, `gpus` in the machine."""

    name: str
    memory_total: int
    memory_free: int
    major: int
    gpus: int


def _detect_gpu() -> _Gpu | None:
    """Returns the GPU that torch uses; without torch, the first one that nvidia-smi lists."""
    if importlib.util.find_spec("torch") is None:
        return _first_nvidia_gpu()
    import torch

    if not torch.cuda.is_available():
        return None
    gc.collect()  # models of earlier runs in this process may hold memory in reference cycles
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return _Gpu(properties.name, total, free, properties.major, torch.cuda.device_count())


def _first_nvidia_gpu() -> _Gpu | None:
    path = shutil.which("nvidia-smi")
    if path is None:
        return None
    query = "--query-gpu=name,memory.total,memory.free,compute_cap"
    listing = subprocess.run(  # noqa: S603 (no user input)
        [path, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=False
    )
    lines = [line.split(", ") for line in listing.stdout.splitlines() if line.count(", ") == 3]
    if listing.returncode != 0 or not lines:
        return None
    name, total, free, capability = lines[0]
    return _Gpu(name, int(total) << 20, int(free) << 20, int(capability.partition(".")[0]), len(lines))


def precision_error(precision: str, device: str, name: str, *, bfloat16: bool, eight: bool) -> RecipeError | None:
    """Returns the error if the device called `name` cannot train in `precision`, else None.

    `bfloat16` and `eight` say whether a GPU has units for bfloat16 and FP8. A CPU supports every dtype but float16.
    """
    if device == "cpu":
        what, advice = {
            "fast": ("fast needs a GPU with FP8 units", "Set it to auto or bfloat16"),
            "float16": ("a CPU cannot train in float16", "Set it to auto"),
        }.get(precision, ("", ""))
    elif precision == "fast" and not eight:
        what, advice = f"{name} has no FP8 units", "Set it to auto; fast needs an H100, H200 or newer"
    elif precision == "bfloat16" and not bfloat16:
        what, advice = f"{name} has no bfloat16 units", "Set it to auto or float16"
    else:
        what = advice = ""
    return RecipeError(what, where="train.precision", next=advice) if what else None


def core_count() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Returns the CPU's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def idle_cores() -> int:
    """Returns how many of this process's cores are idle, at least one; measures for 0.1 s.

    For threads that spin while waiting, such as llama.cpp's: one that shares its core delays all others.
    """
    import psutil

    busy = float(psutil.cpu_percent(interval=0.1)) / 100
    return max(1, min(core_count(), round((os.cpu_count() or 1) * (1 - busy))))


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results."""
    installed = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in ("tunesmith", *REPORTED_PACKAGES):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def watch_memory(device: str, budget: int | None) -> Callable[[], int]:
    """Limits torch to `budget` bytes of GPU memory; returns a function that returns the peak so far."""
    if device != "cuda":
        return peak_memory
    import torch

    gc.collect()  # what earlier runs left would count as this one's
    torch.cuda.reset_peak_memory_stats()
    if budget is not None:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total))
    return torch.cuda.max_memory_allocated


def peak_memory() -> int:
    """Returns this process's peak resident size in bytes (0 if unknown)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _cpu_has_bfloat16() -> bool:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return False
    flags = info.read_text(encoding="utf-8", errors="replace")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _host_memory() -> tuple[int, int]:
    """Returns total and free bytes within the container's limit."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
        free = min(free, max(0, int(text) - int(used.read_text())))
    return total, free
