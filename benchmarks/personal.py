"""How much personal data is found, and how much of what is found is some, by kind.

Run as python benchmarks/personal.py [LABELED.json] [--ner PIPELINE]. LABELED.json is a list of texts with marked
spans as presidio-research writes them (`full_text`, `spans` with `entity_type`, `start_position`, `end_position`); it
was read while the patterns were chosen, so its figures are development figures. The held-out ones are of
personal_texts.py: 2,000 texts with values made by seed and 500 that only look like it. With --ner names are found by
that spaCy pipeline; without, there is no column to take names from, so none is found.

A found span is right when it touches a marked one of its kind; `exact` is the share of marked ones whose borders are
met. Written to benchmarks/results/personal.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

from tunesmith.data.privacy import KINDS, find_names, find_personal
from tunesmith.data.privacy_patterns import Span

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.personal_texts import Marked, labeled, look_alikes

RESULTS = Path(__file__).parent / "results" / "personal.csv"
OURS = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "US_SSN": "ssn",
    "IP_ADDRESS": "ip",
    "DOMAIN_NAME": "url",
    "PERSON": "name",
}
HEAD = ["set", "ner", "kind", "texts", "marked", "found", "precision", "recall", "exact", "seconds"]
Text = tuple[str, list[Marked]]


def read_marked(path: Path) -> Iterator[Text]:
    """The texts of a labeled file, with the spans of the kinds in OURS."""
    for row in json.loads(path.read_text(encoding="utf-8")):
        spans = [(span["start_position"], span["end_position"], span["entity_type"]) for span in row["spans"]]
        yield row["full_text"], [(start, end, OURS[kind]) for start, end, kind in spans if kind in OURS]


def measure(name: str, texts: Sequence[Text], ner: str) -> list[list[str]]:
    """A line a kind. Seconds are of the whole set, after the pipeline is loaded."""
    if ner:
        list(find_names(["Mira Quillby was here."], model=ner))
    began = time.perf_counter()
    people: Iterator[Sequence[Span]] = find_names((text for text, _ in texts), model=ner) if ner else repeat(())
    all_found = [find_personal(text, people=next(people)) for text, _ in texts]
    seconds = time.perf_counter() - began
    marked, found, right, hit, exact = Counter[str](), Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for (_, marks), spans in zip(texts, all_found, strict=True):
        given = [(span.start, span.end, span.kind) for span in spans]
        for mark in marks:
            marked[mark[2]] += 1
            hit[mark[2]] += any(_touch(mark, each) for each in given)
            exact[mark[2]] += mark in given
        for each in given:
            found[each[2]] += 1
            right[each[2]] += any(_touch(mark, each) for mark in marks)
    return [
        [
            *(name, ner or "none", kind, str(len(texts)), str(marked[kind]), str(found[kind])),
            *(_share(right[kind], found[kind]), _share(hit[kind], marked[kind]), _share(exact[kind], marked[kind])),
            f"{seconds:.2f}",
        ]
        for kind in KINDS
    ]


def _touch(one: Marked, other: Marked) -> bool:
    return one[2] == other[2] and one[0] < other[1] and other[0] < one[1]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else ""


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labeled", type=Path, nargs="?", help="texts with marked spans")
    parser.add_argument("--ner", default="", metavar="PIPELINE", help="an installed spaCy pipeline")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out values")
    given = parser.parse_args()
    sets: dict[str, list[Text]] = {"development": list(read_marked(given.labeled))} if given.labeled else {}
    sets["held-out"] = list(labeled(2_000, given.seed))
    sets["look-alikes"] = [(text, []) for text in look_alikes(500, given.seed)]
    table = [HEAD]
    for ner in ["", given.ner] if given.ner else [""]:
        for name, texts in sets.items():
            table += measure(name, texts, ner)
    for line in table:
        print(*line, sep="\t")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
