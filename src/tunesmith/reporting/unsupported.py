"""What a reply states that its row's fields do not bear out, as pieces of its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.config.recipe import Named
from tunesmith.data.conversation import Conversation

WORDS = {"unsupported": "unsupported", "contradicted": "contradicts the fields"}
SHOWN = {"grounded": ("unsupported", "contradicted"), "contradicted": ("contradicted",)}  # by metric, the verdicts


@dataclass(frozen=True)
class Statement:
    """A statement of a reply, characters start to end (end not included), with the verdict in words and the reason."""

    start: int
    end: int
    text: str
    verdict: str
    word: str
    reason: str


def doubted(text: str, row: Conversation, metrics: Sequence[Named]) -> list[Statement]:
    """The statements of `text` that the row's fields do not support, in the text's order.

    Unsupported and contradicted ones where `metrics` names `grounded`, contradicted ones alone where it names
    `contradicted`, each checked against the columns that the metric's option `fields` names; else none.
    """
    found: dict[tuple[int, int], Statement] = {}
    for metric in metrics:
        own = row.own_fields(metric.options.get("fields")) if metric.name in SHOWN else {}
        if not own:
            continue
        from tunesmith.claims.match import check

        for each in check(text, own):
            claim = each.claim
            if each.verdict in SHOWN[metric.name]:
                word = WORDS[each.verdict]
                found[claim.start, claim.end] = Statement(
                    claim.start, claim.end, text[claim.start : claim.end], each.verdict, word, each.reason
                )
    return [found[place] for place in sorted(found)]


def pieces(text: str, marked: Sequence[Statement]) -> list[tuple[str, int]]:
    """`text` in pieces, each with the number from 1 of the statement that it is, or 0.

    Of statements that overlap the first one is marked; joined, the pieces are the text.
    """
    made: list[tuple[str, int]] = []
    end = 0
    for number, each in enumerate(marked, start=1):
        if each.start >= end:
            made += [(text[end : each.start], 0), (text[each.start : each.end], number)]
            end = each.end
    return [piece for piece in [*made, (text[end:], 0)] if piece[0]]
