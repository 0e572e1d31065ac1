"""Files of a target on their way to their place: what stays, what goes aside, and what a killed process leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.exporting.job import Staged, _move, files_in
from tunesmith.runs.run import Run, hash_file

MADE_FROM = {"adapter": "a", "types": "one"}
SELECT = frozenset({"types"})


def staged(run: Run, **changes: str) -> Staged:
    return Staged(run, run / "export", "gguf", MADE_FROM | changes, SELECT)


def written(made: Staged, **files: str) -> None:
    made.begin()
    for name, text in files.items():
        made.place.mkdir(parents=True, exist_ok=True)
        (made.place / name).write_text(text)
    made.finish()


def put(run: Run, made: Staged, **files: str) -> None:
    """A whole export of these files."""
    written(made, **files)
    made.swap(run / "old/first")
    made.write_fingerprints([made.home / name for name in files])


def texts(folder: Path) -> dict[str, str]:
    return {each.relative_to(folder).as_posix(): each.read_text() for each in files_in(folder)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    put(run, staged(run), q8="old q8", q4="old q4")
    (run / "export.json").write_text("[]")
    return run


def test_other_types_of_the_same_model_leave_what_stands(run: Run) -> None:
    made = staged(run, types="two")
    assert made.standing == {"q8", "q4"}
    written(made, q6="q6")
    assert made.swap(run / "old/now") is None
    made.write_fingerprints([made.home / "q6"])
    assert texts(run / "export/gguf") == {"q8": "old q8", "q4": "old q4", "q6": "q6"}
    assert not (run / "old").exists() and not (run / "export/.new").exists()
    assert staged(run).standing == {"q8", "q4", "q6"}  # so that none is written again
    (run / "export/gguf/q4").write_text("by hand")
    assert staged(run).standing == {"q8", "q6"}
    seal = run.read_fingerprints("export-gguf")
    assert seal and [*seal["files"]] == ["export/gguf/q6"]  # the others may go without a word


def test_what_another_model_replaces_goes_aside_and_is_kept(run: Run) -> None:
    made = staged(run, adapter="b")
    assert made.standing == frozenset()
    written(made, q8="new q8", q4="old q4")
    assert made.swap(run / "old/now") == run / "old/now/export/gguf"
    assert texts(run / "export/gguf") == {"q8": "new q8", "q4": "old q4"}  # one is the same to the byte
    assert texts(run / "old/now") == {"export/gguf/q8": "old q8", "export.json": "[]"}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_killed_while_files_change_places(run: Run, moved: int) -> None:
    made = staged(run, adapter="b")
    written(made, q8="new q8", q4="new q4")
    for name in ("q8", "q4")[:moved]:  # what `swap` does, until it is killed
        _move(made.home / name, run / "old/killed/export/gguf" / name)
        _move(made.place / name, made.home / name)
    again = staged(run, adapter="b")
    again.begin()
    assert texts(again.place) == {"q8": "new q8", "q4": "new q4"}  # nothing is written twice
    again.finish()
    again.swap(run / "old/now")
    assert texts(run / "export/gguf") == {"q8": "new q8", "q4": "new q4"}
    assert sorted(text for text in texts(run / "old").values() if text != "[]") == ["old q4", "old q8"]


def test_what_was_staged_for_something_else_is_not_taken(run: Run) -> None:
    written(staged(run, adapter="b"), q8="of b")
    made = staged(run, adapter="c")
    made.begin()
    assert not made.place.exists()
    assert json.loads(made.note.read_text()) == {"inputs": MADE_FROM | {"adapter": "c"}}
    assert hash_file(run / "export/gguf/q8") == (run.read_fingerprints("export-gguf") or {})["files"]["export/gguf/q8"]
