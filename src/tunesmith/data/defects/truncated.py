"""Texts that break off."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.defects._code import HIDDEN, mask
from tunesmith.data.defects._defect import Defect, make_defect

_HANGS = "the a an and or nor but of from into than as if because while which whose their your my our every is are was"
_HANGS += (
    " were has have had will would can could should to with for by at der die das und oder le la les et ou el los las"
)
_FUNCTION_WORDS = frozenset(_HANGS.split())
_ITEM = re.compile(r"[ \t]*(?:[-*•●▪]|\(?\d{1,3}[.)])(?:[ \t]|$)")
_SHORT = 8  # words: a shorter answer is a phrase or a title, which needs no full stop


def truncated(text: str) -> Iterator[Defect]:
    """Yields the last word of a text that breaks off: no full stop, and an ending after which more must follow.

    Such endings are a function word, a comma, an opened bracket or quote, and a list marker without its item. Code,
    list items, titles and answers of fewer than eight words are not judged.
    """
    body = text.rstrip()
    if len(body.split(None, _SHORT)) < _SHORT or mask(text)[len(body) - 1] == HIDDEN:
        return
    start = body.rfind("\n") + 1
    line = body[start:]
    if reason := _cut_reason(line, body[:start].rstrip()):
        yield make_defect("truncated", text, len(body) - len(line.split()[-1]), len(body), reason)


def _cut_reason(line: str, above: str) -> str:
    """Why a text whose last line is `line` is cut; '' if it is not."""
    last, word = line[-1], line.split()[-1]
    if _ITEM.fullmatch(line) and _ITEM.match(above[above.rfind("\n") + 1 :]):
        return "a list marker without its item"
    if _ITEM.match(line) or not (last.isalnum() or last in ",([{“«"):
        return ""
    if last == ",":
        return "" if len(line.split()) < 5 else "ends in a comma"  # 'Kind regards,'
    if last in "([{“«":
        return "ends in an opened bracket or quote"
    if word in _FUNCTION_WORDS and len(line.split()) > 3 and line.split()[-2][-1] != ":":
        return f"ends in '{word}'"
    opened = max(line.rfind("("), line.rfind("[")) > max(line.rfind(")"), line.rfind("]"))
    quoted = line.rfind("“") > line.rfind("”") or len(re.findall(r'(?<!\d)"', line)) % 2 == 1
    can_be_cut = len(line.split()) >= _SHORT and "://" not in word
    return "a bracket or quote stays open" if (opened or quoted) and can_be_cut else ""
