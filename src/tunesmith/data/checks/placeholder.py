"""Placeholders that were not filled in: [Your Name], {{company}}, XXX, "insert … here", lorem ipsum.

Why it hurts: the model writes the placeholder to its users, who send it.

Example: "Sincerely, [Your Name]" under an otherwise good letter.

What to do: a placeholder that exactly one field of the row fits is filled by repair; other rows are
quarantined. For intended placeholders (`{{Order Number}}`, which a help desk fills in) write `placeholder: {do:
keep}`. A made-up employer (a company called ABC) counts only if a field of the row names the real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Detector, Finding, Proposal, make_defect, span_finding
from tunesmith.data.language import mask

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
_WORD_SLOT = re.compile(  # '(your name)', 'YOUR NAME', '$NAME', '%COMPANY%'
    r"\((?P<round>[^\W\d_][\w' /-]{1,40})\)|(?P<capital>(?<![\w:-])(?:YOUR|INSERT|ENTER|COMPANY|APPLICANT|CANDIDATE"
    r"|HIRING|EMPLOYER|RECIPIENT|CLIENT|CUSTOMER|JOB)(?:[ _][A-Z]{3,}){1,3})(?![\w:-])"
    r"|(?<![\w$\\])\$(?P<shell>[A-Z]{3,}(?:_[A-Z]{3,})*)(?!\w)|(?<![\w%])%(?P<percent>[A-Z]{3,}(?:_[A-Z]{3,})*)%(?!\w)"
    r"|@@(?P<at>[A-Z]{3,}(?:_[A-Z]{3,})*)@@|<<(?P<angle>[A-Za-z]{3,}(?:[ _][A-Za-z]{3,})*)>>"
)
_CAPITALS = "YOUR INSERT ENTER COMPANY APPLICANT CANDIDATE HIRING EMPLOYER RECIPIENT CLIENT CUSTOMER JOB"
_SIGNS = (*"($%@<", *_CAPITALS.split())  # a text without any of them cannot match `_WORD_SLOT`
_EMPLOYER = re.compile(
    r"\b(?:ABC|XYZ|DEF|GHI|PQR) (?:Tech(?:nolog(?:y|ies))? (?:Solutions|Compan(?:y|ies)|Inc|Corp)|Compan(?:y|ies)"
    r"|Corp(?:oration)?|Inc|Ltd|LLC|Tech(?:nologies)?|Solutions|Bank|University|Industries|Enterprises|Firm|Agency)\b"
)


def detect(text: str) -> Iterator[Defect]:
    """Yields placeholders: [Your Name], {{name}}, <company>, (your name), YOUR NAME, $NAME, XXX, TBD, '____'.

    Made-up employers, such as a company called ABC, are notes, because some texts intend them. Links, JSON and tags are
    not placeholders.
    """
    masked = mask(text)
    for slot in _SLOT.finditer(masked) if any(map(masked.__contains__, "[{<")) else ():
        if slot["double"] or _is_slot((slot["square"] or slot["other"]), slot["sign"] or "", masked):
            yield make_defect("placeholder", text, *slot.span(), "a placeholder that was not filled in", "error")
    for slot in _WORD_SLOT.finditer(masked) if any(map(masked.__contains__, _SIGNS)) else ():
        if _is_placeholder(slot):
            yield make_defect("placeholder", text, *slot.span(), "a placeholder that was not filled in", "error")
    for line in _LINE.finditer(masked) if "____" in masked or "......." in masked or "………" in masked else ():
        yield make_defect("placeholder", text, *line.span(), "a line that was not filled in", "error")
    for match in _FILLER_TEXT.finditer(masked):
        yield make_defect("placeholder", text, *match.span(), "stands for missing text", "error")
    for match in _EMPLOYER.finditer(masked):
        yield make_defect("placeholder", text, *match.span(), "a made-up name", "note")


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


SCOPE = "row"
EMPLOYERS = frozenset({"hiring company", "company", "company name", "employer", "hiring_company", "company_name"})


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields every placeholder in an answer; made-up employers only if a field names another."""
    for row in rows:
        for turn_index, turn in enumerate(row.turns):
            if turn.role != "assistant":
                continue
            slots = [
                defect
                for defect in detect(turn.text)
                if defect.severity != "note" or _names_other_employer(row, defect.text)
            ]
            fill_starts = {defect.start for defect in filler(row.fields)(turn.text)} if slots else set()
            for slot in slots:
                proposal: Proposal = do or ("repair" if slot.start in fill_starts else "quarantine")
                yield span_finding("placeholder", row, turn_index, (slot.start, slot.end), slot.why, proposal)


def _names_other_employer(row: Conversation, employer: str) -> bool:
    """Whether a short field of the row names the company, and no field contains `employer`."""
    fields = row.own_fields()
    names_company = any(name.casefold() in EMPLOYERS and len(fields[name]) < 80 for name in fields)
    return names_company and not any(employer.casefold() in text.casefold() for text in fields.values())


# For each value: what a placeholder may call it, and the names of the fields that contain it. Names are compared
# without case, punctuation and 'your'. A field with the placeholder's own name always matches.
_SYNONYMS = (
    ({"my name", "your full name", "full name", "applicant name", "applicants name", "candidate name"},
     {"applicant name", "candidate name", "applicant", "full name"}),
    ({"company", "company name", "name company", "hiring company", "employer", "employer name", "companys name"},
     {"hiring company", "company", "company name", "employer"}),
    ({"position", "job title", "position title", "job position", "position name", "title position"},
     {"job title", "position", "position title"}),
)  # fmt: skip
_FILLER_WORDS = frozenset({"your", "the", "insert", "enter", "here", "of", "add"})
# a missing value, or itself a placeholder
_NO_VALUE = re.compile(r"[\[\]{}<>\n\r`]|&#?\w+;|(?i:\bn/?a\b|\bnone\b|\bnan\b|\bnull\b)")
_MAX_CHARACTERS = 80  # characters of a value: a longer one is not a name
_GREETING = re.compile(r"(?i)\b(?:dear|hi|hello|hey|mr|mrs|ms|to)[.,]?\s*$")


def filler(fields: Mapping[str, Any] | None) -> Detector:
    """A detector of placeholders that exactly one value of `fields` fits, with that value as the fix."""
    pairs = (fields or {}).items()
    values = [(_words(name), str(value).strip()) for name, value in pairs if type(value) in (str, int)]

    def fill(text: str) -> Iterator[Defect]:
        for slot in detect(text) if values else ():
            if slot.text[0] not in "[{<" or _GREETING.search(text[max(0, slot.start - 8) : slot.start]):
                continue  # '[Name]' in a greeting is the recipient
            if value := _value(slot.text.strip("[]{}<> "), values):
                yield replace(slot, fix=value)

    return fill


def _value(slot: str, values: Sequence[tuple[str, str]]) -> str:
    """The only value that fits the placeholder's words; '' if there is none or more than one."""
    words = _words(slot)
    if words == "name" and slot.lower().split()[:1] == ["your"]:
        words = "my name"  # '[Your Name]' is the writer; '[Name]' may be anyone
    names = {words}.union(*(names for slots, names in _SYNONYMS if words in slots)) - {""}
    fit = {
        value
        for name, value in values
        if name in names and 0 < len(value) <= _MAX_CHARACTERS and not _NO_VALUE.search(value)
    }
    return fit.pop() if len(fit) == 1 else ""


def _words(name: str) -> str:
    spaced = re.sub(r"[\s_-]+", " ", re.sub(r"['’]", "", name)).lower()
    return " ".join(word for word in spaced.split() if word not in _FILLER_WORDS)
