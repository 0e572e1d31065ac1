"""How many of the mistakes that people marked in basketball reports `claims.match.check` finds, and how many it makes.

Run as python benchmarks/claims_rotowire.py TEXTS BOX_SCORES GOLD with the folder of texts, the JSON lines of box scores
and the marked mistakes (gsml.csv) of the shared task by Thomson and Reiter (https://aclanthology.org/2021.inlg-1.23).
Two thirds of the games, by a hash of their name, are for development; the last third is held out.

A marked span is found if a claim of its kind that is not supported shares a character with it. A claim that is not
supported is right if it shares one with a marked span of its kind. `all` pairs every kind of claim with every mark,
wrong words included, of which no claim speaks.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.claims.claim import CheckedClaim
from tunesmith.claims.match import check_claims

RESULTS = Path(__file__).parent / "results" / "claims_rotowire.csv"
PARTS = ("development", "held-out")
CLASSES = {
    "NUMBER": frozenset({"number", "percentage", "duration", "money"}),
    "NAME": frozenset({"name", "employer", "organisation", "title", "date"}),
}
COUNTS = {
    "PTS": "points", "REB": "rebounds", "OREB": "offensive rebounds", "DREB": "defensive rebounds", "AST": "assists",
    "STL": "steals", "BLK": "blocks", "TO": "turnovers", "PF": "fouls", "MIN": "minutes",
}  # fmt: skip
SHOTS = {"FG": "field goals", "FG3": "triples", "FT": "free throws"}
SYNONYMS = {
    **dict.fromkeys(("boards", "board", "rebounding", "on the glass", "the glass"), "rebounds"),
    **dict.fromkeys(("dimes", "dime", "helpers"), "assists"),
    **dict.fromkeys(("swats", "swat", "blocked shots", "blocked shot", "rejections", "rejection"), "blocks"),
    **dict.fromkeys(("takeaways", "thefts", "swipes"), "steals"),
    **dict.fromkeys(("giveaways",), "turnovers"),
    **dict.fromkeys(("FG", "FGs", "from the field", "from the floor", "shooting", "shots"), "field goals"),
    **dict.fromkeys(
        ("3Pt", "treys", "long range", "from deep", "from downtown", "from distance", "from three", "beyond the arc",
         "behind the arc", "the three-point arc",
         *(f"{three}-{word}" for three in ("3", "three") for word in ("pointers", "pointer")),
         *(f"{three}-point {word}" for three in ("3", "three")
           for word in ("range", "line", "land", "territory", "shooting", "attempts", "shots"))),
        "triples",
    ),
    **dict.fromkeys(
        ("FT", "FTs", "from the line", "free-throw line", "from the charity stripe", "charity stripe", "foul line",
         "from the free-throw line", "from the foul line"),
        "free throws",
    ),
    "double-double": "double-double", "triple-double": "triple-double", "double-digit": "", "double-digits": "",
    "double digits": "", "double figures": "",
    "first quarter": "first quarter", "second quarter": "second quarter", "third quarter": "third quarter",
    "fourth quarter": "fourth quarter", "final quarter": "fourth quarter", "opening quarter": "first quarter",
    "first period": "first quarter", "second period": "second quarter", "third period": "third quarter",
    "fourth period": "fourth quarter", "final period": "fourth quarter",
    "first half": "first half", "second half": "second half", "half": "first half", "halftime": "first half",
}  # fmt: skip
NICKNAMES = {
    "Cavs": "Cavaliers", "Mavs": "Mavericks", "Sixers": "76ers", "Wolves": "Timberwolves", "Blazers": "Trail Blazers",
    "Dubs": "Warriors", "Pels": "Pelicans", "Clips": "Clippers",
}  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth")
LEAGUE = (
    "NBA; Eastern Conference, Western Conference, East, West; Atlantic Division, Central Division, Southeast Division, "
    "Northwest Division, Pacific Division, Southwest Division; All-Star"
)
ARENAS = {  # where teams were at home in the seasons of the games, 2014 to 2017
    "76ers": "Wells Fargo Center", "Bucks": "BMO Harris Bradley Center", "Bulls": "United Center",
    "Cavaliers": "Quicken Loans Arena", "Celtics": "TD Garden", "Clippers": "Staples Center", "Grizzlies": "FedExForum",
    "Hawks": "Philips Arena", "Heat": "American Airlines Arena", "Hornets": "Spectrum Center, Time Warner Cable Arena",
    "Jazz": "Vivint Smart Home Arena, EnergySolutions Arena", "Kings": "Golden 1 Center, Sleep Train Arena",
    "Knicks": "Madison Square Garden", "Lakers": "Staples Center", "Magic": "Amway Center",
    "Mavericks": "American Airlines Center", "Nets": "Barclays Center", "Nuggets": "Pepsi Center",
    "Pacers": "Bankers Life Fieldhouse", "Pelicans": "Smoothie King Center",
    "Pistons": "The Palace of Auburn Hills", "Raptors": "Air Canada Centre, Air Canada Center",
    "Rockets": "Toyota Center", "Spurs": "AT&T Center", "Suns": "Talking Stick Resort Arena, US Airways Center",
    "Thunder": "Chesapeake Energy Arena", "Timberwolves": "Target Center",
    "Trail Blazers": "Moda Center", "Warriors": "Oracle Arena", "Wizards": "Verizon Center",
}  # fmt: skip
_GLUED = re.compile(r" (?=[,.;:!?)]|'s\b|n't\b|'(?: |$))|(?<=\() | (?=-)|(?<=-) ")


@dataclass(frozen=True)
class Report:
    """A text with ordinary spaces, its fields, and the marked mistakes as (type, start, end)."""

    name: str
    text: str
    fields: Mapping[str, str]
    marks: tuple[tuple[str, int, int], ...]


@dataclass
class Count:
    """Marked spans, those found, claims that are not supported, those that are right."""

    marked: int = 0
    found: int = 0
    claimed: int = 0
    right: int = 0

    def add(self, other: Count) -> None:
        """Adds another count to this one."""
        self.marked += other.marked
        self.found += other.found
        self.claimed += other.claimed
        self.right += other.right

    def line(self) -> list[str]:
        """Recall and precision with their counts, as text."""
        recall, precision = self.found / max(self.marked, 1), self.right / max(self.claimed, 1)
        return [f"{recall:.3f}", f"{precision:.3f}", *map(str, (self.marked, self.found, self.claimed, self.right))]


def part(name: str) -> str:
    """'held-out' for a third of the games, by the SHA-256 of the text's file name."""
    return PARTS[int(hashlib.sha256(f"{name}.txt".encode()).hexdigest(), 16) % 3 == 0]


def plain(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without the spaces that its tokenizer put in, and every token's place in it."""
    tokens = text.split()
    spaced = " ".join(tokens)
    dropped = [match.start() for match in _GLUED.finditer(spaced)]
    kept = "".join(mark for at, mark in enumerate(spaced) if at not in set(dropped))
    places, at = [], 0
    for token in tokens:
        start = at - bisect_left(dropped, at)
        places.append((start, start + len(token)))
        at += len(token) + 1
    return kept, places


def fields(game: Mapping[str, Any]) -> dict[str, str]:
    """A box score as fields: the game, both teams and every player who played, each with what it says of them."""
    day = datetime.strptime(game["day"], "%m_%d_%y").date()
    teams = {side: game[f"{side}_line"] for side in ("home", "vis")}
    names = {side: f"{line['TEAM-CITY']} {line['TEAM-NAME']}" for side, line in teams.items()}
    told = {
        "Game": f"{names['vis']} at {names['home']}, {day:%A} {day:%d %B %Y}, {ARENAS[game['home_name']]}",
        "League": LEAGUE,
    }
    box = game["box_score"]
    played = [row for row, minutes in box["MIN"].items() if minutes != "N/A"]
    lines = {row: {key: values[row] for key, values in box.items()} for row in played}
    for side, line in teams.items():
        mine = [lines[row] for row in played if lines[row]["TEAM_CITY"] == game[f"{side}_city"]]
        told[names[side]] = _team(line, mine)
        for player in mine:
            told[player["PLAYER_NAME"].replace(".", "")] = f"plays for the {names[side]}; " + _player(player, mine)
    return told


def _team(line: Mapping[str, str], players: Sequence[Mapping[str, str]]) -> str:
    quarter = [int(line[f"TEAM-PTS_QTR{number}"]) for number in range(1, 5)]
    tens = sum(int(player["PTS"]) >= 10 for player in players)
    told = [f"{line['TEAM-WINS']}-{line['TEAM-LOSSES']}", f"{line['TEAM-PTS']} points", f"{line['TEAM-REB']} rebounds",
            f"{line['TEAM-AST']} assists", f"{line['TEAM-TOV']} turnovers", f"{tens} players"]  # fmt: skip
    told += [f"{line[f'TEAM-{key}_PCT']} percent {noun}" for key, noun in SHOTS.items()]
    for key, noun in SHOTS.items():
        made, tried = (sum(int(player[f"{key}{end}"]) for player in players) for end in "MA")
        told += [f"{made} {noun}", f"{made}-{tried} {noun}"]
    told += [f"{points} {name} quarter points" for name, points in zip(ORDINALS, quarter, strict=False)]
    told += [f"{sum(quarter[:2])} first half points", f"{sum(quarter[2:])} second half points"]
    return "; ".join(told)


def _player(line: Mapping[str, str], mates: Sequence[Mapping[str, str]]) -> str:
    told = [f"{line[key]} {noun}" for key, noun in COUNTS.items()]
    for key, noun in SHOTS.items():
        made, tried = int(line[f"{key}M"]), int(line[f"{key}A"])
        told += [f"{made} {noun}", f"{made}-{tried} {noun}", f"{round(100 * made / max(tried, 1))} percent {noun}"]
    tens = sum(int(line[key]) >= 10 for key in ("PTS", "REB", "AST", "STL", "BLK"))
    told += [f"{int(tens == 2)} double-double", f"{int(tens == 3)} triple-double"]
    rank = 1 + sum(int(mate["PTS"]) > int(line["PTS"]) for mate in mates)
    told += [f"{rank}{'th' if rank > 3 else ('st', 'nd', 'rd')[rank - 1]} on the team"]
    return "; ".join(told)


def reports(texts: Path, box_scores: Path, gold: Path) -> Iterator[Report]:
    """Every text with its fields and marks, in the order of the box scores."""
    marked: dict[str, list[dict[str, str]]] = {}
    with gold.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            marked.setdefault(row["TEXT_ID"].removesuffix(".txt"), []).append(row)
    with box_scores.open(encoding="utf-8") as file:
        for game in map(json.loads, file):
            name = game["shared_task_text_id"]
            text, places = plain((texts / f"{name}.txt").read_text(encoding="utf-8"))
            spans = [
                (row["TYPE"], places[int(row["DOC_TOKEN_START"]) - 1][0], places[int(row["DOC_TOKEN_END"]) - 1][1])
                for row in marked.get(name, [])
            ]
            yield Report(name, text, fields(game), tuple(spans))


def judged(report: Report) -> list[CheckedClaim]:
    """The verdicts on a report; its things are the teams and the players."""
    things = [name for name in report.fields if name not in {"Game", "League"}]
    known = {short: name for short, long in NICKNAMES.items() for name in things if name.endswith(long)}
    return check_claims(
        report.text, report.fields, about="both", subjects=things, synonyms=SYNONYMS | known, proper=True
    )


def compare(report: Report, found: Sequence[CheckedClaim]) -> dict[str, Count]:
    """A report's counts for NUMBER, NAME and all."""
    wrong = [each.claim for each in found if each.verdict != "supported"]
    counts = {}
    for kind in (*CLASSES, "all"):
        marks = [mark for mark in report.marks if kind in {mark[0], "all"}]
        claims = [claim for claim in wrong if kind == "all" or claim.kind in CLASSES[kind]]
        counts[kind] = Count(
            len(marks),
            sum(any(claim.start < end and start < claim.end for claim in claims) for _, start, end in marks),
            len(claims),
            sum(any(claim.start < end and start < claim.end for _, start, end in marks) for claim in claims),
        )
    return counts


def main() -> None:
    """Measures both parts, prints the table and writes it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="folder of S001.txt and so on")
    parser.add_argument("box_scores", type=Path, help="shared_task.jsonl")
    parser.add_argument("gold", type=Path, help="gsml.csv")
    parser.add_argument("--part", choices=PARTS, help="measure this part only and write no file")
    given = parser.parse_args()
    totals = {(part, kind): Count() for part in PARTS for kind in (*CLASSES, "all")}
    for report in reports(given.texts, given.box_scores, given.gold):
        if given.part in {None, part(report.name)}:
            for kind, count in compare(report, judged(report)).items():
                totals[part(report.name), kind].add(count)
    table = [["part", "kind", "recall", "precision", "marked", "found", "claimed", "right"]]
    table += [[*key, *count.line()] for key, count in totals.items() if count.marked]
    for row in table:
        print(*row, sep="\t")
    if not given.part:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
