"""The cover-letter sample is what tools/letters.py writes, its clean letters are clean, and its labels are true."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import cast

import pytest
from tools import letters
from tools.letter_parts import ITEM, LETTER, NUMBERS, Row, own
from tools.plant import kinds, plant

from tunesmith.data import sources
from tunesmith.data.duplicates import near_pairs
from tunesmith.errors import RecipeError

# What the letter shows only beside the clean one
COMPARED = {"duplicate", "near_duplicate", "contradiction", "ungrounded", "machine_tell", "collapsed_list"}


@cache
def clean() -> list[Row]:
    return letters.clean_rows()


@cache
def labels() -> list[letters.Label]:
    with (letters.SAMPLES / "cover_letter_planted.csv").open(encoding="utf-8", newline="") as file:
        return [letters.Label(int(row["line"]), row["defect"], row["detail"]) for row in csv.DictReader(file)]


@cache
def shipped() -> dict[int, Row]:
    """First physical line -> row, by the project's own reader."""
    rows = sources.read(letters.SAMPLES / "cover_letter.csv")
    return {row.origin.line: cast(Row, dict(row.values)) for row in rows}


def words(row: Row) -> int:
    return len(row[LETTER].split())


def items(row: Row) -> int:
    return sum(bool(ITEM.match(line)) for line in row[LETTER].split("\n"))


def same(row: Row) -> bool:
    return row in clean()


def like_one(least: float, most: float) -> Callable[[Row], bool]:
    """Whether the letter's nearest clean letter is between `least` and `most` alike."""

    def test(row: Row) -> bool:
        texts = [row[LETTER], *(other[LETTER] for other in clean())]
        found = [pair.similarity for pair in near_pairs(texts, threshold=0.3) if pair.first == 0]
        return least <= max(found, default=0.0) <= most

    return test


def test_the_files_are_what_the_tool_writes() -> None:
    for name, text in letters.files().items():
        assert (letters.SAMPLES / name).read_bytes() == text.encode("utf-8"), f"{name}: run python -m tools.letters"


def test_size_and_columns() -> None:
    assert len(shipped()) >= 240
    assert (letters.SAMPLES / "cover_letter.csv").stat().st_size < 600_000
    assert all(list(row) == letters.COLUMNS for row in shipped().values())


def test_a_tenth_is_planted_and_every_defect_is_there() -> None:
    assert 0.08 <= len(labels()) / len(shipped()) <= 0.12
    count = Counter(label.defect for label in labels())
    assert set(count) == set(kinds())
    assert min(count["generic"], count["ungrounded"], count["duplicate"]) >= 3
    ways = {label.detail.split(":")[0] for label in labels() if label.defect == "ungrounded"}
    assert ways == {"number", "employer", "degree", "skill", "demand"}


def test_unlabelled_rows_are_clean_and_labelled_ones_are_not() -> None:
    lines = {label.line for label in labels()}
    assert len(lines) == len(labels())
    assert lines <= set(shipped())
    untouched = [row for line, row in shipped().items() if line not in lines]
    assert all(map(same, untouched))
    assert len({row[LETTER] for row in untouched}) == len(untouched)


SIGNS: dict[str, Callable[[Row], bool]] = {
    "empty": lambda row: not row[LETTER].strip() or words(row) == 1,
    "too_short": lambda row: 0 < words(row) < 40,
    "truncated": lambda row: not row[LETTER].endswith(row["Applicant Name"]),
    "duplicate": lambda row: like_one(1, 1)(row),
    "near_duplicate": lambda row: like_one(0.6, 0.999)(row),
    "contradiction": lambda row: own(row) in map(own, clean()) and like_one(0, 0.5)(row),
    "generic": lambda row: row["Hiring Company"] not in row[LETTER] and row["Applicant Name"] not in row[LETTER],
    "ungrounded": lambda row: not same(row) and like_one(0.6, 0.999)(row),
    "collapsed_list": lambda row: items(row) < 2 and like_one(0.5, 1)(row),
    "placeholder": lambda row: bool(re.search(r"[\[{<(_$]\S|%[A-Z]|\.{4}|XYZ|ABC|XXX|YOUR|TO?[DB]|ipsum", row[LETTER])),
    "machine_tell": lambda row: not same(row),
    "mojibake": lambda row: bool(re.search(r"[âÂÃ‚¬�√]", row[LETTER])),
    "markup": lambda row: bool(re.search(r"</?\w+[^>]*>|<!--|&#?\w+;", row[LETTER])),
    "personal": lambda row: bool(re.search(r"@\w|\d{3,4}[ )-]+\d{2,4}|\d{14}", row[LETTER])),
    "secret": lambda row: bool(re.search(r"\S{20}", row[LETTER])),
    "wrong_language": lambda row: bool(re.search(r"\b(?:ich|und|que|con|las|et|mes|gern)\b", row[LETTER])),
    "whitespace": lambda row: any(not sign.isprintable() and sign != "\n" for sign in row[LETTER])
    or bool(re.search(r"  |\n{3}|^\s|\s$", row[LETTER])),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(SIGNS))
def test_labels_point_at_rows_that_show_the_defect(kind: str) -> None:
    for label in labels():
        if label.defect == kind:
            assert SIGNS[kind](shipped()[label.line]), label


def test_clean_letters_are_whole_and_name_their_row() -> None:
    for row in clean():
        letter = row[LETTER]
        assert 90 <= words(row) <= 170
        assert all(row[column] in letter for column in ("Hiring Company", "Job Title", "Applicant Name")), letter
        assert letter.endswith(f",\n{row['Applicant Name']}")
        assert letter.count("\n\n") >= 4
        assert not re.search(r"[{}<>\[\]\r\t]|  |\n{3}", letter), letter


def test_every_number_of_a_clean_letter_is_in_its_fields() -> None:
    values = {word: number for number, word in enumerate(NUMBERS, 2)}
    for row in clean():
        text = "\n".join(ITEM.sub("", line) for line in row[LETTER].split("\n"))
        fields = "\n".join(value for column, value in row.items() if column != LETTER)
        known = set(re.findall(r"\d+", fields)) | {
            str(values[w]) for w in NUMBERS if re.search(rf"(?i)\b{w} years", fields)
        }
        said = set(re.findall(r"\d+", text)) | {str(values[w]) for w in NUMBERS if f"{w} years" in text}
        assert said <= known, (said - known, text)


def test_a_third_of_the_clean_letters_has_a_list() -> None:
    share = sum(items(row) > 0 for row in clean()) / len(clean())
    assert 0.25 <= share <= 0.4


def test_no_two_clean_letters_are_alike_and_no_sentence_is_common() -> None:
    assert near_pairs([row[LETTER] for row in clean()], threshold=0.5) == []
    said = Counter(
        sentence
        for row in clean()
        for paragraph in row[LETTER].split("\n\n")[1:-1]
        for sentence in set(re.split(r"(?<=[.?!:])\s", re.sub(r"(?m)^\d[.)] ", "", paragraph)))
    )
    sentence, count = said.most_common(1)[0]
    assert count <= 0.05 * len(clean()), sentence


@pytest.mark.parametrize("kind", kinds())
def test_every_plant_changes_its_row(kind: str) -> None:
    rows = clean()
    before = [dict(row) for row in rows]
    planted = plant(rows, kind, 1)
    assert rows == before
    assert len(planted) >= 40
    assert planted == plant(rows, kind, 1)
    assert planted != plant(rows, kind, 2)
    for row, detail in planted:
        assert list(row) == letters.COLUMNS
        assert re.match(r"[\w -]+: .", detail, re.DOTALL), detail
        if kind != "duplicate":
            assert not same(row), detail
        assert kind in COMPARED or SIGNS[kind](row), (detail, row[LETTER])
    if kind in COMPARED:
        assert all(SIGNS[kind](row) for row, _ in planted[:10])
    else:
        assert not any(map(SIGNS[kind], rows))
    ways = {detail.split(":")[0] for _, detail in planted}
    assert len(ways) >= {"generic": 1, "empty": 2}.get(kind, 3)
    if kind == "generic":
        assert len({row[LETTER] for row, _ in planted}) > 0.95 * len(planted)


def test_an_unknown_defect_is_an_error() -> None:
    with pytest.raises(RecipeError, match="near_duplicate"):
        plant(clean()[:1], "near_duplicates", 1)
