"""Finds statements in a reply that its row's fields do not support, and marks them in its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.config.recipe import NamedSetting
from tunesmith.data.conversation import Conversation

WORDS = {"unsupported": "unsupported", "contradicted": "contradicts the fields"}
SHOWN = {"grounded": ("unsupported", "contradicted"), "contradicted": ("contradicted",)}  # verdicts shown, by metric


@dataclass(frozen=True)
class Statement:
    """A statement in a reply, characters `start` to `end` (exclusive), with its verdict and the reason."""

    start: int
    end: int
    text: str
    verdict: str
    word: str
    reason: str


def unsupported_statements(text: str, row: Conversation, metrics: Sequence[NamedSetting]) -> list[Statement]:
    """Returns the statements of `text` that the row's fields do not support, in order of position.

    The metric `grounded` shows unsupported and contradicted statements, `contradicted` only the latter, each checked
    against the columns of its option `fields`. Without these metrics the list is empty.
    """
    statements: dict[tuple[int, int], Statement] = {}
    for metric in metrics:
        columns = row.own_fields(metric.options.get("fields")) if metric.name in SHOWN else {}
        if not columns:
            continue
        from tunesmith.claims.match import check_claims

        for checked in check_claims(text, columns):
            claim = checked.claim
            if checked.verdict in SHOWN[metric.name]:
                word = WORDS[checked.verdict]
                statements[claim.start, claim.end] = Statement(
                    claim.start, claim.end, text[claim.start : claim.end], checked.verdict, word, checked.reason
                )
    return [statements[place] for place in sorted(statements)]


def split_at_statements(text: str, marked: Sequence[Statement]) -> list[tuple[str, int]]:
    """Splits `text` into pieces, each with the number of its statement (from 1), or 0.

    Of overlapping statements, only the first is marked. The pieces joined are the text.
    """
    parts: list[tuple[str, int]] = []
    end = 0
    for number, statement in enumerate(marked, start=1):
        if statement.start >= end:
            parts += [(text[end : statement.start], 0), (text[statement.start : statement.end], number)]
            end = statement.end
    return [piece for piece in [*parts, (text[end:], 0)] if piece[0]]
