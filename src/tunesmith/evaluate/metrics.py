"""Scores of a row. Each function takes a View and returns its scores; keyword-only parameters are its options."""

from __future__ import annotations

import functools
import re
from typing import Any

from tunesmith.evaluate.score import Score, View

_STEP = re.compile(r"(\d+)\.\s+\S")


def loss(view: View) -> list[Score]:
    """Mean negative log-likelihood of the row's own answer and stop token, in nats a token."""
    return [] if view.loss is None else [Score("loss", view.loss, "lower")]


ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")  # the scores of `rouge`; others are called as their metric


def rouge(view: View, *, stemmer: bool = True) -> list[Score]:
    """ROUGE-1, -2, -L and -Lsum F-measures by the rouge-score library (Lin 2004), Lsum over lines.

    A row without an answer of its own has none.
    """
    if not view.row.answer:
        return []
    found = _scorer(stemmer).score(view.row.answer, view.reply.text)
    return [Score(name, float(value.fmeasure), "higher") for name, value in found.items()]


def numbered_steps(view: View, *, least: int = 2) -> list[Score]:
    """1 when the reply is a numbered list and nothing else: lines '1. …', '2. …' without a gap, at least `least`."""
    if view.row.fields.get("expect") == "no_steps":
        return []  # a probe that asks for no list is scored by `expected`
    return [Score("numbered_steps", float(_is_numbered(view.reply.text, least)), "higher")]


def stops(view: View) -> list[Score]:
    """1 when the reply ended with the stop token, 0 when it had to be cut."""
    return [Score("stops", float(view.reply.stopped), "higher")]


def length(view: View) -> list[Score]:
    """The reply's length in words."""
    return [Score("length", float(len(view.reply.text.split())), "neither")]


GROUNDED = ("grounded", "coverage")


def grounded(view: View, *, fields: list | None = None) -> list[Score]:  # type: ignore[type-arg]
    """How much of what the reply states its fields support (of 1), and how many of the fields' key facts it names.

    A statement about the writer must come from the writer's fields. `fields` names the columns; none takes all but the
    answer's. A reply that states nothing has no `grounded`; `coverage` is there to show it.
    """
    from tunesmith.claims.match import check
    from tunesmith.claims.score import score

    own = view.row.own_fields(fields)
    if not own:
        return []
    found = score(view.reply.text, own, check(view.reply.text, own))
    told = (("grounded", found.precision), ("coverage", found.coverage))
    return [Score(name, value, "higher") for name, value in told if value is not None]


def expected(view: View) -> list[Score]:
    """For rows with a field `expect` (steps or no_steps): 1 when the reply has, or has not, numbered lines."""
    wanted = view.row.fields.get("expect")
    if wanted == "steps":
        return [Score("expected", float(_is_numbered(view.reply.text, 2)), "higher")]
    if wanted == "no_steps":
        has_step = any(_STEP.match(line.strip()) for line in view.reply.text.splitlines())
        return [Score("expected", float(not has_step), "higher")]
    return []


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _number(line: str) -> int | None:
    match = _STEP.match(line)
    return int(match[1]) if match else None


def _is_numbered(text: str, least: int) -> bool:
    lines = _lines(text)
    return len(lines) >= least and [_number(line) for line in lines] == list(range(1, len(lines) + 1))


@functools.cache
def _scorer(stemmer: bool) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=stemmer)
