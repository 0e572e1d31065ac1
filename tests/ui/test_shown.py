"""What the pages show: hostile rows, journals and logs as text; a run at work, stopped, failed and gone."""

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
from tunesmith.errors import DataError, RunError
from tunesmith.runs.run import Run, inside
from tunesmith.ui import audits, jobs, planned, progress, text_html
from tunesmith.ui.curves import MOST, curve, short

STEPS = [
    {"kind": "start", "step": 0, "total": 4, "time": 100.0},
    {"kind": "valid", "step": 0, "loss": 3.0, "time": 100.0},
    *(
        {"kind": "step", "step": n, "total": 4, "loss": 3 - n / 4, "rate": 1e-4 * n, "grad_norm": 0.5, "eta": 61.0,
         "tokens_per_second": 100.0 + n, "time": 100.0 + n}
        for n in (1, 2, 3)
    ),
]  # fmt: skip


def strict(pieces: str) -> Page:
    """The pieces, read strictly; nothing foreign in them is markup."""
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


def job(folder: Path, log: str = "", **told: Any) -> None:
    place = folder / jobs.PLACE
    place.mkdir(exist_ok=True)
    plain = {"command": ["python", "-m", "tunesmith", "run", "x"], "pid": os.getpid(), "began": time.time(), **told}
    (place / "job.json").write_text(json.dumps(plain))
    (place / "log").write_text(log)


def everything(found: progress.Progress) -> Page:
    parts = (progress.headline, progress.stages, progress.bar, progress.figures, progress.curves, progress.samples,
             progress.notes)  # fmt: skip
    return strict(text_html.part(*(part(found) for part in parts), text_html.log(found.job.log)))


def test_a_run_at_work(tmp_path: Path) -> None:
    folder = run_at(tmp_path / "one", STEPS)
    job(folder)
    (folder / jobs.PLACE / "memory.jsonl").write_text(
        '{"time": 1.0, "bytes": 3221225472}\n{"time": 3, "bytes": 1073741824}\n{'
    )
    found = progress.look(folder)
    page = everything(found)
    assert (found.stage, found.steps) == ("train", (3, 4))
    assert "Training: at work" in page.text and "goes on when this page is closed" in page.text
    for text in ("3 / 4", "2.250", "103", "1:01 min", "1.0 GiB", "3.000"):
        assert text in page.text
    labels = [str(each["aria-label"]) for each in page.named("svg")]
    assert [each.split(":")[0] for each in labels] == [
        "Loss and validation", "Learning rate", "Gradient norm", "Tokens per second", "Memory of the process, GiB",
    ]  # fmt: skip
    assert "They appear" not in page.text and "figures only, no replies" in page.text
    assert progress.look(folder).key == found.key
    write_journal(folder, [*STEPS, {"kind": "step", "step": 4, "total": 4, "loss": 1.0}])
    assert progress.look(folder).key != found.key


def test_stopped_failed_gone_and_of_a_terminal(tmp_path: Path) -> None:
    folder = run_at(tmp_path / "one", STEPS)
    assert "Stopped at step 3 of 4" in everything(progress.look(folder)).text
    job(folder, code=6, ended=time.time(), log=f"tunesmith: {folder}: the disk is full {EVIL}. Free some space.\n")
    page = everything(progress.look(folder))
    assert "The command 'run' failed" in page.text and "the disk is full" in page.text
    assert page.text.count(EVIL) == 2  # why, and the log
    job(folder, code=-9, ended=time.time())
    assert "memory was full" in everything(progress.look(folder)).text
    job(folder, pid=1 << 22)
    assert "is gone" in everything(progress.look(folder)).text
    job(folder, code=0, ended=time.time())
    with Run(folder).lock():
        found = progress.look(folder)
        assert found.at_work == os.getpid() and "started elsewhere" in everything(found).text
    done = progress.look(finish(make_recipe("two"), tmp_path / "two").path)
    assert done.done == ("prepare", "train", "evaluate", "report") and "Finished" in everything(done).text


def test_replies_in_a_journal_are_shown_as_text(tmp_path: Path) -> None:
    samples = [{"prompt": EVIL, "reply": f"reply {EVIL}"}]
    events = [
        *STEPS,
        {"kind": "valid", "step": 3, "loss": 2.0, "samples": samples},
        {"kind": "note", "step": 3, "text": EVIL},
    ]
    page = everything(progress.look(run_at(tmp_path / "one", events)))
    assert "After step 3" in page.text and page.text.count(EVIL) == 3


@pytest.mark.parametrize("events", [[], journal(0, 5), [{"kind": "step"}, {"kind": "valid", "step": 1}]])
def test_a_journal_that_has_hardly_begun(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    everything(progress.look(run_at(tmp_path / "one", events)))


def test_curves() -> None:
    line = [(float(n), math.nan if n == 5 else float(n)) for n in range(5000)]
    page = Page(curve(EVIL, line, other=[(1.0, 3.0)], now=EVIL))
    (drawn,) = [each for each in page.named("polyline") if each["class"] == "line"]
    places = [tuple(map(float, pair.split(","))) for pair in str(drawn["points"]).split()]
    assert len(places) <= MOST + 1 and places[-1][0] > places[0][0] and places[-1][1] < places[0][1]
    assert all(0 <= x <= 360 and 0 <= y <= 170 for x, y in places)
    assert EVIL in page.text and len(page.named("circle")) == 1
    assert "Nothing yet" in curve("x", [(1.0, math.inf)])
    assert "polyline" in curve("x", [(1.0, 2.0)])
    told = [short(value) for value in (0, 2e-4, 0.25, 12.345, 1234.5, 45678, 3e6)]
    assert told == ["0", "2.0e-4", "0.25", "12.3", "1234", "4.57e+04".replace("4.57e+04", "45.7k"), "3M"]


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
    import tunesmith
    from tunesmith.commands.audit import to_audit

    name, data, base, _ = to_audit(str(source), ["empty", "mojibake"])
    tunesmith.audit(name, data.model_copy(update={"repair": fix}), base, folder, fix=fix)
    return folder


def test_findings_diffs_accept_and_undo(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.csv")
    before = source.read_bytes()
    folder = audited(tmp_path / "audits/rows", source, fix=False)
    told = audits.account(folder)
    assert told is not None and told["read"] == 5
    page = strict(text_html.part(audits.summary(told), audits.findings(told)))
    assert "rows read" in page.text and "Empty" in page.text and "What to do" in page.text
    assert "line 4" in page.text and "rows.csv" not in page.text  # the only file is not named again and again
    assert page.named("mark") and "<b onclick=x>It" in page.text

    with pytest.raises(DataError, match="nothing to accept"):
        audits.accept(folder)
    audited(folder / audits.PROPOSED, source, fix=True)
    (diff,) = audits.diffs(folder / audits.PROPOSED)
    page = strict(text_html.part(audits.changes(diff)))
    assert "â€™" in page.text and "mojibake" in page.text and "left out: empty" in page.text
    assert EVIL[:60] in page.text

    (kept,) = audits.accept(folder)
    assert kept == folder / "rows.cleaned.csv" and "It's here" in kept.read_text().replace("’", "'")
    assert source.read_bytes() == before
    ((restored, count),) = audits.take_back(folder)
    assert count == 5
    with restored.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == ROWS
    assert not audits.diffs(folder) and (folder / audits.TAKEN_BACK / kept.name).is_file()
    with pytest.raises(DataError, match="no cleaning was accepted"):
        audits.take_back(folder)


def test_a_damaged_audit(tmp_path: Path) -> None:
    assert audits.account(tmp_path) is None
    (tmp_path / "audit.json").write_text("[")
    assert audits.account(tmp_path) is None
    (tmp_path / "x.cleaned.diff.jsonl").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        audits.changes(tmp_path / "x.cleaned.diff.jsonl")


# --- what is shared ----------------------------------------------------------------------------------------


def test_errors_in_three_parts_as_text() -> None:
    page = strict(text_html.trouble(DataError(f"{EVIL} is wrong", where=f"{EVIL} line 3", next=f"Mend {EVIL}")))
    assert page.text.count(EVIL) == 3 and "Where:" in page.text
    assert strict(text_html.trouble(ValueError(EVIL))).text.count(EVIL) == 1
    assert strict(planned.problems([DataError(EVIL, where="/a/recipe.yaml line 2, train.epochs")])).text.count(
        "train.epochs"
    )
    assert strict(text_html.table([EVIL], [[EVIL]], label="x")).text.count(EVIL) == 2


@pytest.mark.parametrize("name", ["..", "../one", "one/../one", "/etc", "", None, ".hidden", "away", "none", "one\n"])
def test_a_name_is_a_folder_right_below(tmp_path: Path, name: str | None) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/.hidden").mkdir()
    (tmp_path / "runs/away").symlink_to(tmp_path)
    with pytest.raises(RunError):
        inside(tmp_path / "runs", name, "run")
    assert inside(tmp_path / "runs", "one", "run") == tmp_path / "runs/one"
