"""The learning curve: differences that can be recomputed, sentences that claim no more, a page that fetches nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from handmade import row
from strict_pages import EVIL, MONEY, Page, check_nothing_is_fetched, check_read_by_ear_and_keyboard
from tunesmith.config.recipe import NamedSetting
from tunesmith.data.conversation import Conversation
from tunesmith.evaluation.comparison import RowReply, compare
from tunesmith.evaluation.statistics import holm_adjust
from tunesmith.evaluation.verdict import decide
from tunesmith.generation.text_model import Reply
from tunesmith.reporting.curve_page import Point, curve_lines, curve_page, curve_values

METRICS = [NamedSetting("loss", {}), NamedSetting("stops", {}), NamedSetting("length", {})]
HELD = {
    "test": [row(n, f"how {n}?", f"so {n}", group=f"t{n // 3}") for n in range(45)],
    "unseen": [row(n, f"what {n}?", f"that {n}", group=f"u{n // 3}") for n in range(45, 60)],
}
GROUPS = {(part, each.id): each.group for part, rows in HELD.items() for each in rows}
RAW = {"read": 1300, "rows": 1200, "unreadable": 1, "held_out": 60, "leaking": 39, "too_long": 0}


def answered(loss: float, spread: float, seed: int, held_out: dict[str, list[Conversation]]) -> list[RowReply]:
    draw = random.Random(seed)
    return [
        RowReply(row.id, part, Reply("a reply", True, 5), loss + draw.uniform(-spread, spread))
        for part, rows in held_out.items()
        for row in rows
    ]


def point(share: int | None, rows: int, loss: float, **changes: Any) -> Point:
    """A point whose replies have about this loss, where the base has 2."""
    settings: dict[str, Any] = {
        "spread": 0.1,
        "held": HELD,
        "primary": "loss",
        "kind": "topic",
        "metrics": METRICS,
        **changes,
    }
    held_out, metrics, primary, kind = (settings[key] for key in ("held", "metrics", "primary", "kind"))
    scores = compare(
        held_out, answered(2.0, 0.0, 0, held_out), answered(loss, settings["spread"], rows, held_out), metrics,
        primary=primary, kind=kind, seed=1,
    )  # fmt: skip
    return Point(share, f"curve/{share or 'raw'}", rows, rows * 9, rows // 4, rows / 10, scores)


def made(*points: Point, raw: dict[str, int] | None = None, groups: Any = GROUPS) -> dict[str, Any]:
    return curve_values(points, groups, seed=1, raw=raw)


def test_each_step_is_the_paired_difference_of_the_rows() -> None:
    points = [point(25, 250, 1.6), point(50, 500, 1.3), point(100, 1000, 1.1), point(None, 1200, 1.4)]
    plain = made(*points, raw=RAW)
    assert plain["section"] == "all" and plain["asked"] == 60
    assert [entry["next"] and entry["next"]["against"] for entry in plain["points"]] == ["50", "100", None, "100"]
    tuned = [{(entry["part"], entry["id"]): entry["tuned"]["loss"] for entry in one.scores["rows"]} for one in points]
    for place, (small, large) in {0: (0, 1), 1: (1, 2), 3: (3, 2)}.items():
        by_hand = decide(
            [tuned[small][key] for key in GROUPS], [tuned[large][key] for key in GROUPS], [*GROUPS.values()],
            better="lower", seed=1,
        )  # fmt: skip
        difference = plain["points"][place]["next"]["scores"]["loss"]
        assert difference["difference"] == pytest.approx(
            np.mean([tuned[large][key] - tuned[small][key] for key in GROUPS]), abs=1e-12
        )
        assert (difference["low"], difference["high"], difference["wins"]) == (by_hand.low, by_hand.high, by_hand.wins)
        assert difference["p"] == by_hand.p
    steps = [plain["points"][place]["next"]["scores"]["loss"] for place in (0, 1, 3)]
    assert [entry["adjusted"] for entry in steps] == holm_adjust(
        [entry["p"] for entry in steps]
    )  # the primary's own steps alone
    level = plain["points"][0]["scores"]["loss"]
    assert level["value"] == pytest.approx(np.mean([*tuned[0].values()]))
    assert level["low"] < level["value"] < level["high"] < level["low"] + 0.1
    assert plain["points"][0]["base"]["loss"]["base"] == pytest.approx(2.0)


def test_folded_scores_have_folded_levels() -> None:
    changes = {"metrics": [NamedSetting("perplexity", {})], "primary": "perplexity"}
    plain = made(point(50, 500, 1.3, **changes), point(100, 1000, 1.1, **changes))
    level = plain["points"][1]["scores"]["perplexity"]
    assert level["value"] == pytest.approx(np.exp(1.1), abs=0.1)
    assert level["low"] < level["value"] < level["high"] < level["low"] + 0.5


def test_points_that_were_asked_other_rows_are_no_curve() -> None:
    fewer = {part: rows[1:] for part, rows in HELD.items()}
    with pytest.raises(ValueError, match="different rows"):
        made(point(50, 500, 1.3, held=fewer), point(100, 1000, 1.1))


@pytest.mark.parametrize(
    ("losses", "spread", "words"),
    [
        ((1.3, 1.1), 0.1, "still rising, so more rows of this kind would probably help."),
        ((1.1, 1.3), 0.1, "it got worse, so more rows of this kind are unlikely to help."),
        ((1.1, 1.1), 0.1, "no change was shown, so more rows of this kind are unlikely to help much."),
        ((1.9, 1.9), 0.3, "no change was shown, but these rows cannot rule out a gain of"),
        ((2.0, 2.0), 0.1, "they do not show whether more rows would help."),
    ],
)
def test_the_sentence_says_what_the_last_step_shows(losses: Sequence[float], spread: float, words: str) -> None:
    plain = made(
        *(point(share, 10 * share, loss, spread=spread) for share, loss in zip((50, 100), losses, strict=True))
    )
    assert words in plain["sentence"]
    assert plain["sentence"].startswith("From 50 % to 100 % of the rows (500 to 1,000) loss went from ")
    assert "measured in 60 of 60 held-out rows in 20 topics (p " in plain["sentence"]
    assert "the difference would probably lie between" in plain["sentence"]
    assert plain["cleaning"] == ""


def test_a_step_that_chance_would_show_among_many_is_not_called_rising() -> None:
    """Eleven shares that differ by noise, of which the last step alone would be shown."""
    base = [point(share, 10 * share, 1.5) for share in range(5, 55, 5)]
    for loss in (1.48, 1.475, 1.47, 1.465, 1.46, 1.455, 1.45):
        plain = made(*base, point(100, 1000, loss))
        difference = plain["points"][-2]["next"]["scores"]["loss"]
        if difference["high"] < 0 and difference["p"] <= 0.05 < difference["adjusted"]:
            break
    else:
        raise AssertionError("no loss lies between the two")
    assert difference["verdict"] == "no change shown" and "rising" not in plain["sentence"]


def test_scores_without_a_good_side_and_single_groups_promise_nothing() -> None:
    plain = made(*(point(share, 10 * share, 1.3, primary="length") for share in (50, 100)))
    assert plain["sentence"].endswith(
        "this score has no good direction, so there is no answer to whether more rows would help."
    )
    one = {"test": [row(n, f"how {n}?", group="t") for n in range(9)]}
    groups = {("test", conversation.id): "t" for conversation in one["test"]}
    plain = made(
        point(50, 50, 1.5, held=one), point(100, 100, 1.1, held=one), point(None, 120, 1.1, held=one), groups=groups
    )
    assert plain["points"][0]["scores"]["loss"]["low"] is None
    assert (
        "so there is no answer to whether more rows would help. With 1 topic nothing can be shown" in plain["sentence"]
    )
    assert "there is no answer to whether cleaning helped. With 1 topic nothing can be shown" in plain["cleaning"]
    assert "–" in Page(curve_page("toy", plain)).text


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (1.4, "cleaning helped."),
        (0.9, "cleaning made it worse."),
        (1.1, "cleaning was not shown to help or to harm. With other questions"),
    ],
)
def test_what_cleaning_brought_is_told(loss: float, words: str) -> None:
    plain = made(point(50, 500, 1.3), point(100, 1000, 1.1), point(None, 1200, loss), raw=RAW)
    assert plain["cleaning"].startswith("From the 1,200 raw rows to the 1,000 cleaned ones loss went from ")
    assert words in plain["cleaning"]
    assert curve_lines(plain)[-2:] == [plain["sentence"], plain["cleaning"]]
    assert curve_lines(plain)[2].startswith("raw rows: 1,200 rows, loss ")
    read = Page(curve_page("toy", plain, command="tunesmith curve toy --raw"))
    assert plain["cleaning"] in read.text and "1,300 rows were read" in read.text
    assert "39 have the same prompt as a held-out row, or nearly." in read.text and "0 are longer" not in read.text


def test_the_page_holds_text_as_text_and_fetches_nothing() -> None:
    points = [point(25, 250, 1.6), point(50, 500, 1.3), point(100, 1000, 1.1), point(None, 1200, 1.4)]
    for entry in points:
        assert isinstance(entry.scores, dict)
        entry.scores["kind"] = EVIL
    page = curve_page(MONEY + EVIL, made(*points, raw=RAW), command=EVIL)
    read = Page(page)
    assert read.text.count(EVIL) >= 3
    assert not {"script", "img", "b", "form", "a"} & {name for name, _ in read.tags}
    assert not [key for _, attributes in read.tags for key in attributes if key.startswith("on")]
    check_nothing_is_fetched(page)
    assert [svg["aria-label"] for svg in read.named("svg")] == [
        "The primary score over the number of training rows, with 95 % intervals"
    ]


def test_the_page_is_read_by_ear_by_keyboard_and_without_colour() -> None:
    read = Page(curve_page("toy", made(point(25, 250, 1.6), point(50, 500, 1.3), point(100, 1000, 1.1))))
    ids = check_read_by_ear_and_keyboard(read)
    assert "better" in read.text and "raw" not in ids


def test_without_the_primary_score_nothing_is_said() -> None:
    plain = made(*(point(share, 10 * share, 1.3, metrics=METRICS[1:]) for share in (50, 100)))
    assert plain["sentence"] == "'loss' was not measured, so there is no verdict."
    assert "<svg" not in curve_page("toy", plain)
    assert curve_lines(plain)[0].startswith("50 %: 500 rows, no loss; 125 steps")
