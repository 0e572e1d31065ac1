"""The input and output types of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunesmith.data.conversation import Conversation
from tunesmith.generation.text_model import Reply

Better = Literal["higher", "lower", "neither"]
Fold = Literal["mean", "exp"]  # how rows are aggregated: their mean, or the exponential of their mean


@dataclass(frozen=True)
class TrainingAnswers:
    """The answers of the rows that the tuned model was trained on."""

    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """The input of a metric: the row, the model's reply, its loss on the row's own answer in nats per token, and the
    answers that were trained on.
    """

    row: Conversation
    reply: Reply
    loss: float | None
    training: TrainingAnswers = TrainingAnswers()


@dataclass(frozen=True)
class Score:
    """A row's score; `better` is the direction of improvement, `fold` how rows are aggregated."""

    name: str
    value: float
    better: Better
    fold: Fold = "mean"
