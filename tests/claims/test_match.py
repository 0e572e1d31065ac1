"""Verdicts: notation does not matter, denials are no claims, an advert's demands are not the applicant's facts."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from tunesmith.claims.claim import CheckedClaim
from tunesmith.claims.fields import guess_side, list_items
from tunesmith.claims.match import check_claims

FIELDS = {
    "Job Title": "Data Engineer",
    "Company": "Quillhouse Ltd",
    "Preferred Qualifications": "Kafka, 8 years of Scala, Master's degree",
    "Experience": "Data Analyst at Orrin Freight for 3 years; Clerk at Kelby Foods from 2015 to 2018, team of 8",
    "Skills": "Python (4 years), SQL (2 years)",
    "Education": "Bachelor's in Statistics",
    "Name": "Sam",
}


def verdicts(text: str) -> dict[str, str]:
    return {result.claim.text: result.verdict for result in check_claims(text, FIELDS, today=date(2026, 1, 15))}


def only(text: str, **options: Any) -> CheckedClaim:
    (checked,) = check_claims(text, FIELDS, **options)
    return checked


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("I led a team of eight.", "supported"),
        ("I led a team of 9.", "contradicted"),
        ("I have 36 months as a Data Analyst at Orrin Freight.", "supported"),
        ("I have over two years as a Data Analyst at Orrin Freight.", "supported"),
        ("I have 7 years as a Data Analyst at Orrin Freight.", "contradicted"),
        ("I have 4 years of Python.", "supported"),
        ("I have 2 years of Python.", "contradicted"),
        ("I was there in 2016.", "supported"),
        ("I was there in 2011.", "unsupported"),
        ("I hold a BSc in Statistics.", "supported"),
        ("I hold a Master's in Statistics.", "contradicted"),
        ("I hold a Bachelor's in Law.", "contradicted"),
        ("I was a Data Analyst at Nimbuspay.", "contradicted"),
        ("I am applying for the Data Engineer position at Quillhouse.", "supported"),
        ("I am applying for the Data Engineer position at Nimbuspay.", "contradicted"),
        ("I cut costs by 30%.", "unsupported"),
    ],
)
def test_one_wrong_word_decides(text: str, verdict: str) -> None:
    results = set(verdicts(text).values())
    assert results == {verdict} or (verdict != "supported" and results == {"supported", verdict})


@pytest.mark.parametrize(
    "text",
    ["I have not used Kafka yet.", "I don't know Kafka.", "I would like to learn Kafka.", "I lack Kafka.",
     "Kafka would be new to me.", "I have never had a Master's degree."],
)  # fmt: skip
def test_denials_and_wishes_claim_nothing(text: str) -> None:
    assert verdicts(text) == {}


def test_a_denial_ends_with_its_clause() -> None:
    assert verdicts("I have not used Scala, but I use Python.") == {"Python": "supported"}
    assert verdicts("I know not only Python but SQL.") == {"Python": "supported", "SQL": "supported"}


def test_the_adverts_demand_is_not_the_applicants_fact() -> None:
    kafka = only("I have used Kafka for long.")
    assert (kafka.verdict, kafka.field) == ("unsupported", "Preferred Qualifications")
    assert "asks for it" in kafka.reason
    years = check_claims("I have 8 years of Scala.", FIELDS)
    assert [(result.verdict, "asks for it" in result.reason) for result in years] == [("unsupported", True)] * 2
    assert only("Your team uses Kafka.").verdict == "supported"
    assert only("I have used Kafka.", sides={"Preferred Qualifications": "writer"}).verdict == "supported"
    assert only("I have used Kafka.", about="both").verdict == "supported"


def test_durations_of_several_jobs_add_up() -> None:
    fields = {"Experience": "Cook at Villa Ostra for 2 years; Chef at Harbour Grill for 18 months"}
    (checked,) = check_claims("I have three and a half years of practice.", fields)
    assert checked.verdict == "supported"


def test_subjects_have_their_own_numbers() -> None:
    fields = {"Blue Lamp": "12 watts, 300 lumens", "Red Lamp": "20 watts, 500 lumens"}
    text = "The Blue Lamp draws 20 watts, while the Red Lamp gives 500 lumens."
    results = check_claims(text, fields, about="both", subjects=list(fields))
    assert [(result.claim.text, result.verdict, result.field) for result in results] == [
        ("20", "contradicted", "Blue Lamp"),
        ("500", "supported", "Red Lamp"),
    ]


def test_small_talk_is_no_claim() -> None:
    assert verdicts("There are two reasons for which I am a good team player with strong skills.") == {}


def test_an_empty_text_or_no_fields() -> None:
    assert check_claims("", FIELDS) == []
    assert [result.verdict for result in check_claims("I know Python.", {})] == ["unsupported"]


def test_a_post_that_is_held_is_the_writers_own() -> None:
    fields = {"Job Title": "Tailor", "Current Working Experience": "Tailor at Windlecombe Tailors for 4 years"}
    for text in ("I hold the post of Tailor for 4 years.", "I have held the position of Tailor for 4 years."):
        (years,) = (result for result in check_claims(text, fields) if result.claim.kind == "duration")
        assert years.verdict == "supported"
    demand = "I want the post for 4 years."
    assert not any(
        result.verdict == "supported" for result in check_claims(demand, fields) if result.claim.kind == "duration"
    )


@pytest.mark.parametrize(
    ("name", "side"),
    [("Job Title", "reader"), ("Preferred Qualifications", "reader"), ("hiring_company", "reader"),
     ("Qualifications", "writer"), ("Past Working Experience", "writer"), ("current_job_title", "writer"),
     ("Applicant Name", "writer"), ("skillsets", "writer"), ("notes", "both")],
)  # fmt: skip
def test_sides_are_guessed_from_names(name: str, side: str) -> None:
    assert guess_side(name) == side


def test_items_of_a_field() -> None:
    assert list_items("Python, knowledge of SQL and Tableau;\n- welding") == ["Python", "SQL", "Tableau", "welding"]
