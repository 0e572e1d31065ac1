"""Lists whose items were run together into one line.

Why it hurts: line breaks lost in an export teach the model to write steps as one block of text.

Example: "1. Open the app 2. Tap Save 3. Close it"

What to do: split the list into lines with `data.repair` or `tunesmith audit --fix`. Numbered clauses in prose ("1)
open it, 2) wait and 3) go") are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Finding, Proposal, defect_findings, make_defect
from tunesmith.data.language import line_end, mask

_NUMBER = re.compile(
    r"(?:(?:(?:^|(?<=[.!?:;]\s))(?P<label>(?i:step|tip|question|day|week|phase|option) )|(?<=\s)|^)(?P<open>\()?"
    r"|(?<=[^\W\d_]|[.!?)’'\"%])(?=\d{1,2}[.)] ))(?P<number>\d{1,2})"
    r"(?P<close>[.)]|(?(label):|(?!)))(?=[ \t]+\S|[A-Z])",
    re.MULTILINE,
)
_BULLET = re.compile(r"(?:(?<=\s)|^)(?P<mark>[•●▪◦‣*-])(?=[ \t]+[^\W\d_]|[ \t]+[*_\"'“(\[])", re.MULTILINE)
_TIGHT = re.compile(r"(?<=[^\W_]|[.!?)’'\"%])(?P<mark>[•●▪◦‣*-])(?= [A-Z])")  # 'first item- Second item'
_AND = re.compile(r"[,;]?\s(?:and|or|then|und|oder|et|ou|y|e)\s*$")  # '1) open it, 2) wait and 3) go'
_COMMA = re.compile(r"[,;]\s*$")
_CHESS = re.compile(r"(?=[^\d]{0,9}\d)[\sKQRBNOa-hx1-8+#=0-]+")  # '1. e4 e5 2. Nf3 Nc6' is a game, not a list


def detect(text: str) -> Iterator[Defect]:
    """Yields lists whose items are on one line ('1. Mix 2. Bake 3. Eat'): three or more items, numbered from 1.

    A list that reads as a sentence ('1) mix, 2) bake and 3) eat') is prose, unless its items begin with capitals.
    Hyphens and asterisks count only if the first one begins the line or follows a colon and no adjacent line is such an
    item. All markers but the first may follow the previous item without a space ('1. Mix2. Bake3. Eat').
    """
    masked = mask(text)
    for chain in (*_numbered(masked), *_bulleted(masked)):
        end = line_end(masked, chain[-1].start())
        pieces = [masked[a.end() : b.start()] for a, b in pairwise(chain)]
        whole = [*pieces, masked[chain[-1].end() : end]]
        if _is_sentence(pieces, whole):
            continue
        if not all(any(map(str.isalpha, piece)) for piece in whole) or all(map(_CHESS.fullmatch, whole)):
            continue
        starts = [marker.start() for marker in chain]
        begin = len(text[: starts[0]].rstrip(" \t"))
        opened = begin == 0 or text[begin - 1] == "\n"
        lines = [text[a:b].rstrip(" \t") for a, b in pairwise([*starts, end])]
        begin, lead = (starts[0], "") if opened else (begin, "\n")
        message = f"{len(chain)} items of a list on one line"
        yield make_defect("collapsed_list", text, begin, end, message, fix=lead + "\n".join(lines))


def _is_sentence(pieces: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether the pieces between the markers continue each other as parts of a sentence."""
    if any(_AND.search(piece[-12:]) for piece in pieces):
        return True
    commas = any(_COMMA.search(piece[-12:]) for piece in pieces)
    return commas and not all(piece.strip()[:1].isupper() for piece in whole)


def _numbered(masked: str) -> Iterator[list[re.Match[str]]]:
    """Yields runs of numbers 1, 2, 3 … in one style within a line."""
    chain: list[re.Match[str]] = []
    if not all(map(masked.__contains__, "123")):
        return
    for marker in _NUMBER.finditer(masked):
        number = int(marker["number"])
        continues = bool(chain) and number == len(chain) + 1 and _style(marker) == _style(chain[-1])
        continues = continues and "\n" not in masked[chain[-1].end() : marker.start()]
        if continues:
            chain.append(marker)
        elif number == 1 and not _follows_text(masked, marker):
            if len(chain) >= 3:
                yield chain
            chain = [marker]
    if len(chain) >= 3:
        yield chain


def _follows_text(masked: str, marker: re.Match[str]) -> bool:
    return marker.start() > 0 and not masked[marker.start() - 1].isspace()


def _style(marker: re.Match[str]) -> tuple[str, ...]:
    return (marker["label"] or "").lower(), marker["open"] or "", marker["close"]


def _bulleted(masked: str) -> Iterator[list[re.Match[str]]]:
    """Yields runs of three or more equal bullets within a line."""
    if all(masked.count(sign) < 3 for sign in "•●▪◦‣*-"):
        return
    start = 0
    for line in masked.split("\n"):
        end = start + len(line)
        by_sign: dict[str, list[re.Match[str]]] = {}
        for marker in _BULLET.finditer(masked, start, end):
            by_sign.setdefault(marker["mark"], []).append(marker)
        for marker in _TIGHT.finditer(masked, start, end) if by_sign else ():
            if marker["mark"] in by_sign and marker.start() > by_sign[marker["mark"]][0].start():
                by_sign[marker["mark"]].append(marker)
        for chain in by_sign.values():
            chain.sort(key=re.Match[str].start)
        for sign, chain in by_sign.items():
            before = masked[start : chain[0].start()].rstrip()
            signs = masked.count(f"{sign} ", start, end)
            first = not before or before[-1] in (":" if sign in "-*" else ":.!?")
            if len(chain) >= 3 and first and (sign not in "-*" or signs == len(chain)):
                if sign in "-*" and not before and _has_adjacent_item(masked, start, end, sign):
                    continue  # a list with one item per line and dashes inside its items
                yield chain
                break
        start = end + 1


def _has_adjacent_item(masked: str, start: int, end: int, sign: str) -> bool:
    before = masked[max(0, start - 400) : max(0, start - 1)].rsplit("\n", 1)[-1]  # 400: enough of the line above
    return before.lstrip().startswith(f"{sign} ") or masked[end + 1 : end + 40].lstrip().startswith(f"{sign} ")


SCOPE = "row"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields lists of three or more items on one line."""
    yield from defect_findings("collapsed_list", rows, detect, do)
