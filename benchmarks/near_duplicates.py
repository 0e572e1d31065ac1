"""How long `near_pairs` takes and how much memory, by the number of rows.

Run as python benchmarks/near_duplicates.py [--large]. Each size runs in a process of its own, because a process's peak
memory never falls. The rows are made here: a task, most with a passage of one to four sentences; every twentieth row is
an earlier one with one to three words changed.
"""

from __future__ import annotations

import argparse
import csv
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tunesmith.data.duplicates import clusters, near_pairs

RESULTS = Path(__file__).parent / "results" / "near_duplicates.csv"
SIZES = (5_000, 50_000, 100_000)
LARGE = 500_000
VERBS = ("Describe", "Explain", "Rewrite", "Summarise", "Compare", "Classify", "Translate", "Improve", "Shorten")
TASKS = (
    "{verb} the {adjective} {noun} in the {place}",
    "{verb} how a {noun} would {act} the {adjective} {noun} before {number} o'clock",
    "Give {number} reasons why the {noun} of a {adjective} {place} should {act} its {noun}",
    "{verb} the following passage about the {noun} so that a {person} understands it",
    "What would a {adjective} {person} say about {number} {adjective} {noun}s?",
)
SENTENCES = (
    "The {adjective} {noun} had to {act} {number} {noun}s near the {place}.",
    "Every {person} in the {place} knows that a {adjective} {noun} can {act} the {noun}.",
    "After {number} days the {person} began to {act} a {adjective} {noun}, although the {noun} was {adjective}.",
    "No {noun} is as {adjective} as the {noun} which the {adjective} {person} left in the {place}.",
    "In the {place}, {number} {noun}s were {adjective} enough to {act} one {noun} or another.",
)
STARTS = ("b", "br", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "k", "l", "m", "n", "pl", "qu", "r", "sh", "st", "tr")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
ENDS = ("b", "ck", "d", "ft", "g", "l", "ld", "mp", "nd", "nt", "p", "r", "rd", "rk", "rn", "s", "sk", "st", "t", "x")
SLOTS = {"noun": 1_500, "adjective": 700, "act": 500, "place": 400, "person": 300}


def word_lists(seed: int) -> dict[str, Sequence[str]]:
    """Words for each slot, most of them made up."""
    draw = random.Random(seed)
    lists: dict[str, Sequence[str]] = {"verb": VERBS, "number": [str(number) for number in range(2, 100)]}
    for slot, count in SLOTS.items():
        syllables = [[STARTS, VOWELS, ENDS, VOWELS, ENDS][: draw.choice((3, 5))] for _ in range(count)]
        lists[slot] = ["".join(draw.choice(sounds) for sounds in word) for word in syllables]
    return lists


def make_rows(count: int, seed: int = 0) -> list[str]:
    """`count` prompts, of which a twentieth are earlier ones with one to three words changed."""
    draw = random.Random(seed)
    lists = word_lists(seed)
    rows: list[str] = []
    for number in range(count):
        if number % 20 == 19:
            rows.append(edited(draw.choice(rows), draw, lists))
            continue
        templates = [draw.choice(TASKS), *draw.choices(SENTENCES, k=draw.choice((0, 1, 2, 3, 4)))]
        rows.append(" ".join(filled(template, draw, lists) for template in templates))
    return rows


def filled(template: str, draw: random.Random, lists: dict[str, Sequence[str]]) -> str:
    """The template with a word of its own in every slot; words are as unequally frequent as in speech (Zipf)."""
    parts = template.split("{")
    text = parts[0]
    for part in parts[1:]:
        slot, rest = part.split("}", 1)
        choices = lists[slot]
        text += choices[int(len(choices) ** draw.random()) - 1] + rest
    return text


def edited(text: str, draw: random.Random, lists: dict[str, Sequence[str]]) -> str:
    """The text with one to three words replaced by nouns."""
    words = text.split()
    for _ in range(draw.choice((1, 2, 3))):
        words[draw.randrange(len(words))] = draw.choice(lists["noun"])
    return " ".join(words)


def measure(count: int) -> list[str]:
    """Rows, seconds, pairs, rows in clusters, this process's peak memory in MiB, and before the search."""
    rows = make_rows(count)
    before = peak_mib()
    began = time.perf_counter()
    pairs = near_pairs(rows)
    seconds = time.perf_counter() - began
    clustered = sum(map(len, clusters(count, pairs)))
    return [str(count), f"{seconds:.2f}", str(len(pairs)), str(clustered), f"{peak_mib():.0f}", f"{before:.0f}"]


def peak_mib() -> float:
    """This process's peak resident memory in MiB; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Measures every size, prints the table and writes it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help=f"also {LARGE:,} rows")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(",".join(measure(given.one)))
        return
    table = [["rows", "seconds", "pairs", "rows_in_clusters", "peak_mib", "peak_mib_before"]]
    print(*table[0], sep="\t")
    for size in (*SIZES, LARGE) if given.large else SIZES:
        command = [sys.executable, __file__, "--one", str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        table.append(done.stdout.strip().split(","))
        print(*table[-1], sep="\t", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
