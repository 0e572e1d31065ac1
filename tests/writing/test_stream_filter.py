"""The stream filter: visible text, claims and end of a reply, in pieces of any size."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claims import planted
from tunesmith.claims.match import check_claims
from tunesmith.commands.read_rows import row_values as read_values
from tunesmith.config.recipe import read_recipe
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Turn
from tunesmith.writing.events import ClaimEvent, CutEvent, DoneEvent, Event, TextEvent, claim_event
from tunesmith.writing.form import Form, build_form
from tunesmith.writing.preamble import MAX_HELD
from tunesmith.writing.stream_filter import StreamFilter

HERE = Path(__file__).parent
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (HERE / "regressions.jsonl").read_text(encoding="utf-8").split("\n") if line
]
SAMPLES = HERE.parents[1] / "recipes" / "samples"
TODAY = date(2026, 1, 15)
FORMS: dict[str, Form] = {
    name: build_form(read_recipe(name, small=True))
    for name in ("cover-letter", "finance", "instruct", "persona", "persona-gpt2", "shopsphere")
}
FACTS = {
    "Job Title": "Baker",
    "Hiring Company": "Mill Lane Bakery",
    "Applicant Name": "Kim Oat",
    "Skillsets": "kneading",
}


def run_filter(gate: StreamFilter, pieces: Sequence[str], *, stopped: bool = True) -> list[Event]:
    return [event for piece in pieces for event in gate.feed(piece)] + gate.end(stopped)


def done_event(events: Sequence[Event]) -> DoneEvent:
    last = events[-1]
    assert isinstance(last, DoneEvent)
    assert "".join(event.text for event in events if isinstance(event, TextEvent)) == last.text
    return last


def letter(reply: str, *, stopped: bool = True, size: int = 5) -> DoneEvent:
    gate = StreamFilter(FACTS, claims=True, today=TODAY)
    return done_event(
        run_filter(gate, [reply[start : start + size] for start in range(0, len(reply), size)], stopped=stopped)
    )


def letters() -> list[tuple[dict[str, str], str]]:
    with (SAMPLES / "cover_letter.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [({k: v for k, v in row.items() if k != "Cover Letter"}, row["Cover Letter"].strip()) for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=[f"{n}-{row['recipe']}-{row['model']}" for n, row in enumerate(ROWS, 1)])
def test_prefixes_and_run_on_of_real_models_are_removed(row: Mapping[str, Any]) -> None:
    result = done_event(
        run_filter(StreamFilter.of(FORMS[row["recipe"]], row["fields"]), list(row["reply"]), stopped=row["stopped"])
    )
    assert result.text == row["text"]
    assert result.prefix == row["prefix"]
    assert (result.cut.why if result.cut else None) == row["cut"]
    assert result.stopped == (row["stopped"] and row["cut"] is None)
    if result.cut:
        assert result.cut.removed.strip()
        assert row["reply"].replace(result.prefix, "", 1).strip().startswith((result.text + result.cut.removed).strip())


def test_the_regressions_cover_every_kind_and_both_models() -> None:
    assert {row["cut"] for row in ROWS} == {
        None, "continues as the other speaker", "continues after an end-of-text token", "repeats the prompt",
        "starts a second letter", "continues after the end", "repeats itself",
    }  # fmt: skip
    assert {row["model"] for row in ROWS} == {"base", "tuned", "by hand"}
    assert {row["recipe"] for row in ROWS} == {*FORMS} - {"persona-gpt2"} | {row["recipe"] for row in ROWS}
    assert sum(bool(row["prefix"]) for row in ROWS) > 25


@pytest.mark.parametrize("name", [*FORMS])
def test_answers_of_the_samples_pass_unchanged(name: str) -> None:
    recipe = read_recipe(name, small=True)
    parse = resolve("tunesmith.data.formats", recipe.data.format.name)
    planted_tells, changed, rows = 0, [], 0
    for values in read_values(recipe.data.source, recipe.folder, recipe.data.encoding):
        turns, _ = parse(values, **recipe.data.format.options)
        answer, rows = turns[-1].text.strip(), rows + 1
        form = replace(FORMS[name], checked=False)  # claims are tested elsewhere
        inputs = {field.name: str(values.get(field.name) or "") for field in form.fields}
        result = done_event(run_filter(StreamFilter.of(form, inputs, turns[:-1]), [answer]))
        tells = "Here's a draft" in answer or "Would you like me" in answer  # planted in the sample on purpose
        planted_tells += tells
        if result.text != answer and not tells:
            changed.append((answer, result))
        assert not tells or result.text != answer
    assert not changed
    assert rows > 180
    assert planted_tells == (2 if name == "cover-letter" else 0)


@settings(max_examples=60, deadline=None)
@given(row=st.sampled_from(ROWS), data=st.data())
def test_however_a_reply_is_cut_the_events_are_the_same(row: Mapping[str, Any], data: st.DataObject) -> None:
    reply = row["reply"]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=12)))
    pieces = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    form = FORMS[row["recipe"]]
    in_one = run_filter(StreamFilter.of(form, row["fields"]), [reply], stopped=row["stopped"])
    in_pieces = run_filter(StreamFilter.of(form, row["fields"]), pieces, stopped=row["stopped"])
    assert in_one == in_pieces


WORDS = st.sampled_from([
    "Sure", "Certainly", "!", ",", ".", ":", "\n", "\n\n", " ", "Here", "is", "the", "letter", "Dear", "Kim", "I",
    "have", "User:", "###",
    "Response", "```", "\"", "Best regards,", "A:", "1.", "-", "<|im_end|>", "</s>", "<", "|", "ā", "𝒳",
    "\u2028", "\r\n", "Job Title:", "Baker", "---", "Note:", "5 years", "wacky-" * 9, "x" * 70, "\x00", "\ud83d", "**",
])  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(parts=st.lists(WORDS, max_size=40), cuts=st.lists(st.integers(0, 400), max_size=9), stopped=st.booleans())
def test_any_reply_gives_the_same_events_in_any_pieces(parts: list[str], cuts: list[int], stopped: bool) -> None:
    reply = "".join(parts)
    places = sorted(min(cut, len(reply)) for cut in cuts)
    pieces = [reply[a:b] for a, b in zip([0, *places], [*places, len(reply)], strict=True)]
    runs = [
        run_filter(StreamFilter(FACTS, claims=True, today=TODAY), split, stopped=stopped)
        for split in (pieces, [reply], reply)
    ]
    assert runs[0] == runs[1] == runs[2]
    last = done_event(runs[0])
    assert last.text in reply or not last.text
    assert last.text == last.text.strip()
    visible = ""
    for event in runs[0]:
        visible += event.text if isinstance(event, TextEvent) else ""
        if isinstance(event, ClaimEvent):
            assert visible[event.start : event.end] == event.text


@given(st.text(max_size=300), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_plain_text_is_never_removed(text: str, size: int) -> None:
    words = "".join(sign if sign.isalnum() else " " for sign in text).split()
    reply = " ".join(dict.fromkeys(f"{word}{place}" for place, word in enumerate(words)))
    assert (
        done_event(
            run_filter(StreamFilter({}, claims=False), [reply[a : a + size] for a in range(0, len(reply), size)])
        ).text
        == reply
    )


def test_early_verdicts_are_those_of_the_whole_text() -> None:
    sample = letters()
    cases = sample + [(sample[(place * 7 + 3) % len(sample)][0], text) for place, (_, text) in enumerate(sample)]
    for row in planted.ROWS:
        cases += [(planted.fields_of(row), event[1].strip()) for event in planted.errors(row)]
    told_early = 0
    for values, text in cases[::14]:
        events = run_filter(
            StreamFilter(values, claims=True, today=TODAY),
            [text[offset : offset + 7] for offset in range(0, len(text), 7)],
        )
        last, early = done_event(events), [event for event in events if isinstance(event, ClaimEvent)]
        if last.cut or last.prefix:
            continue
        expected = [claim_event(event) for event in check_claims(text, values, today=TODAY)]
        assert list(last.claims) == expected
        for event in early:
            assert event in expected, text[max(0, event.start - 60) : event.end + 30]
        told_early += len(early)
    assert told_early > 500


def test_a_claim_is_reported_with_its_sentence() -> None:
    gate = StreamFilter(FACTS, claims=True, today=TODAY)
    assert not any(isinstance(event, ClaimEvent) for event in gate.feed("Dear team,\n\nI have 5 years of kneading"))
    reported = [event for event in gate.feed(" behind me. And") if isinstance(event, ClaimEvent)]
    assert [(event.text, event.verdict) for event in reported] == [
        ("5 years", "unsupported"),
        ("kneading", "supported"),
    ]
    assert reported[0].why == "No field states this duration."
    assert (reported[1].why, reported[1].field) == ("Skillsets states it.", "Skillsets")


@pytest.mark.parametrize("reply", ["Dear team,\n\nI bake.", "I bake. I sell. I sweep.", "1. Tap Save.\n2. Wait."])
def test_plain_text_is_delayed_by_a_word_at_most(reply: str) -> None:
    gate, received, visible = StreamFilter({}, claims=False, document=True), "", ""
    for sign in reply:
        received += sign
        visible += "".join(event.text for event in gate.feed(sign) if isinstance(event, TextEvent))
        words = received.split()
        assert received[: len(visible)] == visible
        assert len(received.strip()) - len(visible) <= len(" ".join(words[-2:])) + 2


@pytest.mark.parametrize("opening", ["Certainly, here I go on without an end ", "Sure, I can help ", "Job Title: x "])
def test_held_back_text_is_bounded(opening: str) -> None:
    gate, received, visible = StreamFilter(FACTS, claims=True), "", ""
    for word in f"{opening}{' '.join(f'word{n}' for n in range(200))}".split(" "):
        received += f"{word} "
        visible += "".join(event.text for event in gate.feed(f"{word} ") if isinstance(event, TextEvent))
        assert len(received) - len(visible) <= MAX_HELD + 80


def test_the_reply_can_be_stopped_when_the_text_is_over() -> None:
    gate = StreamFilter({}, claims=False)
    assert not any(isinstance(event, CutEvent) for event in gate.feed("Leave the lamp on.\n\nUser"))
    assert not gate.over
    events = gate.feed(": Why? ")
    assert isinstance(events[-1], CutEvent)
    assert gate.over
    assert gate.feed("Because.") == []
    (last,) = gate.end(True)
    assert isinstance(last, DoneEvent)
    assert last.text == "Leave the lamp on."
    assert (last.stopped, last.cut) == (False, events[-1])
    assert gate.end(True) == []


def test_a_reply_of_chatter_only_is_shown() -> None:
    result = letter("Sure! Here is your letter:")
    assert (result.text, result.prefix) == ("Sure! Here is your letter:", "")
    assert letter("").text == ""
    assert letter(" \n ").text == ""


def test_the_users_name_in_the_prompt_marks_the_other_speaker() -> None:
    prompt = [Turn("user", "Anna: Hi.\nBot: Hi.\nAnna: Are you well?\nBot:")]
    result = done_event(run_filter(StreamFilter({}, claims=False, prompt=prompt), ["I am.\nAnna: Good."]))
    assert (result.text, result.cut and result.cut.why) == ("I am.", "continues as the other speaker")


def test_markup_and_templates_in_a_reply_stay_literal() -> None:
    reply = "<script>alert(1)</script> {{ config }} ${x} &amp; <b>5</b> \x1b[31m %s {0}"
    assert done_event(run_filter(StreamFilter({}, claims=False), list(reply))).text == reply


def test_offsets_count_code_points() -> None:
    result = letter("Dear team,\n\nI 🙂 know kneading, é and 𝒳, for 5 years.\n\nKind regards,\nKim Oat")
    assert {claim.text for claim in result.claims} >= {"kneading", "5 years"}
    for claim in result.claims:
        assert result.text[claim.start : claim.end] == claim.text


def test_feeding_is_fast() -> None:
    feeding, judging = list[float](), list[float]()
    for values, text in letters()[:12]:
        gate = StreamFilter(values, claims=True, today=TODAY)
        for start in range(0, len(text), 4):
            began = time.process_time()
            events = gate.feed(text[start : start + 4])
            (judging if any(isinstance(event, ClaimEvent) for event in events) else feeding).append(
                time.process_time() - began
            )
    assert statistics.median(feeding) < 2e-4
    assert statistics.mean(feeding) < 1e-3
    assert statistics.median(judging) < 2e-2  # 2 to 4 ms on an idle core; the tests run beside others
