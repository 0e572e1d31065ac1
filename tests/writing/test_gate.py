"""The gate: what is shown of a reply, what it states, where it ends, however it comes in pieces."""

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
from tests.claims import planted

from tunesmith.claims.match import check
from tunesmith.commands.read_rows import values as read_values
from tunesmith.config.recipe import read_recipe
from tunesmith.config.registry import find
from tunesmith.data.conversation import Turn
from tunesmith.writing.events import Claimed, Cut, Done, Event, Text, claimed
from tunesmith.writing.form import Form, form_of
from tunesmith.writing.preamble import HELD
from tunesmith.writing.stream_filter import Gate

HERE = Path(__file__).parent
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (HERE / "regressions.jsonl").read_text(encoding="utf-8").split("\n") if line
]
SAMPLES = HERE.parents[1] / "recipes" / "samples"
TODAY = date(2026, 1, 15)
FORMS: dict[str, Form] = {
    name: form_of(read_recipe(name, small=True))
    for name in ("cover-letter", "finance", "instruct", "persona", "persona-gpt2", "shopsphere")
}
FACTS = {
    "Job Title": "Baker",
    "Hiring Company": "Mill Lane Bakery",
    "Applicant Name": "Kim Oat",
    "Skillsets": "kneading",
}


def passed(gate: Gate, pieces: Sequence[str], *, stopped: bool = True) -> list[Event]:
    return [event for piece in pieces for event in gate.feed(piece)] + gate.end(stopped)


def done(events: Sequence[Event]) -> Done:
    last = events[-1]
    assert isinstance(last, Done)
    assert "".join(each.text for each in events if isinstance(each, Text)) == last.text
    return last


def letter(reply: str, *, stopped: bool = True, size: int = 5) -> Done:
    gate = Gate(FACTS, claims=True, today=TODAY)
    return done(passed(gate, [reply[at : at + size] for at in range(0, len(reply), size)], stopped=stopped))


def letters() -> list[tuple[dict[str, str], str]]:
    with (SAMPLES / "cover_letter.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [({k: v for k, v in row.items() if k != "Cover Letter"}, row["Cover Letter"].strip()) for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=[f"{n}-{row['recipe']}-{row['model']}" for n, row in enumerate(ROWS, 1)])
def test_every_prefix_and_run_on_that_models_produced(row: Mapping[str, Any]) -> None:
    found = done(passed(Gate.of(FORMS[row["recipe"]], row["fields"]), list(row["reply"]), stopped=row["stopped"]))
    assert found.text == row["text"]
    assert found.prefix == row["prefix"]
    assert (found.cut.why if found.cut else None) == row["cut"]
    assert found.stopped == (row["stopped"] and row["cut"] is None)
    if found.cut:
        assert found.cut.removed.strip()
        assert row["reply"].replace(found.prefix, "", 1).strip().startswith((found.text + found.cut.removed).strip())


def test_the_regressions_hold_every_kind_and_both_models() -> None:
    assert {row["cut"] for row in ROWS} == {
        None, "goes on as the other speaker", "goes on behind an end-of-text token", "says the prompt again",
        "begins a second letter", "goes on behind the end", "runs in circles",
    }  # fmt: skip
    assert {row["model"] for row in ROWS} == {"base", "tuned", "by hand"}
    assert {row["recipe"] for row in ROWS} == {*FORMS} - {"persona-gpt2"} | {row["recipe"] for row in ROWS}
    assert sum(bool(row["prefix"]) for row in ROWS) > 25


@pytest.mark.parametrize("name", [*FORMS])
def test_answers_of_the_samples_pass_unchanged(name: str) -> None:
    recipe = read_recipe(name, small=True)
    parse = find("tunesmith.data.formats", recipe.data.format.name)
    planted_tells, changed, rows = 0, [], 0
    for values in read_values(recipe.data.source, recipe.folder, recipe.data.encoding):
        turns, _ = parse(values, **recipe.data.format.options)
        answer, rows = turns[-1].text.strip(), rows + 1
        form = replace(FORMS[name], checked=False)  # what is judged is another test's
        known = {each.name: str(values.get(each.name) or "") for each in form.fields}
        found = done(passed(Gate.of(form, known, turns[:-1]), [answer]))
        tells = "Here's a draft" in answer or "Would you like me" in answer  # planted in the sample on purpose
        planted_tells += tells
        if found.text != answer and not tells:
            changed.append((answer, found))
        assert not tells or found.text != answer
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
    once = passed(Gate.of(form, row["fields"]), [reply], stopped=row["stopped"])
    again = passed(Gate.of(form, row["fields"]), pieces, stopped=row["stopped"])
    assert once == again


WORDS = st.sampled_from([
    "Sure", "Certainly", "!", ",", ".", ":", "\n", "\n\n", " ", "Here", "is", "the", "letter", "Dear", "Kim", "I",
    "have", "User:", "###",
    "Response", "```", "\"", "Best regards,", "A:", "1.", "-", "<|im_end|>", "</s>", "<", "|", "ā", "𝒳",
    "\u2028", "\r\n", "Job Title:", "Baker", "---", "Note:", "5 years", "wacky-" * 9, "x" * 70, "\x00", "\ud83d", "**",
])  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(parts=st.lists(WORDS, max_size=40), cuts=st.lists(st.integers(0, 400), max_size=9), stopped=st.booleans())
def test_any_reply_at_all_comes_out_alike_and_is_never_taken_back(
    parts: list[str], cuts: list[int], stopped: bool
) -> None:
    reply = "".join(parts)
    places = sorted(min(each, len(reply)) for each in cuts)
    pieces = [reply[a:b] for a, b in zip([0, *places], [*places, len(reply)], strict=True)]
    found = [passed(Gate(FACTS, claims=True, today=TODAY), each, stopped=stopped) for each in (pieces, [reply], reply)]
    assert found[0] == found[1] == found[2]
    last = done(found[0])
    assert last.text in reply or not last.text
    assert last.text == last.text.strip()
    told = ""
    for event in found[0]:
        told += event.text if isinstance(event, Text) else ""
        if isinstance(event, Claimed):
            assert told[event.start : event.end] == event.text


@given(st.text(max_size=300), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_plain_text_is_never_eaten(text: str, size: int) -> None:
    words = "".join(sign if sign.isalnum() else " " for sign in text).split()
    reply = " ".join(dict.fromkeys(f"{word}{place}" for place, word in enumerate(words)))
    assert done(passed(Gate({}, claims=False), [reply[a : a + size] for a in range(0, len(reply), size)])).text == reply


def test_verdicts_told_meanwhile_are_those_of_the_whole_text() -> None:
    sample = letters()
    cases = sample + [(sample[(place * 7 + 3) % len(sample)][0], text) for place, (_, text) in enumerate(sample)]
    for row in planted.ROWS:
        cases += [(planted.fields_of(row), each[1].strip()) for each in planted.errors(row)]
    told_early = 0
    for values, text in cases[::14]:
        events = passed(Gate(values, claims=True, today=TODAY), [text[at : at + 7] for at in range(0, len(text), 7)])
        last, told = done(events), [each for each in events if isinstance(each, Claimed)]
        if last.cut or last.prefix:
            continue
        whole = [claimed(each) for each in check(text, values, today=TODAY)]
        assert list(last.claims) == whole
        for each in told:
            assert each in whole, text[max(0, each.start - 60) : each.end + 30]
        told_early += len(told)
    assert told_early > 500


def test_a_statement_is_told_with_its_sentence() -> None:
    gate = Gate(FACTS, claims=True, today=TODAY)
    assert not any(isinstance(each, Claimed) for each in gate.feed("Dear team,\n\nI have 5 years of kneading"))
    found = [each for each in gate.feed(" behind me. And") if isinstance(each, Claimed)]
    assert [(each.text, each.verdict) for each in found] == [("5 years", "unsupported"), ("kneading", "supported")]
    assert found[0].why == "No field states this duration."
    assert (found[1].why, found[1].field) == ("Skillsets states it.", "Skillsets")


@pytest.mark.parametrize("reply", ["Dear team,\n\nI bake.", "I bake. I sell. I sweep.", "1. Tap Save.\n2. Wait."])
def test_plain_text_is_shown_a_word_late_at_most(reply: str) -> None:
    gate, come, shown = Gate({}, claims=False, document=True), "", ""
    for sign in reply:
        come += sign
        shown += "".join(each.text for each in gate.feed(sign) if isinstance(each, Text))
        words = come.split()
        assert come[: len(shown)] == shown
        assert len(come.strip()) - len(shown) <= len(" ".join(words[-2:])) + 2


@pytest.mark.parametrize("opening", ["Certainly, here I go on without an end ", "Sure, I can help ", "Job Title: x "])
def test_what_is_held_back_is_bounded(opening: str) -> None:
    gate, come, shown = Gate(FACTS, claims=True), "", ""
    for word in f"{opening}{' '.join(f'word{n}' for n in range(200))}".split(" "):
        come += f"{word} "
        shown += "".join(each.text for each in gate.feed(f"{word} ") if isinstance(each, Text))
        assert len(come) - len(shown) <= HELD + 80


def test_the_reply_can_be_stopped_when_the_text_is_over() -> None:
    gate = Gate({}, claims=False)
    assert not any(isinstance(each, Cut) for each in gate.feed("Leave the lamp on.\n\nUser"))
    assert not gate.over
    events = gate.feed(": Why? ")
    assert isinstance(events[-1], Cut)
    assert gate.over
    assert gate.feed("Because.") == []
    (last,) = gate.end(True)
    assert isinstance(last, Done)
    assert last.text == "Leave the lamp on."
    assert (last.stopped, last.cut) == (False, events[-1])
    assert gate.end(True) == []


def test_nothing_but_chatter_is_shown_rather_than_an_empty_page() -> None:
    found = letter("Sure! Here is your letter:")
    assert (found.text, found.prefix) == ("Sure! Here is your letter:", "")
    assert letter("").text == ""
    assert letter(" \n ").text == ""


def test_words_of_the_asker_are_known_by_the_name_of_the_prompt() -> None:
    prompt = [Turn("user", "Anna: Hi.\nBot: Hi.\nAnna: Are you well?\nBot:")]
    found = done(passed(Gate({}, claims=False, prompt=prompt), ["I am.\nAnna: Good."]))
    assert (found.text, found.cut and found.cut.why) == ("I am.", "goes on as the other speaker")


def test_markup_and_templates_in_a_reply_are_letters() -> None:
    reply = "<script>alert(1)</script> {{ config }} ${x} &amp; <b>5</b> \x1b[31m %s {0}"
    assert done(passed(Gate({}, claims=False), list(reply))).text == reply


def test_offsets_count_code_points() -> None:
    found = letter("Dear team,\n\nI 🙂 know kneading, é and 𝒳, for 5 years.\n\nKind regards,\nKim Oat")
    assert {each.text for each in found.claims} >= {"kneading", "5 years"}
    for each in found.claims:
        assert found.text[each.start : each.end] == each.text


def test_feeding_takes_far_less_than_a_millisecond_and_a_sentence_a_few() -> None:
    feeding, judging = list[float](), list[float]()
    for values, text in letters()[:12]:
        gate = Gate(values, claims=True, today=TODAY)
        for at in range(0, len(text), 4):
            began = time.process_time()
            events = gate.feed(text[at : at + 4])
            (judging if any(isinstance(each, Claimed) for each in events) else feeding).append(
                time.process_time() - began
            )
    assert statistics.median(feeding) < 2e-4
    assert statistics.mean(feeding) < 1e-3
    assert statistics.median(judging) < 2e-2  # 2 to 4 ms on an idle core; the tests run beside others
