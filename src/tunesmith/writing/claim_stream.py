"""The statements of a text that is still being written, each judged when nothing to come can change the verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

from tunesmith.claims.claim import Checked
from tunesmith.claims.extract import FIRST_PERSON
from tunesmith.claims.match import check
from tunesmith.writing.events import Claimed, claimed, facts

_END = re.compile(  # '2.' in front of a line ends nothing, nor does 'Dr.'
    r"(?<!\n\d)(?<!\n\d\d)(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<!\bInc)(?<!\bLtd)"
    r"[.!?;][\"'”’)\]*_]*(?=\s)|\n"
)
_ASKED = re.compile(  # what the reader asks for is the writer's where the next sentence says so
    r"\b(?:you|your|advert|ad|posting|notice|vacancy|description)\b", re.IGNORECASE
)
PATIENCE = 400  # characters: a text in which nobody has said 'I' by then is no letter


class Judged:
    """Checks the text so far whenever a sentence ends: 4 ms for a letter of 650 characters.

    Told at once are the statements of the sentence that ended, but where the next one may answer a demand; a name that
    no field gives waits for the end, as its place in the whole decides.
    """

    def __init__(self, values: Mapping[str, str], *, today: date | None = None) -> None:
        self._values, self._today = facts(values), today
        self._seen, self._told = 0, dict[tuple[int, int], Claimed]()

    def more(self, text: str) -> list[Claimed]:
        """The statements that are settled now that the visible text is `text`."""
        ends = [found.end() for found in _END.finditer(text, max(0, self._seen - 1))]
        ends = [end for end in ends if end > self._seen]
        known = text[: ends[-1]] if ends else ""
        if not (FIRST_PERSON.search(known) or len(known) > PATIENCE):
            return []
        self._seen = ends[-1]
        return self._new(known, [each for each in self._checked(known) if _settled(each, known)])

    def end(self, text: str) -> tuple[list[Claimed], tuple[Claimed, ...]]:
        """The statements not told yet or told otherwise, and all of the whole text."""
        found = self._checked(text)
        return self._new(text, found), tuple(map(claimed, found))

    def _checked(self, text: str) -> list[Checked]:
        return check(text, self._values, today=self._today) if self._values else []

    def _new(self, text: str, found: list[Checked]) -> list[Claimed]:
        new = [each for each in map(claimed, found) if self._told.get((each.start, each.end)) != each]
        self._told.update({(each.start, each.end): each for each in new})
        return new


def _settled(found: Checked, text: str) -> bool:
    """Whether nothing behind `text`, which ends with a sentence, can change the verdict."""
    if found.claim.kind == "name" and found.verdict != "supported":
        return False
    if "\n" in text[found.claim.end :]:
        return True
    rest = [each.end() for each in _END.finditer(text, found.claim.end)]
    if len(rest) > 1:
        return True
    begin = max((each.end() for each in _END.finditer(text, 0, found.claim.start)), default=0)
    return not _ASKED.search(text[begin : found.claim.start])


def judged(text: str, values: Mapping[str, str], *, today: date | None = None) -> tuple[Claimed, ...]:
    """The statements of a whole text."""
    return Judged(values, today=today).end(text)[1]
