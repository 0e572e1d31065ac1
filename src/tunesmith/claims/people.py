"""Extracts employers, other organizations, job titles and names of people from prose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from tunesmith.claims.claim import Claim
from tunesmith.claims.fold import split_words, word_list, word_spans, words

_NO_NAME = (
    r"(?:I|I['’]m|I['’]ve|My|We|You|Your|The(?=\s+[a-z])|This|It|As|In|At|For|With|Since|Before|After|During|Level|Year|"
    r"Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|January|February|March|April|May|June|July|August|"
    r"September|October|November|December|Dear|Sincerely|Mr|Ms|Mrs|Dr|Bachelor|Master|Masters|PhD|MBA|BSc)\b"
)
NAME_PART = rf"(?!{_NO_NAME})(?:[A-Z][\w'’.+-]*[\w+]|[A-Z])"
_FAMILY = r"(?:Sons|Co|Company|Partners|Associates|Brothers|Daughters)\b"
CAPITALS = (
    rf"{NAME_PART}(?:[ ](?:&[ ]|of[ ](?:the[ ])?|and[ ](?={_FAMILY}))?{NAME_PART})*"
    rf"(?:,?[ ](?:Inc\.|Ltd\.?|LLC|GmbH|plc)(?!\w))?"
)
_WORK = re.compile(
    rf"\b(?:[Aa]t|[Ww]ork(?:ed|ing)? for|[Ee]mployed (?:by|with)|[Jj]oin(?:ed|ing)?|[Oo]n behalf of|@)\s+"
    rf"(?P<name>(?:[Tt]he )?{CAPITALS})"
)
_SECOND_EMPLOYER = re.compile(rf" and (?P<name>{CAPITALS})(?=[.,;\n]|$|\s(?:have|where|I|as|for|from|in)\b)")
_ORGANISATION = re.compile(
    rf"(?P<name>(?:{NAME_PART}[ ])*{NAME_PART},?[ ](?:Inc\b\.?|Ltd\b\.?|LLC\b|GmbH\b|plc\b|Corp\b\.?|Corporation\b)"
    rf"|University of {NAME_PART}(?: {NAME_PART})*|(?:{NAME_PART}[ ])+(?:University|College|Institute of Technology))"
)
_ORGANISATION_WORD = re.compile(r"Inc\b|Ltd\b|LLC\b|GmbH\b|plc\b|Corp|University|College|Institute")
_TITLE_CUE = re.compile(
    r"(?:\b(?:as|am|was|were|been|become|became|be|of|for)|\bas (?:your|their))\s+"
    r"(?:(?:an?|the|your|your next|their|previously|currently)\s+){0,3}$",
    re.IGNORECASE,
)
_TAIL = re.compile(rf"\s+(?:of|de)\s+{NAME_PART}(?:\s+{NAME_PART})*")
_NO_TITLE_WORDS = frozenset(
    split_words(
        "a an the as at of for in on by to with and or from i am was were been be my your our their his her good great "
        "strong very hard such new any every this that also both being skilled "
        "dedicated experienced passionate qualified"
    )
)
_OPENERS = frozenset(split_words("As The A An My Your Our This For In At Being Dear"))
_SIGN_OFF = re.compile(
    r"(?i:\b(?:sincerely|regards|wishes|faithfully|truly|respectfully|thanks|cheers|thank you))[ \t]*(?:[,.!]\s*|\n\s*)"
    r"(?P<name>[A-Z][\w'’.-]*(?:[ ][A-Z][\w'’.-]*){0,3})[ \t]*(?:\n|$)"
)
_INTRODUCTION = re.compile(rf"\b[Mm]y name is (?P<name>{NAME_PART}(?: {NAME_PART}){{0,2}})")
_GREETING = re.compile(
    r"^(?:Dear|Hello|Hi)\s+(?P<name>(?:(?:Mr|Ms|Mrs|Dr|Prof)\.?\s+)?"
    r"[A-Z][\w'’-]+(?:[ ][A-Z][\w'’-]+){0,2})\s*[,:]",
    re.MULTILINE,
)
_NO_PERSON = frozenset(
    split_words(
        "hiring sir madam team manager committee recruiter "
        "recruitment department human resource sirmadam recruiting staff "
        "professional all everyone there selection search personnel"
    )
)


def greeting_end(text: str) -> int:
    """Return where the line of the greeting ends, or 0. It names the reader's office, which is no claim."""
    match = re.match(r"\s*(?:Dear|Hello|Hi|To [Ww]hom)\b[^\n]*", text)
    return match.end() if match and match.end() - match.start() < 80 else 0


def find_employers(text: str) -> Iterator[Claim]:
    """Yield employers that somebody works for or applies to, and organizations with a legal form or university name."""
    for kind, pattern in (("employer", _WORK), ("organisation", _ORGANISATION)):
        if pattern is _ORGANISATION and not _ORGANISATION_WORD.search(text):
            continue  # most letters have none, and this search takes a tenth of the total time
        for match in pattern.finditer(text):
            start, end = match.span("name")
            name = re.sub(r"['’]s?$", "", text[start:end])
            yield Claim(kind, start, start + len(name), name, words(name))  # type: ignore[arg-type]
            if kind == "employer" and (second := _SECOND_EMPLOYER.match(text, end)):
                yield Claim("employer", *second.span("name"), second["name"], words(second["name"]))


def find_titles(text: str) -> Iterator[Claim]:
    """Yield job titles: capitalized, or in lower case after 'as a', 'I am a', 'position of'."""
    heads = _title_heads()
    body_start = greeting_end(text)
    spans = word_spans(text)
    for index, (word, start, end) in enumerate(spans):
        strict = heads.get(word.lower())
        if strict is None or start < body_start:
            continue
        first = (
            _capitalized_title_start(text, spans, index)
            if word[0].isupper()
            else _lowercase_title_start(text, spans, index)
        )
        if first is None or (strict and first == index):
            continue
        if word[0].isupper() and (tail := _TAIL.match(text, end)):
            end = tail.end()
        start = spans[first][1]
        if text[start:end].lower() != "hiring manager":
            yield Claim("title", start, end, text[start:end], words(text[start:end]))


@lru_cache(maxsize=1)
def _title_heads() -> dict[str, bool]:
    """Return the last words of titles, and whether each counts only if capitalized and after another word."""
    lines = word_list("titles.txt")
    return {line[1:]: True for line in lines if line.startswith("=")} | {
        line: f"={line}" in lines for line in lines if not line.startswith("=")
    }


def _capitalized_title_start(text: str, spans: Sequence[tuple[str, int, int]], last: int) -> int:
    """Return the index of the first word of the capitalized title that ends at word `last`."""
    first = last
    while first and text[spans[first - 1][2] : spans[first][1]] in {" ", "-", " & "}:
        word = spans[first - 1][0]
        year = word.isdigit() and first > 1 and spans[first - 2][0] == "Year"
        if word in _OPENERS or not (word[0].isupper() or year):
            break
        first -= 1
    return first


def _lowercase_title_start(text: str, spans: Sequence[tuple[str, int, int]], last: int) -> int | None:
    """Return the index of the first word of a lower-case title that ends at word `last`; None without a cue."""
    for first in range(last, max(last - 4, -1), -1):
        if _TITLE_CUE.search(text[max(0, spans[first][1] - 40) : spans[first][1]]):
            return first
        if (
            not first
            or spans[first - 1][0] in _NO_TITLE_WORDS
            or text[spans[first - 1][2] : spans[first][1]] not in {" ", "-"}
        ):
            return None
    return None


def find_people(text: str) -> Iterator[Claim]:
    """Yield people: who signs, who introduces themselves, who is greeted by name."""
    for pattern in (_SIGN_OFF, _INTRODUCTION, _GREETING):
        for match in pattern.finditer(text):
            folded = words(match["name"])
            if not _NO_PERSON & set(folded):
                yield Claim("name", match.start("name"), match.end("name"), match["name"], folded)
