"""Finds employers that no field names: two or more capitalized words in a sentence about the writer's work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.claims.claim import Claim
from tunesmith.claims.fold import word_list, words
from tunesmith.claims.people import NAME_PART
from tunesmith.claims.skills import Vocabulary

_NAME = rf"(?P<name>{NAME_PART}(?:[ ](?:&[ ]|of[ ](?:the[ ])?)?{NAME_PART})+)"
_PLACE = re.compile(
    rf"(?:\b(?:[Aa]t|[Ff]or|[Ww]ith|[Ff]rom|[Bb]y|[Tt]o|[Oo]f|[Oo]n|[Jj]oined|[Ll]eft|is|was)\s(?:the\s)?|"
    rf"(?P<opens>^|[.!?:;]\s|\n)){_NAME}"
)
_DOES = re.compile(
    r"\s(?:has|had|is|was|gave|gives|pays|paid|employs|employed|taught|teaches|trained|trains|took|takes|made|makes|let|lets|"
    r"put|puts|trusted|trusts|hired|promoted|showed)\b"
)
_PERSON = re.compile(r"\b(?:I|I['’]\w+|[Mm]y|me)\b")
_WORK = re.compile(
    r"\b(?:employ\w*|work(?:ed|ing|place)?|job|post|position|role|second(?:ed|ment)|internship|apprentice\w*|trained|"
    r"stint|spell|days|years|staff|lent|posted|joined|left|moved|came|start(?:ed)?|since|earlier|previous\w*|before)\b"
)
_NO_EMPLOYER_END = re.compile(
    r"\b(?:Science|Sciences|Team|Department|Skills?|Degree|Experience|Manager|University|College)$"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def find_workplaces(text: str, stated: Sequence[Claim], known_skills: Vocabulary) -> Iterator[Claim]:
    """Yield names in first-person sentences about work that are no title, skill, degree or person."""
    heads = word_list("titles.txt")
    for match in _PLACE.finditer(text):
        start, end = match.span("name")
        if match["opens"] is not None and not _DOES.match(text, end):
            continue
        if text[end : end + 1] == "/" or any(claim.start < end and start < claim.end for claim in stated):
            continue
        name = re.sub(r"['’]s?$", "", match["name"])
        folded = words(name)
        if _about_work(text, start, end, stated) and not (
            folded[-1] in heads or _NO_EMPLOYER_END.search(name) or next(known_skills.find(name), None)
        ):
            yield Claim("employer", start, start + len(name), name, folded)


def _about_work(text: str, start: int, end: int, stated: Sequence[Claim]) -> bool:
    """Return whether the sentence around a span has a first person, and a title or a word of work."""
    first = max(text.rfind(mark, 0, start) for mark in (". ", "! ", "? ", "\n")) + 1
    stop = _SENTENCE_END.search(text, end)
    last = stop.start() if stop else len(text)
    sentence = text[first:last]
    titled = any(claim.kind == "title" and first <= claim.start < last for claim in stated)
    return bool(_PERSON.search(sentence)) and (titled or bool(_WORK.search(sentence)))
