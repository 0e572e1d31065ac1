"""Extraction of each kind of claim from prose, with its value."""

from __future__ import annotations

import pytest

from tunesmith.claims.claim import Degree, Period, Quantity
from tunesmith.claims.extract import extract
from tunesmith.claims.words import core_words, find_numbers, nearly_equal, parse_spelled, words


def extracted(text: str, kind: str) -> list[str]:
    return [claim.text for claim in extract(text) if claim.kind == kind]


def amount(text: str, kind: str) -> tuple[float, float, str]:
    (value,) = [claim.value for claim in extract(text) if claim.kind == kind]
    assert isinstance(value, Quantity)
    return value.amount, value.upper, value.bound


@pytest.mark.parametrize(
    ("text", "value"),
    [("3,000", 3000), ("2.5k", 2500), ("twenty-five", 25), ("a dozen", 12), ("three hundred and five", 305),
     ("1.2 million", 1_200_000), ("two thousand", 2000), ("12", 12), ("two and a half", 2.5), ("£3m", 3_000_000)],
)  # fmt: skip
def test_numbers(text: str, value: float) -> None:
    assert [number.value for number in find_numbers(f"made {text} of them")] == [value]


def test_figures_in_words_are_no_numbers() -> None:
    assert [number.value for number in find_numbers("mp3 and C3PO and v1.2b3")] == []
    assert parse_spelled("nineteen hundred") == 1900


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("I bring five years of practice", (60, 60, "exact")),
        ("3+ years of practice", (36, 36, "over")),
        ("over two years of practice", (24, 24, "over")),
        ("18 months of practice", (18, 18, "exact")),
        ("2-3 years of practice", (24, 36, "exact")),
        ("nearly ten years of practice", (120, 120, "nearly")),
        ("a year and a half of practice", (18, 18, "exact")),
        ("more than a decade of practice", (120, 120, "over")),
        ("a five-year stay", (60, 60, "exact")),
    ],
)
def test_durations(text: str, value: tuple[float, float, str]) -> None:
    assert amount(text, "duration") == value


def test_a_rate_is_no_duration() -> None:
    assert extracted("We made 1,200 joints a year.", "duration") == []


def test_money_and_percentages() -> None:
    assert amount("a budget of $4.5 million", "money") == (4.5e6, 4.5e6, "exact")
    assert amount("a budget of 20k EUR", "money")[0] == 20_000
    assert amount("about €300 each", "money")[2] == "about"
    assert amount("cut by 12.5 percent", "percentage")[0] == 12.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It began in 2019.", Period(24228, 24239)),
        ("It began in March 2019.", Period(24230, 24230)),
        ("It began on 2019-03-01.", Period(24230, 24230)),
        ("It began on 1 March 2019.", Period(24230, 24230)),
        ("It ran since 2019.", Period(24228, 24239, since=True)),
        ("It ran 2019 - present.", Period(24228, 24239, since=True)),
        ("It ran 2018-2021.", Period(24216, 24227, (24252, 24263))),
        ("It ran from 2018 to March 2021.", Period(24216, 24227, (24254, 24254))),
    ],
)
def test_dates(text: str, value: Period) -> None:
    assert [claim.value for claim in extract(text) if claim.kind == "date"] == [value]


def test_a_counted_number_is_no_year() -> None:
    assert extracted("I served 2000 customers.", "date") == []
    assert extracted("I served 2000 customers.", "number") == ["2000"]


def test_the_letterhead_makes_no_claims() -> None:
    assert extract("12 March 2025\n14 Mill Lane\n\nI write to you about the work.") == []


@pytest.mark.parametrize(
    ("text", "level", "subject"),
    [
        ("a Bachelor's in Computer Science", "bachelor", "computer science"),
        ("a B.Sc. in Physics and a dog", "bachelor", "physics"),
        ("a Bachelor of Science in Nursing", "bachelor", "nursing"),
        ("a Bachelor of Science", "bachelor", ""),
        ("an MBA", "master", "business administration"),
        ("a Ph.D. in Applied Linguistics from there", "doctorate", "applied linguistics"),
        ("a master's degree in data science", "master", "data science"),
        ("a Level 3 Diploma in Fabrication and Welding", "diploma", "fabrication and welding"),
    ],
)
def test_degrees(text: str, level: str, subject: str) -> None:
    values = [claim.value for claim in extract(f"I hold {text}.") if claim.kind == "degree"]
    assert values == [Degree(level, words(subject))]


def test_a_degrees_subject_ends_with_its_paragraph() -> None:
    text = "I hold a Master's degree in Physics\n\nThe Cheapest Correction is one made early."
    (claim,) = (claim for claim in extract(text) if claim.kind == "degree")
    assert isinstance(claim.value, Degree)
    assert (claim.text, claim.value.subject) == ("Master's degree in Physics", ("physics",))
    (claim,) = (claim for claim in extract("I hold a Master of Computer\nScience.") if claim.kind == "degree")
    assert isinstance(claim.value, Degree) and claim.value.subject == ("computer", "science")


def test_mastering_is_no_degree() -> None:
    assert extracted("I want to master the trade as a Scrum Master.", "degree") == []


def test_employers() -> None:
    assert extracted("I worked for Tilling and Sons, then at The Copper Ladle as a cook.", "employer") == [
        "Tilling and Sons",
        "The Copper Ladle",
    ]
    assert extracted("I worked at Gridnest and Ledgerly.", "employer") == ["Gridnest", "Ledgerly"]
    assert extracted("Fathomware Inc. paid me.", "organisation") == ["Fathomware Inc."]
    assert extracted("I was at home, at my best.", "employer") == []


def test_titles() -> None:
    assert extracted("I worked as a Senior Data Analyst there.", "title") == ["Senior Data Analyst"]
    assert extracted("I have been a registered nurse for long.", "title") == ["registered nurse"]
    assert extracted("Our nurses met a designer.", "title") == []
    assert extracted("Dear Hiring Manager,\nI write.", "title") == []


def test_skills() -> None:
    assert extracted("I use python, C++, Go and REST APIs.", "skill") == ["python", "C++", "Go", "REST APIs"]
    assert extracted("I excel at work and go on.", "skill") == []
    assert [c.text for c in extract("I know glass blowing.", ["Glass blowing"])] == ["glass blowing"]


def test_names() -> None:
    assert extracted("Dear Ms. Okoro,\nI write.\n\nSincerely,\nAna", "name") == ["Ms. Okoro", "Ana"]
    assert extracted("Dear Hiring Manager,\nI write.\n\nThank you for your time\n", "name") == []


def test_folding() -> None:
    assert words("Sr. Nurses' k8s") == ("senior", "nurse", "kubernetes")
    assert core_words(words("The Lumenpost GmbH")) == core_words(words("Lumenpost"))
    assert nearly_equal(("brightmoor",), ("brightmor",))
    assert not nearly_equal(("java",), ("lava",))
