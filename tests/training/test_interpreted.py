"""The kernels for GPUs, without a GPU: in Triton's interpreter. Needs `pip install triton`; run by name."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="pip install triton"),
]


@pytest.mark.parametrize(
    "config",
    ["llama", "qwen2", "qwen3", "phi3", "gemma", "gemma 3 with windows", "phi 4 mini", "smollm 3 with windows"],
)
def test_kernels_in_the_interpreter(config: str) -> None:
    script = Path(__file__).parent / "interpreted.py"
    paths = [str(script.parent), str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, script, config], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found) == 6
    for name, (loss, gradient) in found.items():
        assert loss < 1e-6, name
        assert gradient < 5e-5, name
