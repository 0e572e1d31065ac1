"""What metrics look at and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunesmith.data.conversation import Conversation
from tunesmith.generation.text_model import Reply

Better = Literal["higher", "lower", "neither"]
Fold = Literal["mean", "exp"]  # how rows become one figure: their mean, or its exponential


@dataclass(frozen=True)
class Known:
    """What the tuned model has seen: the answers of its training rows."""

    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """One row as a metric sees it: the row, the model's reply, its loss on the row's own answer in nats a token, and
    what was trained on.
    """

    row: Conversation
    reply: Reply
    loss: float | None
    known: Known = Known()


@dataclass(frozen=True)
class Score:
    """A row's score under one name; `better` says which way is good, `fold` how rows become one figure."""

    name: str
    value: float
    better: Better
    fold: Fold = "mean"
