"""The pages: nothing from a row, a reply or a recipe is markup, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strict_pages import (
    EVIL,
    LINE,
    TOPIC,
    Page,
    account,
    check_foreign_text,
    check_nothing_is_fetched,
    check_plots_and_ids,
    toy_recipe,
)
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.evaluate.compare import Answered, compare
from tunesmith.generate.text import Reply
from tunesmith.recipe import Recipe
from tunesmith.report import plots
from tunesmith.report.page import code, number
from tunesmith.report.pages_of_run import report_page


@pytest.fixture
def recipe() -> Recipe:
    return toy_recipe()


ROWS = {
    "test": [
        Conversation(f"t{n}", (Turn("user", f"{EVIL} {n}"), Turn("assistant", f"1. {EVIL}")), Origin("f", n), TOPIC)
        for n in range(3)
    ],
    "unseen": [Conversation("u", (Turn("user", "how"), Turn("assistant", "1. Go")), Origin("f", 9), f"unseen {TOPIC}")],
    "outside the domain": [
        Conversation(
            "p",
            (Turn("user", EVIL), Turn("assistant", "")),
            Origin("p", 1),
            "",
            {"expect": "no_steps", "good_reply": EVIL},
        )
    ],
}


@pytest.fixture
def reported(recipe: Recipe, tmp_path: Path) -> Callable[..., str]:
    """reported(**parts to leave out or change) -> the page of a small run."""

    def make(audit: dict[str, Any] | None = None, events: list[dict[str, Any]] | None = None) -> str:
        said = {"base": f"{EVIL} {LINE} base", "tuned": f"1. {EVIL}\n2. tuned"}
        answers = {
            which: [
                Answered(row.id, part, Reply(text, which == "tuned", 5), 2.0 if row.answer else None)
                for part, members in ROWS.items()
                for row in members
            ]
            for which, text in said.items()
        }
        scores = compare(
            ROWS,
            answers["base"],
            answers["tuned"],
            recipe.evaluate.metrics,
            primary="numbered_steps",
            kind="topic",
            seed=1,
        )
        machine = {"name": EVIL, "device": "cpu", "cores": 2, "precision": "float32", "why": EVIL}
        plain = {
            "scores.json": scores,
            "audit.json": audit or account(),
            "machine.json": {**machine, "versions": {"torch": "2 <b>"}},
            "plan.json": {"peak": 2 << 30, "measured": 300 << 20},
        }
        for name, value in plain.items():
            (tmp_path / name).write_text(json.dumps(value))
        default = [
            {"kind": "start", "step": 0},
            {"kind": "valid", "step": 0, "loss": 3.0},
            {"kind": "step", "step": 1, "loss": 2.5},
            {"kind": "note", "step": 1, "text": EVIL},
            {"kind": "step", "step": 2, "loss": 2.0},
            {"kind": "valid", "step": 2, "loss": 2.1},
        ]
        events = default if events is None else events
        (tmp_path / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (tmp_path / "replies").mkdir(exist_ok=True)
        for which, items in answers.items():
            lines = "".join(json.dumps(item.describe(), ensure_ascii=False) + "\n" for item in items)
            (tmp_path / f"replies/{which}.jsonl").write_text(lines, encoding="utf-8")
        summary = {"steps": 1200, "best_step": 2, "best_loss": 2.1, "tokens": 12345, "seconds": 61.5}
        seals = {
            "prepare": {"seconds": 1.2},
            "train": {"seconds": 62.0, "summary": summary, "weights": "w" * 64, "files": {"adapter": "a" * 64}},
            "evaluate": {},
        }
        return report_page(recipe, tmp_path, ROWS, command=f"tunesmith train {EVIL}", seals=seals)

    return make


def test_the_report_holds_foreign_text_as_text(reported: Callable[..., str]) -> None:
    check_foreign_text(reported())


def test_the_report_fetches_nothing(reported: Callable[..., str]) -> None:
    check_nothing_is_fetched(reported())


def test_the_reports_plots_say_what_they_show(reported: Callable[..., str]) -> None:
    check_plots_and_ids(reported())


def test_the_report_says_what_was_found(reported: Callable[..., str]) -> None:
    text = reported()
    read = Page(text)
    assert '<div class="card verdict better">' in text
    verdict = "Tuning helped: numbered steps went from 0.00 to 1.00 over 4 held-out rows in 2 topics"
    for words in [
        verdict,
        "All held-out rows (4 rows in 2 topics)",
        "New questions, topics known from training (3 rows in 1 topic)",
        "Only 2 topics: rows of one topic resemble each other",
        "Asked about other things, the tuned model did what it should in 0 % of the prompts (base: 100 %).",
        "4 questions in 2 topics were asked.",
        "1200 steps in 61.5 seconds, 12,345 tokens. The adapter of step 2 was kept",
        "planned 2.0 GiB, measured 300 MiB while training",
        "cut: did not stop by itself.",
        LINE,
        "wwwwwwwwwwwwwwww",
        "torch 2 <b>",
    ]:
        assert words in " ".join(read.text.split(" ")), words
    assert (len(read.named("details")), text.count("<details open>")) == (7, 3)
    assert [svg["aria-label"] for svg in read.named("svg")] == [
        "Differences with 95 % intervals",
        "Loss falling over training steps",
    ]
    assert "What a good reply does" in read.text
    cells = re.findall(r"<td>numbered steps.*?</tr>", text)[0]
    assert re.findall(r'<td class="n">(.*?)</td>', cells) == [
        "0.000",
        "1.000",
        "1.000",
        "1.000 to 1.000",
        "4 / 0 / 0",
    ]
    (length,) = re.findall(r"<td>length.*?</tr>", text)[:1]
    assert '<td class="n">–</td>' in length  # no side is good, so no row is better


def test_a_report_without_held_out_groups_says_so(reported: Callable[..., str]) -> None:
    parts = {"train": 1000, "valid": 9, "test": 4, "unseen": 0}
    assert "No whole group was held out" in reported(audit=account(parts=parts))
    assert "No whole group was held out" not in reported()


@pytest.mark.parametrize(
    ("leaks", "words"),
    [
        (
            {"prompts": 0, "near_prompts": 0, "threshold": 0.8, "answers": 0},
            "No training row has the prompt of a held-out row, and none is 80% alike.",
        ),
        (
            {"prompts": 0, "answers": 7},
            "No training row has the prompt of a held-out row. 7 training rows have the same answer as a held-out row.",
        ),
        (
            {"prompts": 2, "near_prompts": 5, "threshold": 0.8, "answers": 0},
            "5 training rows have a held-out row's prompt, or nearly: the scores are partly memory.",
        ),
    ],
)
def test_the_report_tells_of_leaks(reported: Callable[..., str], leaks: dict[str, Any], words: str) -> None:
    assert words in Page(reported(audit=account(leaks={"held": 4, "pairs": 0, **leaks}))).text


def test_a_report_of_a_run_that_counted_no_leaks_is_silent_about_them(reported: Callable[..., str]) -> None:
    assert "held-out row's prompt" not in Page(reported(audit=account(leaks=None))).text


def test_words_between_backticks_are_code_and_nothing_else_is() -> None:
    assert str(code("write `too_short: {do: <b>}` & go")) == ("write <code>too_short: {do: &lt;b&gt;}</code> &amp; go")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (-0.0004, "0.000"),
        (-0.0006, "−0.001"),
        (0.5, "0.500"),
        (1, "1.000"),
        (-1.2345, "−1.234"),
        (9.9994, "9.999"),
        (9.9996, "10.0"),
        (-9.9996, "−10.0"),
        (10.0, "10.0"),
        (1234.56, "1,234.6"),
        (-1234567.0, "−1,234,567.0"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (TOPIC, TOPIC),
        ("$x^2$ & $y$", "$x^2$ & $y$"),
        ("one $", "one $"),
        (r"\alpha\$", r"\alpha\$"),
        ("two\nlines\tand  gaps", "two lines and gaps"),
        ("日本語 😀", "日本語 😀"),
        ("x" * 47, "x" * 47),
        ("x" * 48, "x" * 45 + "…"),
        ("-->", "-->"),
    ],
)
def test_labels_are_drawn_as_they_stand(label: str, shown: str) -> None:
    for drawn in (plots.bars([(label, 3), ("other", 2)], "rows"), plots.intervals([(label, -1, 0, 1)])):
        assert shown in Page(drawn).texts


def test_a_plot_is_the_same_each_time() -> None:
    assert plots.histogram([1, 2, 3], [1, 2], "words") == plots.histogram([1, 2, 3], [1, 2], "words")
    assert plots.curves([(1, 2.0)], [(1, 2.5)], 1) == plots.curves([(1, 2.0)], [(1, 2.5)], 1)


def test_the_kept_step_is_marked() -> None:
    assert "kept: step 2" in Page(plots.curves([(1, 2.0), (2, 1.0)], [(2, 1.5)], 2)).texts
    assert "kept" not in plots.curves([(1, 2.0)], [], None)
