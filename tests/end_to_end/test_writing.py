"""`new` and `synthesize` as a user calls them, and a row that no model can be trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

from tunesmith.config.recipe import read_recipe

Call = Callable[..., tuple[int, str, str]]


def test_new_writes_a_recipe_that_reads_and_overwrites_nothing(call: Call, tmp_path: Path) -> None:
    with (tmp_path / "help.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["topic", "question", "answer"])
        table.writerows(
            [f"t{n % 5}", f"How do I do thing {n}?", f"Open part {n}, then wait for it to end."] for n in range(60)
        )
    code, out, err = call("new", "helper", "--from", "help.csv")
    assert (code, err) == (0, "")
    assert "from 60 rows" in out and "tunesmith check helper.yaml" in out
    recipe = read_recipe("helper.yaml")
    assert recipe.data.format.name == "columns"
    assert recipe.data.format.options == {"prompt": "question", "answer": "answer", "group": "topic"}
    before = Path("helper.yaml").read_text()
    code, _, err = call("new", "helper", "--from", "help.csv")
    assert code == 5 and "not overwritten" in err
    assert Path("helper.yaml").read_text() == before
    code, _, err = call("new", "other", "--from", "missing.csv")
    assert code == 3 and "no such file" in err and not Path("other.yaml").exists()


def test_synthesize_writes_a_shipped_plans_rows_once(call: Call, tmp_path: Path) -> None:
    code, out, err = call("synthesize", "shopsphere", "--into", "more")
    assert (code, err) == (0, "")
    (file,) = (tmp_path / "more").glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert f"{len(rows)} of {len(rows)} rows" in out and len(rows) > 100
    assert {"prompt", "completion", "topic", "origin"} <= rows[0].keys()
    again = call("synthesize", "shopsphere", "--into", "more")
    assert again[0] == 0 and [json.loads(line) for line in file.read_text().splitlines()] == rows
    code, _, err = call("synthesize", "nothing-like-it")
    assert code == 2 and "shopsphere" in err


def test_a_row_that_holds_the_models_special_token(
    recipe_file: Callable[..., Path], rows_file: Path, call: Call
) -> None:
    """Without the check it is an error that names the row and the check; with it the row is quarantined."""
    with rows_file.open("a") as file:
        file.write(json.dumps({"topic": "t1", "prompt": "how odd?", "completion": "1. Go.<|im_end|>\n2. Stop."}) + "\n")
    path = recipe_file()
    code, _, err = call("prepare", str(path))
    assert code == 3
    assert "rows.jsonl line 37" in err and "special token '<|im_end|>'" in err and "special_token" in err
    code, out, _ = call("prepare", str(path), "--set", "data.checks=[empty, special_token]")
    assert code == 0 and "0 dropped, 1 quarantined" in out
    aside = Path("runs/toy/data/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["origin"]["line"] for line in aside] == [37]
