"""Hashes of what `tunesmith run shopsphere --small` makes, to show that a change of the code changes nothing else.

    python -m tools.demo_products RUN            compares a finished demo run with the recorded hashes
    python -m tools.demo_products RUN --record   records those of RUN

Kernels for CPUs differ in the last digits between machines and versions, so the hashes are valid only where
`describe_machine` returns what was recorded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "tests/end_to_end/demo_products.json"
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


def hash_products(run: Path) -> dict[str, str]:
    """Returns the SHA-256 of each product by its path in the run's folder."""
    files = sorted({path for pattern in PATTERNS for path in run.glob(pattern) if path.is_file()})
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differences(expected: dict[str, str], actual: dict[str, str]) -> list[str]:
    """Returns the products that differ, are missing or are new, one line each."""
    lines = []
    for name in sorted({*expected, *actual}):
        if expected.get(name) != actual.get(name):
            state = "missing" if name not in actual else "new" if name not in expected else "differs"
            lines.append(f"{name}: {state}")
    return lines


def main(arguments: list[str]) -> int:
    """Compares or records the products of a run."""
    folders = [argument for argument in arguments if not argument.startswith("-")]
    if len(folders) != 1:
        sys.stderr.write(f"{(__doc__ or '').strip()}\n")
        return 2
    products = hash_products(Path(folders[0]))
    if "--record" in arguments:
        RECORD.write_text(json.dumps({"machine": describe_machine(), "products": products}, indent=2) + "\n")
        return 0
    recorded = json.loads(RECORD.read_text())
    if recorded["machine"] != describe_machine():
        sys.stderr.write(f"The hashes were recorded on another machine: {recorded['machine']}\n")
        return 2
    lines = differences(recorded["products"], products)
    sys.stdout.write("".join(f"{line}\n" for line in lines) or f"All {len(products)} products are equal.\n")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
