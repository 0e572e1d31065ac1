"""Application letters: denials, demands, general remarks, unlisted skills, and kinds that no field covers."""

from __future__ import annotations

from datetime import date

import pytest

from tunesmith.claims.match import check_claims

FIELDS = {
    "Job Title": "Head Baker",
    "Hiring Company": "Lindmoor Mill",
    "Preferred Qualifications": "- 9 years in rye baking\n- A pastry examiner's licence\n- Experience in market halls",
    "Applicant Name": "Noor Vale",
    "Past Working Experience": "Baker at Tallow Street Bakery for 5 years; stewarded 60 tastings",
    "Current Working Experience": "Shift Baker at Corner Oven since 2019: 300 loaves a day",
    "Skillsets": "sourdough, lamination, oven repair, stock lists",
    "Qualifications": "Diploma in Bread Technology",
}
GOOD, BAD, NEW = "supported", "contradicted", "unsupported"


def verdicts(text: str, **extra_fields: str) -> dict[str, str]:
    results = check_claims(text, FIELDS | extra_fields, today=date(2026, 1, 15))
    return {result.claim.text: result.verdict for result in results}


def doubted(text: str) -> list[str]:
    return [claim for claim, verdict in verdicts(text).items() if verdict != GOOD]


# --- numbers that state nothing -------------------------------------------------------------------------------


def test_a_lists_marks_are_no_numbers() -> None:
    letter = (
        "What I bring:\n1. I make 300 loaves a day.\n2) I know sourdough.\n3. I hold a Diploma in Bread Technology."
    )
    assert list(verdicts(letter)) == ["300", "sourdough", "Diploma in Bread Technology"]
    assert not {"1", "2", "3"} & verdicts(letter).keys()
    run = "I see three points: 1. I know sourdough. 2. I know lamination. 3. I know oven repair."
    assert not {"1", "2", "3"} & verdicts(run).keys()
    assert verdicts("I made 40. I made as many again: 28. That is all.").keys() == {"40", "28"}


@pytest.mark.parametrize("hour", ["half past nine", "six in the morning", "five o'clock", "ten past four", "4 am"])
def test_times_of_day_count_nothing(hour: str) -> None:
    assert verdicts(f"I light the oven at {hour}.") == {}


@pytest.mark.parametrize(
    "remark",
    [
        "A good crust is nine parts patience.",
        "Nobody ever asked for forty crumbs and wanted fifty.",
        "The night is long when the twenty minutes before it are kept free.",
        "To my mind a shop of seven shelves is enough.",
    ],
)
def test_a_general_remark_claims_no_number(remark: str) -> None:
    assert verdicts(f"I am a baker. {remark} I like it.").keys() == {"baker"}


@pytest.mark.parametrize(
    "fact", ["The bakery sold 450 cakes that year.", "I bake 450 cakes.", "- 450 cakes a week", "We bake 450 cakes."]
)
def test_a_fact_is_no_general_remark(fact: str) -> None:
    assert doubted(f"I am a baker.\n{fact}\n") == ["450"]


def test_a_skill_as_subject_of_a_verb_is_not_claimed() -> None:
    assert verdicts("I bake. Statistics tell me little.") == {}
    assert verdicts("I bake. Statistics is my second trade.") == {"Statistics": NEW}


# --- denials, wishes, demands ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "denial",
    [
        "I cannot offer a pastry examiner's licence.",
        "To be honest, a pastry examiner's licence is not something I have.",
        "One point, a pastry examiner's licence, is missing from my papers.",
        "If a pastry examiner's licence is a condition, I must pass.",
        "The advert speaks of 9 years in rye baking. That would be new to me.",
        "You ask for 9 years in rye baking; I have none to show.",
        "I must pass on one wish of yours, 9 years in rye baking.",
        "As to 9 years in rye baking, which you would like to see, I would be a beginner.",
    ],
)
def test_what_is_denied_is_not_claimed(denial: str) -> None:
    assert doubted(denial) == []


@pytest.mark.parametrize(
    ("claim", "phrase"),
    [
        ("As your advert requires, I have a pastry examiner's licence.", "pastry examiner's licence"),
        ("What you want, a pastry examiner's licence, is something I already have.", "pastry examiner's licence"),
        ("You ask for a pastry examiner's licence. That I have.", "pastry examiner's licence"),
        ("On top of that I have experience in market halls.", "experience in market halls"),
        ("I have 9 years in rye baking.", "9 years"),
        ("What you want, 9 years in rye baking, is something I already have.", "9 years"),
    ],
)
def test_a_demand_that_is_claimed_is_found(claim: str, phrase: str) -> None:
    assert verdicts(claim)[phrase] != GOOD


def test_years_of_a_job_do_not_support_a_requirement() -> None:
    fields = {"Preferred Qualifications": "7 years on motorways", "Experience": "Cook at Villa Ostra for 7 years"}
    results = check_claims("I have 7 years on motorways.", fields)
    assert [(result.claim.text, result.verdict) for result in results if result.claim.kind == "duration"] == [
        ("7 years", NEW)
    ]
    assert [result.verdict for result in check_claims("I have 7 years of practice.", fields)] == [GOOD]


# --- writer or reader -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "letter",
    [
        "Of all adverts, the one for a Head Baker at Lindmoor Mill is the only one I am answering.",
        "I hope to hear from Lindmoor Mill.",
        "I like your notice, so I am sending Lindmoor Mill my details.",
        "I am looking for a house like Lindmoor Mill.",
        "This is my application for the role of Head Baker that Lindmoor Mill has advertised.",
        "I am applying to become a Head Baker with Lindmoor Mill.",
        "You prefer 9 years as a Head Baker; there I need help.",
        "After my years as a Baker, Lindmoor Mill has advertised the right post.",
    ],
)
def test_the_company_applied_to_is_checked_against_the_advert(letter: str) -> None:
    assert [claim for claim in doubted(letter) if claim in {"Head Baker", "Lindmoor Mill"}] == []


@pytest.mark.parametrize(
    "letter",
    [
        "You will see a Diploma in Bread Technology among my papers.",
        "You would get someone with a Diploma in Bread Technology.",
        "I can show you a Diploma in Bread Technology.",
    ],
)
def test_what_the_reader_is_shown_is_about_the_writer(letter: str) -> None:
    assert verdicts(letter) == {"Diploma in Bread Technology": GOOD}
    assert doubted(letter.replace("Bread", "Pastry")) == ["Diploma in Pastry Technology"]


def test_a_title_in_small_letters_may_be_a_verb_in_the_field() -> None:
    assert doubted("I was a steward at 60 tastings.") == []
    assert doubted("I was an auditor at 60 tastings.") == ["auditor"]


# --- employers and skills that no list names -------------------------------------------------------------------


@pytest.mark.parametrize(
    "letter",
    [
        "I was seconded to Orrin Freight as well.",
        "Quill House gave me my start as a Baker.",
        "Where I am today, as a Shift Baker with Quill House, I bake.",
        "For Quill House I baked; I was its Baker.",
    ],
)
def test_a_new_employer_is_found_without_at(letter: str) -> None:
    assert doubted(letter) == ["Orrin Freight" if "Orrin" in letter else "Quill House"]
    assert doubted(letter.replace("Orrin Freight", "Corner Oven").replace("Quill House", "Corner Oven")) == []


def test_a_name_far_from_work_is_no_employer() -> None:
    assert doubted("I walk to Harbour Bridge.") == []


@pytest.mark.parametrize(
    ("frame", "phrase"),
    [
        ("I am proficient in {} as well.", "gait analysis"),
        ("Colleagues value my knowledge of {}.", "gait analysis"),
        ("In addition I have mastered {}.", "setting out"),
        ("I know my way around {}.", "clock mending"),
        ("My daily work includes {}.", "court reporting"),
        ("{} is another of my strengths.", "Gait analysis"),
        ("I bring sourdough, {} and lamination.", "search analysis"),
        ("I bring {} and lamination.", "search analysis"),
        ("Sourdough, lamination and {} are what I do.", "court reporting"),
        ("My skills at a glance:\n- sourdough\n- {}\n- lamination", "court reporting"),
    ],
)
def test_a_skill_that_no_list_names_is_found(frame: str, phrase: str) -> None:
    assert doubted(frame.format(phrase)) == [phrase]
    assert doubted(frame.format("Oven repair" if frame.startswith("{}") else "oven repair")) == []


def test_a_common_word_does_not_end_a_series() -> None:
    assert doubted("I have a background in lamination, programming and gait analysis.") == ["gait analysis"]


def test_a_skill_may_be_worded_otherwise() -> None:
    assert verdicts("I am proficient in repairing.") == {"repairing": GOOD}
    assert verdicts("I am skilled in laminating.") == {"laminating": GOOD}


@pytest.mark.parametrize(
    "letter",
    [
        "I am experienced in building strong relationships.",
        "I bring sourdough and a love of order.",
        "I have knowledge of the industry and experience in various fields.",
        "I bring lamination, and implemented new routines.",
        "I am ready to mend, sourdough and lamination being my trade.",
        "I am good at teamwork.",
        "I am proficient in stock lists and oven cleaning.",
    ],
)
def test_common_words_are_no_skill(letter: str) -> None:
    assert doubted(letter) == []


# --- kinds that no field covers --------------------------------------------------------------------------

BARE = {
    "Preferred Qualifications": "3 years as a cook",
    "Past Working Experience": "Baker at Corner Oven",
    "Skillsets": "rye",
}
LETTER = "Dear Ms Quay,\n\nI am applying for the role of Head Baker at Lindmoor Mill. {}\n\nSincerely,\nNoor Vale\n"


def test_claims_that_no_field_covers_are_skipped() -> None:
    assert check_claims(LETTER.format("I know rye."), BARE)[-1].verdict == GOOD
    assert [result.claim.text for result in check_claims(LETTER.format("I know rye."), BARE)] == ["rye"]
    assert check_claims("I bake. Your 40 branches please me.", BARE) == []


@pytest.mark.parametrize(
    ("field", "text", "claim"),
    [
        ("Job Title", "Pastry Cook", "Head Baker"),
        ("Hiring Company", "Orrin Freight", "Lindmoor Mill"),
        ("Applicant Name", "Ida Pell", "Noor Vale"),
        ("Hiring Manager", "Mr Brisk", "Ms Quay"),
    ],
)
def test_one_field_of_a_kind_is_enough_to_check_it(field: str, text: str, claim: str) -> None:
    results = check_claims(LETTER.format("I know rye."), BARE | {field: text})
    assert [result.claim.text for result in results if result.verdict != GOOD] == [claim]


def test_a_place_of_past_work_is_the_writers_employer() -> None:
    assert [result.verdict for result in check_claims("I bake. At Quill House, I learned to wait.", BARE)] == [NEW]
    assert check_claims("I am glad of your work at Quill House.", BARE) == []


def test_the_writers_fields_count_as_complete() -> None:
    results = check_claims(LETTER.format("I was a Baker at Quill House and hold a Diploma in Rye."), BARE)
    assert {result.claim.text for result in results if result.verdict != GOOD} == {"Quill House", "Diploma in Rye"}


# --- fields ---------------------------------------------------------------------------------------------------


def test_a_fields_short_lines_are_no_letterhead() -> None:
    lines = {"Preferred Qualifications": "9 years in rye baking\nA clean record\nA calm hand"}
    assert verdicts("You ask for 9 years in rye baking.", **lines)["9 years"] == GOOD
    assert verdicts("You ask for 8 years in rye baking.", **lines)["8 years"] != GOOD


@pytest.mark.parametrize(
    ("phrase", "verdict"),
    [("Certificate in Philosophy", BAD), ("Doctor's degree in Bread Technology", BAD), ("Bachelor of Science", GOOD)],
)
def test_all_words_of_a_degree_count(phrase: str, verdict: str) -> None:
    fields = {"Qualifications": "Certificate in Typography; BSc in Physics"}
    assert [result.verdict for result in check_claims(f"I hold a {phrase}.", fields)] == [verdict]
