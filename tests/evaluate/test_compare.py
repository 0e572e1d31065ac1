"""Which rows are asked, and what is said of the two models' replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.evaluate.compare import Answered, answer, choose, compare, sentence
from tunesmith.evaluate.statistics import Difference
from tunesmith.generate.text import Reply
from tunesmith.recipe import Named

GOOD, BAD = "1. Open.\n2. Tap.", "Well, open it."
STEPS = [Named("numbered_steps", {})]


def row(name: str, group: str, answer: str = GOOD, **fields: Any) -> Conversation:
    return Conversation(name, (Turn("user", f"{name}?"), Turn("assistant", answer)), Origin("f", 1), group, fields)


def rows(part: str, groups: int, each: int) -> list[Conversation]:
    return [row(f"{part}-{g}-{n}", f"{part}{g}") for g in range(groups) for n in range(each)]


def answered(parts: dict[str, list[Conversation]], text: str, loss: float | None = None) -> list[Answered]:
    return [Answered(each.id, part, Reply(text, True, 5), loss) for part, members in parts.items() for each in members]


# --- choose -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 23, 24, 30, 59])
def test_rows_are_drawn_evenly_over_groups(limit: int) -> None:
    parts = {"test": rows("test", 8, 5), "unseen": rows("unseen", 4, 5)}
    chosen = choose(parts, limit, seed=1)
    counts = Counter(each.group for members in chosen.values() for each in members)
    assert sum(counts.values()) == limit
    taken = [counts[each.group] for members in parts.values() for each in members]
    assert max(taken) - min(taken) <= 1
    for part, members in chosen.items():
        assert members == [each for each in parts[part] if each in members]  # in the file's order


def test_small_groups_give_all_and_large_ones_the_rest() -> None:
    parts = {"test": [*rows("small", 2, 1), *rows("large", 2, 9)]}
    counts = Counter(each.group for each in choose(parts, 10, seed=1)["test"])
    assert counts == {"small0": 1, "small1": 1, "large0": 4, "large1": 4}


def test_no_part_is_starved_when_there_are_more_groups_than_rows_to_ask() -> None:
    parts = {"test": rows("test", 60, 2), "unseen": rows("unseen", 40, 2)}
    taken = [len(choose(parts, 20, seed)["unseen"]) for seed in range(20)]
    assert min(taken) >= 2
    assert sum(taken) / 20 == pytest.approx(8, abs=1)


@pytest.mark.parametrize("limit", [60, 61, 1000])
def test_all_rows_are_asked_when_they_are_few(limit: int) -> None:
    parts = {"test": rows("test", 8, 5), "unseen": rows("unseen", 4, 5)}
    assert choose(parts, limit, seed=1) == parts


def test_the_seed_decides_which_rows() -> None:
    parts = {"test": rows("test", 8, 5)}
    assert choose(parts, 12, seed=1) == choose(parts, 12, seed=1)
    assert len({str(choose(parts, 12, seed=seed)) for seed in range(6)}) == 6


def test_rows_without_groups_are_drawn_at_random() -> None:
    parts = {"test": [row(str(n), "") for n in range(40)]}
    chosen = choose(parts, 10, seed=2)["test"]
    assert len({each.id for each in chosen}) == 10
    assert chosen != parts["test"][:10] and chosen != parts["test"][-10:]


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
    told: list[tuple[int, int]] = []
    found = answer(
        Echo(),
        parts,
        max_new_tokens=9,
        batch=2,
        losses=lambda asked: [float(len(each.id)) for each in asked],
        tell=lambda done, of: told.append((done, of)),
    )
    assert found == [
        Answered("a", "test", Reply("a?", True, 9), 1.0),
        Answered("bbb", "test", Reply("bbb?", True, 9), 3.0),
        Answered("cc", "odd phrasing", Reply("cc?", True, 9), None),
    ]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found[0].describe() == {
        "id": "a",
        "part": "test",
        "text": "a?",
        "stopped": True,
        "cut": "",
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
            "Tuning helped: numbered steps went from 0.00 to 1.00 over 18 held-out rows in 9 topics "
            "(difference +1.00, 95 % interval +1.00 to +1.00).",
        ),
        (
            GOOD,
            BAD,
            "worse",
            "Tuning made it worse: numbered steps went from 1.00 to 0.00 over 18 held-out rows in 9 topics "
            "(difference -1.00, 95 % interval -1.00 to -1.00).",
        ),
        (
            GOOD,
            GOOD,
            "no detectable change",
            "No detectable change: numbered steps went from 1.00 to 1.00 over 18 held-out rows in 9 topics "
            "(difference +0.00, 95 % interval +0.00 to +0.00).",
        ),
    ],
)
def test_the_verdict_is_about_all_held_out_rows(before: str, after: str, helped: str, verdict: str) -> None:
    scores = compare(
        HELD, answered(HELD, before), answered(HELD, after), STEPS, primary="numbered_steps", kind="topic", seed=1
    )
    assert (scores["helped"], scores["verdict"], scores["primary"]) == (helped, verdict, "numbered_steps")
    counts = {title: (found["numbered_steps"]["rows"], found["numbered_steps"]["groups"])
              for title, found in scores["sections"].items()}  # fmt: skip
    assert counts == {"all": (18, 9), "test": (12, 6), "unseen": (6, 3)}
    assert [(each["part"], each["id"]) for each in scores["rows"][:1]] == [("test", "test-0-0")]
    assert scores["rows"][0]["tuned"] == {"numbered_steps": float(after == GOOD)}


def test_one_part_needs_no_summary_and_probes_stand_apart() -> None:
    parts = {
        "test": rows("test", 6, 2),
        "outside the domain": [row("p1", "", answer="", expect="no_steps")],
        "mine": [row("p2", "", answer="", expect="steps")],
    }
    metrics = [Named("expected", {}), Named("numbered_steps", {}), Named("rouge", {}), Named("loss", {})]
    scores = compare(
        parts, answered(parts, BAD), answered(parts, GOOD), metrics, primary="numbered_steps", kind="topic", seed=1
    )
    names = {title: sorted(found) for title, found in scores["sections"].items()}
    rouge = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert names == {
        "test": ["numbered_steps", *rouge],
        "outside the domain": ["expected"],
        "mine": ["expected", "numbered_steps"],
    }
    kept, gained = scores["sections"]["outside the domain"]["expected"], scores["sections"]["mine"]["expected"]
    assert (kept["base"], kept["tuned"], gained["base"], gained["tuned"]) == (1.0, 0.0, 0.0, 1.0)
    assert scores["helped"] == "better"


def test_lower_is_better_for_the_loss() -> None:
    metrics = [Named("loss", {}), Named("length", {})]
    scores = compare(
        HELD, answered(HELD, BAD, 2.0), answered(HELD, GOOD, 1.5), metrics, primary="loss", kind="topic", seed=1
    )
    found = scores["sections"]["all"]
    assert (scores["helped"], found["loss"]["wins"], found["loss"]["difference"]) == ("better", 18, -0.5)
    assert (found["length"]["verdict"], found["length"]["base"], found["length"]["tuned"]) == ("higher", 3.0, 4.0)


def test_a_score_that_is_not_measured_gives_no_verdict() -> None:
    scores = compare(HELD, answered(HELD, BAD), answered(HELD, GOOD), STEPS, primary="loss", kind="topic", seed=1)
    assert scores["helped"] == "not measured"
    assert scores["verdict"] == "'loss' was not measured, so nothing can be said."


def test_probes_without_any_score_have_no_section() -> None:
    parts = {"test": rows("test", 6, 2), "mine": [row("p", "", answer="")]}
    base = [*answered({"test": parts["test"]}, BAD, 2.0), *answered({"mine": parts["mine"]}, BAD)]
    tuned = [*answered({"test": parts["test"]}, BAD, 1.0), *answered({"mine": parts["mine"]}, BAD)]
    scores = compare(parts, base, tuned, [Named("loss", {})], primary="loss", kind="topic", seed=1)
    assert list(scores["sections"]) == ["test"]
    assert scores["helped"] == "better"
    assert len(scores["rows"]) == 13


@pytest.mark.parametrize(
    ("better", "low", "high", "rows", "groups", "words"),
    [
        ("lower", -0.52, -0.48, 8, 8, "Tuning helped: loss went from 2.00 to 1.50 over 8 held-out rows (difference"),
        (
            "higher",
            -0.52,
            -0.48,
            8,
            3,
            "Tuning made it worse: loss went from 2.00 to 1.50 over 8 held-out rows in 3 top",
        ),
        (
            "lower",
            -0.9,
            0.1,
            8,
            8,
            "No detectable change: loss went from 2.00 to 1.50 over 8 held-out rows (difference",
        ),
        (
            "neither",
            -0.52,
            -0.48,
            8,
            8,
            "Tuning changed it: loss went from 2.00 to 1.50 over 8 held-out rows (difference",
        ),
    ],
)
def test_sentences(better: Any, low: float, high: float, rows: int, groups: int, words: str) -> None:
    said = sentence("loss", Difference(better, 2.0, 1.5, -0.5, low, high, 1, 1, 1, rows, groups), "topic")
    assert said.startswith(words)
    assert said.endswith(f"(difference -0.50, 95 % interval {low:+.2f} to {high:+.2f}).")
