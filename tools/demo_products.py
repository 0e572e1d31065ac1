"""Hashes of what `tunesmith run shopsphere --small` makes, to show that a change of the code changes nothing else.

    python -m tools.demo_products run FOLDER       runs the demo into FOLDER/shopsphere-small
    python -m tools.demo_products compare RUN      compares a finished demo run with the recorded hashes
    python -m tools.demo_products record RUN       records those of RUN

The measured speed of the machine decides how a step is divided into micro-batches, which changes the last digits of the
adapter; `run` therefore plans with a fixed speed. Kernels for CPUs differ between machines and versions too, so the
hashes are valid only where `describe_machine` returns what was recorded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests/end_to_end/demo_products.json"
PATTERNS = ("data/*.jsonl", "adapter/*", "replies/*.jsonl", "scores.json", "export/gguf/*")
PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy", "scipy", "rouge-score", "safetensors", "xllamacpp")


def describe_machine() -> dict[str, Any]:
    """Returns what the products depend on besides the code: kernels, threads and versions of packages."""
    import torch

    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in PACKAGES},
    }


def run_demo(folder: str) -> None:
    """Runs the demo's command as the command line does, with a fixed speed of two cores."""
    from tunesmith.cli import main
    from tunesmith.hardware import Speed

    speed = Speed(products=3e11, eight=3e11, bandwidth=1e10, launch=5e-6)
    command = ["tunesmith", "run", "shopsphere", "--small", "--runs", folder]
    with mock.patch("tunesmith.hardware.measure_speed", return_value=speed), mock.patch.object(sys, "argv", command):
        main()


def hash_products(run: Path) -> dict[str, str]:
    """Returns the SHA-256 of each product by its path in the run's folder; this checkout's path is left out of rows."""
    hashes = {}
    for path in sorted({path for pattern in PATTERNS for path in run.glob(pattern) if path.is_file()}):
        content = path.read_bytes()
        if path.suffix == ".jsonl":
            content = content.replace(str(ROOT).encode(), b"")
        hashes[path.relative_to(run).as_posix()] = hashlib.sha256(content).hexdigest()
    return hashes


def differences(expected: dict[str, str], actual: dict[str, str]) -> list[str]:
    """Returns the products that differ, are missing or are new, one line each."""
    lines = []
    for name in sorted({*expected, *actual}):
        if expected.get(name) != actual.get(name):
            state = "missing" if name not in actual else "new" if name not in expected else "differs"
            lines.append(f"{name}: {state}")
    return lines


def compare(run: Path) -> int:
    """Prints the products that differ from the recorded ones. Returns 1 for any, 2 on another machine."""
    recorded = json.loads(RECORD.read_text())
    if recorded["machine"] != describe_machine():
        sys.stderr.write(f"The hashes were recorded on another machine: {recorded['machine']}\n")
        return 2
    products = hash_products(run)
    lines = differences(recorded["products"], products)
    sys.stdout.write("".join(f"{line}\n" for line in lines) or f"All {len(products)} products are equal.\n")
    return bool(lines)


def main(arguments: list[str]) -> int:
    """Runs the demo, compares or records its products."""
    if len(arguments) != 2 or arguments[0] not in ("run", "compare", "record"):
        sys.stderr.write(f"{(__doc__ or '').strip()}\n")
        return 2
    task, folder = arguments
    if task == "run":
        run_demo(folder)
    elif task == "compare":
        return compare(Path(folder))
    else:
        record = {"machine": describe_machine(), "products": hash_products(Path(folder))}
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
