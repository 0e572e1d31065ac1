"""What the planter and the letter writer share: the texts' files, and the parts of a letter."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, str]  # column -> cell

LETTER, COMPANY, TITLE, NAME = "Cover Letter", "Hiring Company", "Job Title", "Applicant Name"
OWN = ("Past Working Experience", "Current Working Experience", "Skillsets", "Qualifications")  # the applicant's fields
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
ITEM = re.compile(r"^(?:\d+[.)]|[-*•]) ")


@cache
def texts(name: str) -> dict[str, Any]:
    """The file tools/`name`.yaml; a block of lines is a list of them, in which a written \\n is a line's end."""
    source: dict[str, Any] = yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: lines(value) if isinstance(value, str) else value for key, value in source.items()}


def lines(block: str) -> list[str]:
    """The lines of a block of text; a single line is split into its words."""
    if "\n" not in block:
        return block.split()
    return [line.replace("\\n", "\n") for line in block.strip().split("\n")]


def filled(text: str, **slots: str) -> str:
    """The text with each {slot} filled; other braces stay."""
    for name, value in slots.items():
        text = text.replace("{" + name + "}", value)
    return text


def with_letter(row: Row, letter: str) -> Row:
    """A copy of the row with another letter."""
    return {**row, LETTER: letter}


def own(row: Row) -> str:
    """All that the row says about its applicant."""
    return "\n".join(row[column] for column in OWN)


def skills(row: Row) -> list[str]:
    """The applicant's skills, one by one."""
    return [skill.strip() for skill in re.split(r"[;,]", row["Skillsets"]) if skill.strip()]


def demands(row: Row) -> list[str]:
    """The advert's wishes, one by one, as they read in the middle of a sentence."""
    wishes = re.split(r";|\.(?:\s|$)|\n- ", "\n" + row["Preferred Qualifications"])
    return [inner(wish.strip()) for wish in wishes if wish.strip()]


def inner(phrase: str) -> str:
    """The phrase with a small first letter, unless its first word is a name or an abbreviation."""
    word = phrase.split()[0]
    return phrase if word in NAMES or not (word == "A" or word[1:].islower()) else phrase[0].lower() + phrase[1:]


NAMES = {
    "Excel",
    "Python",
    "Docker",
    "Linux",
    "Git",
    "Trados",
    "Revit",
    "Salesforce",
    "Illustrator",
    "Opera",
    "Tableau",
}
NAMES |= {"French", "Bachelor's", "Master's", "Diploma", "Certificate", "Apprenticeship", "Category", "Counterbalance"}


def as_own(phrase: str) -> str:
    """A wish as something that one has: a qualification gets its article."""
    named = phrase.split()[0] in {"Bachelor's", "Master's", "Diploma", "Certificate", "Apprenticeship", "Category"}
    return an(phrase) if named or phrase.startswith("Counterbalance") else phrase


def capital(phrase: str) -> str:
    """The phrase with a capital first letter."""
    return phrase[:1].upper() + phrase[1:]


def an(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'AEIOUaeiou' or phrase.startswith('HR ') else 'a'} {phrase}"


def body(letter: str) -> tuple[str, str, str]:
    """The greeting with the empty line behind it, the paragraphs, and the sign-off with the empty line before it."""
    start, end = letter.index("\n\n") + 2, letter.rindex("\n\n")
    return letter[:start], letter[start:end], letter[end:]


def prose(letter: str) -> list[tuple[int, int]]:
    """Where the body's paragraphs of whole sentences start and end; lists are none."""
    head, middle, _ = body(letter)
    places, at = [], len(head)
    for paragraph in middle.split("\n\n"):
        if "\n" not in paragraph and paragraph[-1] in ".?!":
            places.append((at, at + len(paragraph)))
        at += len(paragraph) + 2
    return places


def with_sentence(letter: str, sentence: str, draw: random.Random) -> str:
    """The letter with one more sentence at the end of one of its paragraphs."""
    _, end = draw.choice(prose(letter))
    return f"{letter[:end]} {sentence}{letter[end:]}"
