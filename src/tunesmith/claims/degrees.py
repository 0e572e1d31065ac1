"""Extracts degrees with level and subject: Bachelor's in Computer Science, BSc, MBA, Level 3 Diploma in Welding."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.claims.claim import Claim, Degree
from tunesmith.claims.fold import words

_LEVELS = {  # in order of precedence
    "doctorate": (
        r"Ph\.?\s?D\b\.?|D\.?Phil\b|[Dd]octorate|[Dd]octor[’']s(?= degree)|[Dd]octoral degree|Doctor of|Pharm\.?D\b"
    ),
    "master": (
        r"Masters? of|M\.?B\.?A\b\.?|M\.\s?S[Cc]?\b\.?|MSc\b|M\.?Eng\b\.?|M\.?F\.?A\b|"
        r"M\.A\.|MA(?= in\b)|MS(?= in\b)|M\.?Ed\b|M\.?Phil\b|"
        r"M\.?[Tt]ech\b|[Mm]aster[’']?s?(?= degree| in )|[Mm]aster[’']s|[Mm]asters? [Dd]egree"
    ),
    "bachelor": (
        r"Bachelors? of|B\.?\s?S[Cc]\b\.?|B\.S\.|BS(?= in\b)|B\.?Eng\b\.?|B\.?F\.?A\b|B\.A\.|BA\b|"
        r"B\.?B\.?A\b|B\.?[Tt]ech\b|B\.?Com\b|LL\.?B\b|"
        r"B\.?Ed\b|BE(?= in\b)|[Bb]achelor[’']?s?(?= degree| in )|"
        r"[Bb]achelor[’']?s|[Bb]achelors?\b"
    ),
    "associate": r"[Aa]ssociate[’']?s?(?= degree)|Associate of|[Aa]ssociate[’']s",
    "school": r"[Hh]igh[- ][Ss]chool (?:diploma|Diploma|degree)|GED\b|A[- ][Ll]evels\b",
    "certificate": r"PGCE\b|NVQ\b|GCSEs?\b|[Cc]ertificate(?= in\b)",
    "diploma": r"[Dd]iploma\b",
}
_IMPLIED = {"mba": "business administration", "bba": "business administration", "pharmd": "pharmacy", "llb": "law",
            "mfa": "fine arts", "bfa": "fine arts", "bcom": "commerce"}  # fmt: skip
_NO_SUBJECT = {("science",), ("art",), ("philosophy",)}  # 'Bachelor of Science' says no more than BSc
_LEVEL = "|".join(f"(?P<{level}>{pattern})" for level, pattern in _LEVELS.items())
_STOP_WORDS = (
    r"(?:and|or|from|at|with|which|who|where|to|as|for|have|has|is|was|that|a|an|the|my|i|plus|along|by|but|while|"
    r"combined|coupled|required|preferred|degree|equivalent|related|will|make|minimum|among|in|of)\b"
)
_WORD = rf"(?!{_STOP_WORDS})[A-Za-z][\w’'-]*"
_CAP = r"(?!(?:Master|Bachelor|Doctor|MBA|BSc|MSc|PhD|BA|PGCE|I)\b)[A-Z][\w’'-]*"
_GAP = r"(?:(?!\n\s*\n)\s)+"  # a subject ends with its paragraph at the latest
_SUBJECT = rf"(?P<subject>{_WORD}(?:{_GAP}(?:(?:and|&|of){_GAP})?{_CAP}|[ ](?!(?i:{_STOP_WORDS}))[a-z][\w’'-]*){{0,4}})"
_TAIL = (
    rf"(?:{_GAP}Level{_GAP}\d+)?(?:{_GAP}(?:[Dd]egrees?|[Hh]onours))?(?:\s*\([^)]{{1,12}}\))?"
    rf"(?:{_GAP}(?:in|of){_GAP}(?:the{_GAP})?{_SUBJECT})?"
)
_FIRST = "(?=[ABCDGHLMNPabcdhm])"  # first letters of all levels: rejects most words at once
_DEGREE = re.compile(rf"(?<![\w.]){_FIRST}(?:Level{_GAP}\d+{_GAP})?(?:{_LEVEL}){_TAIL}")
_OF = re.compile(rf"(?:{_GAP})?{_SUBJECT}")
_IN = re.compile(rf"{_GAP}in{_GAP}(?:the{_GAP})?{_SUBJECT}")


def find_degrees(text: str) -> Iterator[Claim]:
    """Yield every degree of a text. 'Scrum Master' and 'to master' are none."""
    for match in _DEGREE.finditer(text):
        level = match.lastgroup if match.lastgroup != "subject" else None
        level = level or next(name for name in _LEVELS if match[name])
        subject_text, end = match["subject"], match.end()
        if match[level].endswith(" of") and (first := _OF.match(text, match.end(level))):
            subject_text, end = first["subject"], first.end()
            if second := _IN.match(text, end):
                subject_text, end = second["subject"], second.end()
        abbreviation = match[level].lower().replace(".", "").replace(" ", "")
        subject = words(subject_text or _IMPLIED.get(abbreviation, ""))
        empty = match[level].endswith(" of") and subject in _NO_SUBJECT
        value = Degree(level, () if empty else subject)
        yield Claim("degree", match.start(), end, text[match.start() : end], value)
