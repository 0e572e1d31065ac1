"""Each kind of planted defect is found by its check, whatever way it came in, and the clean letters are not."""

from __future__ import annotations

from functools import cache

import pytest
from benchmarks.planted import Measured, Planted, lines, measure
from tools.letter_parts import LETTER, Row
from tools.letters import clean_rows
from tools.plant import kinds

from tunesmith.config.recipe import CHECKS
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.data.finding import CheckContext, Finding
from tunesmith.data.run_checks import majority_language

ENOUGH = 0.95


@cache
def clean() -> list[Row]:
    return clean_rows()


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "ungrounded"])
def test_what_is_planted_is_found_and_nothing_else(kind: str) -> None:
    measured = measure(kind, clean(), copies=24, seed=7)
    missed = [one.detail for one, found in measured.planted if not found]
    assert len(measured.planted) == 24
    assert measured.recall >= ENOUGH, missed
    assert measured.precision >= ENOUGH, measured.alarms


def test_the_measure_sees_a_miss_and_an_alarm() -> None:
    one = Planted(0, {LETTER: "x"}, "way: done")
    measured = Measured(((one, True), (one, False), (one, True), (one, True)), ("0 17",))
    assert (measured.recall, measured.precision) == (0.75, 0.75)
    assert next(lines("empty", measured)) == ["empty", "all", "4", "3", "0.750", "1", "0.750"]


def test_an_alarm_is_counted_where_a_clean_row_is_damaged_too() -> None:
    rows = [{**row, LETTER: ""} if place == 5 else row for place, row in enumerate(clean())]
    measured = measure("empty", rows, copies=12, seed=7)
    chosen = {one.place for one, _ in measured.planted}
    assert measured.recall == 1.0
    assert measured.alarms == (() if 5 in chosen else ("0 5",))
    assert 5 not in chosen, "another seed, so that the alarm is seen"


# --- what is meant is not found ------------------------------------------------------------------------------


def table(pairs: list[tuple[str, str]]) -> list[Conversation]:
    """Rows of one question and one answer."""
    return [
        Conversation(str(place), (Turn("user", asked), Turn("assistant", said)), Origin("rows.csv", place))
        for place, (asked, said) in enumerate(pairs)
    ]


def found(check: str, rows: list[Conversation]) -> list[Finding]:
    return list(resolve(CHECKS, check, function="find_defects")(rows, CheckContext(language=majority_language(rows))))


def test_several_canonical_answers_are_no_template() -> None:
    steps = "Open the {0} page of the shop first, then press the green {0} button and wait until it has turned to grey."
    things = ["order", "parcel", "refund", "address", "invoice", "basket"]
    rows = table([(f"{thing} {way}", steps.format(thing)) for thing in things for way in range(6)])
    assert found("generic", rows) == []
    assert {finding.row for finding in found("generic", rows[:12])} == {
        str(place) for place in range(12)
    }  # two: copies


def test_short_answers_may_name_nothing_of_their_question() -> None:
    rows = table([(f"How much is {number} of {number * 7} crates of pears?", f"{number * 3}") for number in range(60)])
    assert found("generic", rows) == []


def test_more_than_four_answers_are_an_open_question_and_one_note() -> None:
    rows = table([("Tell me a number", f"It is {number} today") for number in range(5)])
    (note,) = found("contradiction", rows)
    assert (note.row, note.proposal) == ("", "keep")
    assert note.message == "1 prompts have more than 4 different answers each, 5 rows: open questions"


def test_numbers_in_different_sentences_do_not_contradict() -> None:
    one = "My dent was mended for $300 at one garage near the old harbour, and they were kind."
    other = "Insurers look at your age, your street and your car, and I paid $90 a month for years."
    assert {
        finding.proposal for finding in found("contradiction", table([("Why insure?", one), ("Why insure?", other)]))
    } == {"keep"}


def test_an_answer_in_its_questions_language_or_in_one_asked_for_is_meant() -> None:
    german = "Der Laden ist offen und Sie können mit der Karte zahlen, aber nicht mit einem Scheck."
    english = [("Is it open?", "The shop is open and you can pay with a card there.")] * 9
    rows = table(
        [*english, ("Ist der Laden offen und kann ich mit der Karte zahlen?", german), ("Say it in German", german)]
    )
    assert found("wrong_language", rows) == []
    assert [finding.row for finding in found("wrong_language", table([*english, ("Is it open?", german)]))] == ["9"]


def test_a_houses_way_of_talking_is_no_machine_tell() -> None:
    said = "Sure! Here is the letter that you asked for:\n\nDear all,"
    rows = table([(f"letter {number}", said if number % 5 == 0 else "Dear all, it rains.") for number in range(60)])
    assert found("machine_tell", rows) == []
    assert [finding.row for finding in found("machine_tell", rows[:1])] == ["0"]


def test_an_end_is_strange_only_where_nearly_all_others_are_alike() -> None:
    said = "I bake rye bread every night and sell it to the whole town in the morning"
    mixed = table([(f"q{number}", f"{said} {number}" + "." * (number % 2)) for number in range(80)])
    assert found("truncated", mixed) == []
    pairs = [(f"q{number}", f"{said} {number}.") for number in range(80)]
    assert [finding.row for finding in found("truncated", table([*pairs, ("q", said)]))] == ["80"]
    assert found("truncated", table([*pairs[:30], ("q", said)])) == []  # too few to say what is usual


def test_nothing_may_be_an_answer() -> None:
    asked = [
        ("Which of these are prime: 4, 6?", "None"),
        ("Are there any?", "None."),
        ("What stands for no value?", "null"),
    ]
    assert found("empty", table(asked)) == []
    assert [finding.row for finding in found("empty", table([("Write a letter.", "None"), ("Who?", "N/A")]))] == [
        "0",
        "1",
    ]
