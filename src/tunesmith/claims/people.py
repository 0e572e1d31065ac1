"""Finds employers and other organizations, workplaces, degrees, job titles and names of people in prose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from tunesmith.claims.abilities import Vocabulary
from tunesmith.claims.claim import Claim, Degree
from tunesmith.claims.words import split_words, word_list, word_spans, words

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


_WORD = r"(?:[A-Z](?:\w|\.(?=\w))*(?:['’-][A-Z]?[a-z]\w+)*|\d+ers)"
_NAME = re.compile(rf"(?<![\w'’.-]){_WORD}(?:\s(?:&\s|of\s(?:the\s)?|\d+\s)?{_WORD})*")
_START = re.compile(r"(?:^|[.!?:\n]\s*|[.!?]\W\s*)$")
_PLAIN_WORDS = frozenset(
    split_words(
        "the a an it he she they we you i this that these those there here his her their its our my your in on at to "
        "of for with by from as and but or so if when while after before since during despite although though "
        "however meanwhile also both next up not no only what which who how where one two three four five six seven "
        "eight nine ten all each every other another some many most more out off over under against behind between"
    )
)


def find_proper_names(text: str) -> Iterator[Claim]:
    """Yield runs of capitalized words, except a single word that opens a sentence: it may be a plain word."""
    for match in _NAME.finditer(text):
        start, end = match.span()
        opens = bool(_START.search(text[max(0, start - 4) : start]))
        name = match[0]
        while (first := name.split(" ")[0]).lower() in _PLAIN_WORDS and " " in name:
            start += len(first) + 1
            name, opens = text[start:end], False
        if (opens and " " not in name) or name.lower() in _PLAIN_WORDS:
            continue
        name = re.sub(r"['’]s?$|\.$", "", name)
        yield Claim("name", start, start + len(name), name, words(name))


_WORKPLACE_NAME = rf"(?P<name>{NAME_PART}(?:[ ](?:&[ ]|of[ ](?:the[ ])?)?{NAME_PART})+)"
_PLACE = re.compile(
    rf"(?:\b(?:[Aa]t|[Ff]or|[Ww]ith|[Ff]rom|[Bb]y|[Tt]o|[Oo]f|[Oo]n|[Jj]oined|[Ll]eft|is|was)\s(?:the\s)?|"
    rf"(?P<opens>^|[.!?:;]\s|\n)){_WORKPLACE_NAME}"
)
_DOES = re.compile(
    r"\s(?:has|had|is|was|gave|gives|pays|paid|employs|employed|taught|teaches|trained|trains|took|takes|made|makes|let|lets|"
    r"put|puts|trusted|trusts|hired|promoted|showed)\b"
)
_PERSON = re.compile(r"\b(?:I|I['’]\w+|[Mm]y|me)\b")
_WORKPLACE = re.compile(
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
    return bool(_PERSON.search(sentence)) and (titled or bool(_WORKPLACE.search(sentence)))


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
_DEGREE_WORD = rf"(?!{_STOP_WORDS})[A-Za-z][\w’'-]*"
_CAP = r"(?!(?:Master|Bachelor|Doctor|MBA|BSc|MSc|PhD|BA|PGCE|I)\b)[A-Z][\w’'-]*"
_GAP = r"(?:(?!\n\s*\n)\s)+"  # a subject ends with its paragraph at the latest
_SUBJECT = (
    rf"(?P<subject>{_DEGREE_WORD}(?:{_GAP}(?:(?:and|&|of){_GAP})?{_CAP}"
    rf"|[ ](?!(?i:{_STOP_WORDS}))[a-z][\w’'-]*){{0,4}})"
)
_DEGREE_TAIL = (
    rf"(?:{_GAP}Level{_GAP}\d+)?(?:{_GAP}(?:[Dd]egrees?|[Hh]onours))?(?:\s*\([^)]{{1,12}}\))?"
    rf"(?:{_GAP}(?:in|of){_GAP}(?:the{_GAP})?{_SUBJECT})?"
)
_FIRST = "(?=[ABCDGHLMNPabcdhm])"  # first letters of all levels: rejects most words at once
_DEGREE = re.compile(rf"(?<![\w.]){_FIRST}(?:Level{_GAP}\d+{_GAP})?(?:{_LEVEL}){_DEGREE_TAIL}")
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
