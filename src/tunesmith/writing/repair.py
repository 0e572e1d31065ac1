"""Takes an unsupported statement out of a text, or puts in its place what the fields say.

Nothing is reworded: words are left out, in the smallest piece that leaves grammatical English, and never words of
another statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from tunesmith.claims.extract import extract
from tunesmith.claims.fields import Fact, read
from tunesmith.claims.match import check
from tunesmith.writing.events import Claimed, facts
from tunesmith.writing.spans import DETERMINER, article, bulleted, sentence, widened

_PREPOSITION = (
    r"(?:at|for|with|from|in|as|since|by|of|during|over|on|under|to|through|via|within|after|before|including|using|"
    r"such as|between|until|inside|across|worth)"
)
_GAP = re.compile(
    rf"(?:\s+{_PREPOSITION}\b|\s+(?:and|or|but|where|while|which|who|that|because|so|I|we)\b|\s*[,.;:!?)\n–—]|\s*$)"
)
_NO_ITEM = re.compile(
    r"\b(?:I|you|we|they|he|she|it|am|is|are|was|were|be|been|have|has|had|do|did|will|would|can|could|my|which|who|where|"
    r"that|because|if|when)\b|\b(?!(?:advanced|certified|applied|skilled|qualified)\b)\w{2,}ed\b", re.IGNORECASE
)  # fmt: skip
_CLAUSE = re.compile(
    r"(?:,?\s+(?:and|but|yet|so|while)\s+(?:I|my|we|our|it|they|he|she)\b|;\s+|,\s+(?:where|which|who|whose|whom|when)\b|"
    r"\s+where\s+(?=I\b|we\b|my\b)"
    r"|,\s+(?:having|holding|including|using|leading|with|as well as|plus|after|thanks to)\b"
    r"|\s+[–—-]\s+|,\s+and\s+(?=[^.;]*\b(?:are|is)\b))",
    re.IGNORECASE,
)
_VERB = (
    r"(?:also\s+|then\s+|later\s+)?(?:\w+ed|led|cut|built|made|make|ran|wrote|taught|won|sold|kept|keep|held|grew|"
    r"brought|drew|took|gave|saw|met|hold|have|manage|speak|know|run|use|write|teach|serve|bring|own|rely|handle|oversee|"
    r"develop|maintain|supervise|reduce|raise|solve|deliver|enjoy|work(?= (?:with|at|for|in|on|as|every|closely))|"
    r"(?:lead|cook|plan|train|design|prepare)(?= (?:an?|the|my|\d)))"
)
_PREDICATE = re.compile(rf",?\s+and\s+(?={_VERB}\b)", re.IGNORECASE)
_FRONT = re.compile(rf"(?:{_PREPOSITION}|having|holding|being|thanks to|drawing on)\b", re.IGNORECASE)
_SUBJECT = re.compile(r"^(?:and|but|yet|so|while)\s+", re.IGNORECASE)
_RATE = re.compile(
    r"\s+(?:an?|per|each|every)\s+(?:\w+\s+)?(?:hour|day|night|week|month|quarter|year|shift|season|winter|visit)\b"
)
_JOINT = re.compile(r"\s*(?:[-–—]|\bto\b|\band\b|\buntil\b)\s*")
_OPENING = re.compile(
    r"(?:\A|[.!?][\"'”’)]*\s|\n[ \t]*(?:(?:[-*•–]|\d{1,2}[.)])[ \t]+)?)\s*\Z|\A[ \t]*(?:[-*•–]|\d{1,2}[.)])[ \t]+\Z"
)
_MARKS = (",", ".", ";", ":", "!", "?", ")", "\n")
_STOPS = (".", "!", "?", ";", "\n", "")
_COUNTED = re.compile(
    r"\s+(?!(?:and|or|to|of|in|at|by|as|per|each|every|a|an)\b)(?:[a-z][\w-]*\s+)?"
    r"(?:\w+(?<!s)s|people|staff|children|men|women|pupils|classes|businesses)\b(?!\s*['’])"
)
_PLAIN = frozenset({"the", "and", "with", "have", "had", "was", "for", "from", "team", "year", "day", "mont", "some"})
_MEASURES = ("number", "duration", "money", "percentage", "date")
_BARE = re.compile(r"(?:\s+(?:in|of|within|on)\s+(?:the|this|that|my)?\s*[a-z]{1,20})?\s+(?=(?:I|we)\b)")
_LEADS = re.compile(
    rf"{_PREPOSITION}\s+(?:(?:the|my|our|past|last|over|about|almost|nearly|early|late|more than)\s+)*", re.IGNORECASE
)
_OF = re.compile(r"(?:['’]s?|\s+of)\s+(?=\w)")
_NEEDS = re.compile(  # what says little without what follows
    r"\b(?:worked|work|experience|skilled|expert|experienced|interested|fluent|proficient|trained|responsible|degree|"
    r"am|was|are|is|were|been|be|budget|team|class|classes|ward|total|rate|errors|sales|costs|by|apply|applying|"
    r"application|position|role|job|post|knowledge|understanding|command|grasp|background|practice|member|head)$",
    re.IGNORECASE,
)
_ENOUGH = {  # and after which prepositions it says enough
    **dict.fromkeys(("worked", "work"), ("at", "for", "since", "from", "as", "during")),
    **dict.fromkeys(("experience", "team", "position", "role", "job", "post"), ("of", "at", "for", "with", "in")),
}
Span = tuple[int, int, str]


@dataclass(frozen=True)
class _Place:
    """A statement in its sentence, and where the other statements stand."""

    text: str
    claim: Claimed
    begin: int
    end: int
    others: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        """With its articles and adjectives."""
        return widened(self.text, self.claim.start, self.claim.end, self.begin)

    def free(self, start: int, end: int, new: str = "") -> bool:
        """Whether no other statement stands there but those that `new`, which comes in its place, still has."""
        there = [self.text[first:last] for first, last in self.others if first < end and start < last]
        return all(each in new for each in there)


def without(text: str, claim: Claimed, others: Iterable[Claimed] = ()) -> str:
    """`text` without what `claim` states: an item of a list, a phrase, a clause, the sentence, whichever is smallest.

    `others` are the text's other statements; those that prose shows by itself are found here. Where every removal would
    touch one, the statement alone goes, or `text` comes back as it is where that leaves no sentence.
    """
    if text[claim.start : claim.end] != claim.text:
        return text
    begin, end = sentence(text, claim.start, claim.end)
    place = _Place(text, claim, begin, end, _others(text, claim, others))
    for way in _WAYS:
        found = way(place)
        if found and place.free(*found):
            return _tidy(text, found)
    return text


def filling(text: str, claim: Claimed, values: Mapping[str, str], *, today: date | None = None) -> str | None:
    """The words of a field that belong where `claim` stands; None where no field knows, or more than one thing fits.

    Whatever is proposed was put there and checked: the fields bear it out, and no other statement reads worse for it.
    """
    known = facts(values)
    if text[claim.start : claim.end] != claim.text:
        return None
    wrong = sum(each.verdict != "supported" for each in check(text, known, today=today))
    for group in _candidates(text, claim, known):
        fitting = [words for words in group if _holds(_put(text, claim, words), claim, words, known, wrong, today)]
        if len(fitting) == 1:
            return fitting[0]
    return None


def _holds(
    put: tuple[str, int], claim: Claimed, words: str, known: Mapping[str, str], wrong: int, today: date | None
) -> bool:
    text, start = put
    found = check(text, known, today=today)
    there = [each for each in found if each.claim.start < start + len(words) and start < each.claim.end]
    fewer = sum(each.verdict != "supported" for each in found) < wrong
    named = claim.kind in {"title", "employer", "name"}  # a word that is no claim by itself: 'the job of Engineer'
    return fewer and (bool(there) or named) and all(each.verdict == "supported" for each in there)


def filled(text: str, claim: Claimed, values: Mapping[str, str], *, today: date | None = None) -> str | None:
    """`text` with what the fields say in the place of `claim`; None where `filling` knows nothing."""
    words = filling(text, claim, values, today=today)
    return None if words is None else _put(text, claim, words)[0]


# --- ways to take out -------------------------------------------------------------------------------------------


def _line(place: _Place) -> Span | None:
    """A line of a list that states nothing else; a name below the closing."""
    text = place.text
    line = bulleted(text, place.begin)
    if line is not None and place.free(place.begin, place.end):
        end = text.find("\n", place.end)
        return line, (end + 1 if end >= 0 else len(text)), ""
    if place.claim.kind == "name" and text[place.begin : place.end].strip() == place.claim.text:
        return max(0, place.begin - 1), place.end, ""
    return None


def _item(place: _Place) -> Span | None:
    """An item of 'A, B and C'."""
    if place.claim.kind in _MEASURES:
        return None
    text, start, end = place.text, place.start, place.claim.end
    named = place.claim.kind in {"employer", "organisation", "title"}
    before, after = text[place.begin : start], text[end : place.end]
    left = re.search(r"(?P<comma>,\s+)?(?P<word>(?<!\w)(?:and|or)\s+)$|(?P<only>,\s+)$", before)
    right = re.match(r"(?P<comma>,\s+)(?P<word>(?:and|or)\s+)?|(?P<alone>\s+(?:and|or)\s+)", after)
    rest = after[right.end() :] if right else ""
    listed = bool(left) and _was_item(before[: left.start()]) if left else False
    if left and left["only"] and listed and right and (right["alone"] or _is_item(rest)):  # A[, X], B · A[, X] and B
        two = right["word"] and not re.search(r",\s+\S", before[: left.start()])
        return place.begin + left.start(), end + (1 if two else 0), ""
    if left and left["word"] and right and right["comma"] and _is_item(rest):  # and [X, ]B, C and D
        return start, end + right.end(), ""
    if left and left["word"] and listed:  # A, B and [X]
        return _last_item(place, left)
    if left and left["only"] and listed and _GAP.match(after) and not right:
        return place.begin + left.start(), end, ""
    finite = right and right["word"] and re.search(r"\b(?:are|is|was|were)\b", re.split(r"[.;]", rest)[0])
    if not left and right and _is_item(rest) and not finite and (not named or rest[:1].isupper()):  # [X, ]B and C
        shared = text[start : place.claim.start] and not re.match(rf"{DETERMINER}|my\b", rest, re.IGNORECASE)
        return (place.claim.start if shared else start), end + right.end(), ""
    return None


def _last_item(place: _Place, left: re.Match[str]) -> Span | None:
    text, start = place.text, place.begin + left.start()
    after = text[place.claim.end : place.end]
    if not _GAP.match(after) and not re.match(r"\s+\w+", after):
        return None
    head = text[place.begin : start]
    commas = list(re.finditer(r",\s+", head))
    items: list[int] = []
    for found in reversed(commas):
        if not _is_item(head[found.end() : items[-1] if items else len(head)] + ","):
            break
        items.append(found.start())
    word = (left["word"] or "and ").strip()
    if not items:
        return start, place.claim.end, ""
    at = place.begin + items[0]
    gap = text[at:start]
    oxford = ", " if left["comma"] and len(items) > 1 else " "
    joined = f"{oxford}{word} {gap.strip(', ')}"
    return at, place.claim.end, joined


def _is_item(after: str) -> bool:
    """Whether what stands behind a comma or 'and' is an item of a list."""
    piece = re.sub(r"^my\s+", "", re.split(r"[,.;:!?\n]|\s(?:and|or)\s", after, maxsplit=1)[0])
    return 0 < len(piece.split()) <= 10 and not re.match(rf"{_VERB}\b", piece) and not _NO_ITEM.search(piece)


def _was_item(before: str) -> bool:
    piece = re.split(r"[,;:\n]|\s(?:and|or)\s", before)[-1]
    return bool(piece.strip()) and len(piece.split()) <= 8


def _measure(place: _Place) -> Span | None:
    """A number with or without what it counts ('a team[ of 12 people]', 'led [12 ]people'), '[5 years of ]practice'."""
    text, claim = place.text, place.claim
    before, after = text[place.begin : place.start], text[claim.end : place.end]
    if claim.kind == "duration" and (found := _OF.match(after)) and re.match(r"[a-z]", after[found.end() :]):
        return place.start, claim.end + found.end(), ""
    if claim.kind != "number" or re.search(r"\b(?:one|1)$", claim.text) or not _COUNTED.match(after):
        return None
    noun = _COUNTED.match(after)
    rate = _RATE.match(after, noun.end()) if noun else None
    stop = claim.end + (rate.end() if rate else noun.end() if noun else 0)
    group = re.search(r"(?<!total)(?<!number)(?<!maximum)(?<!minimum)\s+of\s+$", before)
    if group and _GAP.match(text[stop : place.end] or "."):
        return place.begin + group.start(), stop, ""
    words = after[: noun.end()].lstrip() if noun else ""
    return place.start, stop, words


def _bracket(place: _Place) -> Span | None:
    text = place.text
    left = text.rfind("(", place.begin, place.claim.start)
    right = text.find(")", place.claim.end, place.end)
    if left < 0 or right < 0 or ")" in text[left : place.claim.start]:
        return None
    return left - len(text[place.begin : left]) + len(text[place.begin : left].rstrip()), right + 1, ""


def _predicate(place: _Place) -> Span | None:
    """'… and led 12 people': a second thing that the same subject did."""
    text = place.text
    found = list(_PREDICATE.finditer(text, place.begin, place.claim.start))
    if not found:
        return None
    last = found[-1]
    if re.search(r"[,;]", text[last.end() : place.claim.start]):
        return None
    rest = text[place.claim.end : place.end]
    stop = re.search(r"[,;.!?]|\s+(?:and|but)\s+", rest)
    return last.start(), place.claim.end + (stop.start() if stop else len(rest)), ""


def _phrase(place: _Place) -> Span | None:
    """A preposition with what it governs: ' at X', ' for 5 years', ' as a Y'."""
    text = place.text
    before = text[place.begin : place.start]
    found = re.search(rf"(?:\s+|,\s+){_PREPOSITION}\s+$", before, re.IGNORECASE)
    if not found or not before[: found.start()].strip():
        return None
    if not _GAP.match(text[place.claim.end : place.end] or "."):
        return None
    lead, word = before[: found.start()].rstrip(), found[0].strip(" ,").lower()
    needs = _NEEDS.search(lead)
    if needs and word not in _ENOUGH.get(needs[0].lower(), ()):
        return None
    if re.search(r"\b(?:I|we|you|it)$", lead):
        return None
    return place.begin + len(lead), place.claim.end, ""


def _clause(place: _Place) -> Span | None:
    """A clause of a longer sentence."""
    text, cuts = place.text, list(_CLAUSE.finditer(place.text, place.begin, place.end))
    ends = [(found.start(), found.end()) for found in cuts]
    earlier = [each for each in ends if each[0] < place.claim.start and each[1] <= place.claim.start]
    later = [each for each in ends if each[0] >= place.claim.end]
    mark = place.end - len(text[place.begin : place.end]) + len(text[place.begin : place.end].rstrip(".!?\"'”’)"))
    stop = later[0][0] if later else mark
    if earlier:
        opened = text[earlier[-1][0] : earlier[-1][1]]
        inner = re.match(r",\s+(?!and|but|yet|so|while)", opened) or opened.strip() == "where"
        comma = text.find(",", place.claim.end, stop)
        if inner and comma >= 0 and not opened.startswith(";"):
            stop = comma
        return earlier[-1][0], stop, ""
    if later:
        rest = text[later[0][0] : place.end].lstrip(" ,;–—-")
        if re.match(
            r"(?:where|which|who|whose|whom|when|having|holding|including|with|as well|plus)\b", rest, re.IGNORECASE
        ):
            return None
        return place.begin, place.end - len(_SUBJECT.sub("", rest)), ""
    return None


def _front(place: _Place) -> Span | None:
    """'[With 12 years in ovens, ]I …', '[Since 2015 ]I …': a phrase in front."""
    text = place.text
    if not _FRONT.match(text, place.begin):
        return None
    bare = _BARE.match(text, place.claim.end)
    if bare and _LEADS.fullmatch(text[place.begin : place.start]):
        return place.begin, bare.end(), ""
    comma = text.find(",", place.claim.end, place.end)
    rest = text[comma + 1 : place.end].lstrip() if comma >= 0 else ""
    if not re.match(r"(?:I|my|we|you|the|it|this|that|your|our)\b", rest, re.IGNORECASE):
        return None
    return place.begin, place.end - len(rest), ""


def _first(place: _Place) -> Span | None:
    """'I [hold a degree and ]use SQL': the first of two things that the same subject does."""
    text = place.text
    verb = re.search(
        r"(?P<lead>(?:^|,\s+|\b(?:I|we)\s+))(?:have |also |can |am |was )?[a-z]+\s+$", text[place.begin : place.start]
    )
    after = text[place.claim.end : place.end]
    behind = re.match(rf",?\s+and\s+(?={_VERB}\b)", after)
    if not verb or not behind:
        return None
    if verb["lead"].startswith(","):
        return place.begin + verb.start(), place.claim.end, ""
    return place.begin + verb.end("lead"), place.claim.end + behind.end(), ""


def _office(place: _Place) -> Span | None:
    """'I was[ a Head Chef] at X': a title where the employer is told as well; else what is true of anybody there."""
    if place.claim.kind != "title":
        return None
    text = place.text
    if not re.search(r"\b(?:am|was|been|be|is|are|were)\s+$", text[place.begin : place.start]):
        return None
    if re.match(r"\s+(?:at|with|in)\s", text[place.claim.end : place.end]):
        return place.start, place.claim.end, ""
    if re.match(r"\s+(?:for|since|from)\s", text[place.claim.end : place.end]):
        return place.start, place.claim.end, "part of the team"
    return None


def _vague(place: _Place) -> Span | None:
    """Where nothing can be left out, 'some time' for a duration that was spent, 'experience' for years of something."""
    text, claim = place.text, place.claim
    before, after = text[place.begin : place.start], text[claim.end : place.end]
    if claim.kind != "duration":
        return None
    if re.search(r"\b(?:have|bring|offer|with)\s+$", before) and re.match(r"\s+of\s+(?=[A-Z])", after):
        return place.start, claim.end, "experience"
    if re.search(r"\b(?:in|during) (?:my|the)\s+$", text[place.begin : claim.start], re.IGNORECASE):
        return claim.start, claim.end, "time"
    if re.match(r"\s+(?:as|at|with|in|on)\b", after) and re.search(r"\b(?:spent|spend|and|:)\s+$|:\s+$", before):
        return place.start, claim.end, "some time"
    return None


def _whole(place: _Place) -> Span | None:
    """The sentence."""
    return place.begin, place.end, ""


_WAYS = (_line, _first, _item, _measure, _bracket, _predicate, _front, _office, _phrase, _clause, _whole, _vague)


def _others(text: str, claim: Claimed, others: Iterable[Claimed]) -> tuple[tuple[int, int], ...]:
    given = [(each.start, each.end) for each in others]
    spans = given or [(each.start, each.end) for each in extract(text)]
    return tuple((start, end) for start, end in spans if end <= claim.start or start >= claim.end)


def _tidy(text: str, span: Span) -> str:
    """The text with the span replaced, and what stands around it as it should."""
    before, after = text[: span[0]], span[2] + text[span[1] :]
    if _OPENING.search(before):
        after = after.lstrip(" \t")
        after = after[:1].upper() + after[1:]
    elif after[:1] in _MARKS or not after:
        before = before.rstrip(" \t")
        before = before.rstrip(",;:–—- ") if after[:1] in _STOPS and text[span[0]] != "\n" else before
        after = after[1:] if after[:1] == "," and before[-1:] in ",;:" else after
    elif before[-1:] in " \t" and after[:1] in " \t":
        after = after.lstrip(" \t")
    elif before[-1:].isalnum() and after[:1].isalnum():
        after = f" {after}"
    if not after.strip():
        return before.rstrip()
    if after[0] == "\n":
        before = before.rstrip(" \t")
        after = after.lstrip("\n") if before.endswith("\n\n") or not before else after
    before, after = _agreed(before, after)
    return _renumbered(before, after)


def _agreed(before: str, after: str) -> tuple[str, str]:
    """'a' or 'an' at the seam, as the next word has it."""
    found = re.search(r"\b[Aa]n?\s+$", before)
    return (before[: found.start()], article(found[0] + after)) if found else (before, after)


def _renumbered(before: str, after: str) -> str:
    """The lines of a numbered list that follow a line taken out, counted on."""
    line, lines = before[before.rfind("\n") + 1 :], after.split("\n")
    last = re.findall(r"(?m)^(\d{1,2})[.)][ \t]", before)
    found = re.match(r"(\d{1,2})[.)][ \t]", lines[0])
    if line or not found:
        return before + after
    number = int(last[-1]) + 1 if last and int(found[1]) > 2 else int(found[1]) - 1
    if number + 1 != int(found[1]):
        return before + after
    for place, each in enumerate(lines):
        if not (found := re.match(r"(\d{1,2})([.)][ \t])", each)):
            break
        lines[place] = f"{number + place}{found[2]}{each[found.end() :]}"
    return before + "\n".join(lines)


# --- what a field says ------------------------------------------------------------------------------------------


def _candidates(text: str, claim: Claimed, known: Mapping[str, str]) -> list[list[str]]:
    """Words of the fields that may stand for a claim: first the fact that speaks against it, then all of its kind."""
    kinds = {"employer", "organisation"} if claim.kind in {"employer", "organisation"} else {claim.kind}
    if claim.kind == "skill" or claim.verdict == "supported":
        return []
    found = [each for each in read(known, {}).facts if each.claim.kind in kinds]
    quoted = [each for each in found if each.field == claim.field and f"says {each.claim.text!r}." in claim.why]
    about = "reader" if "The advert's fields" in claim.why else "writer"
    own = [each for each in found if each.side in {about, "both"}]
    if not _placed(text, claim):
        return []
    if claim.kind == "number":
        quoted, own = ([each for each in group if _counts(text, claim, each)] for group in (quoted, own))
    return [_words(claim, each) for each in (quoted, own)]


def _counts(text: str, claim: Claimed, fact: Fact) -> bool:
    """Whether a number's field counts what the text counts: 40 loaves are no 40 cats."""
    around = f"{' '.join(text[: claim.start].split()[-3:])} {' '.join(text[claim.end :].split()[:3])}"
    said = {word[:4].casefold() for word in re.findall(r"[^\W\d_]{3,}", around)} - _PLAIN
    return any(word[:4].casefold() in said for word in re.findall(r"[^\W\d_]{3,}", fact.piece))


def _placed(text: str, claim: Claimed) -> bool:
    """Whether another of its kind can stand there: 'at PLC programming' names no employer, 'Six Sigma' no number."""
    after = text[claim.end : claim.end + 40]
    if claim.kind in {"employer", "organisation"}:
        if re.search(r"\b(?:position|role|job|post|title|work) (?:of|as) (?:an? |the )?$", text[: claim.start]):
            return False  # it was taken for one
        return bool(_GAP.match(after)) or after.startswith(("'", "’"))
    return claim.kind != "number" or not re.match(r"\s+[A-Z]", after)


def _words(claim: Claimed, found: Sequence[Fact]) -> list[str]:
    shaped = (_shaped(claim, each.claim.text) for each in found)
    return list(dict.fromkeys(words for words in shaped if words and words != claim.text))


def _shaped(claim: Claimed, words: str) -> str | None:
    """A fact's words in the statement's form: '2014-2017' for '2009 and 2012'; None where they do not fit."""
    words = " ".join(words.split())
    if claim.kind == "number" and words in {"1", "one", "a", "an"}:
        return None  # what is counted stands in the plural
    if claim.kind == "date":
        joint, years = _JOINT.search(claim.text), _JOINT.split(words)
        if bool(joint) != (len(years) > 1):
            return None
        return joint[0].join((years[0], years[-1])) if joint else words
    return words


def _put(text: str, claim: Claimed, words: str) -> tuple[str, int]:
    """The text with words for the claim, and where they begin."""
    before, after = text[: claim.start], text[claim.end :]
    if _OPENING.search(before) and claim.text[:1].isupper():
        words = words[:1].upper() + words[1:]
    before, rest = _agreed(before, words + after)
    return before + rest, len(before) + len(rest) - len(words) - len(after)
