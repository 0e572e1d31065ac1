"""Entries of other packages: the example package is installed as its README says and used in a whole run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "polite"
KINDS = ["refund", "parcel", "invoice", "account"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package; the environment of these tests stays as it is."""
    folder = tmp_path_factory.mktemp("site")
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "polite")  # pip builds beside it
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tiny: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a recipe over 40 tickets, 4 of them shouted."""
    with (tmp_path / "tickets.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["subject", "request", "reply"])
        for number in range(40):
            reply = f"Thanks, the {KINDS[number % 4]} of order {number} is on its way."
            request = f"Where is the {KINDS[number % 4]} of order {number}?"
            rows.writerow([f"Order {number}", request, reply.upper() if number % 10 == 0 else reply])

    def write(**sections: Any) -> Path:
        plain: dict[str, Any] = {
            "name": "tickets",
            "base": {"model": str(tiny("llama"))},
            "data": {
                "source": "tickets.csv",
                "format": {"ticket": {"question": "request"}},
                "checks": ["shouting"],
                "split": {"by": "rows", "test": 0.2, "valid": 0.1, "together": None},
            },
            "adapter": {"rank": 2},
            "train": {
                "epochs": 1,
                "batch": "8 rows",
                "learning_rate": 1e-2,
                "precision": "float32",
                "optimizer": "sgd",
            },
            "evaluate": {
                "metrics": ["loss", "politeness", {"polite.metrics:politeness": {"words": ["way"]}}],
                "primary": "loss",
                "max_new_tokens": 8,
            },
            "export": {"files": ["adapter_zip"]},
        }
        for section, changes in sections.items():
            plain[section] = {**plain[section], **changes}
        (tmp_path / "tickets.yaml").write_text(yaml.safe_dump(plain))
        return tmp_path / "tickets.yaml"

    return write


def tunesmith(*words: str, path: Path | None) -> subprocess.CompletedProcess[str]:
    env = (
        {**os.environ, "PYTHONPATH": str(path)} if path else {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    )
    return subprocess.run([sys.executable, "-m", "tunesmith", *words], env=env, capture_output=True, text=True)


def test_a_run_with_an_entry_of_every_kind(recipe: Callable[..., Path], site: Path, tmp_path: Path) -> None:
    done = tunesmith("run", str(recipe()), "--runs", str(tmp_path / "runs"), path=site)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tickets"
    audit = json.loads((run / "audit.json").read_text())
    assert audit["checks"]["shouting"]["rows"] == 4
    assert "The model learns to shout" in (run / "audit.html").read_text()
    texts = [(run / f"data/{part}.jsonl").read_text() for part in ("train", "valid", "test")]
    prepared = [json.loads(line) for text in texts for line in text.splitlines()]
    assert len(prepared) == 36
    assert prepared[0]["messages"][0]["content"].startswith("Order ")
    scores = json.loads((run / "scores.json").read_text())
    assert "politeness" in json.dumps(scores)
    (file,) = json.loads((run / "export.json").read_text())["files"]
    assert (file["name"], file["verified"]) == ("adapter.zip", True)
    again = tunesmith("export", str(run), path=site)
    assert again.returncode == 0, again.stderr


def test_without_the_package_the_names_are_unknown(recipe: Callable[..., Path]) -> None:
    done = tunesmith("check", str(recipe()), path=None)
    assert done.returncode == 2
    for name in ("ticket", "shouting", "sgd", "politeness", "adapter_zip"):
        assert f"unknown name '{name}'" in done.stderr
    assert "there is no module 'polite.metrics' for 'polite.metrics:politeness'. Install the package" in done.stderr


@pytest.mark.parametrize(
    ("code", "metric", "expected"),
    [
        ("def m(view): return 1 / 0", "own:m", "'own:m' failed: ZeroDivisionError: division by zero in "),
        ("def m(view): return [0.5]", "own:m", "'own:m' must return a list of Score, not of float"),
        ("def m(view, words): return []", "own:m", "'own:m' takes (view, words), but is called with (view)"),
        ("def m(view, *, words: list): return []", "own:m", "option 'words' is missing"),
        ("def m(view): return []", "own:n", "own defines no function 'n'. own defines: m."),
        ("m = 5", "own:m", "own defines no function 'm'"),
        ("import nothing_like_it", "own:m", "'own:m' cannot be imported: ModuleNotFoundError: No module named"),
        ("1 / 0", "own:m", "'own:m' cannot be imported: ZeroDivisionError: division by zero in "),
        ("", "builtins:print", "builtins defines no function 'print'"),  # only functions written in Python
    ],
)
def test_wrong_entries_are_named(
    code: str, metric: str, expected: str, recipe_file: Callable[..., Path], tmp_path: Path, site: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tunesmith.config.recipe import read_recipe
    from tunesmith.data.conversation import Conversation, Origin, Turn
    from tunesmith.errors import TunesmithError
    from tunesmith.evaluation.comparison import RowReply, score_row
    from tunesmith.generation.text_model import Reply

    (tmp_path / "own.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    row = Conversation("1", (Turn("user", "a"), Turn("assistant", "b")), Origin("rows.csv", 2))
    with pytest.raises(TunesmithError) as caught:
        loaded = read_recipe(str(recipe_file(evaluate__metrics=["loss", metric])))
        score_row(row, RowReply("1", "test", Reply("b", True, 1), 0.5), loaded.evaluate.metrics)
    assert expected in str(caught.value)


@pytest.mark.slow
def test_a_failing_target_is_named_and_the_others_are_written(
    recipe: Callable[..., Path], site: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "broken.py").write_text("def write(job):\n    raise OSError('no such printer')\n")
    path = recipe(export={"files": ["broken:write", "adapter_zip"]})
    done = tunesmith("run", str(path), "--runs", str(tmp_path / "runs"), path=Path(f"{site}{os.pathsep}{tmp_path}/own"))
    assert done.returncode == 10, done.stderr
    assert "broken:write: 'broken:write' failed: OSError: no such printer in " in done.stderr
    assert "Traceback" not in done.stderr
    (file,) = json.loads((tmp_path / "runs/tickets/export.json").read_text())["files"]
    assert (file["name"], file["verified"]) == ("adapter.zip", True)
