"""What the pages show: hostile rows, journals and logs as text; runs that run, stopped, failed or are gone."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from finished_runs import finish, journal, make_recipe
from strict_pages import EVIL, Page
from tunesmith.commands.audit import audit
from tunesmith.errors import DataError, RunError
from tunesmith.runs.run import Run, child_folder
from tunesmith.ui import audits, html, jobs, progress, recipe_text
from tunesmith.ui.progress import MAX_POINTS, curve, short_number

STEPS: list[dict[str, Any]] = [
    {"kind": "start", "step": 0, "total": 4, "time": 100.0},
    {"kind": "valid", "step": 0, "loss": 3.0, "time": 100.0},
    *(
        {"kind": "step", "step": n, "total": 4, "loss": 3 - n / 4, "rate": 1e-4 * n, "grad_norm": 0.5, "eta": 61.0,
         "tokens_per_second": 100.0 + n, "time": 100.0 + n}
        for n in (1, 2, 3)
    ),
]  # fmt: skip


def strict(pieces: str) -> Page:
    """Parses the HTML and checks that no untrusted text became markup."""
    page = Page(pieces)
    names = {name for name, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "style", "base", "form"}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    return page


def write_journal(folder: Path, events: list[dict[str, Any]]) -> None:
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def run_at(folder: Path, events: list[dict[str, Any]], until: str = "prepare") -> Path:
    finish(make_recipe("one"), folder, until=until)
    write_journal(folder, events)
    return folder


def job(folder: Path, log: str = "", **fields: Any) -> None:
    place = folder / jobs.JOB_FOLDER
    place.mkdir(exist_ok=True)
    record = {"command": ["python", "-m", "tunesmith", "run", "x"], "pid": os.getpid(), "began": time.time(), **fields}
    (place / "job.json").write_text(json.dumps(record))
    (place / "log").write_text(log)


def everything(run_progress: progress.Progress) -> Page:
    parts = (
        progress.headline,
        progress.stages_html,
        progress.progress_bar,
        progress.figure_tiles,
        progress.curves_html,
        progress.samples_html,
        progress.notes_html,
    )
    return strict(html.part(*(part(run_progress) for part in parts), html.log(run_progress.job.log)))


def test_a_running_run(tmp_path: Path) -> None:
    folder = run_at(tmp_path / "one", STEPS)
    job(folder)
    (folder / jobs.JOB_FOLDER / "memory.jsonl").write_text(
        '{"time": 1.0, "bytes": 3221225472}\n{"time": 3, "bytes": 1073741824}\n{'
    )
    before = progress.read_progress(folder)
    page = everything(before)
    assert (before.stage, before.steps) == ("train", (3, 4))
    assert "Train: running" in page.text and "continues if you close this page" in page.text
    for text in ("3 / 4", "2.250", "103", "1:01 min", "1.0 GiB", "3.000"):
        assert text in page.text
    labels = [str(label["aria-label"]) for label in page.named("svg")]
    assert [label.split(":")[0] for label in labels] == [
        "Training and validation loss",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
        "Memory of the process, GiB",
    ]
    assert "replies appear" not in page.text and "no sample replies" in page.text
    assert progress.read_progress(folder).key == before.key
    write_journal(folder, [*STEPS, {"kind": "step", "step": 4, "total": 4, "loss": 1.0}])
    assert progress.read_progress(folder).key != before.key


def test_runs_that_stopped_failed_are_gone_or_run_elsewhere(tmp_path: Path) -> None:
    folder = run_at(tmp_path / "one", STEPS)
    assert "Stopped at step 3 of 4" in everything(progress.read_progress(folder)).text
    job(folder, code=6, ended=time.time(), log=f"tunesmith: {folder}: the disk is full {EVIL}. Free some space.\n")
    page = everything(progress.read_progress(folder))
    assert "The command 'run' failed" in page.text and "the disk is full" in page.text
    assert page.text.count(EVIL) == 2  # reason and log
    job(folder, code=-9, ended=time.time())
    assert "memory was full" in everything(progress.read_progress(folder)).text
    job(folder, pid=1 << 22)
    assert "is gone" in everything(progress.read_progress(folder)).text
    job(folder, code=0, ended=time.time())
    with Run(folder).lock():
        locked = progress.read_progress(folder)
        assert locked.pid == os.getpid() and "started elsewhere" in everything(locked).text
    complete = progress.read_progress(finish(make_recipe("two"), tmp_path / "two").path)
    assert complete.finished == ("prepare", "train", "evaluate", "report") and "Finished" in everything(complete).text


def test_replies_in_a_journal_are_shown_as_text(tmp_path: Path) -> None:
    samples = [{"prompt": EVIL, "reply": f"reply {EVIL}"}]
    events = [
        *STEPS,
        {"kind": "valid", "step": 3, "loss": 2.0, "samples": samples},
        {"kind": "note", "step": 3, "text": EVIL},
    ]
    page = everything(progress.read_progress(run_at(tmp_path / "one", events)))
    assert "After step 3" in page.text and page.text.count(EVIL) == 3


@pytest.mark.parametrize("events", [[], journal(0, 5), [{"kind": "step"}, {"kind": "valid", "step": 1}]])
def test_a_journal_with_few_events(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    everything(progress.read_progress(run_at(tmp_path / "one", events)))


def test_curves() -> None:
    line = [(float(n), math.nan if n == 5 else float(n)) for n in range(5000)]
    page = Page(curve(EVIL, line, dots=[(1.0, 3.0)], latest=EVIL))
    (polyline,) = [tag for tag in page.named("polyline") if tag["class"] == "line"]
    places = [tuple(map(float, pair.split(","))) for pair in str(polyline["points"]).split()]
    assert len(places) <= MAX_POINTS + 1 and places[-1][0] > places[0][0] and places[-1][1] < places[0][1]
    assert all(0 <= x <= 360 and 0 <= y <= 170 for x, y in places)
    assert EVIL in page.text and len(page.named("circle")) == 1
    assert "Nothing yet" in curve("x", [(1.0, math.inf)])
    assert "polyline" in curve("x", [(1.0, 2.0)])
    formatted = [short_number(value) for value in (0, 2e-4, 0.25, 12.345, 1234.5, 45678, 3e6)]
    assert formatted == ["0", "2.0e-4", "0.25", "12.3", "1234", "4.57e+04".replace("4.57e+04", "45.7k"), "3M"]


# --- audits ------------------------------------------------------------------------------------------------


ROWS = [
    {"question": f"{EVIL} how {n}?", "answer": text}
    for n, text in enumerate(
        [
            "Good words about it, one after the other.",
            "<b onclick=x>Itâ€™s here</b>, and that is the way it should be.",
            " ",
            f"All is well {EVIL} and it goes on.",
            f"All is well {EVIL} and it goes on.",
        ]
    )
]


def write_rows(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def audited(folder: Path, source: Path, *, fix: bool) -> Path:
    from tunesmith.commands.audit import audit_arguments

    name, data, base, _ = audit_arguments(str(source), ["empty", "mojibake"])
    audit(name, data.model_copy(update={"repair": fix}), base, folder, fix=fix)
    return folder


def test_findings_diffs_accept_and_undo(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.csv")
    before = source.read_bytes()
    folder = audited(tmp_path / "audits/rows", source, fix=False)
    audit = audits.read_audit(folder)
    assert audit is not None and audit["read"] == 5
    page = strict(html.part(audits.summary_tiles(audit), audits.findings_html(audit)))
    assert "rows read" in page.text and "Empty" in page.text and "What to do" in page.text
    assert "line 4" in page.text and "rows.csv" not in page.text  # the only file is not named in every finding
    assert page.named("mark") and "<b onclick=x>It" in page.text

    with pytest.raises(DataError, match="no repairs were proposed"):
        audits.accept_repair(folder)
    audited(folder / audits.PROPOSED, source, fix=True)
    (diff,) = audits.find_diffs(folder / audits.PROPOSED)
    page = strict(html.part(audits.diff_html(diff)))
    assert "â€™" in page.text and "mojibake" in page.text and "dropped: empty" in page.text
    assert EVIL[:60] in page.text

    (cleaned,) = audits.accept_repair(folder)
    assert cleaned == folder / "rows.cleaned.csv" and "It's here" in cleaned.read_text().replace("’", "'")
    assert source.read_bytes() == before
    ((restored, count),) = audits.undo_repair(folder)
    assert count == 5
    with restored.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == ROWS
    assert not audits.find_diffs(folder) and (folder / audits.UNDONE / cleaned.name).is_file()
    with pytest.raises(DataError, match="no repair was accepted"):
        audits.undo_repair(folder)


def test_a_damaged_audit(tmp_path: Path) -> None:
    assert audits.read_audit(tmp_path) is None
    (tmp_path / "audit.json").write_text("[")
    assert audits.read_audit(tmp_path) is None
    (tmp_path / "x.cleaned.diff.jsonl").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        audits.diff_html(tmp_path / "x.cleaned.diff.jsonl")


# --- what is shared ----------------------------------------------------------------------------------------


def test_errors_are_shown_as_text() -> None:
    page = strict(html.error_boxes(DataError(f"{EVIL} is wrong", where=f"{EVIL} line 3", next=f"Repair {EVIL}")))
    assert page.text.count(EVIL) == 3 and "Where:" in page.text
    assert strict(html.error_boxes(ValueError(EVIL))).text.count(EVIL) == 1
    assert strict(recipe_text.errors_html([DataError(EVIL, where="/a/recipe.yaml line 2, train.epochs")])).text.count(
        "train.epochs"
    )
    assert strict(html.table([EVIL], [[html.escape(EVIL)]])).text.count(EVIL) == 2


@pytest.mark.parametrize("name", ["..", "../one", "one/../one", "/etc", "", None, ".hidden", "away", "none", "one\n"])
def test_a_name_is_a_direct_subfolder(tmp_path: Path, name: str | None) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/.hidden").mkdir()
    (tmp_path / "runs/away").symlink_to(tmp_path)
    with pytest.raises(RunError):
        child_folder(tmp_path / "runs", name, "run")
    assert child_folder(tmp_path / "runs", "one", "run") == tmp_path / "runs/one"
