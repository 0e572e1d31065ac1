"""What metrics look at and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunesmith.data.conversation import Conversation
from tunesmith.generate.text import Reply

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class View:
    """One row as a metric sees it: the row, the model's reply, and its loss on the row's own answer in nats a token."""

    row: Conversation
    reply: Reply
    loss: float | None


@dataclass(frozen=True)
class Score:
    """A row's score under one name; `better` says which way is good."""

    name: str
    value: float
    better: Better
