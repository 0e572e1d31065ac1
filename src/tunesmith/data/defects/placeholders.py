"""Placeholders that were not filled in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data.defects._code import mask
from tunesmith.data.defects._defect import Defect, make_defect

_LEADS = "your my insert enter add recipient recipient's employer hiring applicant candidate customer client company"
_LEADS += " sender state specify name date job position company's"
_LEADS += (
    " mention describe include provide list explain attach brief briefly specific relevant previous opening closing"
)
_NOUNS = "name company date position title address city zip phone number email e-mail manager employer organization"
_NOUNS += " organisation institution school university product service website url location country department"
_NOUNS += " industry signature amount skill skills job role field year month author brand link username client"
_NOUNS += " contractor hours recipient time topic genre representative source award achievement venue degree event"
_NOUNS += " reference paragraph sentence greeting"
_TAGS = "address title link time data summary details button label input form body head name date url email number"
_LEAD_WORDS, _NOUN_WORDS = frozenset(_LEADS.split()), frozenset(_NOUNS.split())
_NAMES = "name title address number date email e-mail phone position signature"
_NAMED_WORDS = frozenset(_NAMES.split())
_XML_WORDS = frozenset(_TAGS.split())
_SLOT = re.compile(
    r"\{\{\s*(?P<double>[^{}\n]{1,60}?)\s*\}\}"
    r"|(?<![\w\])!])\[(?P<square>[^\W\d_][^\[\]\n]{1,60})\](?![(\[:\w])"
    r"|(?<![\w$<{\\])(?P<sign>[<{])(?P<other>[^\W\d_][\w' /-]{1,50})[>}](?![\w>}])"
)
_FILLER_TEXT = re.compile(
    r"(?i:\blorem ipsum\b)|(?i:\binsert (?:(?:your|the|an?|name|text|link|date|image|company)\b[\w' ]{0,40}?) here\b)"
    r"|(?<![\w+-])(?<!Bowl )(?<!Chapter )(?<!Part )(?<!Psalm )X{3,}(?![\w])"
    r"|\b(?:TODO|FIXME)(?=[:(])|\[(?:TODO|TBD|X{2,})\]|(?<![\w/-])TB[DC](?![\w/-])"
    r"|(?<![-*+] )\[[XYZN]\](?=%| [a-z]{3,})|(?<![\w-])(?:\$XX\b|XX?(?=\+? (?:years|months|people|per ?cent)\b|%))"
)
_LINE = re.compile(r"(?<![^\s(\"'“‘*>])(?:_{4,}+|\.{7,}+|…{3,}+)(?=[\s,.;:!?)'’\"”*]|\Z)(?!\s*\d)")  # to write on
_WORDS = re.compile(  # '(your name)', 'YOUR NAME', '$NAME', '%COMPANY%'
    r"\((?P<round>[^\W\d_][\w' /-]{1,40})\)|(?P<capital>(?<![\w:-])(?:YOUR|INSERT|ENTER|COMPANY|APPLICANT|CANDIDATE"
    r"|HIRING|EMPLOYER|RECIPIENT|CLIENT|CUSTOMER|JOB)(?:[ _][A-Z]{3,}){1,3})(?![\w:-])"
    r"|(?<![\w$\\])\$(?P<shell>[A-Z]{3,}(?:_[A-Z]{3,})*)(?!\w)|(?<![\w%])%(?P<percent>[A-Z]{3,}(?:_[A-Z]{3,})*)%(?!\w)"
    r"|@@(?P<at>[A-Z]{3,}(?:_[A-Z]{3,})*)@@|<<(?P<angle>[A-Za-z]{3,}(?:[ _][A-Za-z]{3,})*)>>"
)
_CAPITALS = "YOUR INSERT ENTER COMPANY APPLICANT CANDIDATE HIRING EMPLOYER RECIPIENT CLIENT CUSTOMER JOB"
_SIGNS = (*"($%@<", *_CAPITALS.split())  # a text without any of them cannot match `_WORDS`
_EMPLOYER = re.compile(
    r"\b(?:ABC|XYZ|DEF|GHI|PQR) (?:Tech(?:nolog(?:y|ies))? (?:Solutions|Compan(?:y|ies)|Inc|Corp)|Compan(?:y|ies)"
    r"|Corp(?:oration)?|Inc|Ltd|LLC|Tech(?:nologies)?|Solutions|Bank|University|Industries|Enterprises|Firm|Agency)\b"
)


def placeholders(text: str) -> Iterator[Defect]:
    """Yields placeholders: [Your Name], {{name}}, <company>, (your name), YOUR NAME, $NAME, XXX, TBD, '____'.

    Made-up employers, such as a company called ABC, are notes, because some texts intend them. Links, JSON and tags are
    not placeholders.
    """
    masked = mask(text)
    for slot in _SLOT.finditer(masked) if any(map(masked.__contains__, "[{<")) else ():
        if slot["double"] or _is_slot((slot["square"] or slot["other"]), slot["sign"] or "", masked):
            yield make_defect("placeholders", text, *slot.span(), "a placeholder that was not filled in", "error")
    for slot in _WORDS.finditer(masked) if any(map(masked.__contains__, _SIGNS)) else ():
        if _is_placeholder(slot):
            yield make_defect("placeholders", text, *slot.span(), "a placeholder that was not filled in", "error")
    for line in _LINE.finditer(masked) if "____" in masked or "......." in masked or "………" in masked else ():
        yield make_defect("placeholders", text, *line.span(), "a line that was not filled in", "error")
    for match in _FILLER_TEXT.finditer(masked):
        yield make_defect("placeholders", text, *match.span(), "stands for missing text", "error")
    for match in _EMPLOYER.finditer(masked):
        yield make_defect("placeholders", text, *match.span(), "a made-up name", "note")


def _is_placeholder(slot: re.Match[str]) -> bool:
    """Whether a slot in parentheses, capitals or template signs consists only of words that placeholders use."""
    words = slot[str(slot.lastgroup)].replace("_", " ").lower().split()
    if not (slot["round"] or slot["capital"]):
        return words[-1] in _NOUN_WORDS
    ends = _NAMED_WORDS if slot["round"] else _NOUN_WORDS  # '(your employer)' explains; '(your name)' is a placeholder
    return 2 <= len(words) <= 4 and words[0] in _LEAD_WORDS and words[-1] in ends and _fits(words)


def _fits(words: Sequence[str]) -> bool:
    return all(word in _LEAD_WORDS or word in _NOUN_WORDS or len(word) < 5 for word in words)


def _is_slot(inside: str, sign: str, masked: str) -> bool:
    words = inside.replace("_", " ").rstrip(" 0123456789").lower().split()
    if sign == "<" and ((len(words) == 1 and words[0] in _XML_WORDS) or f"</{inside}" in masked):
        return False  # an HTML or XML element
    if not words or len(words) > 7:
        return False
    ends_in_noun = not _NOUN_WORDS.isdisjoint({words[-1], words[-1].removesuffix("s")})
    return (ends_in_noun and len(words) < 5) or (len(words) > 1 and words[0] in _LEAD_WORDS)
