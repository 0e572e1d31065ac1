"""Lists whose items stand in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tunesmith.data.defects._code import line_end, mask
from tunesmith.data.defects._defect import Defect, at

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


def collapsed_list(text: str) -> Iterator[Defect]:
    """Lists whose items stand in one line: '1. Mix 2. Bake 3. Eat'. Three items at least, numbers from 1 on.

    A list that runs on as a sentence ('1) mix, 2) bake and 3) eat') is prose, unless its items begin with capitals.
    Hyphens and stars count only where the first opens the line or follows a colon, and no neighbouring line is such an
    item. The marks may stand tight on the item before ('1. Mix2. Bake3. Eat'), but for the first.
    """
    masked = mask(text)
    for chain in (*_numbered(masked), *_bulleted(masked)):
        end = line_end(masked, chain[-1].start())
        pieces = [masked[a.end() : b.start()] for a, b in pairwise(chain)]
        whole = [*pieces, masked[chain[-1].end() : end]]
        if _runs_on(pieces, whole):
            continue
        if not all(any(map(str.isalpha, piece)) for piece in whole) or all(map(_CHESS.fullmatch, whole)):
            continue
        starts = [mark.start() for mark in chain]
        begin = len(text[: starts[0]].rstrip(" \t"))
        opened = begin == 0 or text[begin - 1] == "\n"
        lines = [text[a:b].rstrip(" \t") for a, b in pairwise([*starts, end])]
        begin, lead = (starts[0], "") if opened else (begin, "\n")
        why = f"{len(chain)} items of a list in one line"
        yield at("collapsed_list", text, begin, end, why, fix=lead + "\n".join(lines))


def _runs_on(pieces: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether the pieces between the marks lead on to the next as a sentence does."""
    if any(_AND.search(piece[-12:]) for piece in pieces):
        return True
    commas = any(_COMMA.search(piece[-12:]) for piece in pieces)
    return commas and not all(piece.strip()[:1].isupper() for piece in whole)


def _numbered(masked: str) -> Iterator[list[re.Match[str]]]:
    """Runs of numbers 1, 2, 3 … of one style within a line."""
    chain: list[re.Match[str]] = []
    if not all(map(masked.__contains__, "123")):
        return
    for mark in _NUMBER.finditer(masked):
        number = int(mark["number"])
        goes_on = bool(chain) and number == len(chain) + 1 and _style(mark) == _style(chain[-1])
        goes_on = goes_on and "\n" not in masked[chain[-1].end() : mark.start()]
        if goes_on:
            chain.append(mark)
        elif number == 1 and not _tight(masked, mark):
            if len(chain) >= 3:
                yield chain
            chain = [mark]
    if len(chain) >= 3:
        yield chain


def _tight(masked: str, mark: re.Match[str]) -> bool:
    return mark.start() > 0 and not masked[mark.start() - 1].isspace()


def _style(mark: re.Match[str]) -> tuple[str, ...]:
    return (mark["label"] or "").lower(), mark["open"] or "", mark["close"]


def _bulleted(masked: str) -> Iterator[list[re.Match[str]]]:
    """Three bullets of one sign within a line."""
    if all(masked.count(sign) < 3 for sign in "•●▪◦‣*-"):
        return
    start = 0
    for line in masked.split("\n"):
        end = start + len(line)
        by_sign: dict[str, list[re.Match[str]]] = {}
        for mark in _BULLET.finditer(masked, start, end):
            by_sign.setdefault(mark["mark"], []).append(mark)
        for mark in _TIGHT.finditer(masked, start, end) if by_sign else ():
            if mark["mark"] in by_sign and mark.start() > by_sign[mark["mark"]][0].start():
                by_sign[mark["mark"]].append(mark)
        for chain in by_sign.values():
            chain.sort(key=re.Match[str].start)
        for sign, chain in by_sign.items():
            before = masked[start : chain[0].start()].rstrip()
            signs = masked.count(f"{sign} ", start, end)
            first = not before or before[-1] in (":" if sign in "-*" else ":.!?")
            if len(chain) >= 3 and first and (sign not in "-*" or signs == len(chain)):
                if sign in "-*" and not before and _neighbour(masked, start, end, sign):
                    continue  # a list in lines, with dashes inside its items
                yield chain
                break
        start = end + 1


def _neighbour(masked: str, start: int, end: int, sign: str) -> bool:
    before = masked[max(0, start - 400) : max(0, start - 1)].rsplit("\n", 1)[-1]  # 400: the line above, or enough of it
    return before.lstrip().startswith(f"{sign} ") or masked[end + 1 : end + 40].lstrip().startswith(f"{sign} ")
