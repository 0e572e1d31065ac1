"""Checks the claims of a text while it is written, each as soon as later text cannot change its verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

from tunesmith.claims.claim import CheckedClaim
from tunesmith.claims.extract import FIRST_PERSON
from tunesmith.claims.match import check_claims
from tunesmith.writing.events import ClaimEvent, claim_event, filled_fields

_SENTENCE_END = re.compile(  # neither '2.' at the start of a line nor 'Dr.' ends a sentence
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
        ends = [match.end() for match in _SENTENCE_END.finditer(text, max(0, self._end - 1))]
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
    ends = [match.end() for match in _SENTENCE_END.finditer(text, result.claim.end)]
    if len(ends) > 1:
        return True
    start = max((match.end() for match in _SENTENCE_END.finditer(text, 0, result.claim.start)), default=0)
    return not _READER_CUE.search(text[start : result.claim.start])


def claim_events(text: str, values: Mapping[str, str], *, today: date | None = None) -> tuple[ClaimEvent, ...]:
    """Return the claims of a whole text."""
    return ClaimStream(values, today=today).finish(text)[1]
