"""Each check finds exactly the planted rows, shows the words that prove it, and proposes what its page says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from handmade import context, defects_of, row, spans, talk
from tunesmith.config.recipe import CHECKS, NamedSetting
from tunesmith.config.registry import check_options, entries, entry_constant, entry_options, resolve
from tunesmith.data.conversation import Conversation, Origin, Turn, normalize
from tunesmith.data.finding import CheckContext, Finding, Proposal, excerpt
from tunesmith.data.language import Language
from tunesmith.data.run_checks import BATCH_ROWS, MIN_ROWS, majority_language
from tunesmith.data.run_checks import run_checks as look_all
from tunesmith.data.split import PARTS
from tunesmith.data.table import Table
from tunesmith.errors import RecipeError


def found(findings: list[Finding], proposal: str = "drop") -> list[tuple[str, str]]:
    for finding in findings:
        number = int(finding.row[1:])
        assert (finding.file, finding.line, finding.proposal) == ("rows.csv", number + 1, proposal)
        assert (finding.turn, finding.start, finding.end, finding.excerpt) == (-1, -1, -1, "")  # of the whole row
    return [(finding.row, finding.message) for finding in findings]


def wishes(findings: Sequence[Finding]) -> set[str]:
    return {finding.proposal for finding in findings}


# --- what all share ------------------------------------------------------------------------------------------

QUESTIONS = ["how do trains turn", "why is bread soft", "where do owls sleep", "when did rain start"]


@pytest.mark.parametrize("name", entries(CHECKS))
def test_a_check_finds_nothing_in_good_rows(name: str) -> None:
    rows = [row(n, question) for n, question in enumerate(QUESTIONS, 1)]
    parts = dict(zip([r.id for r in rows], PARTS, strict=True))
    given = context(parts) if name != "leak" else context(dict.fromkeys(parts, "train"))  # all have one answer
    assert defects_of(name, rows, given) == defects_of(name, [], given) == []


@pytest.mark.parametrize("name", entries(CHECKS))
def test_a_check_keeps_the_contract(name: str) -> None:
    entry = resolve(CHECKS, name, function="find_defects")
    assert entry_constant(CHECKS, name, "SCOPE") in ("row", "table", "split")
    assert entry.__doc__
    if "do" not in entry_options(entry):
        assert name in ("bad_answer", "broken", "imbalance")  # the one has one decision, the other is about the table
        return
    assert check_options(entry, {"do": "quarantine"}, where=str) == []
    (wrong,) = check_options(entry, {"do": "delete"}, where=lambda option: f"data.checks.{option}")
    words = "keep, repair, quarantine, drop"
    assert wrong.what in (
        f"'do' must be one of {words}, not 'delete'",
        f"'do' must be one of {words}, null, not 'delete'",
    )
    assert wrong.where == "data.checks.do"
    (wrong,) = check_options(entry, {"do": True}, where=str)
    assert "'do' must be one of" in wrong.what


def test_the_last_proposal_is_the_strongest() -> None:
    assert get_args(Proposal) == ("keep", "repair", "quarantine", "drop")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("STRASSE straße", "strasse strasse"),
        ("Café cafe\u0301 ÉTÉ", "café café été"),
        ("ﬁne Ｆｕｌｌ ²", "fine full 2"),
        ("snake_case-and.dots", "snake case and dots"),
        ("終わり。終", "終わり 終"),
        ("a\u2028b\u00a0c\td\n", "a b c d"),
        ("Tap → Save 🙂", "tap → save 🙂"),
        ("->", ">"),
        ("--", "--"),
        ("C++ & C# 100%?", "c++ & c# 100%"),
        (" \n", ""),
        ("", ""),
    ],
)
def test_normalise_folds_what_people_call_the_same(text: str, expected: str) -> None:
    assert normalize(text) == expected
    assert normalize(normalize(text)) == expected


def test_an_excerpt_shows_the_place_and_a_little_around_it() -> None:
    text = "a" * 50 + "HERE" + "b" * 50
    assert excerpt(text, 50, 54) == f"…{'a' * 30}⟦HERE⟧{'b' * 30}…"
    assert excerpt("short", 0, 5) == "⟦short⟧"
    long = excerpt("x" * 300 + "y" * 300, 0, 600)
    assert long == f"⟦{'x' * 80} … {'y' * 35}⟧"


# --- silence and repeats -------------------------------------------------------------------------------------


def test_empty_finds_silent_rows() -> None:
    rows = [
        row(1, "q"),
        row(2, " \n\t", "a"),
        row(3, "q", "\u2003"),
        row(4, "", ""),
        replace(row(5, "q"), turns=(Turn("system", ""), *row(5, "q").turns)),  # an empty system message is none
        talk(6, "q", "a", "r", ""),
        talk(7, "q", "", "r", "a"),  # for broken_turns
    ]
    expected = [("r2", "user"), ("r3", "assistant"), ("r4", "user"), ("r6", "assistant")]
    assert found(defects_of("empty", rows)) == [(name, f"the {who}'s text is empty") for name, who in expected]
    assert wishes(defects_of("empty", rows, do="quarantine")) == {"quarantine"}


def test_broken_turns_finds_silence_and_repeats_before_the_last_answer() -> None:
    rows = [
        talk(1, "q", "", "r", "a"),
        talk(2, "q", "a", " ", "b"),
        talk(3, "How do I pay?", "Tap Pay.", "how do I pay", "Tap it twice."),
        talk(4, "q", "Tap Pay.", "r", "tap, pay"),
        talk(5, "q", "a", "r", "b", "q", "c"),  # asked again later is no repeat
        talk(6, "q", "a"),
        talk(7, "q", "a", "r", ""),  # for empty
        replace(talk(8, "q", "a", "r", "b"), turns=(Turn("system", ""), *talk(8, "q", "a", "r", "b").turns)),
    ]
    findings = defects_of("broken_turns", rows)
    assert [(f.row, f.message, f.turn) for f in findings] == [
        ("r1", "turn 2, by the assistant, is empty", -1),
        ("r2", "turn 3, by the user, is empty", -1),
        ("r3", "the user says the same thing twice", 2),
        ("r4", "the assistant says the same thing twice", 3),
    ]
    assert spans(findings[2:], rows) == [("r3", "how do I pay"), ("r4", "tap, pay")]
    assert wishes(findings) == {"quarantine"}


def test_duplicate_finds_later_copies() -> None:
    rows = [
        row(1, "How do I pay?", "Tap Pay."),
        row(2, "how do i  PAY", "tap pay"),
        row(3, "How do I pay?", "Call us."),
        row(4, "How do I pay!", "Tap, pay."),
        row(5, "How do I pay? Tap", "Pay."),  # the same words, another question
        row(6, "How do I pay?", "Tap Pay.", system="be kind"),
        row(7, "+", "plus"),
        row(8, "-", "plus"),
        row(9, " + ", "plus"),
        row(10, "What is C?", "A language."),
        row(11, "What is C++?", "A language."),
    ]
    first, plus = "repeats rows.csv line 2", "repeats rows.csv line 8"
    assert found(defects_of("duplicate", rows)) == [("r2", first), ("r4", first), ("r9", plus)]
    assert [name for name, _ in found(defects_of("duplicate", rows[::-1]))] == [
        "r7",
        "r2",
        "r1",
    ]  # the first one stays
    half = [row(1, "half \ud83d", "x"), row(2, "half \ud83d", "x")]
    assert [finding.row for finding in defects_of("duplicate", half)] == ["r2"]


LONG = (
    "Please tell me in plain words how the small blue lamp in the hall of our old house is switched {} at night by hand"
)


def test_near_duplicates_stay_once() -> None:
    rows = [row(1, LONG.format("on"), "a"), row(2, "What?", "b"), row(3, LONG.format("off"), "a"), row(4, "What!", "b")]
    assert found(defects_of("near_duplicate", rows)) == [("r3", "nearly repeats rows.csv line 2")]
    assert defects_of("near_duplicate", rows, threshold=1.0) == []  # r4 is an exact copy: duplicate's
    assert [finding.row for finding in defects_of("duplicate", rows)] == ["r4"]
    copies = [row(1, LONG.format("on"), "a"), row(2, LONG.format("on"), "a"), row(3, LONG.format("off"), "a")]
    assert found(defects_of("near_duplicate", copies)) == [("r3", "nearly repeats rows.csv line 2")]
    other = [row(1, LONG.format("on"), "a", system="be kind"), row(2, LONG.format("on"), "a", system="be brief")]
    assert defects_of("duplicate", other) == []
    assert [finding.row for finding in defects_of("near_duplicate", other)] == ["r2"]  # one of the two tells each copy


def test_an_answer_under_several_prompts_is_told_of_the_later_rows() -> None:
    same = "I would be glad to join your fine old mill."
    rows = [
        row(1, "A nurse in Leeds", same),
        row(2, "a nurse, in leeds", same),  # the same prompt
        row(3, "A nurse in Bath", same.upper()),
        row(4, "A baker in Bath", "Yes, I would."),
        row(5, "A baker in York", "Yes, I would."),  # short: a value
    ]
    assert found(defects_of("repeated_answer", rows), "keep") == [
        ("r3", "has the answer of rows.csv line 2 with another prompt")
    ]
    assert [f.row for f in defects_of("repeated_answer", rows, words=3)] == ["r3", "r5"]
    assert wishes(defects_of("repeated_answer", rows, do="drop")) == {"drop"}


# --- contradiction -------------------------------------------------------------------------------------------


def test_contradiction_by_number_by_yes_and_no_and_by_short_answer() -> None:
    rows = [
        row(1, "What is the lamp?", "The blue lamp costs $40 with delivery to the door."),
        row(2, "what is the lamp", "The blue lamp costs $55 with delivery to the door."),
        row(3, "Can I return shoes?", "Yes, within a month."),
        row(4, "Can I return shoes?", "No, shoes are never taken back."),
        row(5, "How long is the trial?", "14 days"),
        row(6, "How long is the trial?", "30 days"),
        row(7, "Another question", "The lamp costs $99."),
    ]
    findings = defects_of("contradiction", rows)
    assert [finding.message for finding in findings] == [
        "says '$40', unlike rows.csv line 3",
        "says '$55', unlike rows.csv line 2",
        "says the opposite of rows.csv line 5",
        "says the opposite of rows.csv line 4",
        "differs from the answer of rows.csv line 7",
        "differs from the answer of rows.csv line 6",
    ]
    proofs = ["$40", "$55", "Yes,", "No,", "14 days", "30 days"]
    assert spans(findings, rows) == [(f"r{n}", place) for n, place in enumerate(proofs, 1)]
    assert wishes(findings) == {"quarantine"}
    assert wishes(defects_of("contradiction", rows, do="drop")) == {"drop"}


def test_wordings_of_one_answer_and_open_questions_are_no_contradiction() -> None:
    wordings = [row(1, "How do I pay?", "Tap Pay."), row(2, "How do I pay?", "tap pay"), row(3, "how do i pay", "Pay")]
    assert wishes(defects_of("contradiction", wordings)) == {"keep"}  # 'Pay' says less, not something else
    assert defects_of("contradiction", wordings[:2]) == []
    jokes = [
        row(1, "Tell me a joke", "Why did the kettle leave the kitchen? It could not stand the heat any more."),
        row(2, "Tell me a joke", "A clock walks into a bar and is told that it always comes at the same time."),
        row(3, "Tell me a joke", "My bicycle fell over this morning because it was far too tired to stand."),
    ]
    findings = defects_of("contradiction", jokes)
    assert found(findings, "keep") == [(name, "one of 3 different answers to one prompt") for name in ("r2", "r3")]


def test_another_system_message_may_want_another_answer() -> None:
    rows = [
        row(1, "Is it open?", "Yes.", system="You are shop A"),
        row(2, "Is it open?", "No.", system="You are shop B"),
    ]
    assert defects_of("contradiction", rows) == []
    same = [replace(each, turns=(Turn("system", "You are a shop"), *each.turns[1:])) for each in rows]
    assert [finding.row for finding in defects_of("contradiction", same)] == ["r1", "r2"]


# --- generic -------------------------------------------------------------------------------------------------

THINGS = "kettle lantern bicycle umbrella anvil compass hammock trumpet barrel ladder sundial thimble easel funnel"
PLACES = "harbour meadow attic cellar orchard quarry belfry stable jetty bakery library terrace boathouse tower"
COLORS = "crimson ochre indigo turquoise"


def described(count: int) -> list[Conversation]:
    things, places, colors = THINGS.split(), PLACES.split(), COLORS.split()
    rows = []
    for number in range(count):
        thing, place = things[number % len(things)], places[(number * 5 + number // 14) % len(places)]
        color = colors[number % len(colors)] + "ish" * (number // 28)
        rows.append(
            row(
                number + 1,
                f"{thing}{number} {place}{number} {color}{number}",
                f"The {thing}{number} stands near {place}{number}, quite alone.",
            )
        )
    return rows


def test_generic_finds_a_template_shared_by_many_prompts() -> None:
    letter = (
        "I am very pleased to apply for this position today. I would bring great energy to your esteemed company. "
        "Thank you so much for your kind time and attention."
    )
    own = "I baked rye bread at the mill for six winters. My oven log from those years is attached below."
    rows = [*(row(n, f"job {n}", letter) for n in range(1, 5)), row(5, "job 5", own)]
    findings = defects_of("generic", rows)
    assert [f.message for f in findings] == ["100% of it is also in the answers to 3 or more other prompts"] * 4
    assert spans(findings, rows) == [(f"r{n}", letter) for n in range(1, 5)]
    assert wishes(findings) == {"quarantine"}
    assert defects_of("generic", rows[1:]) == []  # three prompts: the sentence stands in two others' answers
    same = [row(n, "one prompt", letter) for n in range(1, 9)]
    assert defects_of("generic", same) == []  # one prompt's own answer
    half = [*rows, row(6, "job 6", f"{own} {letter}")]
    assert [f.row for f in defects_of("generic", half)] == ["r1", "r2", "r3", "r4", "r6"]  # 29 of its 48 words
    assert [f.row for f in defects_of("generic", half, shared=0.7)] == ["r1", "r2", "r3", "r4"]


def test_generic_finds_an_answer_that_names_nothing_of_its_input() -> None:
    rows = described(40)
    assert defects_of("generic", rows) == []
    strange = replace(rows[7], turns=(rows[7].turns[0], Turn("assistant", "It was a fine day for all of us.")))
    told = defects_of("generic", [*rows[:7], strange, *rows[8:]])
    assert [(f.row, f.message) for f in told] == [("r8", "uses nothing of its own input")]
    assert spans(told, [strange]) == [("r8", "It was a fine day for all of us.")]
    few = rows[:24]  # too few to say what is usual
    assert defects_of("generic", [*few[:7], strange, *few[8:]]) == []
    open_ones = [replace(each, turns=(each.turns[0], Turn("assistant", "It was fine."))) for each in rows[:30]]
    assert defects_of("generic", [*open_ones, *rows[30:]]) == []  # such answers are usual here


# --- lengths and shares --------------------------------------------------------------------------------------


def test_too_long_finds_rows_over_the_limit() -> None:
    rows = [row(1, "a b c", "d e"), row(2, "a b c", "d e f"), row(3, "a b", "c d", system="e f g")]
    assert found(defects_of("too_long", rows, context(max_tokens=5))) == [
        ("r2", "6 tokens, limit 5"),
        ("r3", "7 tokens, limit 5"),
    ]
    assert found(defects_of("too_long", rows, context(max_tokens=5), max_tokens=6)) == [("r3", "7 tokens, limit 6")]
    assert defects_of("too_long", rows, context(max_tokens=7)) == []
    assert defects_of("too_long", rows, CheckContext(None, 1)) == []  # nobody counts


def test_too_short_finds_answers_far_below_the_usual_length() -> None:
    long = " ".join(["word"] * 40)
    rows = [*(row(n, f"q{n}", long) for n in range(1, 10)), row(10, "q", "Please see attached."), row(11, "q", "")]
    findings = defects_of("too_short", rows)
    assert [(f.row, f.message, f.proposal) for f in findings] == [
        ("r10", "3 words, the median answer has 40", "keep"),
    ]
    assert spans(findings, rows) == [("r10", "Please see attached.")]
    alike = [
        *rows[:9],
        row(12, "q", "word " * 19),
        row(13, "q", "word " * 20),
    ]  # of one length: the limit is half of it
    assert [f.row for f in defects_of("too_short", alike)] == ["r12"]
    varied = [row(n, f"q{n}", "word " * (10 * n)) for n in range(1, 10) for _ in range(9)]
    varied += [row(12, "q", "word " * 7), row(13, "q", "word " * 8)]  # a median of 50: the limit is 7.5
    assert [f.row for f in defects_of("too_short", varied)] == ["r12"]
    assert [f.row for f in defects_of("too_short", rows, words=41)] == [f"r{n}" for n in range(1, 11)]
    assert wishes(defects_of("too_short", rows, do="drop")) == {"drop"}


def test_imbalance_tells_of_small_groups_and_of_one_answer_for_all() -> None:
    rows = [*(row(n, f"q{n}", f"a{n}", group="big") for n in range(20)), row(21, "x", "y", group="tiny")]
    (finding,) = defects_of("imbalance", rows)
    assert (finding.row, finding.line, finding.proposal) == ("", 0, "keep")
    assert finding.message == "'big' has 20 rows, 'tiny' 1; 1 of 2 groups are that small"
    assert defects_of("imbalance", rows, ratio=21.0) == []
    assert defects_of("imbalance", rows[:19]) == []  # too few rows to speak of shares
    same = [row(n, f"q{n}", "Sorry." if n < 3 else f"a{n}") for n in range(30)]
    assert [f.message for f in defects_of("imbalance", same)] == ["3 of 30 rows have the same answer"]
    assert defects_of("imbalance", same, share=0.11) == []


# --- leaks ---------------------------------------------------------------------------------------------------


def test_leak_finds_training_rows_with_a_held_prompt() -> None:
    rows = [
        row(1, "How do I pay?", "x"),
        row(2, "how do I pay", "y"),
        row(3, "How do I pay?", "z"),
        row(4, "other", "a"),
        row(5, "new", "b"),
        row(6, "NEW!", "c", system="be kind"),
        row(7, "valid one", "d"),
        row(8, "Valid one.", "D!"),
        row(9, "a question of its own", "y"),
    ]
    given = ["train", "test", "train", "train", "unseen", "train", "valid", "train", "train"]
    parts = dict(zip([r.id for r in rows], given, strict=True))
    *told, shared = defects_of("leak", rows, context(parts))
    assert found(told) == [
        ("r1", "its prompt is also in test: rows.csv line 3"),
        ("r3", "its prompt is also in test: rows.csv line 3"),
        ("r6", "its prompt is also in unseen: rows.csv line 6"),
        ("r8", "its prompt and its answer are also in valid: rows.csv line 8"),
    ]
    assert (shared.row, shared.proposal) == ("", "keep")
    assert shared.message == "1 training rows have the answer of a held-out row with another prompt"
    assert defects_of("leak", rows, context(dict.fromkeys(parts, "train"))) == []
    assert defects_of("leak", rows, context(dict.fromkeys(parts, "test"))) == []


def test_leak_compares_the_turns_of_the_whole_prompt() -> None:
    rows = [
        talk(1, "1 2", "3", "4", "5"),
        talk(2, "1", "2 3", "4", "6"),
        talk(3, "1 2", "3", "4!", "7"),
        talk(4, "4", "8"),
    ]
    parts = {"r1": "test", "r2": "train", "r3": "train", "r4": "train"}
    assert [name for name, _ in found(defects_of("leak", rows, context(parts)))] == ["r3"]


def test_near_leaks_cost_the_training_row() -> None:
    rows = [row(1, LONG.format("on")), row(2, LONG.format("off")), row(3, "Something else altogether")]
    parts = {"r1": "test", "r2": "train", "r3": "train"}
    (finding,) = defects_of("near_leak", rows, context(parts))
    assert (finding.row, finding.proposal) == ("r2", "drop")
    assert finding.message.endswith("% similar to rows.csv line 2 in test")
    assert defects_of("near_leak", rows, context(dict.fromkeys(parts, "train"))) == []
    assert defects_of("near_leak", rows, context(parts), threshold=1.0) == []


# --- damage --------------------------------------------------------------------------------------------------

LIST = "1. Open the tab. 2. Tap the cart. 3. Tap the button."
DAMAGED = {
    "collapsed_list": (f"So: {LIST}", f" {LIST}", "repair"),
    "machine_tell": ("As an AI language model, I like soup.", "As an AI", "quarantine"),
    "markup": ("Fish &amp; chips are served hot in here.", "&amp;", "repair"),
    "mojibake": ("We met in the cafÃ© at noon.", "Ã©", "repair"),
    "truncated": ("Whisk the eggs for one minute, then add the flour and the", "the", "quarantine"),
    "whitespace": ("One line.\r\nAnother line.", "\r\n", "repair"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_with_its_place_and_what_can_be_done(name: str) -> None:
    text, place, wish = DAMAGED[name]
    rows = [row(1, "What then?", text), row(2, "Why?", "Because the lamp is old and the switch is loose.")]
    findings = defects_of(name, rows)
    assert (spans(findings, rows), wishes(findings)) == ([("r1", place)], {wish})
    assert {(f.check, f.turn, f.line) for f in findings} == {(name, 1, 2)}
    assert wishes(defects_of(name, rows, do="drop")) == {"drop"}
    asked = defects_of(name, [row(1, text, "Because the lamp is old and the switch is loose.")])
    assert [f.turn for f in asked] == ([0] if name in ("mojibake", "whitespace") else [])  # others: answers alone


def test_markup_that_must_be_kept_by_hand_is_quarantined() -> None:
    rows = [row(1, "q", "Fish<br>are &amp; were served.")]
    assert [
        (place, f.proposal)
        for (_, place), f in zip(spans(defects_of("markup", rows), rows), defects_of("markup", rows), strict=True)
    ] == [
        ("<br>", "quarantine"),
        ("&amp;", "repair"),
    ]


def test_lost_letters_cannot_be_had_back() -> None:
    rows = [row(1, "q", "The caf\ufffd is open.")]
    assert [(f.message, f.proposal) for f in defects_of("mojibake", rows)] == [("a letter was lost", "quarantine")]


def test_repetition_is_told_and_kept() -> None:
    rows = [row(1, "q", "The lamp is old and blue. " * 12)]
    (finding, *_) = defects_of("repetition", rows)
    assert finding.proposal == "keep"
    assert wishes(defects_of("repetition", rows, do="quarantine")) == {"quarantine"}


def test_a_slot_that_the_row_itself_fills_is_repaired() -> None:
    letter = "Dear team, I would like to join {}. Sincerely, [Your Name]"
    rows = [
        row(1, "q", letter.format("[Company Name]"), Company="Tern & Daughters", Applicant="Mira Quill"),
        row(2, "q", letter.format("us"), Company="Tern & Daughters"),
        row(3, "[Your Name]", "Fine."),
    ]
    findings = defects_of("placeholder", rows)
    assert spans(findings, rows) == [("r1", "[Company Name]"), ("r1", "[Your Name]"), ("r2", "[Your Name]")]
    assert [f.proposal for f in findings] == ["repair", "repair", "quarantine"]
    assert wishes(defects_of("placeholder", rows, do="keep")) == {"keep"}


def test_a_made_up_employer_is_told_where_a_field_names_another() -> None:
    letter = "Dear team, I would like to join ABC Company."
    rows = [
        row(1, "q", letter, Company="Tern & Daughters"),
        row(2, "q", letter, Company="ABC Company"),
        row(3, "q", letter, Topic="letters"),
    ]
    findings = defects_of("placeholder", rows)
    assert spans(findings, rows) == [("r1", "ABC Company")]
    assert wishes(findings) == {"quarantine"}


def test_the_wrong_language_is_told_against_most_rows_or_the_wish() -> None:
    english = [row(n, "q", f"The lamp in the hall is switched on by hand number {n}.") for n in range(1, 6)]
    german = row(6, "q", "Die Lampe im Flur wird von Hand eingeschaltet und ist nicht sehr hell.")
    greek = row(7, "q", "Το φως στον διάδρομο ανάβει με το χέρι κάθε βράδυ.")
    rows = [*english, german, greek]
    own = context(language=majority_language(rows))
    assert own.language == Language("Latin", "en")
    findings = defects_of("wrong_language", rows, own)
    assert [(f.row, f.proposal) for f in findings] == [("r6", "quarantine"), ("r7", "quarantine")]
    spans(findings, rows)
    assert [f.row for f in defects_of("wrong_language", rows, own, language="de")] == [
        *(f"r{n}" for n in range(1, 6)),
        "r7",
    ]
    assert [f.row for f in defects_of("wrong_language", rows, own, script="Greek", language="el")] == [
        f"r{n}" for n in range(1, 7)
    ]
    assert defects_of("wrong_language", [row(1, "q", "Ja, gern.")], own) == []  # too short to judge


# --- what must not be written down ---------------------------------------------------------------------------


def test_personal_data_is_named_by_kind_and_place_and_never_repeated() -> None:
    rows = [
        row(1, "Mail sam@example.org please.", "Call 212-555-0123."),
        row(2, "Who is Mira?", "Mira Quill bakes.", Applicant="Mira Quill"),
        row(3, "What is 2 + 2?", "4"),
    ]
    findings = defects_of("personal", rows, names=["Applicant"])
    assert [(f.row, f.message, f.turn, f.start, f.end) for f in findings] == [
        ("r1", "email in the user's text", 0, 5, 20),
        ("r1", "phone in the assistant's text", 1, 5, 17),
        ("r2", "name in the user's text", 0, 7, 11),
        ("r2", "name in the assistant's text", 1, 0, 10),
    ]
    written = json.dumps([asdict(finding) for finding in findings])
    assert not [value for value in ("sam@example.org", "212-555-0123", "Mira", "Quill") if value in written]
    assert wishes(defects_of("personal", rows)) == {"keep"}
    assert wishes(defects_of("personal", rows, do="drop")) == {"drop"}
    assert [finding.row for finding in defects_of("personal", rows, kinds=["phone"])] == ["r1"]


KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


def test_secrets_cost_their_row() -> None:
    findings = defects_of("secrets", [row(1, "fine"), row(2, f"my key is {KEY}", "never share it")])
    assert [(f.row, f.proposal, f.message, f.turn, f.start, f.end) for f in findings] == [
        ("r2", "drop", "aws key in the user's text", 0, 10, 30)
    ]
    assert KEY not in str(findings)


def test_no_check_writes_down_what_is_private(tmp_path: Path) -> None:
    """Another check's excerpt may hold the place: there the value is hidden too."""
    card, mail = "4111 1111 1111 1111", "sam.tern@mill.example.net"
    short = f"Key {KEY}, mail {mail}."
    long = " ".join(["word"] * 60) + "."
    cut = f"Write to {mail} or pay with {card} and use the key {KEY} and the"
    rows = [row(1, f"Say {mail}\r\n", short), *(row(n, f"question {n}", long) for n in range(2, 9)), row(9, "x", cut)]
    named = [NamedSetting(name, {}) for name in entries(CHECKS)]
    findings = list(look_all(Table.write(tmp_path / "t", rows), named, context(), scopes=("row", "table")))
    assert {"too_short", "truncated", "whitespace", "secrets", "personal"} <= {f.check for f in findings}
    written = json.dumps([asdict(finding) for finding in findings])
    assert not [value for value in (KEY, KEY[:12], mail, "sam.tern", card, "4111") if value in written]
    assert spans([f for f in findings if f.check == "personal"], rows)[0] == ("r1", mail)  # the place is told


# --- grounds -------------------------------------------------------------------------------------------------


def test_ungrounded_answers_are_told_with_the_claim_and_its_reason() -> None:
    fields = {
        "Job Title": "Baker",
        "Hiring Company": "Crumb Lane Bakery",
        "Preferred Qualifications": "Experience with Excel",
        "Past Working Experience": "Baker at Morning Oven for 3 years",
        "Skillsets": "sourdough, ovens",
    }
    honest = "I am writing about the position of Baker at Crumb Lane Bakery. I worked for Morning Oven for three years."
    invented = honest.replace("three years", "eight years") + " I have long experience with Excel."
    rows = [
        replace(row(1, "Write.", honest), fields={**fields, "Letter": honest}),
        replace(row(2, "Write.", invented), fields={**fields, "Letter": invented}),
        row(3, "no fields", "I worked for Morning Oven for nine years."),
    ]
    told = defects_of("ungrounded", rows)
    assert [place.split()[-1] for _, place in spans(told, rows)] == ["years", "Excel"]
    assert {f.row for f in told} == {"r2"}
    assert [f.message.split("'")[1] for f in told] == [place for _, place in spans(told, rows)]
    assert wishes(told) == {"quarantine"}
    assert wishes(defects_of("ungrounded", rows, do="drop")) == {"drop"}
    fewer = defects_of("ungrounded", rows, fields=["Past Working Experience"])
    assert any("Excel" in f.message.split("'")[1] for f in fewer)


# --- portions and processes ----------------------------------------------------------------------------------


def planted(count: int) -> list[Conversation]:
    """Small rows, each seventh with some damage, one in many with a key, a copy, another language."""
    rows: list[Conversation] = []
    for number in range(count):
        answer = f"The lamp of room {number} is old."
        if number % 7 == 0:
            answer = [text for text, _, _ in DAMAGED.values()][number // 7 % len(DAMAGED)]
        if number % 101 == 0:
            answer = f"The key is {KEY}, do not tell."
        if number % 211 == 0:
            answer = "Die Lampe im Flur wird von Hand eingeschaltet und ist nicht hell."
        question = f"Who lit lamp {number}?\r" if number % 50 == 0 else f"Who lit lamp {number}?"
        if number % 97 == 1:
            question, answer = rows[-1].question, rows[-1].answer
        rows.append(row(number, question, answer))
    return rows


def test_portions_and_processes_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    rows = planted(4100)
    assert len(rows) > MIN_ROWS > BATCH_ROWS
    table = Table.write(tmp_path / "rows.table", rows)
    options: dict[str, dict[str, Any]] = {
        "personal": {"kinds": ["email"]},
        "near_duplicate": {"threshold": 1.0},  # lower: pairs of every two rows
    }
    names = [name for name in entries(CHECKS) if entry_constant(CHECKS, name, "SCOPE") != "split"]
    checks = [NamedSetting(name, options.get(name, {})) for name in [*names[::-1], "too_short"]]
    checks[-1] = NamedSetting("too_short", {"words": 2, "do": "drop"})  # the same check once more, with other options
    unread = [Finding("broken", "rows.csv line 0", "rows.csv", 0, "line", "?", "drop")]
    own = context(language=majority_language(rows), broken=unread, max_tokens=12)
    found_by = {place: defects_of(check.name, rows, own, **check.options) for place, check in enumerate(checks)}
    scopes = {name: entry_constant(CHECKS, name, "SCOPE") for name in names}
    alone = [
        finding for place, check in enumerate(checks) if scopes[check.name] == "row" for finding in found_by[place]
    ]
    places = {each.id: place for place, each in enumerate(rows)}
    alone.sort(key=lambda finding: places[finding.row])  # stable: within a row as the checks stand
    together = [f for place, check in enumerate(checks) if scopes[check.name] == "table" for f in found_by[place]]
    whole = [*alone, *together]
    assert {f.check for f in whole} >= {"secrets", "wrong_language", "broken", "too_long", "duplicate", *DAMAGED}
    asked = context(broken=unread, max_tokens=12)
    assert list(look_all(table, checks, asked, scopes=("row", "table"))) == whole
    assert list(look_all(table, checks, asked, scopes=("row", "table"), processes=2)) == whole


def test_the_tables_own_language_is_what_most_answers_are_written_in(tmp_path: Path) -> None:
    german = [row(n, "q", f"Die Lampe Nummer {n} im Flur wird von Hand eingeschaltet.") for n in range(9)]
    rows = [*german, row(9, "q", "The lamp in the hall is switched on by hand.")]
    table = Table.write(tmp_path / "t", rows)
    told = look_all(table, [NamedSetting("wrong_language", {})], context(), scopes=("row",))
    assert [finding.row for finding in told] == ["r9"]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unknown_kind_is_said_from_another_process_too(tmp_path: Path, processes: int) -> None:
    table = Table.write(tmp_path / "rows.table", [row(n, f"q{n}") for n in range(MIN_ROWS)])
    wrong = [NamedSetting("personal", {"kinds": ["emial"]})]
    with pytest.raises(RecipeError) as caught:
        list(look_all(table, wrong, context(), scopes=("row",), processes=processes))
    assert (caught.value.what, caught.value.where) == ("unknown kind 'emial'", "data.checks, personal.kinds")
    assert caught.value.next.startswith("Did you mean 'email'?")


def test_scopes_choose_the_checks(tmp_path: Path) -> None:
    rows = [row(1, "q", "a"), row(2, "Q", "A"), row(3, "", "x")]
    table = Table.write(tmp_path / "t", rows)
    checks = [NamedSetting(name, {}) for name in ("duplicate", "empty", "leak")]
    given = context({"r1": "test", "r2": "train", "r3": "train"})

    def told(*scopes: str) -> list[tuple[str, str]]:
        return [(f.check, f.row) for f in look_all(table, checks, given, scopes=scopes)]

    assert told("row") == [("empty", "r3")]
    assert told("table") == [("duplicate", "r2")]
    assert told("row", "table") == [("empty", "r3"), ("duplicate", "r2")]  # the single rows first
    assert told("split") == [("leak", "r2")]


def test_options_reach_the_checks_in_portions(tmp_path: Path) -> None:
    table = Table.write(tmp_path / "t", [row(1, "", "x")])
    wish: dict[str, Any] = {"do": "quarantine"}
    assert [f.proposal for f in look_all(table, [NamedSetting("empty", wish)], context(), scopes=("row",))] == [
        "quarantine"
    ]


# --- special tokens ------------------------------------------------------------------------------------------


def test_special_tokens_known_and_the_models_own() -> None:
    rows = [
        row(1, "how do I pay?", "Tap Pay.<|im_end|>"),
        row(2, "[INST] how do I pay? [/INST]", "Tap Pay."),
        row(3, "how do I pay?", "Tap <pay>, a < b, [a] and </span>."),
        row(4, "how do I pay?", "Tap ⁂stop⁂ Pay."),
    ]
    found = defects_of("special_token", rows)
    assert [
        (each.row, each.turn, rows[int(each.row[1:]) - 1].turns[each.turn].text[each.start : each.end])
        for each in found
    ] == [
        ("r1", 1, "<|im_end|>"),
        ("r2", 0, "[INST]"),
        ("r2", 0, "[/INST]"),
    ]
    assert wishes(found) == {"quarantine"}
    own = replace(context(), specials=re.compile("⁂stop⁂"))
    assert [each.row for each in defects_of("special_token", rows, own)] == ["r1", "r2", "r2", "r4"]


def test_reasoning_is_looked_at_for_what_must_not_be_learned_and_tells_rows_apart() -> None:
    from tunesmith.data.checks import duplicate, near_duplicate, personal, secrets, special_token

    def thinking(*thoughts: str) -> list[Conversation]:
        asked = Turn("user", "What is the sum of the first ten numbers, and how do you get it?")
        return [
            Conversation(str(n), (asked, Turn("assistant", "It is 55.", reasoning=thought)), Origin("f", n))
            for n, thought in enumerate(thoughts)
        ]

    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    rows = thinking(f"The key is {key}.", "Write to sam.tern@mill.example.net.", "End with <|im_end|>.", "Add them up.")
    assert [found.row for found in secrets.find_defects(rows, CheckContext())] == ["0"]
    assert [found.row for found in personal.find_defects(rows, CheckContext())] == ["1"]
    assert [(found.row, found.message) for found in special_token.find_defects(rows, CheckContext())] == [
        ("2", "the assistant's reasoning contains the special token '<|im_end|>'")
    ]
    ways = thinking("One plus ten is eleven, five times.", "Half of ten times eleven, as Gauss did.", "Add them up.")
    assert not [*duplicate.find_defects(ways, CheckContext()), *near_duplicate.find_defects(ways, CheckContext())]
    assert [found.row for found in duplicate.find_defects(thinking("Add them up."), CheckContext())] == []
    assert [
        found.row for found in duplicate.find_defects(thinking("Add them up.", "Add them up."), CheckContext())
    ] == ["1"]
