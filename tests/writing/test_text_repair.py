"""Removal and replacement of claims: the rest stays grammatical, and no other claim is touched."""

from __future__ import annotations

from typing import Any

import pytest

from claims import planted
from tunesmith.writing.events import ClaimEvent, claim_events, correct_article
from tunesmith.writing.repair import find_replacement, remove_claim, replace_claim


def claim(text: str, words: str, kind: Any = "skill", **more: Any) -> ClaimEvent:
    start = text.index(words)
    plain = {"verdict": "unsupported", "why": "No field states it.", "field": None, **more}
    return ClaimEvent(start, start + len(words), words, kind, **plain)


REMOVED = [  # kind, text with the claim in brackets, remaining text
    # items of lists
    ("skill", "I know baking, [sailing] and kneading.", "I know baking and kneading."),
    ("skill", "I know [sailing], baking and kneading.", "I know baking and kneading."),
    ("skill", "I know baking, kneading and [sailing].", "I know baking and kneading."),
    ("skill", "I know baking, kneading, and [sailing].", "I know baking and kneading."),
    ("skill", "I know baking, kneading, rolling, and [sailing].", "I know baking, kneading, and rolling."),
    ("skill", "I know baking, [sailing], and kneading.", "I know baking and kneading."),
    ("skill", "I know baking and [sailing].", "I know baking."),
    ("skill", "I know [sailing] and baking.", "I know baking."),
    ("skill", "I use SQL, Python and [Power BI] every day.", "I use SQL and Python every day."),
    ("skill", "[Sailing], baking and kneading are my trade.", "Baking and kneading are my trade."),
    ("degree", "I hold a [BA in Art] and a Diploma in Baking.", "I hold a Diploma in Baking."),
    ("degree", "My [BA in Art] and my daily work taught me patience.", "My daily work taught me patience."),
    # phrases
    ("employer", "I worked at [Big Mill] as a Baker.", "I worked as a Baker."),
    ("employer", "I was a Baker at [Big Mill], where I baked 40 loaves.", "I was a Baker, where I baked 40 loaves."),
    ("employer", "In my 5 years at [Big Mill] I baked 40 loaves.", "In my 5 years I baked 40 loaves."),
    ("title", "I spent two years as a [Head Baker] at Small Mill.", "I spent two years at Small Mill."),
    ("title", "Before that I was a [Head Baker] at Small Mill.", "Before that I was at Small Mill."),
    ("title", "I have been [Head Baker] for two years.", "I have been part of the team for two years."),
    ("date", "I baked at Small Mill from [2011 to 2019].", "I baked at Small Mill."),
    ("date", "Since [2015] I have baked at Small Mill.", "I have baked at Small Mill."),
    ("duration", "For [eleven years] I have baked at Small Mill.", "I have baked at Small Mill."),
    ("duration", "I bring [twelve years] of experience.", "I bring experience."),
    ("duration", "I bring [twelve years]' experience with ovens.", "I bring experience with ovens."),
    ("duration", "I have spent [twelve years] at Small Mill.", "I have spent some time at Small Mill."),
    ("duration", "With [twelve years] in ovens, I know heat at Small Mill.", "I know heat at Small Mill."),
    ("number", "I lead a team of [12] people.", "I lead a team."),
    ("number", "I baked [400] loaves a day at Small Mill.", "I baked loaves at Small Mill."),
    ("percentage", "I cut waste by [45 percent] and baked 40 loaves.", "I cut waste and baked 40 loaves."),
    ("money", "I kept 40 accounts worth [€7m] for three years.", "I kept 40 accounts for three years."),
    ("skill", "I bake bread (some [sailing] too) at Small Mill.", "I bake bread at Small Mill."),
    # clauses
    ("degree", "I hold a [BA in Art] and know baking well.", "I know baking well."),
    ("degree", "I know baking, and I hold a [BA in Art].", "I know baking."),
    ("degree", "I hold a [BA in Art], and I know baking.", "I know baking."),
    ("percentage", "I baked at Small Mill, where I cut errors by [45%].", "I baked at Small Mill."),
    ("number", "I was a Baker at Small Mill and fed [90] horses.", "I was a Baker at Small Mill and fed horses."),
    ("money", "I baked at Small Mill; I saved it [$5k].", "I baked at Small Mill."),
    ("skill", "I speak [German] and I know baking.", "I know baking."),
    # sentences and lines
    ("degree", "I bake. I hold a [BA in Art]. I sell.", "I bake. I sell."),
    ("degree", "I hold a [BA in Art]. I sell.", "I sell."),
    ("degree", "I bake.\n\nI hold a [BA in Art].\n\nKind regards,\nKim", "I bake.\n\nKind regards,\nKim"),
    ("skill", "What I know:\n- baking\n- [sailing]\n- rolling\n\nYours", "What I know:\n- baking\n- rolling\n\nYours"),
    ("skill", "What I know:\n1. baking\n2. [sailing]\n3. rolling", "What I know:\n1. baking\n2. rolling"),
    ("name", "I bake.\n\nKind regards,\n[Kim Sailor]", "I bake.\n\nKind regards,"),
    # a and an
    ("skill", "I am a [sailing] and oven expert.", "I am an oven expert."),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "marked", "expected"), REMOVED, ids=[case[1][:60] for case in REMOVED])
def test_the_remaining_text_is_grammatical(kind: Any, marked: str, expected: str) -> None:
    start, end = marked.index("["), marked.index("]") - 1
    text = marked.replace("[", "").replace("]", "")
    unsupported = ClaimEvent(start, end, text[start:end], kind, "unsupported", "No field states it.", None)
    assert remove_claim(text, unsupported) == expected


def test_planted_errors_are_removed_and_the_rest_stays() -> None:
    removed = total = 0
    for row in planted.ROWS:
        values = planted.fields_of(row)
        for _, text, start, end in planted.errors(row):
            claims = claim_events(text, values, today=planted.TODAY)
            for claim in claims:
                if claim.verdict == "supported" or not (claim.start < end and start < claim.end):
                    continue
                others = [other for other in claims if other != claim]
                shortened = remove_claim(text, claim, others)
                after = [other.text.casefold() for other in claim_events(shortened, values, today=planted.TODAY)]
                total, removed = total + 1, removed + (shortened != text)
                folded = " ".join(shortened.casefold().split())
                assert all(" ".join(other.text.casefold().split()) in folded for other in others), shortened
                assert sum(other.text.casefold() in after for other in others) >= len(others) - 2
                for odd in ("  ", " ,", " .", ",,", "..", ",.", "and and", "and.", "with.", " a a ", " a an "):
                    assert odd not in shortened.replace("...", ""), shortened
                assert shortened[0].isupper()
    assert total > 100
    assert removed > 0.95 * total


def test_other_claims_are_never_touched() -> None:
    text = "I saved Small Mill $5k in 2021."
    money, date = claim(text, "$5k", "money"), claim(text, "2021", "date", verdict="supported")
    assert remove_claim(text, money, [date, claim(text, "Small Mill", "employer")]) == text
    assert remove_claim(text, date, [money]) == "I saved Small Mill $5k."


def test_a_claim_of_another_text_changes_nothing() -> None:
    assert remove_claim("Short.", ClaimEvent(50, 55, "Other", "skill", "unsupported", "", None)) == "Short."
    assert replace_claim("Short.", ClaimEvent(0, 5, "Other", "skill", "unsupported", "", None), {"Skills": "x"}) is None


FIELDS = {
    "Job Title": "Engineer", "Hiring Company": "Mill Lane Bakery", "Applicant Name": "Kim Oat",
    "Past Working Experience": "Oven Operator at Small Mill from 2014 to 2017, baked 40 loaves a day",
    "Current Working Experience": "Baker at Corner Bakery for 6 years; cut waste by 12%",
    "Skillsets": "kneading, scoring", "Qualifications": "Diploma in Baking",
}  # fmt: skip
FILLED = [
    ("I hold a [Master's degree in Baking].", "I hold a Diploma in Baking."),
    ("For [eleven years] I have been a Baker at Corner Bakery.", "For 6 years I have been a Baker at Corner Bakery."),
    ("I was an Oven Operator at [Big Mill] and baked bread.", "I was an Oven Operator at Small Mill and baked bread."),
    ("I am writing to apply for the job of [Chef] at Mill Lane Bakery.",
     "I am writing to apply for the job of Engineer at Mill Lane Bakery."),
    ("I would like to join [Big Mill] as an Engineer.", "I would like to join Mill Lane Bakery as an Engineer."),
    ("I was an Oven Operator at Small Mill between [2010 and 2013].",
     "I was an Oven Operator at Small Mill between 2014 and 2017."),
    ("I was an Oven Operator at Small Mill and baked [90] loaves a day.",
     "I was an Oven Operator at Small Mill and baked 40 loaves a day."),
    ("I was a Baker at Corner Bakery, where I cut waste by [45%].",
     "I was a Baker at Corner Bakery, where I cut waste by 12%."),
    ("I am glad to come.\n\nKind regards,\n[Ann Rye]", "I am glad to come.\n\nKind regards,\nKim Oat"),
    ("I look forward to it as a [Chef] applying for your job.", None),
    ("I would like to be considered for the position of [Costume Maker].", None),  # looks like an employer
    ("I know [sailing] well.", None),  # no field says which skill is meant
    ("I know kneading, Six Sigma and scoring. I have [9] cats.", None),
]  # fmt: skip


@pytest.mark.parametrize(("marked", "expected"), FILLED, ids=[claim[0][:60] for claim in FILLED])
def test_claims_are_replaced_from_fields(marked: str, expected: str | None) -> None:
    start, end = marked.index("["), marked.index("]") - 1
    text = marked.replace("[", "").replace("]", "")
    claims = [claim for claim in claim_events(text, FIELDS) if claim.start < end and start < claim.end]
    if expected is None:
        assert all(replace_claim(text, claim, FIELDS) is None for claim in claims)
        return
    (claim,) = claims
    assert claim.verdict != "supported"
    assert replace_claim(text, claim, FIELDS) == expected
    words = find_replacement(text, claim, FIELDS)
    assert words and words in expected
    position = expected.index(words)
    after = [
        other
        for other in claim_events(expected, FIELDS)
        if other.start < position + len(words) and position < other.end
    ]
    assert {other.verdict for other in after} <= {"supported"}


def test_replacements_are_always_supported() -> None:
    filled_in = 0
    for row in planted.ROWS:
        values = planted.fields_of(row)
        for _, text, start, end in planted.errors(row):
            for claim in claim_events(text, values, today=planted.TODAY):
                if claim.verdict == "supported" or not (claim.start < end and start < claim.end):
                    continue
                new = replace_claim(text, claim, values, today=planted.TODAY)
                if new is not None:
                    filled_in += 1
                    doubts = [
                        sum(x.verdict != "supported" for x in claim_events(t, values, today=planted.TODAY))
                        for t in (text, new)
                    ]
                    assert doubts[1] < doubts[0]
    assert filled_in > 70


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a engineer", "an engineer"), ("an baker", "a baker"), ("A hour", "An hour"), ("an university", "a university"),
     ("a MBA", "an MBA"), ("an UX job", "a UX job"), ("a 8-hour day", "an 8-hour day"), ("an one", "a one"),
     ("a MSc", "an MSc"), ("the x", "the x"), ("an HGV", "an HGV")],
)  # fmt: skip
def test_articles(text: str, expected: str) -> None:
    assert correct_article(text) == expected
