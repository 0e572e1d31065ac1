"""The verbs that look at finished work: runs, compare_runs and card, on made-up runs and on one that was trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tunesmith
from finished_runs import finish, journal, make_recipe
from tunesmith.commands.card import card
from tunesmith.commands.compare import compare_runs
from tunesmith.commands.runs import RunRow, list_runs
from tunesmith.commands.shared import evaluation_rows
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import RunError
from tunesmith.runs.run import Run


def states(folder: Path) -> dict[str, tuple[str, str]]:
    return {row.name: (row.state, row.note) for row in list_runs(folder)}


def stopped(folder: Path, name: str = "half") -> Run:
    run = finish(make_recipe(name), folder / name, until="prepare")
    run.write("journal.jsonl", "".join(json.dumps(event) + "\n" for event in journal(7, 54)) + '{"kind": "st')
    for step in ("step-0000005", ".step-0000006.12.tmp"):
        run.write(f"checkpoints/{step}/state.json", "{}")
    return run


def test_each_run_has_a_line_that_says_how_far_it_came(tmp_path: Path) -> None:
    for until in ("prepare", "train", "evaluate", "report"):
        finish(make_recipe(until), tmp_path / until, until=until)
    stopped(tmp_path)
    Run(tmp_path / "begun").write("recipe.yaml", "name: begun\nbase: {model: someone/base}\n")
    (tmp_path / "no run").mkdir()
    (tmp_path / ".hidden.1.tmp").mkdir()
    (tmp_path / "compare-a-b.html").write_text("")
    assert states(tmp_path) == {
        "begun": ("begun", ""),
        "prepare": ("prepared", ""),
        "half": ("stopped", "at step 7 of 54; resumes at step 5"),
        "train": ("trained", ""),
        "evaluate": ("evaluated", ""),
        "report": ("reported", ""),
    }


def test_a_line_tells_the_runs_figures(tmp_path: Path) -> None:
    run = finish(make_recipe("one"), tmp_path / "one")
    (row,) = list_runs(tmp_path)
    loss = run.read_json("scores.json")["sections"]["all"]["loss"]
    assert row.scores == (loss["base"], loss["tuned"]) and row.interval == (loss["low"], loss["high"])
    assert (row.base, row.rows, row.steps) == ("someone/base", 1000, (12, 12))
    assert (row.primary, row.verdict) == ("loss", "better")
    assert row.bytes == sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    cells = row.cells()
    assert cells["base → tuned"].startswith("2.000 → 0.9") and cells["verdict"] == "better"
    assert (cells["rows"], cells["steps"], cells["size"]) == ("1,000", "12", "57 KiB")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", cells["date"])
    assert RunRow("x", "stopped", steps=(7, 54)).cells()["steps"] == "7/54"


def test_the_newest_stands_first(tmp_path: Path) -> None:
    for age, name in enumerate(("b", "c", "a")):
        for file in finish(make_recipe(name), tmp_path / name).path.rglob("*"):
            os.utime(file, (1_700_000_000 - 1000 * age,) * 2)
    assert [row.name for row in list_runs(tmp_path)] == ["b", "c", "a"]
    assert list_runs(tmp_path)[0].date == 1_700_000_000


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("recipe.yaml", None, "there is no recipe.yaml"),
        ("recipe.yaml", "a: [", "is not YAML"),
        ("recipe.yaml", b"\xff\xfe\x00", "UnicodeDecodeError"),
        ("audit.json", "{", "audit.json is damaged"),
        ("scores.json", None, "scores.json is missing"),
        ("scores.json", "[]", "scores.json was edited or is damaged"),
        ("adapter/adapter_config.json", None, ""),
        (".fingerprints/train.json", "{", "the fingerprint of train cannot be read"),
        (".fingerprints/evaluate.json", '{"inputs": {}, "files": []}', ""),
    ],
)
def test_a_damaged_run_has_a_line_and_harms_no_other(
    tmp_path: Path, file: str, text: str | bytes | None, why: str
) -> None:
    finish(make_recipe("whole"), tmp_path / "whole")
    run = finish(make_recipe("bad"), tmp_path / "bad")
    if text is None:
        (run / file).unlink()
    else:
        run.write(file, text)
    state_of = states(tmp_path)
    assert state_of["whole"] == ("reported", "")
    if why:
        assert state_of["bad"][0] == "damaged" and why in state_of["bad"][1]
    else:
        assert "bad" in state_of  # what cannot be told without hashing weights, or says little, still has its line


def test_a_product_older_than_its_source_is_said(tmp_path: Path) -> None:
    run = finish(make_recipe("one"), tmp_path / "one")
    run.write("adapter/adapter_config.json", '{"again": 1}')
    run.write_fingerprints("train", {"data": run.fingerprint("prepare")}, ["adapter"], summary={"steps": 3})
    assert states(tmp_path)["one"] == ("reported", "evaluated before it was last trained")


def test_a_process_that_lives_is_named(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    run.write(".lock.owner", f"pid {os.getpid()}")
    assert f"process {os.getpid()} is still running" in states(tmp_path)["half"][1]
    os.utime(run / ".lock.owner", (1_000_000_000,) * 2)  # before this process began: another had its number
    assert "is still running" not in states(tmp_path)["half"][1]


def test_listing_writes_nothing_and_loads_no_torch(tmp_path: Path) -> None:
    finish(make_recipe("one"), tmp_path / "one")
    stopped(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    code = (
        "import sys, types, tunesmith\n"
        "door = types.ModuleType('tunesmith.commands')\n"  # the other verbs' own imports are not this one's
        "door.__path__ = [tunesmith.__path__[0] + '/commands']\n"
        "sys.modules['tunesmith.commands'] = door\n"
        "from pathlib import Path\n"
        "from tunesmith.commands.runs import list_runs\n"
        "print(len(list_runs(Path(sys.argv[1]))), *sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    count, *loaded = process.stdout.split()
    assert count == "2"
    assert not {"torch", "transformers", "scipy", "matplotlib", "jinja2"} & set(loaded)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_runs_are_found_by_name_or_folder_and_named_once(tmp_path: Path) -> None:
    one = finish(make_recipe("one"), tmp_path / "runs/one")
    finish(make_recipe("two"), tmp_path / "runs/two", gain=0.4)
    log_lines: list[str] = []
    comparison = compare_runs([str(one.path), "two"], tmp_path / "runs", log_lines.append)
    assert comparison.page == tmp_path / "runs/compare-one-two.html"
    assert comparison.page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert log_lines[0].startswith("compare: two is worse than one: loss") and str(comparison.page) in log_lines[-1]
    beside = compare_runs(["one", "two"], tmp_path / "runs", out=tmp_path / "out")
    assert beside.page == tmp_path / "out/compare-one-two.html" and beside.page.is_file()
    assert not list(tmp_path.rglob("*.tmp"))
    for names, why in (
        (["one"], "needs two or more different runs"),
        (["one", str(one.path)], "needs two or more different runs"),
        (["one", "three"], "there is no run 'three'. List the runs: tunesmith runs"),
    ):
        with pytest.raises(RunError, match=re.escape(why)):
            compare_runs(names, tmp_path / "runs")
    with pytest.raises(RunError, match="this folder does not exist"):
        list_runs(tmp_path / "nowhere")


def test_a_card_is_written_again_when_its_facts_change(tmp_path: Path) -> None:
    recipe = make_recipe("one", base__model=str(tmp_path / "gone"))
    run = finish(recipe, tmp_path / "one")
    log_lines: list[str] = []
    path = card(recipe, run, log_lines.append)
    assert path == run / "card.md" and "# one\n" in path.read_text(encoding="utf-8")
    assert "the card does not show the chat template" in log_lines[0]  # the base is gone: the card says so, too
    log_lines.clear()
    card(recipe, run, log_lines.append)
    assert log_lines == ["card: up to date"]
    card(recipe, run, log_lines.append, license="mit")
    assert log_lines[1] == "card: running again, because license changed"
    assert "license: mit" in path.read_text(encoding="utf-8")
    run.write_fingerprints(
        "train", {"data": run.fingerprint("prepare")}, ["adapter", "plan.json"], summary={"steps": 3}
    )
    with pytest.raises(RunError, match="evaluated before it was last trained"):
        card(recipe, run)
    with pytest.raises(RunError, match="evaluate is not finished"):
        card(recipe, finish(recipe, tmp_path / "two", until="train"))


def test_trained_runs_are_listed_compared_and_their_card_answers(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    def make(**changes: object) -> tuple[Recipe, Run]:
        recipe = read_recipe(str(recipe_file(**changes)))
        run = tunesmith.open_run(recipe, tmp_path / "runs")
        for verb in (tunesmith.prepare, tunesmith.train, tunesmith.evaluate, tunesmith.report):
            verb(recipe, run)
        return recipe, run

    recipe, run = make(base__bits=16)
    make(name="less", base__bits=16, train__epochs=1)
    assert [(row.name, row.state) for row in list_runs(tmp_path / "runs")] == [
        ("less", "reported"),
        ("toy", "reported"),
    ]
    comparison = compare_runs(["toy", "less"], tmp_path / "runs")
    own_loss = run.read_json("scores.json")["sections"]["all"]["loss"]
    loss = comparison.sections["all"]["loss"]
    assert (loss["base"], loss["runs"]["toy"]) == pytest.approx((own_loss["base"], own_loss["tuned"]))
    assert loss["runs"]["toy"] < loss["runs"]["less"] < loss["base"]  # one epoch learns less than two
    assert comparison.recipe == [("train.epochs", ["2", "1"])]

    text = card(recipe, run).read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "how to do" not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    first_row = next(evaluated_row for part in evaluation_rows(recipe, run).values() for evaluated_row in part)
    for placeholder, real in (
        ("FOLDER-OF-THE-BASE-MODEL", recipe.base.model),
        ("THIS-REPOSITORY", str(run / "adapter")),
        ("Your question", first_row.question),
    ):
        assert placeholder in code
        code = code.replace(placeholder, real)
    here: dict[str, object] = {}
    exec(code.replace("print(", "said = ("), here)
    base, tuned = (
        json.loads((run / f"replies/{which}.jsonl").read_text(encoding="utf-8").split("\n")[0])["text"]
        for which in ("base", "tuned")
    )
    assert str(here["said"]).strip() == tuned != base
