"""A learning curve: how rows are drawn, and one on a tiny model: stopped, gone on with, asked for again."""

from __future__ import annotations

import datetime
import json
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

import tunesmith
from handmade import row
from strict_pages import Page
from tiny import toy_rows
from tunesmith.commands.curve import curve, nested_shares, parse_shares
from tunesmith.commands.shared import SPLIT_PARTS, open_run
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import Conversation, read_rows
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.evaluation.retention import retention_rows
from tunesmith.reporting.runs_page import compare_run_folders
from tunesmith.runs.run import Run, hash_path
from tunesmith.training.job import read_journal

QUICK: dict[str, Any] = {
    "train__epochs": 1,
    "train__checkpoint_every": 1,
    "evaluate__metrics": ["loss", "stops"],
    "evaluate__max_new_tokens": 3,
    "data__checks": ["empty", "duplicate", "leak"],
    "data__repair": True,
    "evaluate__robustness": ["upper"],
    "evaluate__robustness_rows": 2,
}
DATED = (
    "{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %B %Y') + '.<|im_end|>\\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
POINTS = (".", "curve/50", "curve/raw")


@pytest.fixture
def dirty(rows_file: Path) -> Path:
    """The toy rows; two of them once more, one that only repair makes readable, and one that is no row."""
    rows = [*toy_rows(), *toy_rows()[:2]]
    rows.append({"topic": "t1", "prompt": "where is the cafÃ© list kept?", "completion": "1. Open the cafÃ©.  "})
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"topic": "t1"}\n')
    return rows_file


def many(sizes: dict[str, int]) -> list[Conversation]:
    members = [(group, n) for group, size in sizes.items() for n in range(size)]
    return [row(place, f"{group} {n}?", group=group) for place, (group, n) in enumerate(members)]


@pytest.mark.parametrize("sizes", [{"": 1000}, {f"t{n}": 10 for n in range(40)}, {"a": 300, "b": 77, "c": 9, "d": 1}])
def test_shares_are_nested_of_the_asked_size_and_even_over_groups(sizes: dict[str, int]) -> None:
    rows = many(sizes)
    shares = (5, 10, 25, 50, 75, 100)
    rows_of_share = nested_shares(rows, shares[::-1], 3)
    assert [*rows_of_share] == [*shares]
    inside: set[str] = set()
    for share, members in rows_of_share.items():
        ids = [row.id for row in members]
        assert ids == [row.id for row in rows if row.id in set(ids)]  # in the order they came
        assert len(ids) == (share * len(rows) + 50) // 100
        assert inside <= set(ids)
        inside = set(ids)
        counts = Counter(row.group for row in members)
        assert all(abs(counts[group] - share * size / 100) <= 1.5 for group, size in sizes.items())


def test_many_small_groups_beside_a_large_one_are_drawn_alike() -> None:
    """Were groups to begin at random, the 1,000 singles would come to half by chance alone: 500 +- 16."""
    half = nested_shares(many({"large": 1000, **{f"s{n}": 1 for n in range(1000)}}), [50], 7)[50]
    assert abs(sum(row.group == "large" for row in half) - 500) <= 2


def test_the_draw_is_the_seeds_and_the_contents_not_the_orders() -> None:
    rows = many({f"t{n}": 10 for n in range(20)})
    ids = [
        {row.id for row in nested_shares(ordered_rows, [25], seed)[25]}
        for ordered_rows, seed in ((rows, 3), (rows[::-1], 3), (rows, 4))
    ]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0] & ids[2]) < 30  # of 50, as many as chance lets two seeds share


def started(run: Run) -> int:
    return sum(event["kind"] in ("start", "resume") for event in read_journal(run / "journal.jsonl"))


def test_a_curve_is_stopped_goes_on_and_trains_nothing_twice(
    recipe_file: Callable[..., Path], dirty: Path, tmp_path: Path
) -> None:
    settings = {**QUICK, "data__checks": ["broken", *QUICK["data__checks"]], "evaluate__retention": 15}
    recipe = read_recipe(str(recipe_file(**settings)))
    run = open_run(recipe, tmp_path / "runs")
    runs = {name: Run(run / name) for name in POINTS}
    events: list[int] = []

    def stop(event: dict[str, Any]) -> None:
        if (run / "curve/50/journal.jsonl").exists() and event["kind"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curve(recipe, run, watch=stop, shares=(50, 100), raw=True)
    first = hash_path(run / "adapter")
    assert runs["."].read_fingerprints("evaluate") and runs["curve/50"].read_fingerprints("train") is None

    answered: Counter[str] = Counter()
    log_lines: list[str] = []
    curve(
        recipe, run, log_lines.append, lambda event: events.append(event["step"]),
        lambda which, *_: answered.update([which]),
        shares=(100, 50), raw=True,
    )  # fmt: skip
    assert hash_path(run / "adapter") == first and "100 %: train: up to date" in " ".join(log_lines)
    assert [e["step"] for e in read_journal(run / "curve/50/journal.jsonl") if e["kind"] == "resume"] == [1]
    evaluated = run.read_json("curve.json")["asked"]
    assert answered == {
        "tuned": 2 * evaluated,
        "tuned-perturbed": 2 * 2,
        "tuned-abilities": 2 * len(list(retention_rows(recipe.evaluate.retention, recipe.seed))),
    }  # the base answered in the first call, for all points
    replies = {name: (point_folder / "replies/base.jsonl").read_text() for name, point_folder in runs.items()}
    texts = {tuple(json.loads(line)["text"] for line in text.splitlines()) for text in replies.values()}
    assert len(texts) == 1

    whole = {part: read_rows(run / f"data/{part}.jsonl") for part in SPLIT_PARTS}
    half = read_rows(run / "curve/50/data/train.jsonl")
    assert len(half) == (len(whole["train"]) + 1) // 2 and {r.id for r in half} < {r.id for r in whole["train"]}
    for name in POINTS[1:]:
        assert all(
            (run / name / f"data/{p}.jsonl").read_text() == (run / f"data/{p}.jsonl").read_text()
            for p in SPLIT_PARTS[1:]
        )
    raw = read_rows(run / "curve/raw/data/train.jsonl")
    held_out = {row.origin for part in SPLIT_PARTS[1:] for row in whole[part]}
    assert not held_out & {row.origin for row in raw}
    prompts = {row.question for part in SPLIT_PARTS[1:] for row in whole[part]}
    assert not prompts & {row.question for row in raw}
    assert any("Ã©" in row.question for row in raw) and not any("Ã©" in row.question for row in whole["train"])

    plain = run.read_json("curve.json")
    assert [point["name"] for point in plain["points"]] == ["50", "100", "raw"]
    counts = plain["raw"]
    assert counts["read"] == 40 == counts["rows"] + sum(v for k, v in counts.items() if k not in ("read", "rows"))
    assert (counts["unreadable"], counts["held_out"]) == (1, len(held_out))
    assert counts["leaking"] + len(raw) - len(whole["train"]) == 2 - counts["unseen_group"]  # the two that stand twice
    for point in plain["points"]:
        point_run = runs[point["run"]]
        scores = point_run.read_json("scores.json")
        assert point["rows"] == len(read_rows(point_run / "data/train.jsonl"))
        record = point_run.read_fingerprints("train")
        assert record is not None
        assert point["steps"] == record["summary"]["steps"] == -(-point["rows"] // 4)
        assert point["scores"]["loss"]["value"] == pytest.approx(scores["sections"]["all"]["loss"]["tuned"])
        assert point["base"]["loss"]["base"] == pytest.approx(plain["points"][0]["base"]["loss"]["base"])
    step = plain["points"][0]["next"]
    assert step["against"] == "100" and step["scores"]["loss"]["difference"] == pytest.approx(
        plain["points"][1]["scores"]["loss"]["value"] - plain["points"][0]["scores"]["loss"]["value"]
    )
    assert plain["points"][1]["next"] is None and plain["points"][2]["next"]["against"] == "100"
    assert plain["sentence"] in Page((run / "curve.html").read_text()).text

    for part in runs.values():
        account = part.read_json("audit.json")
        row_counts = (*account["parts"].values(), *account["dropped"].values(), account["not_drawn"])
        assert account["read"] == sum(row_counts) and min(row_counts) >= 0
    assert open_run(read_recipe(str(run / "curve/50")), tmp_path).path == run / "curve/50"  # a run like any other
    beside = compare_run_folders([run / "curve/50", run.path]).sections["all"]["loss"]["against"]["toy"]
    assert (beside["low"], beside["high"]) == (step["scores"]["loss"]["low"], step["scores"]["loss"]["high"])

    before = {
        name: (started(point_folder), hash_path(point_folder / ".fingerprints")) for name, point_folder in runs.items()
    }
    events.clear()
    answered.clear()
    curve(
        recipe,
        run,
        watch=lambda event: events.append(1),
        on_progress=lambda *_: answered.update(["x"]),
        shares=(50, 100),
        raw=True,
    )
    assert {
        name: (started(point_folder), hash_path(point_folder / ".fingerprints")) for name, point_folder in runs.items()
    } == before
    assert not events and not answered

    changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 3e-3})})
    with pytest.raises(RunError, match=r"trained with other settings or data: train\.learning_rate changed.*--again"):
        curve(changed, run, shares=(50, 100))
    curve(changed, run, shares=(50, 100), again=True)
    assert hash_path(run / "adapter") != first and (run / "curve/50/old").is_dir()
    assert [point["name"] for point in run.read_json("curve.json")["points"]] == ["50", "100"]

    with Run(run / "curve/50").lock(), pytest.raises(RunError, match="is using this run"):
        curve(changed, run, shares=(50, 100))


def test_rows_as_they_came_are_counted_whole_and_read_with_the_runs_own_date(
    recipe_file: Callable[..., Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later date is longer, so that rows at the limit would be too long under it. A row is marked as a bad answer."""
    rows = [{**values, "label": True} for values in toy_rows()]
    rows.append({**rows[0], "completion": "1. Never mind.", "label": False})
    rows_file.write_text("".join(json.dumps(values) + "\n" for values in rows))
    (tmp_path / "dated.jinja").write_text(DATED)

    def on(*date: int) -> None:
        class Then(datetime.date):
            @classmethod
            def today(cls) -> Self:
                return cls(*date)

        for module in ("tunesmith.prompt.template", "tunesmith.commands.prepare"):
            monkeypatch.setattr(f"{module}.datetime", types.SimpleNamespace(date=Then))

    on(2031, 5, 6)
    dated = {**QUICK, "data__repair": False, "evaluate__robustness": [], "prompt__template": "dated.jinja"}
    longest = tunesmith.check(read_recipe(str(recipe_file(**dated)))).longest
    recipe = read_recipe(str(recipe_file(**dated, prompt__max_tokens=longest)))
    run = open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    on(2031, 9, 17)
    assert tunesmith.check(recipe).longest > recipe.prompt.max_tokens
    (tmp_path / "dated.jinja").unlink()
    curve(recipe, run, shares=(50, 100), raw=True)
    counts = run.read_json("curve.json")["raw"]
    assert counts["too_long"] == 0
    assert counts["bad_answer"] == 1 and counts["read"] == len(rows)
    assert counts["read"] == counts["rows"] + sum(v for k, v in counts.items() if k not in ("read", "rows"))
    assert "1 have a label that says their answer is a bad one" in Page((run / "curve.html").read_text()).text
    for part in POINTS:
        assert (run / part / "data/template.jinja").read_text() == DATED
        assert (run / part / "data/date.json").read_text() == (run / "data/date.json").read_text()


def test_shares_are_read_as_they_are_written() -> None:
    assert parse_shares("25, 50,100") == (25, 50, 100)
    for text in ("", "a half,100", "12.5,100", "25,,100"):
        with pytest.raises(RecipeError, match=r"is not a list of shares\. Give whole percentages"):
            parse_shares(text)


@pytest.mark.parametrize(
    ("shares", "kind", "words"),
    [
        ((25, 50), RecipeError, "is not enough for a curve"),
        ((100,), RecipeError, "is not enough for a curve"),
        ((0, 100), RecipeError, "is not a list of shares"),
        ((50, 50, 100), RecipeError, "is not a list of shares"),
        (
            (10, 50, 100),
            DataError,
            r"10 % of 20 training rows are 2, but a share needs 8 or more\. Give shares of ",
        ),
        ((10, 100), DataError, "Give larger shares, or add rows"),
    ],
)
def test_shares_that_make_no_curve_are_refused_before_training(
    recipe_file: Callable[..., Path], tmp_path: Path, shares: tuple[int, ...], kind: type[Exception], words: str
) -> None:
    recipe = read_recipe(str(recipe_file()))
    run = open_run(recipe, tmp_path / "runs")
    with pytest.raises(kind, match=words):
        curve(recipe, run, shares=shares)
    assert not (run / "curve").exists() and not (run / "adapter").exists()
