"""How many facts planted in clean cover letters `claims.match.check` finds, and how often it doubts a clean letter.

Run as python benchmarks/claims_letters.py. The letters are those of tools/letters.py, planted by tools/plant.py (kind
`ungrounded`). Two thirds of the occupations, by a hash of their name, are for development; the last third is held out.
Both parts share the frames of tools/letters.yaml and tools/plant.yaml, so the held-out part shows other facts in the
same sentences; the letters of tests/claims/letters.yaml, each written as a whole, stand beside them.

A planted fact is found if a claim that is not supported overlaps a word that the planting changed. Precision is the
share of planted letters among the letters with a finding, where a tenth or half of all letters are planted.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from difflib import SequenceMatcher
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tools.letter_parts import LETTER, TITLE, Row, texts  # noqa: E402
from tools.letters import clean_rows  # noqa: E402
from tools.plant import plant  # noqa: E402

from claims.planted import DEVELOPMENT, HELD_OUT, measure  # noqa: E402
from tunesmith.claims.claim import CheckedClaim  # noqa: E402
from tunesmith.claims.match import check_claims  # noqa: E402
from tunesmith.claims.words import word_spans  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "claims_letters.csv"
PARTS = ("development", "held-out")
WAYS = ("number", "employer", "degree", "skill", "demand")
EACH = 60  # planted letters of each way in each part
SEEDS = range(40)
TODAY = date(2026, 1, 15)
MIXES = (0.1, 0.5)  # shares of planted letters: the sample's own, and even
COLUMNS = ["part", "planted", "way", "letters", "found", "with_finding", "claims", "recall", "precision_tenth",
           "precision_half", "claims_per_100"]  # fmt: skip


@dataclass
class Count:
    """Letters of a kind, those whose planted words were found, those with any finding, and their findings."""

    letters: int = 0
    found: int = 0
    doubted: int = 0
    findings: int = 0

    def add(self, other: Count) -> None:
        """Adds another count to this one."""
        self.letters += other.letters
        self.found += other.found
        self.doubted += other.doubted
        self.findings += other.findings


@dataclass
class Part:
    """The counts of one part: clean letters, and planted ones by what and how."""

    clean: Count = field(default_factory=Count)
    planted: dict[tuple[str, str], Count] = field(default_factory=dict)


def occupations() -> Mapping[str, str]:
    """A title applied for -> its occupation: both titles of one fall into the same part."""
    trades = texts("letters")["occupations"].items()
    return {title: name for name, trade in trades for title in trade["titles"].split(", ")}


def part(occupation: str) -> str:
    """The part of an occupation: a third of them are held out."""
    return PARTS[hashlib.sha256(occupation.encode()).digest()[0] % 3 == 0]


def judged(row: Row) -> list[CheckedClaim]:
    """The claims of a row's letter that its other fields do not support."""
    fields = {name: text for name, text in row.items() if name != LETTER}
    return [each for each in check_claims(row[LETTER], fields, today=TODAY) if each.verdict != "supported"]


def changed(before: str, after: str) -> list[tuple[int, int]]:
    """The characters of `after` whose words are not those of `before`."""
    old, new = word_spans(before), word_spans(after)
    matcher = SequenceMatcher(None, [each[0] for each in old], [each[0] for each in new], autojunk=False)
    codes = [code for code in matcher.get_opcodes() if code[0] in {"replace", "insert"}]
    return [(new[start][1], new[end - 1][2]) for _, _, _, start, end in codes]


def look(row: Row, places: Sequence[tuple[int, int]] = ()) -> Count:
    """One letter's count; `places` are the characters that were changed in it."""
    wrong = [each.claim for each in judged(row)]
    hit = any(claim.start < end and start < claim.end for claim in wrong for start, end in places)
    return Count(1, int(hit), int(bool(wrong)), len(wrong))


def planted(rows: Sequence[Row]) -> Iterator[tuple[str, str, Row, Row]]:
    """Up to EACH letters of each way: what was planted, added or replaced, the clean row and the planted one."""
    left = dict.fromkeys(WAYS, EACH)
    clean = {_facts(row): row for row in rows}
    for seed in SEEDS:
        for row, detail in plant(rows, "ungrounded", seed):
            what, _, told = detail.partition(": ")
            if left[what]:
                left[what] -= 1
                yield what, "added" if told.startswith("added") else "replaced", clean[_facts(row)], row


def _facts(row: Row) -> tuple[str, ...]:
    return tuple(text for name, text in row.items() if name != LETTER)


def run(rows: Sequence[Row], tell: bool = False) -> Part:
    """The counts of a part's clean rows, and of letters planted in them; `tell` prints what went wrong."""
    counts = Part()
    for row in rows:
        counts.clean.add(look(row))
        if tell:
            _tell("false alarm", row)
    for what, way, clean, row in planted(rows):
        one = look(row, changed(clean[LETTER], row[LETTER]))
        counts.planted.setdefault((what, way), Count()).add(one)
        if tell and not one.found:
            _missed(what, way, clean, row)
    return counts


def _tell(what: str, row: Row) -> None:
    for each in judged(row):
        start = max(row[LETTER].rfind("\n", 0, each.claim.start) + 1, each.claim.start - 80)
        said = row[LETTER][start : each.claim.end + 30].replace("\n", " / ")
        print(f"{what} {each.claim.kind} {each.verdict} {each.claim.text!r}: {said} [{each.reason}]")


def _missed(what: str, way: str, clean: Row, row: Row) -> None:
    for start, end in changed(clean[LETTER], row[LETTER]):
        print(f"missed {what} {way}:", row[LETTER][max(0, start - 60) : end + 20].replace("\n", " / "))


def table(name: str, counts: Part) -> Iterator[list[str]]:
    """A part's lines: clean letters, each kind and way, each kind, all."""
    clean = counts.clean
    yield [name, "nothing", "", *_plain(clean), "", "", "", f"{100 * clean.findings / clean.letters:.1f}"]
    for what in WAYS:
        total = Count()
        for (kind, way), count in sorted(counts.planted.items()):
            if kind == what:
                total.add(count)
                yield [name, what, way, *_plain(count), *_shares(count, clean), ""]
        yield [name, what, "both", *_plain(total), *_shares(total, clean), ""]
    every = Count()
    for count in counts.planted.values():
        every.add(count)
    yield [name, "all", "both", *_plain(every), *_shares(every, clean), ""]


def _plain(count: Count) -> list[str]:
    return [str(number) for number in (count.letters, count.found, count.doubted, count.findings)]


def _shares(count: Count, clean: Count) -> list[str]:
    """Recall, and precision at each mix: p r / (p r + (1 - p) f) with the rates r and f of letters with a finding."""
    right, wrong = count.doubted / max(count.letters, 1), clean.doubted / clean.letters
    mixed = [mix * right / ((mix * right + (1 - mix) * wrong) or 1) for mix in MIXES]
    return [f"{share:.3f}" for share in (count.found / max(count.letters, 1), *mixed)]


def whole() -> Iterator[list[str]]:
    """The lines of tests/claims/letters.yaml; its precision is the share of right claims, as the test has it."""
    for name, rows in zip(PARTS, (DEVELOPMENT, HELD_OUT), strict=True):
        figures = measure(rows)
        found = sum(figures.found.values())
        told = [str(sum(figures.planted.values())), str(found), "", str(found + len(figures.false_alarms))]
        yield [
            f"letters.yaml {name}",
            "all",
            "both",
            *told,
            f"{figures.recall:.3f}",
            "",
            f"{figures.precision:.3f}",
            "",
        ]


def main() -> None:
    """Measures every part, prints the table and writes it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="measure this part only, tell its errors and write no file")
    given = parser.parse_args()
    trades = occupations()
    lines = [COLUMNS]
    for name in PARTS:
        if given.part in {None, name}:
            rows = [row for row in clean_rows() if part(trades[row[TITLE]]) == name]
            lines += table(name, run(rows, tell=bool(given.part)))
    lines += whole()
    for line in lines:
        print(*line, sep="\t")
    if given.part:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    main()
