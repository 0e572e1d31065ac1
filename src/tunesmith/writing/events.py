"""The events of the stream filter. Offsets count Unicode code points of the visible text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.claims.claim import CheckedClaim, Kind, Verdict

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
