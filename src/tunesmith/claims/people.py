"""Employers, other organisations, job titles and names of people drawn from prose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from tunesmith.claims.claim import Claim
from tunesmith.claims.fold import listed, located, word_list, words

_NOT = (
    r"(?:I|I['’]m|I['’]ve|My|We|You|Your|The(?=\s+[a-z])|This|It|As|In|At|For|With|Since|Before|After|During|Level|Year|"
    r"Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|January|February|March|April|May|June|July|August|"
    r"September|October|November|December|Dear|Sincerely|Mr|Ms|Mrs|Dr|Bachelor|Master|Masters|PhD|MBA|BSc)\b"
)
NAME_PART = rf"(?!{_NOT})(?:[A-Z][\w'’.+-]*[\w+]|[A-Z])"
_FAMILY = r"(?:Sons|Co|Company|Partners|Associates|Brothers|Daughters)\b"
CAPITALS = (
    rf"{NAME_PART}(?:[ ](?:&[ ]|of[ ](?:the[ ])?|and[ ](?={_FAMILY}))?{NAME_PART})*"
    rf"(?:,?[ ](?:Inc\.|Ltd\.?|LLC|GmbH|plc)(?!\w))?"
)
WORK = re.compile(
    rf"\b(?:[Aa]t|[Ww]ork(?:ed|ing)? for|[Ee]mployed (?:by|with)|[Jj]oin(?:ed|ing)?|[Oo]n behalf of|@)\s+"
    rf"(?P<name>(?:[Tt]he )?{CAPITALS})"
)
SECOND = re.compile(rf" and (?P<name>{CAPITALS})(?=[.,;\n]|$|\s(?:have|where|I|as|for|from|in)\b)")
BODY = re.compile(
    rf"(?P<name>(?:{NAME_PART}[ ])*{NAME_PART},?[ ](?:Inc\b\.?|Ltd\b\.?|LLC\b|GmbH\b|plc\b|Corp\b\.?|Corporation\b)"
    rf"|University of {NAME_PART}(?: {NAME_PART})*|(?:{NAME_PART}[ ])+(?:University|College|Institute of Technology))"
)
_BODY_WORD = re.compile(r"Inc\b|Ltd\b|LLC\b|GmbH\b|plc\b|Corp|University|College|Institute")
CUE = re.compile(
    r"(?:\b(?:as|am|was|were|been|become|became|be|of|for)|\bas (?:your|their))\s+"
    r"(?:(?:an?|the|your|your next|their|previously|currently)\s+){0,3}$",
    re.IGNORECASE,
)
_TAIL = re.compile(rf"\s+(?:of|de)\s+{NAME_PART}(?:\s+{NAME_PART})*")
_PLAIN = frozenset(
    listed(
        "a an the as at of for in on by to with and or from i am was were been be my your our their his her good great "
        "strong very hard such new any every this that also both being skilled "
        "dedicated experienced passionate qualified"
    )
)
_OPENERS = frozenset(listed("As The A An My Your Our This For In At Being Dear"))
SIGN_OFF = re.compile(
    r"(?i:\b(?:sincerely|regards|wishes|faithfully|truly|respectfully|thanks|cheers|thank you))[ \t]*(?:[,.!]\s*|\n\s*)"
    r"(?P<name>[A-Z][\w'’.-]*(?:[ ][A-Z][\w'’.-]*){0,3})[ \t]*(?:\n|$)"
)
INTRODUCED = re.compile(rf"\b[Mm]y name is (?P<name>{NAME_PART}(?: {NAME_PART}){{0,2}})")
ADDRESSED = re.compile(
    r"^(?:Dear|Hello|Hi)\s+(?P<name>(?:(?:Mr|Ms|Mrs|Dr|Prof)\.?\s+)?"
    r"[A-Z][\w'’-]+(?:[ ][A-Z][\w'’-]+){0,2})\s*[,:]",
    re.MULTILINE,
)
_NOBODY = frozenset(
    listed(
        "hiring sir madam team manager committee recruiter "
        "recruitment department human resource sirmadam recruiting staff "
        "professional all everyone there selection search personnel"
    )
)


def greeting_end(text: str) -> int:
    """Where the greeting's line ends; 0 without one. It names the reader's office, which is no claim."""
    match = re.match(r"\s*(?:Dear|Hello|Hi|To [Ww]hom)\b[^\n]*", text)
    return match.end() if match and match.end() - match.start() < 80 else 0


def employers(text: str) -> Iterator[Claim]:
    """Organisations that somebody works for or applies to, and others known by legal form or as universities."""
    for kind, pattern in (("employer", WORK), ("organisation", BODY)):
        if pattern is BODY and not _BODY_WORD.search(text):
            continue  # most letters name none, and the search for one takes a tenth of a letter's time
        for match in pattern.finditer(text):
            start, end = match.span("name")
            name = re.sub(r"['’]s?$", "", text[start:end])
            yield Claim(kind, start, start + len(name), name, words(name))  # type: ignore[arg-type]
            if kind == "employer" and (other := SECOND.match(text, end)):
                yield Claim("employer", *other.span("name"), other["name"], words(other["name"]))


def titles(text: str) -> Iterator[Claim]:
    """Job titles: capitalised, or in small letters behind 'as a', 'I am a', 'position of'."""
    heads = _heads()
    begin = greeting_end(text)
    found = located(text)
    for at, (word, start, end) in enumerate(found):
        strict = heads.get(word.lower())
        if strict is None or start < begin:
            continue
        first = _capital(text, found, at) if word[0].isupper() else _small(text, found, at)
        if first is None or (strict and first == at):
            continue
        if word[0].isupper() and (tail := _TAIL.match(text, end)):
            end = tail.end()
        start = found[first][1]
        if text[start:end].lower() != "hiring manager":
            yield Claim("title", start, end, text[start:end], words(text[start:end]))


@lru_cache(maxsize=1)
def _heads() -> dict[str, bool]:
    """The last words of titles, and whether each counts only in capitals behind another word."""
    lines = word_list("titles.txt")
    return {line[1:]: True for line in lines if line.startswith("=")} | {
        line: f"={line}" in lines for line in lines if not line.startswith("=")
    }


def _capital(text: str, found: Sequence[tuple[str, int, int]], at: int) -> int:
    """Index of the first word of a capitalised title that ends at word `at`."""
    first = at
    while first and text[found[first - 1][2] : found[first][1]] in {" ", "-", " & "}:
        word = found[first - 1][0]
        year = word.isdigit() and first > 1 and found[first - 2][0] == "Year"
        if word in _OPENERS or not (word[0].isupper() or year):
            break
        first -= 1
    return first


def _small(text: str, found: Sequence[tuple[str, int, int]], at: int) -> int | None:
    """Index of the first word of a title in small letters that ends at word `at`; None without a cue in front."""
    for first in range(at, max(at - 4, -1), -1):
        if CUE.search(text[max(0, found[first][1] - 40) : found[first][1]]):
            return first
        if not first or found[first - 1][0] in _PLAIN or text[found[first - 1][2] : found[first][1]] not in {" ", "-"}:
            return None
    return None


def names(text: str) -> Iterator[Claim]:
    """People: who signs, who is introduced, who is addressed by name."""
    for pattern in (SIGN_OFF, INTRODUCED, ADDRESSED):
        for match in pattern.finditer(text):
            folded = words(match["name"])
            if not _NOBODY & set(folded):
                yield Claim("name", match.start("name"), match.end("name"), match["name"], folded)
