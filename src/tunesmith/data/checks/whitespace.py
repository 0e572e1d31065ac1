r"""Control characters, carriage returns, and invisible spaces: trailing, doubled, no-break, zero-width.

Why it hurts: they are tokens too: the model learns to write them, and two rows that look equal are not.

Example: an answer that ends "Kind regards,\r\n \r\n\r\n".

What to do: let them be repaired. Two spaces before a line break, which Markdown reads, stay. Each turn has one finding
per problem, with its count; one or two spaces at the end of a line are repaired too, but not reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Finding, Proposal, Severity, defect_findings, make_defect
from tunesmith.data.language import line_end, mask

_BROKEN = re.compile(
    r"(?P<crlf>\r\n?)|(?P<escape>\x1b\[[0-9;]{0,20}[A-Za-z])|(?P<feed>[\x0b\x0c\x85])"
    r"|(?P<control>[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]+)"
)
# Zero-width characters. Next to a letter of a joining or right-to-left script they may be intended.
_ZERO_WIDTH = re.compile(
    r"(?<![^\x00-\u058f\u1e00-\u1eff\u2010-\u20ff])[\u200b\u200e\u200f\u2060\u00ad]+"
    r"(?![^\x00-\u058f\u1e00-\u1eff\u2010-\u20ff])"
)
_TAB = re.compile(r"(?<=[a-z)’'\"”][.!?])\t+(?=[A-Z“\"'(‘])")
_WIDE = re.compile(r"(?<=[^\W\d_,])(?<![.!?:]) {2,}(?=[^\W\d_])|(?<=,) {2,}(?=[^\W\d_])|(?<=[.!?:]) {3,}(?=[^\W\d_])")
_INDENT = re.compile(r"(?<=\n\n)[ \t]{2,}(?=\S)")
_MARK = re.compile(r"[ ]*(?:[-*•]|\d+[.)])\t")
_LIST = re.compile(r"[-*•] |\d+[.)] ")
_FEW = 3  # no-break, double or trailing spaces: fewer are a slip, which is repaired but not reported
_MANY = 0.2  # of the spaces are no-break spaces: they come from an export, not from a typesetter
_BLANKS = re.compile(r"(?P<blank>\n(?:[ \t]*\n){3,})|(?<![ \t])(?P<trailing>[ \t]+)(?=\r?\n)")


def detect(text: str) -> Iterator[Defect]:
    """Yields control characters, CRLF, trailing spaces, more than two blank lines, and blank lines around the text.

    Also zero-width characters, many no-break spaces, tabs between sentences, double spaces in a line of prose, and
    indents of all paragraphs. Two spaces at the end of a line are Markdown's line break and stay. A common slip (one
    trailing space, one double space) is a note.
    """
    for match in _BROKEN.finditer(text):
        group = str(match.lastgroup)
        fix = "" if group in ("escape", "control") else "\n"
        message = "a carriage return" if group == "crlf" else "a control character"
        yield make_defect("whitespace", text, *match.span(), message, fix=fix)
    bare = text.strip("\n\r \t")
    first = text.rfind("\n", 0, text.find(bare)) + 1 if bare else 0  # the indent of the first line may have a meaning
    last = text.find(bare) + len(bare)
    if first and "\r" not in text[:first]:
        yield make_defect("whitespace", text, 0, first, "blank lines before the text", fix="")
    for match in _BLANKS.finditer(mask(text), first, last):
        if match["blank"]:
            yield make_defect("whitespace", text, *match.span(), "more than two blank lines", fix="\n\n")
        elif match[0] != "  " or text[match.end() : match.end() + 2].strip() == "":
            severity: Severity = "note" if len(match[0]) < _FEW and "\t" not in match[0] else "warning"
            yield make_defect("whitespace", text, *match.span(), "spaces at the end of a line", severity, "")
    yield from _within_lines(text)
    if last < len(text) and "\r" not in text[last:]:
        severity = "note" if len(text) - last < _FEW and "\t" not in text[last:] else "warning"
        yield make_defect("whitespace", text, last, len(text), "whitespace after the text", severity, "")


def _within_lines(text: str) -> Iterator[Defect]:
    """Yields whitespace between words where one space or nothing belongs."""
    masked = mask(text)
    if not text.isascii():
        for match in _ZERO_WIDTH.finditer(masked):
            yield make_defect("whitespace", text, *match.span(), "a zero-width character", fix="")
        no_break_count = masked.count("\xa0")
        if no_break_count >= _FEW and no_break_count >= _MANY * (no_break_count + masked.count(" ")):
            for match in re.finditer("\xa0+", masked):
                yield make_defect("whitespace", text, *match.span(), "many no-break spaces", fix=" ")
    if "\t" in masked and not _is_table(masked):
        for match in _TAB.finditer(masked):
            yield make_defect("whitespace", text, *match.span(), "a tab between sentences", fix=" ")
    if "  " in masked:
        yield from _double_spaces(text, masked)
        yield from _indents(text, masked)


def _is_table(masked: str) -> bool:
    """Whether tabs form columns: two adjacent lines have the same number, not counting those after list markers."""
    tabs = [line.count("\t") - bool(_MARK.match(line)) for line in masked.split("\n")]
    return any(first and first == second for first, second in pairwise(tabs))


def _double_spaces(text: str, masked: str) -> Iterator[Defect]:
    """Yields runs of two or more spaces in lines of prose, unless they separate columns."""
    matches = list(_WIDE.finditer(masked))
    lines: dict[int, list[re.Match[str]]] = {}
    for gap in matches:
        lines.setdefault(masked.rfind("\n", 0, gap.start()), []).append(gap)
    for start, gaps in lines.items():
        line = masked[start + 1 : line_end(masked, start + 1)]
        if "|" not in line and len(line.split()) >= 6 * len(gaps) ** 0.5 and max(len(gap[0]) for gap in gaps) < 5:
            severity: Severity = "warning" if len(matches) >= _FEW else "note"
            for gap in gaps:
                yield make_defect("whitespace", text, *gap.span(), "double spaces", severity, " ")


def _indents(text: str, masked: str) -> Iterator[Defect]:
    """Yields the indents of paragraphs if all but the first have the same one and none of them is a list item."""
    matches = list(_INDENT.finditer(masked))
    paragraphs = masked.count("\n\n")
    if len(matches) < 2 or len(matches) != paragraphs or len({gap[0] for gap in matches}) > 1:
        return
    if not _LIST.match(masked.lstrip()) and not any(_LIST.match(masked, gap.end()) for gap in matches):
        for gap in matches:
            yield make_defect("whitespace", text, *gap.span(), "indented paragraphs", fix="")


SCOPE = "row"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields broken whitespace, one finding per turn and problem."""
    yield from defect_findings("whitespace", rows, detect, do, prompts=True, once=True)
