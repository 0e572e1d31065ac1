"""The demo run makes the bytes that tools/demo_products.py recorded: rows, adapter, replies, scores and GGUF file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools.demo_products import RECORD, describe_machine, differences, hash_products

pytestmark = [pytest.mark.slow, pytest.mark.long]  # the whole demo run: ten minutes


def test_the_demo_makes_the_recorded_bytes(tmp_path: Path) -> None:
    recorded = json.loads(RECORD.read_text())
    if recorded["machine"] != (machine := describe_machine()):
        unequal = [f"{key}: {machine.get(key)}, not {value}" for key, value in recorded["machine"].items()
                   if machine.get(key) != value]  # fmt: skip
        pytest.skip(f"the hashes were recorded on another machine ({'; '.join(unequal)})")
    command = [sys.executable, "-m", "tools.demo_products", "run", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "shopsphere-small"
    assert differences(recorded["products"], hash_products(run)) == []
    assert "Tuning helped" in finished.stdout
    assert (run / "report.html").is_file()
