"""The input and output types of metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tunesmith.data.conversation import Conversation
from tunesmith.generation.text_model import Reply

Better = Literal["higher", "lower", "neither"]
Fold = Literal["mean", "exp"]  # how rows are aggregated: their mean, or the exponential of their mean
Limits = tuple[float, float]  # the lowest and the highest possible value
SHARE: Limits = (0.0, 1.0)


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
    """A row's score; `better` is the direction of improvement, `fold` how rows are aggregated.

    `limits` is the range of possible values, if there is one: an interval never leaves it, and a missing reply is
    counted with the worse limit. Scores that are 0 or 1 in every row need none.
    """

    name: str
    value: float
    better: Better
    fold: Fold = "mean"
    limits: Limits | None = field(default=None, compare=False)
