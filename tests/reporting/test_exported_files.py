"""What the report says of the files to ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.reporting.exported_files import read_exported_files

LIKELY = {"agreement": 0.985, "divergence": 0.0104, "adapter": 2.66, "file": 2.71, "tokens": 400}


def entry(name: str, *, exact: bool, likelihood: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": name, "target": "gguf", "path": f"export/{name}.gguf", "bytes": 1_000_000, "exact": exact, "notes": {},
        "commands": {}, "problems": [], "likelihood": likelihood,
    }  # fmt: skip


def written(folder: Path, onto: str, *entries: dict[str, Any]) -> Path:
    (folder / "export").mkdir(parents=True)
    for item in entries:
        (folder / item["path"]).touch()
    (folder / "export.json").write_text(json.dumps({"merge_into": onto, "files": entries}))
    return folder


@pytest.mark.parametrize("onto", ["quantized", "original"])
def test_what_merging_onto_the_original_weights_changes_is_a_figure(tmp_path: Path, onto: str) -> None:
    rough = entry("q4_k_m", exact=False, likelihood={**LIKELY, "agreement": 0.9})
    section = read_exported_files(written(tmp_path, onto, rough, entry("f16", exact=True, likelihood=LIKELY)))
    assert section is not None
    if onto == "quantized":
        assert section["merge_note"] == ""
    else:
        assert "shows the effect" in section["merge_note"]
        assert "98.5 % of its most likely tokens are the adapter's" in section["merge_note"]
        assert "from 2.66 to 2.71" in section["merge_note"]


def test_without_an_exact_file_it_is_said_and_no_figure_invented(tmp_path: Path) -> None:
    section = read_exported_files(written(tmp_path, "original", entry("q4_k_m", exact=False, likelihood=LIKELY)))
    assert section is not None
    assert section["merge_note"].endswith("not into the 4-bit weights of training.")


def test_a_file_that_was_taken_away_is_not_shown(tmp_path: Path) -> None:
    folder = written(tmp_path, "original", entry("f16", exact=True, likelihood=LIKELY))
    (folder / "export/f16.gguf").unlink()
    assert read_exported_files(folder) is None
