"""Which rows are asked, and what is said of the two models' replies."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tunesmith.config.recipe import NamedSetting
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import RunError
from tunesmith.evaluation import comparison as comparing
from tunesmith.evaluation.comparison import (
    RowReply,
    compare,
    compare_models,
    generate_replies,
    sample_rows,
)
from tunesmith.evaluation.score import Score, TrainingAnswers, View
from tunesmith.evaluation.sentences import ONE_TRAINING
from tunesmith.generation.text_model import Reply

GOOD, BAD = "1. Open.\n2. Tap.", "Well, open it."
STEPS = [NamedSetting("numbered_steps", {})]


def row(name: str, group: str, answer: str = GOOD, **fields: Any) -> Conversation:
    return Conversation(name, (Turn("user", f"{name}?"), Turn("assistant", answer)), Origin("f", 1), group, fields)


def rows(part: str, groups: int, rows_per_group: int) -> list[Conversation]:
    return [row(f"{part}-{g}-{n}", f"{part}{g}") for g in range(groups) for n in range(rows_per_group)]


def answered(parts: dict[str, list[Conversation]], text: str, loss: float | None = None) -> list[RowReply]:
    return [RowReply(row.id, part, Reply(text, True, 5), loss) for part, members in parts.items() for row in members]


# --- choose -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 23, 24, 30, 59])
def test_rows_are_drawn_evenly_over_groups(limit: int) -> None:
    parts = {"test": rows("test", 8, 5), "unseen": rows("unseen", 4, 5)}
    drawn_rows = sample_rows(parts, limit, seed=1)
    counts = Counter(row.group for members in drawn_rows.values() for row in members)
    assert sum(counts.values()) == limit
    row_counts = [counts[row.group] for members in parts.values() for row in members]
    assert max(row_counts) - min(row_counts) <= 1
    for part, members in drawn_rows.items():
        assert members == [row for row in parts[part] if row in members]  # in the file's order


def test_small_groups_give_all_and_large_ones_the_rest() -> None:
    parts = {"test": [*rows("small", 2, 1), *rows("large", 2, 9)]}
    counts = Counter(row.group for row in sample_rows(parts, 10, seed=1)["test"])
    assert counts == {"small0": 1, "small1": 1, "large0": 4, "large1": 4}


def test_no_part_is_starved_when_there_are_more_groups_than_rows_to_ask() -> None:
    parts = {"test": rows("test", 60, 2), "unseen": rows("unseen", 40, 2)}
    row_counts = [len(sample_rows(parts, 20, seed)["unseen"]) for seed in range(20)]
    assert min(row_counts) >= 2
    assert sum(row_counts) / 20 == pytest.approx(8, abs=1)


@pytest.mark.parametrize("limit", [60, 61, 1000])
def test_all_rows_are_asked_when_they_are_few(limit: int) -> None:
    parts = {"test": rows("test", 8, 5), "unseen": rows("unseen", 4, 5)}
    assert sample_rows(parts, limit, seed=1) == parts


def test_the_seed_decides_which_rows() -> None:
    parts = {"test": rows("test", 8, 5)}
    assert sample_rows(parts, 12, seed=1) == sample_rows(parts, 12, seed=1)
    assert len({str(sample_rows(parts, 12, seed=seed)) for seed in range(6)}) == 6


def test_rows_without_groups_are_drawn_at_random() -> None:
    parts = {"test": [row(str(n), "") for n in range(40)]}
    drawn_rows = sample_rows(parts, 10, seed=2)["test"]
    assert len({item.id for item in drawn_rows}) == 10
    assert drawn_rows != parts["test"][:10] and drawn_rows != parts["test"][-10:]


# --- answer -------------------------------------------------------------------------------------------------


class Echo:
    """Says each prompt's last words back, longest prompt first."""

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        for place in sorted(range(len(prompts)), key=lambda place: -len(prompts[place][-1].text)):
            yield place, Reply(prompts[place][-1].text, True, max_new_tokens)

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        raise NotImplementedError


def test_replies_and_losses_meet_their_rows() -> None:
    parts = {"test": [row("a", "g"), row("bbb", "g")], "odd phrasing": [row("cc", "", answer="")]}
    progress: list[tuple[int, int]] = []
    answers = generate_replies(
        Echo(),
        parts,
        max_new_tokens=9,
        batch=2,
        losses=lambda loss_rows: [float(len(conversation.id)) for conversation in loss_rows],
        on_progress=lambda count, of: progress.append((count, of)),
    )
    assert answers == [
        RowReply("a", "test", Reply("a?", True, 9), 1.0),
        RowReply("bbb", "test", Reply("bbb?", True, 9), 3.0),
        RowReply("cc", "odd phrasing", Reply("cc?", True, 9), None),
    ]
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert answers[0].describe() == {
        "id": "a",
        "part": "test",
        "text": "a?",
        "stopped": True,
        "cut": "",
        "reasoning": "",
        "tokens": 9,
        "loss": 1.0,
    }


# --- compare ------------------------------------------------------------------------------------------------

HELD = {"test": rows("test", 6, 2), "unseen": rows("unseen", 3, 2)}


@pytest.mark.parametrize(
    ("before", "after", "helped", "verdict"),
    [
        (
            BAD,
            GOOD,
            "better",
            "Tuning helped: numbered steps went from 0.00 to 1.00 (higher is better), measured in 18 of 18 held-out "
            "rows in 9 topics (p = 0.004). With other questions of this kind the difference would probably lie between "
            "+0.81 and +1.00.",
        ),
        (
            GOOD,
            BAD,
            "worse",
            "Tuning made it worse: numbered steps went from 1.00 to 0.00 (higher is better), measured in 18 of 18 "
            "held-out rows in 9 topics (p = 0.004). With other questions of this kind the difference would probably "
            "lie between -1.00 and -0.81.",
        ),
        (
            GOOD,
            GOOD,
            "no change shown",
            "No change was shown: numbered steps went from 1.00 to 1.00 (higher is better), measured in 18 of 18 "
            "held-out rows in 9 topics (p = 1.000). With other questions of this kind the difference would probably "
            "lie between -0.19 and +0.19. Smaller changes than 0.49 would usually be missed.",
        ),
    ],
)
def test_the_verdict_is_about_all_held_out_rows(before: str, after: str, helped: str, verdict: str) -> None:
    scores = compare(
        HELD, answered(HELD, before), answered(HELD, after), STEPS, primary="numbered_steps", kind="topic", seed=1
    )
    assert (scores["helped"], scores["primary"]) == (helped, "numbered_steps")
    assert scores["verdict"] == f"{verdict} {ONE_TRAINING}"
    counts = {title: (section["numbered_steps"]["rows"], section["numbered_steps"]["groups"])
              for title, section in scores["sections"].items()}  # fmt: skip
    assert counts == {"all": (18, 9), "test": (12, 6), "unseen": (6, 3)}
    assert [(row["part"], row["id"]) for row in scores["rows"][:1]] == [("test", "test-0-0")]
    assert scores["rows"][0]["tuned"] == {"numbered_steps": float(after == GOOD)}


def test_one_part_needs_no_summary_and_probes_stand_apart() -> None:
    parts = {
        "test": rows("test", 6, 2),
        "outside the domain": [row("p1", "", answer="", expect="no_steps")],
        "mine": [row("p2", "", answer="", expect="steps")],
    }
    metrics = [
        NamedSetting("expected", {}),
        NamedSetting("numbered_steps", {}),
        NamedSetting("rouge", {}),
        NamedSetting("loss", {}),
    ]
    scores = compare(
        parts, answered(parts, BAD), answered(parts, GOOD), metrics, primary="numbered_steps", kind="topic", seed=1
    )
    names = {title: sorted(section) for title, section in scores["sections"].items()}
    rouge = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert names == {
        "test": ["numbered_steps", *rouge],
        "outside the domain": ["expected"],
        "mine": ["expected", "numbered_steps"],
    }
    unchanged, gained = scores["sections"]["outside the domain"]["expected"], scores["sections"]["mine"]["expected"]
    assert (unchanged["base"], unchanged["tuned"], gained["base"], gained["tuned"]) == (1.0, 0.0, 0.0, 1.0)
    assert scores["helped"] == "better"


def test_lower_is_better_for_the_loss() -> None:
    metrics = [NamedSetting("loss", {}), NamedSetting("length", {})]
    scores = compare(
        HELD, answered(HELD, BAD, 2.0), answered(HELD, GOOD, 1.5), metrics, primary="loss", kind="topic", seed=1
    )
    section = scores["sections"]["all"]
    assert (scores["helped"], section["loss"]["wins"], section["loss"]["difference"]) == ("better", 18, -0.5)
    assert (section["length"]["verdict"], section["length"]["base"], section["length"]["tuned"]) == ("higher", 3.0, 4.0)


def test_a_score_that_is_not_measured_gives_no_verdict() -> None:
    scores = compare(HELD, answered(HELD, BAD), answered(HELD, GOOD), STEPS, primary="loss", kind="topic", seed=1)
    assert scores["helped"] == "not measured"
    assert scores["verdict"] == "'loss' was not measured, so there is no verdict."


def test_probes_without_any_score_have_no_section() -> None:
    parts = {"test": rows("test", 6, 2), "mine": [row("p", "", answer="")]}
    base = [*answered({"test": parts["test"]}, BAD, 2.0), *answered({"mine": parts["mine"]}, BAD)]
    tuned = [*answered({"test": parts["test"]}, BAD, 1.0), *answered({"mine": parts["mine"]}, BAD)]
    scores = compare(parts, base, tuned, [NamedSetting("loss", {})], primary="loss", kind="topic", seed=1)
    assert list(scores["sections"]) == ["test"]
    assert scores["helped"] == "better"
    assert len(scores["rows"]) == 13


# --- what is missing, what is not a number, what was known ----------------------------------------------------

ONE = {"test": rows("test", 8, 2)}
LOSS = [NamedSetting("loss", {})]


def with_losses(losses: Sequence[float | None], text: str = BAD) -> list[RowReply]:
    pairs = zip(answered(ONE, text), losses, strict=True)
    return [replace(item, loss=value) for item, value in pairs]


def test_a_row_with_a_score_for_one_model_only_is_counted_and_in_no_figure() -> None:
    base: list[float | None] = [2.0] * 16
    tuned: list[float | None] = [1.0] * 16
    base[3] = tuned[5] = tuned[6] = None
    base[9] = tuned[9] = None  # asked of neither: not missing
    scores = compare(ONE, with_losses(base), with_losses(tuned), LOSS, primary="loss", kind="topic", seed=1)
    difference = scores["sections"]["test"]["loss"]
    assert (difference["missing"], difference["rows"], difference["base"], difference["tuned"]) == (3, 12, 2.0, 1.0)
    assert (difference["asked"], difference["verdict"]) == (16, "too many missing")  # 3 of 15, without limits
    assert "measured in 12 of 16 held-out rows" in scores["verdict"]
    assert scores["unpaired"] == {}


def test_a_score_of_one_model_alone_is_named() -> None:
    scores = compare(
        ONE, with_losses([None] * 16), with_losses([1.0] * 15 + [None]), [*STEPS, *LOSS], primary="loss",
        kind="topic", seed=1,
    )  # fmt: skip
    assert scores["unpaired"] == {"test": {"loss": 15}}
    assert list(scores["sections"]["test"]) == ["numbered_steps"]
    assert scores["helped"] == "not measured"


@pytest.mark.parametrize(
    ("value", "metric"), [(math.nan, "loss"), (math.inf, "loss"), (-math.inf, "loss"), (800.0, "perplexity")]
)
def test_a_score_that_is_no_number_is_our_own_fault(value: float, metric: str) -> None:
    with pytest.raises(AssertionError, match=f"metric '{metric}' gave {metric} = .* row 'test-1-0' of test"):
        compare(
            ONE, with_losses([2.0] * 16), with_losses([1.0, 1.0, value] + [1.0] * 13), [NamedSetting(metric, {})],
            primary=metric, kind="topic", seed=1,
        )  # fmt: skip


def test_metrics_see_what_the_tuned_model_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[TrainingAnswers] = []

    def metric(view: View) -> list[Score]:
        received.append(view.training)
        return []

    monkeypatch.setattr(comparing, "resolve", lambda catalog, name: metric)
    trained_answers = TrainingAnswers(("an answer",))
    for argument in (trained_answers, TrainingAnswers()):
        options: dict[str, Any] = {"training": argument} if argument.answers else {}
        compare(ONE, answered(ONE, BAD), answered(ONE, GOOD), STEPS, primary="x", kind="topic", seed=1, **options)
    assert received == [trained_answers] * 32 + [TrainingAnswers()] * 32


def test_a_metrics_fold_makes_its_figures() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.normal(2, 0.3, 16), rng.normal(1.5, 0.3, 16)
    scores = compare(
        ONE, with_losses(before.tolist()), with_losses(after.tolist()), [NamedSetting("perplexity", {})],
        primary="perplexity", kind="topic", seed=1,
    )  # fmt: skip
    difference = scores["sections"]["test"]["perplexity"]
    assert [difference["base"], difference["tuned"]] == pytest.approx([math.exp(before.mean()), math.exp(after.mean())])
    assert difference["difference"] == pytest.approx(math.exp(after.mean()) - math.exp(before.mean()))
    assert (difference["fold"], scores["helped"]) == ("exp", "better")


def test_a_section_is_plain_and_keeps_what_the_pages_read() -> None:
    scores = compare(HELD, answered(HELD, BAD), answered(HELD, GOOD), STEPS, primary="numbered_steps", kind="t", seed=1)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    difference = scores["sections"]["all"]["numbered_steps"]
    assert set(difference) == {
        *("better", "base", "tuned", "difference", "low", "high", "wins", "ties", "losses", "rows", "groups"),
        *("verdict", "narrow", "min_groups", "limits", "primary", "asked", "worst"),
        *("fold", "p", "adjusted", "effect", "detectable", "missing"),
    }
    assert (difference["p"], difference["adjusted"], difference["verdict"]) == (2 / 2**9, 2 / 2**9, "better")


def test_a_metric_tells_its_limits() -> None:
    metrics = [NamedSetting(name, {}) for name in ("rouge", "repetition", "loss", "length")]
    scores = compare(
        HELD, answered(HELD, BAD, 2.0), answered(HELD, GOOD, 1.0), metrics, primary="loss", kind="t", seed=1
    )
    limits = {name: values["limits"] for name, values in scores["sections"]["all"].items()}
    assert (limits["rougeL"], limits["repetition"], limits["loss"], limits["length"]) == ([0, 1], [0, 1], None, None)


def test_scores_of_a_section_are_corrected_for_one_another_and_the_primary_is_not() -> None:
    # 6 groups: the least p is 2 / 2^6 = 0.031, which holds alone and not as one of two
    parts = {"test": rows("test", 6, 2)}
    metrics = [NamedSetting("numbered_steps", {}), NamedSetting("loss", {}), NamedSetting("length", {})]
    base, tuned = answered(parts, BAD, 2.0), answered(parts, GOOD, 1.5)
    differences = compare(parts, base, tuned, metrics, primary="loss", kind="topic", seed=1)["sections"]["test"]
    assert {
        name: (difference["p"], difference["adjusted"], difference["verdict"])
        for name, difference in differences.items()
    } == {
        "numbered_steps": (2 / 64, 4 / 64, "no change shown"),
        "loss": (2 / 64, 4 / 64, "better"),
        "length": (2 / 64, None, "higher"),
    }
    probes = {**parts, "mine": [row(f"p{n}", f"g{n}") for n in range(6)]}
    base, tuned = answered(probes, BAD, 2.0), answered(probes, GOOD, 1.5)
    probe_differences = compare(probes, base, tuned, metrics, primary="loss", kind="topic", seed=1)["sections"]["mine"]
    assert probe_differences["loss"]["verdict"] == "no change shown"  # alone only where the verdict is found


def test_a_primary_score_that_was_changed_after_a_first_look_is_corrected_and_said() -> None:
    parts = {"test": rows("test", 6, 2)}
    metrics = [NamedSetting("numbered_steps", {}), NamedSetting("loss", {})]
    base, tuned = answered(parts, BAD, 2.0), answered(parts, GOOD, 1.5)
    as_planned = compare(parts, base, tuned, metrics, primary="loss", planned="loss", kind="topic", seed=1)
    assert as_planned["helped"] == "better" and "p = 0.031" in as_planned["verdict"]
    assert "first look" not in as_planned["verdict"]
    changed = compare(parts, base, tuned, metrics, primary="loss", planned="numbered_steps", kind="topic", seed=1)
    assert changed["planned"] == "numbered_steps" and changed["helped"] == "no change shown"
    assert "p = 0.062" in changed["verdict"]  # 4 / 64
    assert "chosen after a first look (before the training it was numbered steps)" in changed["verdict"]
    assert [item["verdict"] for item in changed["sections"]["test"].values()] == ["no change shown"] * 2


def test_exchanged_replies_show_no_change() -> None:
    parts = {"test": [row(str(n), "") for n in range(60)]}
    rng, wrong = np.random.default_rng(1), 0
    for seed in range(25):
        pairs = [(BAD if rng.random() < 0.4 else GOOD, GOOD) for _ in range(60)]  # truly apart
        pairs = [pair[::-1] if rng.random() < 0.5 else pair for pair in pairs]
        base, tuned = ([RowReply(str(n), "test", Reply(pair[side], True, 5), None) for n, pair in enumerate(pairs)]
                for side in (0, 1))  # fmt: skip
        scores = compare(parts, base, tuned, STEPS, primary="numbered_steps", kind="topic", seed=seed)
        wrong += scores["helped"] != "no change shown"
    assert wrong <= 4  # about one of 25 is expected


# --- across ---------------------------------------------------------------------------------------------------


def test_across_two_models_says_what_compare_says() -> None:
    metrics = [*STEPS, NamedSetting("length", {}), NamedSetting("rouge", {})]
    base, tuned = answered(HELD, BAD), answered(HELD, GOOD)
    options: dict[str, Any] = {"primary": "numbered_steps", "kind": "topic", "seed": 1}
    scores = compare(HELD, base, tuned, metrics, **options)
    comparison = compare_models(HELD, {"tuned": tuned, "base": base}, metrics, against="base", **options)
    assert list(comparison["models"]) == ["tuned"]
    assert comparison["models"]["tuned"]["sections"] == scores["sections"]
    assert comparison["models"]["tuned"]["helped"] == scores["helped"] == "better"
    assert comparison["models"]["tuned"]["verdict"].startswith(
        "'tuned' is better than 'base': numbered steps is 1.00 against"
    )
    assert [{"id": row["id"], "part": row["part"], **row["scores"]} for row in comparison["rows"]] == scores["rows"]


def test_several_models_stand_beside_one_and_are_corrected_together() -> None:
    parts = {"test": rows("test", 6, 2)}
    models = {
        "adapter": answered(parts, GOOD, 1.5),
        "merged": answered(parts, GOOD, 1.5),
        "gguf": answered(parts, BAD, 1.5),
        "small": answered(parts, BAD, 2.5),
    }
    comparison = compare_models(
        parts, models, [*STEPS, *LOSS], against="adapter", primary="numbered_steps", kind="topic", seed=1
    )
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison
    assert {name: model["helped"] for name, model in comparison["models"].items()} == {
        "merged": "no change shown",
        "gguf": "no change shown",
        "small": "no change shown",
    }
    differences = {name: model["sections"]["test"]["numbered_steps"] for name, model in comparison["models"].items()}
    assert (differences["gguf"]["base"], differences["gguf"]["tuned"]) == (1.0, 0.0)
    # three models' two scores: the least of six, three of them at 2 / 2^6, is not enough
    assert [differences[name]["adjusted"] for name in differences] == [1.0, 6 * 2 / 64, 6 * 2 / 64]
    assert comparison["rows"][0]["scores"]["small"] == {"numbered_steps": 0.0, "loss": 2.5}


def test_models_that_answered_other_rows_are_refused() -> None:
    short = answered(HELD, GOOD)[:-1]
    options: dict[str, Any] = {"primary": "numbered_steps", "kind": "topic", "seed": 1}
    with pytest.raises(
        RunError, match="row 'unseen-2-1' of unseen: 'tuned' did not answer the same rows as the others"
    ):
        compare(HELD, answered(HELD, GOOD), short, STEPS, **options)
    more = [*answered(HELD, GOOD), replace(short[0], id="another")]
    with pytest.raises(RunError, match="row 'another' of test: 'b' did not answer the same rows"):
        compare_models(HELD, {"a": answered(HELD, GOOD), "b": more}, STEPS, against="a", **options)


@pytest.mark.parametrize("names", [["a"], ["a", "b"], []])
def test_across_needs_another_model_beside_a_known_one(names: list[str]) -> None:
    against = "a" if len(names) < 2 else "c"
    with pytest.raises(ValueError, match=f"'{against}' and at least one other"):
        compare_models(
            HELD, {name: answered(HELD, GOOD) for name in names}, STEPS, against=against, primary="x", kind="t", seed=1
        )
