"""Rows of another table in a run: prepared, counted on every page, packed, and known to `check`; on a tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from finished_runs import finish, make_recipe
from strict_pages import Page
from tunesmith.commands.curve import curve, nested_shares
from tunesmith.commands.shared import hash_data_settings, held_out, load_weights
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import read_rows
from tunesmith.data.mix_in import is_mixed_in
from tunesmith.errors import DataError, MultipleErrors
from tunesmith.runs.run import Run

Write = Callable[..., Path]
THINGS = ("apples", "bridges", "clocks", "deserts", "engines", "forests", "glaciers", "harbors", "islands", "jungles")


@pytest.fixture
def talk_file(tmp_path: Path) -> Path:
    """Conversations; among them a prompt of the toy rows, one on general abilities, a long one and one that is none."""
    prompts = [f"tell me about {thing}" for thing in THINGS]
    prompts += [f"how to do {topic} way {way}?" for topic in range(6) for way in range(6)]
    prompts += ["Which city is the capital of Portugal?"]
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"Gladly: {text}"}]}
        for text in prompts
    ]
    rows[0]["messages"].insert(0, {"role": "system", "content": "You know a lot."})
    rows[1]["messages"][1]["content"] = "word " * 80
    rows.append({"messages": "nothing"})
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def mixed_recipe(recipe_file: Write, talk_file: Path) -> Write:
    """mixed_recipe(**changes) -> a recipe whose training rows get up to 30 rows of the conversations."""

    def write(**changes: Any) -> Path:
        mix_in = {"source": talk_file.name, "rows": 30, **changes.pop("mix_in", {})}
        return recipe_file(**{"prompt__system": "Answer in steps.", "data__mix_in": mix_in, **changes})

    return write


def test_rows_are_mixed_into_the_training_and_nowhere_else(mixed_recipe: Write, tmp_path: Path) -> None:
    recipe = read_recipe(str(mixed_recipe()))
    plain = read_recipe(str(mixed_recipe(mix_in={"source": None})))
    bare = tunesmith.open_run(plain, tmp_path / "bare")
    tunesmith.prepare(plain, bare)
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    lines: list[str] = []
    tunesmith.prepare(recipe, run, lines.append)

    rows = {part: read_rows(run / f"data/{part}.jsonl") for part in ("train", "valid", "test", "unseen")}
    mixed = [row for row in rows["train"] if is_mixed_in(row)]
    own = [row for row in rows["train"] if not is_mixed_in(row)]
    assert own == read_rows(bare / "data/train.jsonl")  # the split is the same, and so are the held-out rows
    assert all(rows[part] == read_rows(bare / f"data/{part}.jsonl") for part in ("valid", "test", "unseen"))
    assert {row.turns[0].text for row in own} == {"Answer in steps."}
    systems = [turn.text for row in mixed for turn in row.turns if turn.role == "system"]
    assert set(systems) <= {"You know a lot."} and {row.group for row in mixed} == {"mixed in"}
    asked = {row.question for part in ("valid", "test", "unseen") for row in rows[part]}
    assert not asked & {row.question for row in mixed}
    assert "Which city is the capital of Portugal?" not in {row.question for row in mixed}

    account, former = run.read_json("audit.json"), bare.read_json("audit.json")
    counts = account["mixed_in"]
    assert account["parts"] == {**former["parts"], "train": len(own) + len(mixed)}
    assert counts["read"] == 48 == counts["drawn"] + counts["not_drawn"] + sum(counts["left_out"].values())
    assert counts["drawn"] == len(mixed) and counts["left_out"]["unreadable"] == 1
    assert "mixed_in" not in former and (account["read"], account["dropped"]) == (former["read"], former["dropped"])
    assert any(f"{len(rows['train'])} train ({len(mixed)} mixed in)" in line for line in lines)
    assert any(f"{len(mixed)} of the {len(rows['train'])} training rows are mixed in" in line for line in lines)
    assert any(line.startswith("mix_in: dropped, not conversations: 1 of 48 rows") for line in lines)
    page = Page((run / "audit.html").read_text()).text
    assert (
        f"{len(mixed)} of the {len(rows['train'])} training rows are mixed in (data.mix_in); 48 rows were read" in page
    )
    assert f"+{len(mixed)} mixed in from another table" in page
    assert "mixed in" not in Page((bare / "audit.html").read_text()).text

    again = tunesmith.open_run(recipe, tmp_path / "again")
    tunesmith.prepare(recipe, again)
    assert (again / "data/train.jsonl").read_bytes() == (run / "data/train.jsonl").read_bytes()
    share = nested_shares(rows["train"], [50], recipe.seed)[50]
    assert 0 < sum(map(is_mixed_in, share)) < len(share)  # a share draws from all training rows


def test_fewer_usable_rows_than_asked_are_used_and_told(mixed_recipe: Write, tmp_path: Path) -> None:
    recipe = read_recipe(str(mixed_recipe(mix_in={"rows": 500})))
    (warning,) = [text for text in tunesmith.check(recipe).warnings if "mix_in" in text]
    assert re.search(r"asks for 500 rows, but only \d+ can be used\.$", warning)
    lines: list[str] = []
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run, lines.append)
    counts = run.read_json("audit.json")["mixed_in"]
    reasons = counts["left_out"]
    assert counts["not_drawn"] == 0 and reasons["ability_prompt"] == 1 and reasons["too_long"] == 1
    assert reasons["held_out_prompt"] >= len({row.question for row in held_out(recipe, run)["test"]})
    told = f"asks for 500 rows, but only {counts['drawn']} can be used."
    assert any(line.endswith(told) for line in lines) and told in Page((run / "audit.html").read_text()).text


def test_the_rows_are_prepared_again_if_the_other_table_changes(
    mixed_recipe: Write, tmp_path: Path, talk_file: Path
) -> None:
    recipe = read_recipe(str(mixed_recipe()))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    lines: list[str] = []
    tunesmith.prepare(recipe, run, lines.append)
    assert lines == ["prepare: up to date"]
    first = hash_data_settings(recipe)
    assert hash_data_settings(read_recipe(str(mixed_recipe(mix_in={"rows": 20})))) != first
    moved = talk_file.rename(tmp_path / "moved.jsonl")
    renamed = read_recipe(str(mixed_recipe(mix_in={"source": moved.name})))
    assert hash_data_settings(renamed) == first
    tunesmith.prepare(renamed, run, lines.append)
    assert lines[1:] == ["prepare: up to date"]
    moved.write_text(moved.read_text().replace("Gladly", "Sure"))
    tunesmith.prepare(renamed, run, lines.append)
    assert "prepare: running again, because mixed-in rows changed" in lines


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"source": "gone.jsonl"}, r"gone\.jsonl: no such file\. Set data\.mix_in\.source to a file"),
        ({"source": "bad.jsonl"}, r"bad\.jsonl"),
        ({"format": {"columns": {"prompt": "ask", "answer": "reply"}}}, r"talk\.jsonl line 1"),
    ],
)
def test_check_names_what_cannot_be_read_before_any_work(
    mixed_recipe: Write, tmp_path: Path, changes: dict[str, Any], error: str
) -> None:
    (tmp_path / "bad.jsonl").write_text("no json\n")
    recipe = read_recipe(str(mixed_recipe(mix_in=changes)))
    with pytest.raises(MultipleErrors, match=error):
        tunesmith.check(recipe)
    with pytest.raises((DataError, MultipleErrors), match=error):
        tunesmith.prepare(recipe, tunesmith.open_run(recipe, tmp_path / "runs"))


def test_pseudonyms_replace_personal_data_of_mixed_in_rows(
    mixed_recipe: Write, tmp_path: Path, talk_file: Path
) -> None:
    turns = [{"role": "user", "content": "who writes to me?"}, {"role": "assistant", "content": "jo@example.org does."}]
    talk_file.write_text(json.dumps({"messages": turns}) + "\n")
    recipe = read_recipe(str(mixed_recipe(data__pseudonyms="map.json")))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    assert "jo@example.org" not in (run / "data/train.jsonl").read_text()
    assert run.read_json("audit.json")["mixed_in"]["pseudonyms"] == 1


def test_a_packed_run_contains_the_other_table(tmp_path: Path) -> None:
    for name in ("rows", "talk"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}", "completion": "b"}}\n')
    sources = {"source": str(tmp_path / "rows.jsonl"), "mix_in": {"source": [str(tmp_path / "talk.jsonl"), "hub:a/b"]}}
    recipe = make_recipe("toy", data=sources)
    run = finish(recipe, tmp_path / "runs/toy")
    folder = tunesmith.unpack(tunesmith.pack(run, tmp_path / "toy.tar"), tmp_path / "new")
    (tmp_path / "talk.jsonl").unlink()
    plain = read_recipe(str(folder))
    assert plain.data.mix_in.source == ["inputs/talk.jsonl", "hub:a/b"]
    assert plain.path("inputs/talk.jsonl").read_text().startswith('{"prompt": "talk"')
    with pytest.raises(DataError, match=r"Put it where data\.mix_in\.source says"):
        tunesmith.pack(run, tmp_path / "again.tar")
    tunesmith.pack(run, tmp_path / "without.tar", without=["sources"])
    bare = tunesmith.unpack(tmp_path / "without.tar", tmp_path / "bare")
    assert not (bare / "inputs").exists()


def test_rows_in_memory_can_be_mixed_in(tmp_path: Path) -> None:
    talk = [{"prompt": "hello", "completion": "hi"}]
    plain = {"name": "toy", "base": {"model": "a/b"}, "data": {"source": talk, "mix_in": {"source": talk}}}
    recipe = tunesmith.read_recipe(plain, runs=tmp_path)
    assert recipe.data.mix_in.source == recipe.data.source and Path(str(recipe.data.source)).is_file()


def test_check_warns_if_an_earlier_evaluation_left_no_room_for_a_gain(recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file(evaluate__primary="stops", evaluate__rows=30)
    recipe = read_recipe(str(path))
    assert not [text for text in tunesmith.check(recipe, runs=tmp_path / "runs").warnings if "evaluated" in text]
    assert not (tmp_path / "runs").exists()  # check writes nothing
    fingerprint = load_weights(recipe, print).fingerprint
    run = finish(make_recipe("toy"), tmp_path / "runs/toy", weights=fingerprint)
    scores = run.read_json("scores.json")
    section = next(iter(scores["sections"].values()))
    section["stops"] = {**section["loss"], "base": 0.97, "better": "higher", "limits": [0.0, 1.0]}
    run.write_json("scores.json", scores)
    (warning,) = [text for text in tunesmith.check(recipe, runs=tmp_path / "runs").warnings if "evaluated" in text]
    assert warning.startswith(f"the run {run.path} was evaluated before. The base model's stops is already 0.97")
    other = Run(finish(make_recipe("toy"), tmp_path / "other/toy").path)  # of another base
    other.write_json("scores.json", scores)
    assert not [text for text in tunesmith.check(recipe, runs=tmp_path / "other").warnings if "evaluated" in text]


def test_a_curve_counts_mixed_in_rows_in_every_share_and_beside_the_raw_rows(
    mixed_recipe: Write, tmp_path: Path
) -> None:
    quick = {
        "evaluate__primary": "self_dialogue",
        "train__epochs": 1, "evaluate__metrics": ["loss", "self_dialogue"], "evaluate__max_new_tokens": 3,
        "evaluate__retention": 0, "data__checks": ["empty", "duplicate", "leak"],
    }  # fmt: skip
    recipe = read_recipe(str(mixed_recipe(mix_in={"rows": 12}, **quick)))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    curve(recipe, run, shares=(50, 100), raw=True)
    whole = [row for row in read_rows(run / "data/train.jsonl") if is_mixed_in(row)]
    assert len(whole) == 12
    for name in (".", "curve/50", "curve/raw"):
        rows, account = read_rows(run / name / "data/train.jsonl"), Run(run / name).read_json("audit.json")
        mixed = [row for row in rows if is_mixed_in(row)]
        assert account["parts"]["train"] == len(rows) and account["mixed_in"]["drawn"] == len(mixed) > 0
        own_parts = sum(account["parts"].values()) - len(mixed)
        assert account["read"] == own_parts + sum(account["dropped"].values()) + account["not_drawn"]
        counts = account["mixed_in"]
        assert counts["read"] == counts["drawn"] + counts["not_drawn"] + sum(counts["left_out"].values())
    assert [row for row in read_rows(run / "curve/raw/data/train.jsonl") if is_mixed_in(row)] == whole
    (note,) = run.read_json("scores.json")["notes"]  # the untrained model writes nothing of the kind
    assert note.startswith("The base model's self dialogue is already 0.00 (at least 0 is possible), so tuning cannot")
    (warning,) = [text for text in tunesmith.check(recipe, runs=tmp_path / "runs").warnings if "evaluated" in text]
    assert warning.endswith(note)
