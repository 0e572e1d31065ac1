"""The events of the stream filter, and the claims of each finished sentence. Offsets count Unicode code points."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from tunesmith.claims.claim import CheckedClaim, Kind, Verdict
from tunesmith.claims.extract import FIRST_PERSON
from tunesmith.claims.match import check_claims

_PARAGRAPH = re.compile(r"[ \t]*\n[ \t]*\n")


@dataclass(frozen=True)
class TextEvent:
    """Visible text to append. It is never taken back."""

    text: str


@dataclass(frozen=True)
class ClaimEvent:
    """A statement, characters start to end (exclusive) of the visible text, with the verdict of the fields.

    `why` is a sentence; `field` is the field that decided. A later event for the same span replaces the earlier one.
    """

    start: int
    end: int
    text: str
    kind: Kind
    verdict: Verdict
    why: str
    field: str | None


@dataclass(frozen=True)
class CutEvent:
    """The model ran on, so the text ends here. `removed` is what had arrived of the run-on."""

    why: str
    removed: str


@dataclass(frozen=True)
class DoneEvent:
    """The whole text. `stopped`: the model ended by itself and nothing was cut. `prefix`: chatter removed in front.

    `claims` are those of the whole text in order; they replace the earlier ones.
    """

    text: str
    claims: tuple[ClaimEvent, ...]
    stopped: bool
    prefix: str
    cut: CutEvent | None


Event = TextEvent | ClaimEvent | CutEvent | DoneEvent


def claim_event(result: CheckedClaim) -> ClaimEvent:
    """Return a checked claim as an event that ends with its paragraph at the latest."""
    claim, why = result.claim, result.reason
    text = _PARAGRAPH.split(claim.text, maxsplit=1)[0]
    sentence = f"{why[:1].upper()}{why[1:]}."
    return ClaimEvent(claim.start, claim.start + len(text), text, claim.kind, result.verdict, sentence, result.field)


def filled_fields(values: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that are not blank."""
    return {name: text for name, text in values.items() if text.strip()}


_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<!\bInc)(?<!\bLtd)(?<!\be\.g)(?<!\bi\.e)"
    r"(?<!\n\d)(?<!\n\d\d)[.!?][\"'”’)]*(?=\s|\Z)|\n"
)
_BULLET = re.compile(r"[ \t]*(?:[-*•–]|\d{1,2}[.)])[ \t]+")
DETERMINER = (
    r"(?:(?:an?|the|my|our|your|his|her|their|some|about|around|over|under|nearly|almost|roughly|approximately|exactly|"
    r"only|at least|at most|more than|less than|up to|full|strong|proven|solid|deep|good|great|extensive|recent|"
    r"professional|practical|hands-on|advanced|basic|fluent|excellent|certified|qualified)\s+)"
)


def sentence_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the sentence or line around a span with its final mark, without surrounding whitespace and bullet."""
    first = max((match.end() for match in _SENTENCE_END.finditer(text, 0, start) if match.end() <= start), default=0)
    match = _SENTENCE_END.search(text, end)
    stop = match.end() if match else len(text)
    if match and match[0] == "\n":
        stop = match.start()
    first += len(text[first:start]) - len(text[first:start].lstrip())
    if bullet := _BULLET.match(text, first, start):
        first = bullet.end()
    return first, stop


def list_line_start(text: str, start: int) -> int | None:
    """Return the start of the list line whose words begin at `start`; None if it is no list line."""
    line = text.rfind("\n", 0, start) + 1
    match = _BULLET.match(text, line)
    return line if match and match.end() == start else None


def widen_start(text: str, start: int, end: int, floor: int) -> int:
    """Return the start of the articles and adjectives before a claim, but not before `floor`."""
    match = re.search(rf"{DETERMINER}+$", text[floor:start], re.IGNORECASE)
    return floor + match.start() if match else start


def correct_article(text: str) -> str:
    """Correct 'a' or 'an' at the start of `text` to fit the sound of the next word."""
    match = re.match(r"(an?)(\s+[\"“'‘]?)(\w+)", text, re.IGNORECASE)
    if not match:
        return text
    correct = "an" if _starts_with_vowel_sound(match[3]) else "a"
    correct = correct.capitalize() if match[1][0].isupper() else correct
    return correct + text[match.end(1) :]


def _starts_with_vowel_sound(word: str) -> bool:
    """Return whether a word starts with a vowel sound: hour, MBA, 8, 11; not university, one, UX."""
    if word[0].isdigit():
        return word[0] == "8" or re.fullmatch(r"1[18](?:\d{3})*", word) is not None
    if word.isupper() and 1 < len(word) <= 4:  # spelled out
        return word[0] in "AEFHILMNORSX"
    lower = word.casefold()
    if re.match(r"hour|honou?r|honest|heir", lower) or re.match(r"M(?:Sc|Eng|Phil)|LL|N[VH]", word):
        return True
    return lower[0] in "aeiou" and not re.match(r"uni|use|usu|eu|one|ut[io]", lower)


_STREAM_SENTENCE_END = re.compile(  # neither '2.' at the start of a line nor 'Dr.' ends a sentence
    r"(?<!\n\d)(?<!\n\d\d)(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<!\bInc)(?<!\bLtd)"
    r"[.!?;][\"'”’)\]*_]*(?=\s)|\n"
)
_READER_CUE = re.compile(  # the next sentence may answer a demand of the reader
    r"\b(?:you|your|advert|ad|posting|notice|vacancy|description)\b", re.IGNORECASE
)
MAX_IMPERSONAL = 400  # characters: a text without 'I' or 'my' by then is no letter


class ClaimStream:
    """Checks the text so far whenever a sentence ends: 4 ms for a letter of 650 characters.

    The claims of a finished sentence are reported at once, except where the next sentence may answer a demand. A name
    that no field states waits for the end, because its position in the whole text matters.
    """

    def __init__(self, values: Mapping[str, str], *, today: date | None = None) -> None:
        self._values, self._today = filled_fields(values), today
        self._end, self._sent = 0, dict[tuple[int, int], ClaimEvent]()

    def update(self, text: str) -> list[ClaimEvent]:
        """Return the claims that are settled now that the visible text is `text`."""
        ends = [match.end() for match in _STREAM_SENTENCE_END.finditer(text, max(0, self._end - 1))]
        ends = [end for end in ends if end > self._end]
        complete = text[: ends[-1]] if ends else ""
        if not (FIRST_PERSON.search(complete) or len(complete) > MAX_IMPERSONAL):
            return []
        self._end = ends[-1]
        return self._unsent(complete, [result for result in self._checked(complete) if _is_settled(result, complete)])

    def finish(self, text: str) -> tuple[list[ClaimEvent], tuple[ClaimEvent, ...]]:
        """Return the claims that are new or have changed, and all claims of the whole text."""
        results = self._checked(text)
        return self._unsent(text, results), tuple(map(claim_event, results))

    def _checked(self, text: str) -> list[CheckedClaim]:
        return check_claims(text, self._values, today=self._today) if self._values else []

    def _unsent(self, text: str, results: list[CheckedClaim]) -> list[ClaimEvent]:
        new = [event for event in map(claim_event, results) if self._sent.get((event.start, event.end)) != event]
        self._sent.update({(event.start, event.end): event for event in new})
        return new


def _is_settled(result: CheckedClaim, text: str) -> bool:
    """Return whether text after `text`, which ends with a sentence, cannot change the verdict."""
    if result.claim.kind == "name" and result.verdict != "supported":
        return False
    if "\n" in text[result.claim.end :]:
        return True
    ends = [match.end() for match in _STREAM_SENTENCE_END.finditer(text, result.claim.end)]
    if len(ends) > 1:
        return True
    start = max((match.end() for match in _STREAM_SENTENCE_END.finditer(text, 0, result.claim.start)), default=0)
    return not _READER_CUE.search(text[start : result.claim.start])


def claim_events(text: str, values: Mapping[str, str], *, today: date | None = None) -> tuple[ClaimEvent, ...]:
    """Return the claims of a whole text."""
    return ClaimStream(values, today=today).finish(text)[1]
