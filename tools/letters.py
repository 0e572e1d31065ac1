"""Writes the cover-letter sample, recipes/samples/cover_letter.csv, and the labels of its defects beside it.

Facts come first: a row's fields are drawn, then a letter is put together that says only what they say. A line about the
work and a view belong to one letter alone (tools/letters.yaml); frames that letters share are dealt out like cards.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.letter_parts import COMPANY, LETTER, NAME, NUMBERS, TITLE, Row, an, capital, filled, lines, texts
from tools.plant import plant_one

SAMPLES = Path(__file__).parents[1] / "recipes" / "samples"
SEED = 42
EACH = 6  # rows of an occupation: its three facts of today and three of the past, each said in two ways
LEAST, MOST = 90, 170  # words of a letter
COLUMNS = [
    TITLE,
    "Preferred Qualifications",
    COMPANY,
    NAME,
    "Past Working Experience",
    "Current Working Experience",
    "Skillsets",
    "Qualifications",
    LETTER,
]
SHAPES = [  # a paragraph a word; + joins its parts; the last third has a list
    "open now+skills then+degree view+close",
    "view+open now+then skills+gap close",
    "now+open then+skills view degree+close",
    "open+degree then+now gap+skills+view close",
    "open then now+degree view+gap+close",
    "open+view then+now skills+degree+close",
    "open+now list_skills then+degree+close",
    "open list_career view+skills+close",
    "view+open list_reasons then+gap+close",
]
DAMAGE = {  # rows that are damaged in their place
    "empty": 2, "too_short": 1, "truncated": 2, "generic": 3, "ungrounded": 5, "collapsed_list": 1, "placeholder": 2,
    "machine_tell": 2, "mojibake": 1, "markup": 1, "personal": 1, "secret": 1, "wrong_language": 1, "whitespace": 1,
}  # fmt: skip
COPIES = {"duplicate": 3, "near_duplicate": 2, "contradiction": 1}  # damaged rows beside those they were made from


@dataclass(frozen=True)
class Label:
    """Which row of the file is damaged: its first physical line, counted from 1, the defect and what was done."""

    line: int
    defect: str
    detail: str


class _Deck:
    """Deals the lines of a block in a random order, all of them before one comes again."""

    def __init__(self, cards: Sequence[str], draw: random.Random) -> None:
        self._cards, self._draw, self._left = list(cards), draw, list[str]()

    def deal(self) -> str:
        if not self._left:
            self._left = self._draw.sample(self._cards, len(self._cards))
        return self._left.pop()


def clean_rows(seed: int = SEED) -> list[Row]:
    """The rows before any is damaged, in the file's order."""
    draw = random.Random(seed)  # noqa: S311
    said = texts("letters")
    decks = {key: _Deck(value, draw) for key, value in said.items() if isinstance(value, list)}
    names = draw.sample([f"{first} {last}" for first in said["first"] for last in said["last"]], 50 * EACH)
    rows: list[Row] = []
    for trade in said["occupations"].values():
        stems = draw.sample(said["stems"], 3 * EACH)
        for place in range(EACH):
            facts = _facts(trade, place, [stems.pop() for _ in range(3)], draw) | {"name": names.pop()}
            rows.append(_row(facts, _letter(facts, decks, len(rows), draw)))
    draw.shuffle(rows)
    return rows


def _facts(trade: dict[str, str], place: int, stems: list[str], draw: random.Random) -> dict[str, str]:
    """All that is true of the `place`-th applicant of a trade, as the slots of frames, and the fields' cells."""
    pick = {key: value.split(", ") for key, value in trade.items() if key not in {"now", "then", "thoughts"}}
    places = [*pick["places"], *pick["places"]][place % 3 :]
    company, cemp, pemp = (f"{stem} {suffix}" for stem, suffix in zip(stems, places, strict=False))
    cjob, pjob = pick["jobs"][1 + place % 2], pick["jobs"][place % 2]
    now_field, now = _fact(lines(trade["now"])[place % 3], place // 3, draw)
    then_field, then = _fact(lines(trade["then"])[(place + place // 3) % 3], place // 3, draw)
    left = draw.randint(2014, 2022)
    current, cspan = _span(left, None, draw)
    past, pspan = _span(left - draw.randint(2, 8), left, draw)
    degrees = draw.sample(pick["quals"], draw.choice([1, 1, 2]))
    skills = draw.sample(pick["skills"], draw.randint(4, 6))
    wants = draw.sample(pick["wants"], draw.randint(1, 2))
    demands = [*wants, draw.choice(skills), *draw.sample(pick["quals"], draw.randint(0, 1))]
    draw.shuffle(demands)
    return {
        "title": pick["titles"][place % 2], "company": company, "then": then,
        "want": wants[0], "deg": degrees[0],
        "cjob": cjob, "cemp": cemp, "cspan": cspan, "now": now, "pjob": pjob, "pemp": pemp, "pspan": pspan,
        "view": lines(trade["thoughts"])[place],
        **{f"s{number}": skill for number, skill in enumerate(skills, start=1)},
        "Preferred Qualifications": _demanded(demands, draw),
        "Past Working Experience": _held(pjob, pemp, past, then_field, draw),
        "Current Working Experience": _held(cjob, cemp, current, now_field, draw),
        "Skillsets": ", ".join(draw.sample(skills, len(skills))),
        "Qualifications": "; ".join(degrees),
    }  # fmt: skip


def _fact(line: str, way: int, draw: random.Random) -> tuple[str, str]:
    """A fact as the field has it and as the letter says it."""
    limits, field, *said = line.split(" | ")
    low, high = limits.split("-")
    number = str(draw.randint(int(low), int(high)))
    return filled(field, n=number), filled(said[way], n=number)


def _span(start: int, end: int | None, draw: random.Random) -> tuple[str, str]:
    """A time in a job as the field has it and as the letter says it; `end` None is today."""
    count = (end or 2025) - start
    word = NUMBERS[count - 2] if count < 12 else str(count)
    if end is None and draw.random() < 0.5:
        return f"since {start}", f"since {start}"
    if end is not None and draw.random() < 0.4:
        return draw.choice([f"{start}-{end}", f"{start} to {end}"]), f"from {start} to {end}"
    said = draw.choice([word, word, str(count)])
    return f"{draw.choice([word, str(count), str(count)])} years", f"for {said} years"


def _held(job: str, employer: str, span: str, fact: str, draw: random.Random) -> str:
    """A cell about a job."""
    if span[0].isdigit() and not span.endswith("years"):
        return draw.choice([f"{job} at {employer} ({span}): {fact}", f"{job} at {employer}, {span}. {capital(fact)}."])
    if span.startswith("since"):
        return draw.choice(
            [f"{job} at {employer} {span}; {fact}", f"{capital(span)}: {job} at {employer}. {capital(fact)}."]
        )
    return draw.choice(
        [
            f"{job} at {employer} for {span}; {fact}",
            f"{capital(span)} as {an(job)} at {employer}. {capital(fact)}.",
            f"{job} at {employer}, {span}: {fact}",
        ]
    )


def _demanded(demands: Sequence[str], draw: random.Random) -> str:
    """A cell about what the advert asks for."""
    wishes = [capital(demand) for demand in demands]
    return draw.choice(["; ".join(wishes), ". ".join(wishes) + ".", "- " + "\n- ".join(wishes)])


def _letter(facts: dict[str, str], decks: dict[str, _Deck], place: int, draw: random.Random) -> str:
    """A letter of the facts with LEAST to MOST words; shapes are tried in turn until one fits."""
    slots = facts | {
        "a_title": an(facts["title"]), "a_cjob": an(facts["cjob"]), "a_pjob": an(facts["pjob"]),
        "a_deg": an(facts["deg"]), "a_deg_cap": capital(an(facts["deg"])), "s1_cap": capital(facts["s1"]),
        "cspan_cap": capital(facts["cspan"]), "pspan_cap": capital(facts["pspan"]),
    }  # fmt: skip
    for step in range(3 * len(SHAPES)):
        shape = SHAPES[(place + 3 * step) % len(SHAPES) if step < 3 else (place + step) % len(SHAPES)]
        text = "\n\n".join(_paragraph(part, slots, decks, draw) for part in shape.split(" "))
        tail = f"{decks['signoffs'].deal()}\n{facts['name']}"
        letter = f"{filled(decks['greetings'].deal(), **slots)}\n\n{text}\n\n{tail}"
        if place % 3 == 0:
            letter = letter.replace("'", "’")
        if LEAST <= len(letter.split()) <= MOST:
            return letter
    raise ValueError(f"no shape gives {facts['name']}'s letter {LEAST} to {MOST} words")


def _paragraph(parts: str, slots: dict[str, str], decks: dict[str, _Deck], draw: random.Random) -> str:
    if parts.startswith("list_"):
        return _list(parts, slots, decks, draw)
    said = [slots["view"] if part == "view" else filled(decks[part].deal(), **slots) for part in parts.split("+")]
    return " ".join(capital(sentence) for sentence in said)


def _list(kind: str, slots: dict[str, str], decks: dict[str, _Deck], draw: random.Random) -> str:
    """A line that announces the list, and one item a line."""
    count = sum(f"s{number}" in slots for number in range(1, 7))
    items = {
        "list_skills": [f"{{s{number}}}" for number in range(1, draw.randint(3, count) + 1)],
        "list_career": ["{cjob} at {cemp}: I {now}", "{pjob} at {pemp}, {pspan}: I {then}", "{deg}"],
        "list_reasons": ["I {now} at {cemp}, as {a_cjob}.", "I hold {a_deg}.", "I know {s1} and {s2}."],
    }[kind]
    mark = draw.choice(["-", "-", "*", "•", "1.", "1."] if kind != "list_reasons" else ["1.", "1)", "-"])
    marks = [mark.replace("1", str(number)) for number in range(1, len(items) + 1)]
    filled_items = [capital(filled(item, **slots)) for item in items]
    return "\n".join([decks[kind].deal(), *(f"{mark} {item}" for mark, item in zip(marks, filled_items, strict=True))])


def _row(facts: dict[str, str], letter: str) -> Row:
    cells = facts | {TITLE: facts["title"], COMPANY: facts["company"], NAME: facts["name"], LETTER: letter}
    return {column: cells[column] for column in COLUMNS}


def sample(seed: int = SEED) -> tuple[list[Row], list[tuple[int, str, str]]]:
    """The rows with a tenth of them damaged, and for each damaged one its place from 0, the defect and the detail."""
    rows = clean_rows(seed)
    draw = random.Random(seed)  # noqa: S311
    free = draw.sample(range(len(rows)), len(rows))
    inside, beside = _damage(rows, free, DAMAGE, seed), _damage(rows, free, COPIES, seed)
    later: dict[int, list[tuple[Row, str, str]]] = {}
    for place, copy in beside.items():
        later.setdefault(min(len(rows) - 1, place + draw.randint(5, 60)), []).append(copy)
    out: list[Row] = []
    labels = []
    for place, clean in enumerate(rows):
        for row, kind, detail in [inside.get(place, (clean, "", "")), *later.get(place, [])]:
            if kind:
                labels.append((len(out), kind, detail))
            out.append(row)
    return out, labels


def _damage(rows: list[Row], free: list[int], wanted: dict[str, int], seed: int) -> dict[int, tuple[Row, str, str]]:
    """Place -> damaged row, defect and detail: as many of each as wanted, all of one defect in different ways.

    The places are taken from `free`. A form letter has one way only: every one of them is another letter.
    """
    damaged: dict[int, tuple[Row, str, str]] = {}
    for kind, count in wanted.items():
        ways: set[str] = set()
        for place in list(free):
            found = plant_one(rows[place], kind, f"{seed} {place}", rows)
            if found is None or len(ways) == count:
                continue
            row, detail = found
            way = row[LETTER] if kind == "generic" else detail.split(":")[0]
            if way not in ways:
                ways.add(way)
                free.remove(place)
                damaged[place] = row, kind, detail
    return damaged


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as a csv file's text; a cell's own line ends are kept."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def labels_of(text: str, planted: Sequence[tuple[int, str, str]]) -> list[Label]:
    """The labels, with each row's first physical line in the file's text, as a csv reader counts lines."""
    reader = csv.reader(io.StringIO(text, newline=""))
    starts, line = [], 1
    for _ in reader:
        starts.append(line)
        line = reader.line_num + 1
    return [Label(starts[place + 1], kind, detail) for place, kind, detail in planted]


def labels_csv(labels: Sequence[Label]) -> str:
    """The labels as a csv file's text."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["line", "defect", "detail"])
    writer.writerows([label.line, label.defect, label.detail] for label in labels)
    return file.getvalue()


def files(seed: int = SEED) -> dict[str, str]:
    """The sample's files: name -> text."""
    rows, planted = sample(seed)
    text = as_csv(rows)
    return {"cover_letter.csv": text, "cover_letter_planted.csv": labels_csv(labels_of(text, planted))}


if __name__ == "__main__":
    for name, text in files().items():
        (SAMPLES / name).write_text(text, encoding="utf-8", newline="")
