"""Blanks and characters that nobody sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from tunesmith.data.defects._code import line_end, mask
from tunesmith.data.defects._defect import Defect, Severity, at

_BROKEN = re.compile(
    r"(?P<crlf>\r\n?)|(?P<escape>\x1b\[[0-9;]{0,20}[A-Za-z])|(?P<feed>[\x0b\x0c\x85])"
    r"|(?P<control>[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]+)"
)
# Characters without width. Beside a letter of a script that joins or is written to the left they may be meant.
_HIDDEN_SIGN = re.compile(
    r"(?<![^\x00-\u058f\u1e00-\u1eff\u2010-\u20ff])[\u200b\u200e\u200f\u2060\u00ad]+"
    r"(?![^\x00-\u058f\u1e00-\u1eff\u2010-\u20ff])"
)
_TAB = re.compile(r"(?<=[a-z)’'\"”][.!?])\t+(?=[A-Z“\"'(‘])")
_WIDE = re.compile(r"(?<=[^\W\d_,])(?<![.!?:]) {2,}(?=[^\W\d_])|(?<=,) {2,}(?=[^\W\d_])|(?<=[.!?:]) {3,}(?=[^\W\d_])")
_INDENT = re.compile(r"(?<=\n\n)[ \t]{2,}(?=\S)")
_MARK = re.compile(r"[ ]*(?:[-*•]|\d+[.)])\t")
_LIST = re.compile(r"[-*•] |\d+[.)] ")
_FEW = (
    3  # no-break or double blanks in a text, or blanks at a line's end: fewer are a slip, which is mended but not told
)
_MANY = 0.2  # of the blanks are no-break ones: an export's, not a typesetter's
_LOOSE = re.compile(r"(?P<blank>\n(?:[ \t]*\n){3,})|(?<![ \t])(?P<trailing>[ \t]+)(?=\r?\n)")


def broken_whitespace(text: str) -> Iterator[Defect]:
    """Control characters, CRLF, spaces at a line's end, more than two blank lines, blank lines around the text.

    And characters without width, no-break blanks throughout, tabs between sentences, double blanks within a line of
    prose, every paragraph indented. Two spaces before a line of text are Markdown's line break and stay. A slip that
    many writers make (one blank at a line's end, one double blank) is a note.
    """
    for found in _BROKEN.finditer(text):
        group = str(found.lastgroup)
        fix = "" if group in ("escape", "control") else "\n"
        why = "a carriage return" if group == "crlf" else "a control character"
        yield at("broken_whitespace", text, *found.span(), why, fix=fix)
    bare = text.strip("\n\r \t")
    first = text.rfind("\n", 0, text.find(bare)) + 1 if bare else 0  # the first line's own indent may mean something
    last = text.find(bare) + len(bare)
    if first and "\r" not in text[:first]:
        yield at("broken_whitespace", text, 0, first, "blank lines before the text", fix="")
    for found in _LOOSE.finditer(mask(text), first, last):
        if found["blank"]:
            yield at("broken_whitespace", text, *found.span(), "more than two blank lines", fix="\n\n")
        elif found[0] != "  " or text[found.end() : found.end() + 2].strip() == "":
            severity: Severity = "note" if len(found[0]) < _FEW and "\t" not in found[0] else "warning"
            yield at("broken_whitespace", text, *found.span(), "spaces at a line's end", severity, "")
    yield from _inside(text)
    if last < len(text) and "\r" not in text[last:]:
        severity = "note" if len(text) - last < _FEW and "\t" not in text[last:] else "warning"
        yield at("broken_whitespace", text, last, len(text), "blanks after the text", severity, "")


def _inside(text: str) -> Iterator[Defect]:
    """What stands between words where one blank or nothing belongs."""
    masked = mask(text)
    if not text.isascii():
        for found in _HIDDEN_SIGN.finditer(masked):
            yield at("broken_whitespace", text, *found.span(), "a character without width", fix="")
        hard = masked.count("\xa0")
        if hard >= _FEW and hard >= _MANY * (hard + masked.count(" ")):
            for found in re.finditer("\xa0+", masked):
                yield at("broken_whitespace", text, *found.span(), "no-break blanks throughout", fix=" ")
    if "\t" in masked and not _is_table(masked):
        for found in _TAB.finditer(masked):
            yield at("broken_whitespace", text, *found.span(), "a tab between sentences", fix=" ")
    if "  " in masked:
        yield from _doubles(text, masked)
        yield from _indents(text, masked)


def _is_table(masked: str) -> bool:
    """Whether tabs make columns: two neighbouring lines have equally many, those behind a list's marks apart."""
    tabs = [line.count("\t") - bool(_MARK.match(line)) for line in masked.split("\n")]
    return any(one and one == other for one, other in pairwise(tabs))


def _doubles(text: str, masked: str) -> Iterator[Defect]:
    """Two blanks or more within lines of prose; columns, which such blanks set apart, are none."""
    found = list(_WIDE.finditer(masked))
    lines: dict[int, list[re.Match[str]]] = {}
    for gap in found:
        lines.setdefault(masked.rfind("\n", 0, gap.start()), []).append(gap)
    for start, gaps in lines.items():
        line = masked[start + 1 : line_end(masked, start + 1)]
        if "|" not in line and len(line.split()) >= 6 * len(gaps) ** 0.5 and max(len(gap[0]) for gap in gaps) < 5:
            severity: Severity = "warning" if len(found) >= _FEW else "note"
            for gap in gaps:
                yield at("broken_whitespace", text, *gap.span(), "double blanks", severity, " ")


def _indents(text: str, masked: str) -> Iterator[Defect]:
    """The indents of paragraphs, where every one but the first has the same and the first opens no list."""
    found = list(_INDENT.finditer(masked))
    paragraphs = masked.count("\n\n")
    if len(found) < 2 or len(found) != paragraphs or len({gap[0] for gap in found}) > 1:
        return
    if not _LIST.match(masked.lstrip()) and not any(_LIST.match(masked, gap.end()) for gap in found):
        for gap in found:
            yield at("broken_whitespace", text, *gap.span(), "indented paragraphs", fix="")
