"""A run's replies: what the fields do not bear out is marked, which way a score went, what is found first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strict_pages import EVIL
from tunesmith.config.recipe import NamedSetting
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.reporting.replies import read_reply_items, reply_filters, worst_items
from tunesmith.reporting.unsupported import Statement, split_at_statements, unsupported_statements

FIELDS = {"Applicant Name": "Ann Example", "Skillsets": "welding, grinding", "Qualifications": "Diploma in Welding"}
LETTER = "I have 40 years of experience. I know welding and Kubernetes & more."
GROUNDED, CONTRADICTED = NamedSetting("grounded", {}), NamedSetting("contradicted", {})


def row(name: str, question: str = "", **fields: str) -> Conversation:
    turns = (Turn("user", question or f"How about {name}?"), Turn("assistant", f"Answer to {name}"))
    return Conversation(name, turns, Origin("f", 1), "topic", fields)


def test_statements_without_support_are_marked_with_their_reason() -> None:
    statements = unsupported_statements(LETTER, row("r", **FIELDS), [GROUNDED])
    assert [(statement.text, statement.word) for statement in statements] == [
        ("40 years", "unsupported"),
        ("Kubernetes", "unsupported"),
    ]
    assert all(
        LETTER[statement.start : statement.end] == statement.text and statement.reason for statement in statements
    )
    parts = split_at_statements(LETTER, statements)
    assert "".join(text for text, _ in parts) == LETTER
    assert [(text, number) for text, number in parts if number] == [("40 years", 1), ("Kubernetes", 2)]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ([GROUNDED], ["unsupported", "contradicts the fields"]),
        ([CONTRADICTED], ["contradicts the fields"]),
        ([GROUNDED, CONTRADICTED], ["unsupported", "contradicts the fields"]),
        ([NamedSetting("grounded", {"fields": ["Skillsets"]})], ["unsupported", "unsupported"]),
        ([NamedSetting("loss", {})], []),
    ],
)
def test_the_recipes_metrics_say_what_is_marked(metrics: list[NamedSetting], words: list[str]) -> None:
    text = "I know Kubernetes. I hold a PhD in Physics."
    assert [statement.word for statement in unsupported_statements(text, row("r", **FIELDS), metrics)] == words


def test_of_statements_that_overlap_the_first_is_marked_and_no_letter_is_lost() -> None:
    text = "ten years of welding"
    statements = [Statement(a, b, text[a:b], "unsupported", "unsupported", "so") for a, b in ((0, 9), (4, 12), (9, 12))]
    assert split_at_statements(text, statements) == [("ten years", 1), (" of", 3), (" welding", 0)]


def test_a_row_without_fields_has_nothing_to_be_marked() -> None:
    assert unsupported_statements(LETTER, row("r"), [GROUNDED]) == []
    assert split_at_statements("", []) == []


def write(
    folder: Path, rows: dict[str, list[Conversation]], scores: dict[str, tuple[float | None, float | None]]
) -> None:
    (folder / "replies").mkdir()
    for which in ("base", "tuned"):
        lines = [
            json.dumps({"part": part, "id": row.id, "text": f"{which} <i>{EVIL}", "stopped": True, "tokens": 3})
            for part, members in rows.items()
            for row in members
        ]
        (folder / f"replies/{which}.jsonl").write_text("\n".join(lines) + "\n")


def scored(better: str, values: dict[str, tuple[float | None, float | None]]) -> dict[str, Any]:
    rows = [
        {
            "id": name,
            "part": "test",
            "base": {} if b is None else {"loss": b},
            "tuned": {} if t is None else {"loss": t},
        }
        for name, (b, t) in values.items()
    ]
    return {"primary": "loss", "kind": "topic", "sections": {"test": {"loss": {"better": better}}}, "rows": rows}


VALUES: dict[str, tuple[float | None, float | None]] = {
    "fell": (1.0, 0.0),
    "rose": (0.0, 1.0),
    "rose more": (0.25, 2.0),
    "same": (0.5, 0.5),
    "half": (None, 0.5),
}


@pytest.mark.parametrize(
    ("better", "tones", "first"),
    [
        ("lower", ["better", "worse", "worse", "unchanged", None], ["rose more", "rose"]),
        ("higher", ["worse", "better", "better", "unchanged", None], ["fell"]),
        ("neither", [None] * 5, []),
    ],
)
def test_the_good_side_of_the_score_says_what_got_worse(
    tmp_path: Path, better: str, tones: list[str | None], first: list[str]
) -> None:
    rows = {"test": [row(name) for name in VALUES]}
    write(tmp_path, rows, VALUES)  # replies of a run before `cut` was kept
    by_part = read_reply_items(tmp_path, rows, scored(better, VALUES), [])
    (items,) = by_part.values()
    directions = ("better", "worse", "unchanged")
    assert [next((sign for sign in item["signs"] if sign in directions), None) for item in items] == tones
    assert [item["heading"] for item in worst_items(by_part)] == [f"How about {name}?" for name in first]
    counts = {item["key"]: item["count"] for item in reply_filters(by_part, [])}
    assert counts["all"] == 5
    assert {tone: counts[tone] for tone in directions if tone in counts} == (
        {tone: tones.count(tone) for tone in directions} if better != "neither" else {}
    )
    assert "flip" not in counts  # a loss is no 0 or 1
    assert "doubted" not in counts


def test_ten_are_the_worst_of_many(tmp_path: Path) -> None:
    values: dict[str, tuple[float | None, float | None]] = {f"r{n}": (0.0, (n * 7) % 25 / 25) for n in range(25)}
    rows = {"test": [row(name) for name in values]}
    write(tmp_path, rows, values)
    items = worst_items(read_reply_items(tmp_path, rows, scored("lower", values), []))
    assert [item["marks"][1] for item in items] == [n / 25 for n in range(24, 14, -1)]


def test_long_questions_are_cut_in_their_line_and_whole_inside(tmp_path: Path) -> None:
    long = "word " * 60
    rows = {"test": [row("a", f"Write it.\nTitle: one\n{long}"), row("b", "Write it.\nTitle: two")]}
    values: dict[str, tuple[float | None, float | None]] = {"a": (1.0, 0.0), "b": (1.0, 0.0)}
    write(tmp_path, rows, values)
    (items,) = read_reply_items(tmp_path, rows, scored("lower", values), []).values()
    assert items[0]["heading"].startswith("Title: one word word")
    assert len(items[0]["heading"]) == 140
    assert items[1]["heading"] == "Title: two"  # without the line with which all questions open
    assert [item["question"] for item in items] == [item.question for item in rows["test"]]
