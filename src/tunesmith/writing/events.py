"""What the gate tells, in order. Offsets count Unicode code points of the visible text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.claims.claim import Checked, Kind, Verdict

_PARAGRAPH = re.compile(r"[ \t]*\n[ \t]*\n")


@dataclass(frozen=True)
class Text:
    """Visible text that is appended. What was told is never taken back."""

    text: str


@dataclass(frozen=True)
class Claimed:
    """A statement, characters start to end (end not included) of the visible text, with the fields' verdict on it.

    `why` is a sentence; `field` is the one that decided. One for a place that was told before replaces the earlier one.
    """

    start: int
    end: int
    text: str
    kind: Kind
    verdict: Verdict
    why: str
    field: str | None


@dataclass(frozen=True)
class Cut:
    """The model ran on, so the text ends here. `removed` is what had come of it by then."""

    why: str
    removed: str


@dataclass(frozen=True)
class Done:
    """The whole. `stopped`: the model ended by itself and nothing was cut. `prefix`: chatter left out in front.

    `claims` are those of the whole text, in its order; they count where they differ from what was told before.
    """

    text: str
    claims: tuple[Claimed, ...]
    stopped: bool
    prefix: str
    cut: Cut | None


Event = Text | Claimed | Cut | Done


def claimed(found: Checked) -> Claimed:
    """A checked claim as an event; a statement ends with its paragraph at the latest."""
    claim, why = found.claim, found.reason
    text = _PARAGRAPH.split(claim.text, maxsplit=1)[0]
    sentence = f"{why[:1].upper()}{why[1:]}."
    return Claimed(claim.start, claim.start + len(text), text, claim.kind, found.verdict, sentence, found.field)


def facts(values: Mapping[str, str]) -> dict[str, str]:
    """The fields that say something."""
    return {name: text for name, text in values.items() if text.strip()}
