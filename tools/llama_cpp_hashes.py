"""Makes tests/exporting/hashes.json: what llama.cpp's own quantiser writes.

    python -m tools.llama_cpp_hashes LLAMA_QUANTIZE VERSION EMBEDDED.gguf

LLAMA_QUANTIZE is llama.cpp's llama-quantize of the release VERSION on x86-64, EMBEDDED.gguf the embedded model as its
converter writes it in f16. Kept are, for each source and mix, the file's SHA-256 and the first 16 digits of each
quantized tensor's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunesmith.exporting.quantization_types import QUANTIZATION_TYPES
from tunesmith.models.gguf_header import BLOCKS, read_header
from tunesmith.runs.run import hash_bytes, hash_file

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from exporting.gguf_sources import SOURCES  # noqa: E402  (the tests' folder is no package)

HASHES = TESTS / "exporting" / "hashes.json"


def tensor_hashes(path: Path) -> str:
    """The first 16 digits of the SHA-256 of each tensor with blocks, in the file's order."""
    tensors = [tensor for tensor in read_header(path).tensors if BLOCKS[tensor.type][1] > 1]
    with path.open("rb") as file:
        found = []
        for tensor in tensors:
            file.seek(tensor.offset)
            found.append(hash_bytes(file.read(tensor.bytes))[:16])
    return " ".join(found)


def hashes(quantize: str, source: Path, scratch: Path) -> dict[str, Any]:
    """A source's hash, and of each mix the hashes of what `quantize` makes of it; None where it refuses."""
    made: dict[str, Any] = {}
    for mix in QUANTIZATION_TYPES:
        target = scratch / "target.gguf"
        done = subprocess.run([quantize, str(source), str(target), mix.upper(), "2"], capture_output=True, check=False)  # noqa: S603
        made[mix] = None if done.returncode else {"file": hash_file(target), "tensors": tensor_hashes(target)}
    return {"source": hash_file(source), "mixes": made}


def main(quantize: str, version: str, embedded: str) -> None:
    """Writes the file."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = {name: hashes(quantize, make(scratch / f"{name}.gguf"), scratch) for name, make in SOURCES.items()}
        found["embedded"] = hashes(quantize, Path(embedded), scratch)
    HASHES.write_text(json.dumps({"made_with": f"llama.cpp {version}", "sources": found}, indent=0) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
