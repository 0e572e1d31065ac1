"""Reports about named subjects: each number belongs to its subject, and implied figures are supported."""

from __future__ import annotations

import pytest

from tunesmith.claims.claim import CheckedClaim
from tunesmith.claims.match import check_claims
from tunesmith.claims.words import Phrases

FIELDS = {
    "Match": "Marsh Herons at Quarry Foxes, Thursday 14 May 2026, Lime Hall",
    "Quarry Foxes": "9-4; 71 points; 40 rebounds; 48 percent goals; 20 first quarter points",
    "Marsh Herons": "6-7; 58 points; 33 rebounds; 39 percent goals; 11 first quarter points",
    "Ilse Brandt": "plays for the Quarry Foxes; 24 points; 7 rebounds; 0 steals; 9-16 goals; 1st on the team",
    "Oona Pell": "plays for the Quarry Foxes; 15 points; 2 rebounds; 2 steals; 6-11 goals; 28 minutes; 2nd on the team",
    "Rafa Dunne": "plays for the Marsh Herons; 19 points; 5 rebounds; 1 steal; 7-7 goals; 33 minutes; 1st on the team",
}
THINGS = [name for name in FIELDS if name != "Match"]
SAME = {"boards": "rebounds", "from the floor": "goals", "shooting": "goals", "first quarter": "first quarter",
        "3-point line": "long goals", "Reds": "Quarry Foxes"}  # fmt: skip
GOOD, BAD, NEW = "supported", "contradicted", "unsupported"


def judged(text: str, proper: bool = False) -> list[CheckedClaim]:
    return check_claims(text, FIELDS, about="both", subjects=THINGS, synonyms=SAME, proper=proper)


def verdicts(text: str, proper: bool = False) -> list[tuple[str, str]]:
    return [(result.claim.text, result.verdict) for result in judged(text, proper)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Oona Pell had 15 points and a pair of steals.", [("15", GOOD), ("a pair of", GOOD)]),
        ("Rafa Dunne had a pair of steals.", [("a pair of", BAD)]),
        ("Rafa Dunne added a steal.", [("a", GOOD)]),
        ("Ilse Brandt added five assists, a steal and an idea.", [("five", NEW), ("a", BAD)]),
        ("Rafa Dunne is a steal-hungry guard.", []),
        ("Rafa Dunne met a point guard.", []),
        ("Oona Pell pulled down two boards.", [("two", GOOD)]),
        ("Oona Pell pulled down seven boards.", [("seven", BAD)]),
    ],
)
def test_words_that_are_numbers(text: str, expected: list[tuple[str, str]]) -> None:
    assert verdicts(text) == expected


@pytest.mark.parametrize("text", ["She saw a pair of herons.", "I have spent a couple of years there."])
def test_a_pair_of_something_uncounted_is_no_claim(text: str) -> None:
    assert verdicts(text) == []
    assert check_claims(text, {"Experience": "Cook at Villa Ostra for 9 years, with 4 apprentices"}) == []


@pytest.mark.parametrize(
    ("shots", "verdict"),
    [("9-for-16 from the floor", GOOD), ("9-of-16 shooting", GOOD), ("9 of 16 from the floor", GOOD),
     ("9-16", GOOD), ("8-for-16 from the floor", BAD), ("9-of-15 shooting", BAD)],
)  # fmt: skip
def test_shares_are_two_numbers(shots: str, verdict: str) -> None:
    results = judged(f"Ilse Brandt went {shots}.")
    assert [(result.claim.text, result.verdict != GOOD) for result in results] == [
        (results[0].claim.text, verdict != GOOD)
    ]


def test_a_score_is_no_range() -> None:
    assert verdicts("The Foxes (9-4) came in with a win.") == [("9-4", GOOD)]
    assert verdicts("The Foxes (8-5) came in with a win.") == [("8-5", BAD)]  # a range from 8 to 5 or 5 to 8 holds none
    assert [result.verdict for result in check_claims("A team of 3-5 people.", {"Experience": "team of 4 people"})] == [
        GOOD
    ]


def test_a_phrase_says_what_is_counted() -> None:
    text = "The Foxes shot 48 percent from the floor and the Herons had 39 percent from the floor."
    assert verdicts(text) == [("48 percent", GOOD), ("39 percent", GOOD)]
    assert verdicts("The Herons scored 11 points in the first quarter.") == [("11", GOOD)]
    assert verdicts("The Herons scored 58 points in the first quarter.") == [("58", BAD)]


def test_figures_inside_a_phrase_count_nothing() -> None:
    assert verdicts("Ilse Brandt stood at the 3-point line with 24 points.") == [("24", GOOD)]
    assert [(match.nouns, match.start) for match in Phrases.from_synonyms(SAME).find("on Boards")] == [
        (frozenset({"rebound"}), 3)
    ]


@pytest.mark.parametrize(
    ("text", "number", "verdict"),
    [
        ("The Foxes beat the Herons, 71-58.", "71-58", GOOD),
        ("The Foxes beat the Herons, 71-59.", "71-59", NEW),
        ("Rebounds went to the Foxes over the Herons, 40-33.", "40-33", GOOD),
        ("The Foxes led the Herons 20-11 in the first quarter.", "20-11", GOOD),
        ("The Foxes led the Herons 20-12 in the first quarter.", "20-12", NEW),
        ("The Foxes took a 13-point win over the Herons.", "13", GOOD),
        ("The Foxes took a 17-point win over the Herons.", "17", BAD),
        ("The Foxes beat the Herons by nine in the first quarter.", "nine", GOOD),
        ("Ilse Brandt and Oona Pell combined for 39 points.", "39", GOOD),
        ("Ilse Brandt and Oona Pell combined for 41 points.", "41", BAD),
    ],
)
def test_figures_that_fields_imply(text: str, number: str, verdict: str) -> None:
    assert (number, verdict) in verdicts(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ilse Brandt led the Foxes, as she scored 24 points.", [("24", GOOD)]),
        ("Rafa Dunne led the Herons in scoring with 19 points.", [("19", GOOD)]),
        ("Rafa Dunne paced the Herons with 58 points.", [("58", BAD)]),
        ("The Herons got help from Rafa Dunne, who had 19 points.", [("19", GOOD)]),
        ("Rafa Dunne felt the power of the Foxes (9-4).", [("9-4", GOOD)]),
        ("The Foxes ran. Foxes like Oona Pell won, as she had 15 points.", [("15", GOOD)]),
        ("Dunne was quick. He had 19 points in 33 minutes.", [("19", GOOD), ("33", GOOD)]),
        ("The Reds had 71 points.", [("71", GOOD)]),
        ("Pell wasn't far behind, with 12 points.", [("12", BAD)]),
    ],
)
def test_numbers_belong_to_the_right_subject(text: str, expected: list[tuple[str, str]]) -> None:
    assert verdicts(text) == expected


def test_numbers_of_an_unknown_name_are_not_another_subjects() -> None:
    text = "Oona Pell had 15 points. Mirek Sand had 8 points."
    results = verdicts(text, proper=True)
    assert results == [("Oona Pell", GOOD), ("15", GOOD), ("Mirek Sand", NEW)]


def test_ranks_and_windows() -> None:
    assert verdicts("Oona Pell was second on the team.") == [("second", GOOD)]
    assert verdicts("Oona Pell was third on the team.") == [("third", BAD)]
    assert verdicts("It was Oona Pell's second visit.") == []
    assert verdicts("The Foxes won eight of their last ten games.") == [("eight", NEW)]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("They met at Lime Hall on Thursday.", []),
        ("They met at Kiln Park on Friday.", ["Kiln Park", "Friday"]),
        ("Then the Foxes outscored the Foxes.", ["Foxes"]),
        ("Then the Foxes ran, outscoring the Foxes.", ["Foxes"]),
        ("The Foxes ran while the Foxes sang.", []),
        ("Then the Quarry Foxes won in Quarry.", []),
        ("The Herons were led by a fine day from Ilse Brandt.", ["Herons"]),
        ("Then Rafa Dunne led the way for the Foxes.", ["Foxes"]),
        ("Then Rafa Dunne led the way for the Herons.", []),
        ("Then Rafa Dunne ran against the Foxes.", []),
    ],
)
def test_names(text: str, wrong: list[str]) -> None:
    assert [name for name, verdict in verdicts(text, proper=True) if verdict != GOOD] == wrong


def test_a_misplaced_name_is_the_second_one() -> None:
    (first, second) = judged("Then the Foxes outscored the Foxes.", proper=True)
    assert (first.verdict, second.verdict, second.claim.start) == (GOOD, BAD, 29)
    assert "itself" in second.reason


def test_a_wrong_name_is_contradicted_instead_of_its_numbers() -> None:
    text = "Oona Pell led all with 24 points, seven rebounds and 9-16 goals. Ilse Brandt had 24 points."
    wrong = [(result.claim.text, result.field) for result in judged(text, proper=True) if result.verdict != GOOD]
    assert wrong == [("Oona Pell", "Ilse Brandt")]
    numbers = [(result.claim.text, result.field) for result in judged(text) if result.verdict == GOOD]
    assert numbers == [("24", "Ilse Brandt")]  # without names as claims the numbers are what is wrong


def test_a_single_wrong_number_does_not_contradict_the_name() -> None:
    assert verdicts("Oona Pell had 24 points.", proper=True) == [("Oona Pell", GOOD), ("24", BAD)]


@pytest.mark.parametrize(
    "text",
    ["Oona Pell is averaging 15 points.", "Oona Pell had 15 points over her last two games.",
     "Oona Pell had 15 points per match."],
)  # fmt: skip
def test_a_mean_is_not_supported_by_a_single_value(text: str) -> None:
    assert verdicts(text) == [("15", NEW)]
    assert ("39", NEW) in verdicts("Ilse Brandt and Oona Pell combined for 39 points over their last two games.")
    fields = {"Oona Pell": "15 points; averages 18 points per match"}
    (result,) = check_claims(text.replace("15", "18"), fields, about="both", subjects=list(fields))
    assert result.verdict == GOOD


def test_names_are_no_claims_unless_asked_for() -> None:
    assert verdicts("They met at Kiln Park's gate on Friday with the Foxes.", proper=False) != []
    assert verdicts("They met on Friday with the Foxes.") == []


def test_subjects_of_any_domain() -> None:
    fields = {
        "North Depot": "120 orders, 30 returns, 3 complaints",
        "South Depot": "95 orders, 12 returns, 0 complaints",
    }
    text = "The North Depot took 25 orders more, a 25-order lead over the South Depot, which saw a complaint."
    results = check_claims(text, fields, about="both", subjects=list(fields))
    assert [(result.claim.text, result.verdict) for result in results] == [("25", BAD), ("25", GOOD), ("a", BAD)]
