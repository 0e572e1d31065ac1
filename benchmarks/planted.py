"""How many planted defects the checks find, and how much of what they find was planted.

Run as python benchmarks/planted.py [KIND …] [--misses]. Into the clean letters of tools.letters 60 damaged ones of each
kind are planted (tools.plant), 12 to a table, so that a check that needs a table sees a realistic one. A damaged letter
takes its clean one's place; a copy (`duplicate`, `near_duplicate`, `contradiction`) stands beside it, and a finding on
either of the two is right. Recall is the share of the damaged rows that are found; precision the share of damaged rows
among those found. `held out` are a third of the variants (a way and its first words, by their hash): --misses does not
show theirs. It is no blind test: the checks were written by somebody who had read the texts in tools/plant.yaml, so
that the recall elsewhere is lower.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.letter_parts import LETTER, Row
from tools.letters import clean_rows
from tools.plant import kinds, plant_one

from tunesmith.config.recipe import CHECKS
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Conversation, Origin
from tunesmith.data.finding import CheckContext
from tunesmith.data.formats import fields
from tunesmith.data.run_checks import majority_language

RESULTS = Path(__file__).parent / "results" / "planted.csv"
COPIES, TOGETHER = 60, 12  # damaged rows of a kind, and how many of them stand in one table
BESIDE = ("duplicate", "near_duplicate", "contradiction")
CALLED = {"secret": "secrets"}  # the check, where it is not called as the defect
COLUMNS = "Job Title,Preferred Qualifications,Hiring Company,Applicant Name,Past Working Experience"
COLUMNS += ",Current Working Experience,Skillsets,Qualifications"
OPTIONS: dict[str, Any] = {"fields": COLUMNS.split(","), "answer": LETTER, "instruction": "Write the cover letter."}


@dataclass(frozen=True)
class Planted:
    """A damaged row, which clean row it was made from, and what was done to it."""

    place: int
    row: Row
    detail: str

    @property
    def way(self) -> str:
        """The first word of the detail: how the defect came in."""
        return self.detail.split(":")[0]

    def held_out(self, kind: str) -> bool:
        """Whether its variant is one of the third whose misses are not shown."""
        variant = f"{kind} {' '.join(self.detail.split()[:4])}"
        return hashlib.blake2b(variant.encode(), digest_size=4).digest()[0] % 3 == 0


@dataclass(frozen=True)
class Measured:
    """One kind's planted rows with whether each was found, and the clean rows that were found as well."""

    planted: tuple[tuple[Planted, bool], ...]
    alarms: tuple[str, ...]  # one a table and row

    @property
    def recall(self) -> float:
        """The share of the planted rows that were found."""
        return sum(found for _, found in self.planted) / len(self.planted)

    @property
    def precision(self) -> float:
        """The share of planted rows among those found."""
        found = sum(found for _, found in self.planted)
        return found / max(1, found + len(self.alarms))


def measure(kind: str, clean: Sequence[Row], copies: int = COPIES, together: int = TOGETHER, seed: int = 0) -> Measured:
    """Plants `copies` rows of one kind, `together` to a table, and runs the kind's check over each table."""
    found: list[tuple[Planted, bool]] = []
    alarms: list[str] = []
    for table, chosen in enumerate(_tables(kind, clean, copies, together, seed)):
        rows, guilty = _beside(clean, chosen) if kind in BESIDE else _inside(clean, chosen)
        hits = _found(kind, rows)
        found += [(one, bool(hits & ids)) for one, ids in zip(chosen, guilty, strict=True)]
        alarms += [f"{table} {name}" for name in sorted(hits - set().union(*guilty))]
    return Measured(tuple(found), tuple(alarms))


def _tables(kind: str, clean: Sequence[Row], copies: int, together: int, seed: int) -> Iterator[list[Planted]]:
    """The damaged rows, table by table, each from another clean row of its table."""
    draw = random.Random(f"{seed} {kind}")
    left = copies
    while left:
        chosen: list[Planted] = []
        for place in draw.sample(range(len(clean)), len(clean)):
            if len(chosen) < min(together, left) and (
                made := plant_one(clean[place], kind, f"{seed} {left} {place}", clean)
            ):
                chosen.append(Planted(place, *made))
        left -= len(chosen)
        yield chosen
        if not chosen:
            return


def _inside(clean: Sequence[Row], chosen: Sequence[Planted]) -> tuple[list[Conversation], list[set[str]]]:
    """The table with each damaged row in its clean one's place, and the ids at which a finding is right."""
    damaged = {one.place: one.row for one in chosen}
    rows = [_conversation(damaged.get(place, row), place) for place, row in enumerate(clean)]
    return rows, [{str(one.place)} for one in chosen]


def _beside(clean: Sequence[Row], chosen: Sequence[Planted]) -> tuple[list[Conversation], list[set[str]]]:
    """The table with the damaged rows behind the clean ones, and the ids at which a finding is right."""
    rows = [_conversation(row, place) for place, row in enumerate([*clean, *(one.row for one in chosen)])]
    return rows, [{str(one.place), str(len(clean) + number)} for number, one in enumerate(chosen)]


def _conversation(row: Row, place: int) -> Conversation:
    turns, group = fields(row, **OPTIONS)
    return Conversation(str(place), turns, Origin("letters.csv", place), group, dict(row))


def _found(kind: str, rows: Sequence[Conversation]) -> set[str]:
    """The ids of the rows that the kind's check finds; of a contradiction, those that it would quarantine."""
    find_defects = resolve(CHECKS, CALLED.get(kind, kind), function="find_defects")
    found = find_defects(rows, CheckContext(language=majority_language(rows)))
    return {each.row for each in found if each.row and (kind != "contradiction" or each.proposal != "keep")}


def lines(kind: str, measured: Measured) -> Iterator[list[str]]:
    """The kind's line, the held-out variants' line, and one for each way."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for one, found in measured.planted:
        groups["all"].append(found)
        groups["held out"] += [found] if one.held_out(kind) else []
        groups[one.way].append(found)
    for name, found_ones in [(name, groups[name]) for name in sorted(groups, key=lambda n: (n != "all", n))]:
        if found_ones:
            recall = sum(found_ones) / len(found_ones)
            told = [kind, name, str(len(found_ones)), str(sum(found_ones)), f"{recall:.3f}"]
            yield [*told, *([str(len(measured.alarms)), f"{measured.precision:.3f}"] if name == "all" else ["", ""])]


def main() -> None:
    """Measures every kind, prints the table and writes it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[], help="all by default; with some named nothing is written")
    parser.add_argument("--misses", action="store_true", help="print what was missed, held-out variants apart")
    given = parser.parse_args()
    clean = clean_rows()
    table = [["kind", "way", "planted", "found", "recall", "false_alarms", "precision"]]
    print(*table[0], sep="\t")
    for kind in given.kinds or kinds():
        measured = measure(kind, clean)
        for line in lines(kind, measured):
            table.append(line)
            print(*line, sep="\t", flush=True)
        for one, found in measured.planted if given.misses else ():
            if not found and not one.held_out(kind):
                print("  missed", one.detail[:150])
        if given.misses:
            print("  alarms", *measured.alarms[:20])
    if not given.kinds:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
