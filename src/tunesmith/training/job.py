"""What an engine is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import Adapter, Train
from tunesmith.kernels.block import Keep
from tunesmith.models.build import Model
from tunesmith.models.fuse import Forms
from tunesmith.prompt.tokens import Example
from tunesmith.training.journal import Watcher


@dataclass(frozen=True)
class Layout:
    """How the fused decoder stands in memory: of each block the base's form and what is kept of its forward.

    `chunk` is the number of learnt tokens whose logits exist at one time; without `table` the embeddings wait on the
    host. Empty `forms`: it is not fused.
    """

    forms: tuple[Forms, ...] = ()
    keeps: tuple[Keep, ...] = ()
    chunk: int = 1024
    table: bool = True


@dataclass(frozen=True)
class Job:
    """A fine-tune to be done.

    `made_from` names everything that the adapter depends on. `keeping` is called before each checkpoint is written, to
    lay down what a training that resumes from it needs.
    """

    model: Model  # without an adapter
    tokenizer: Any
    train: Sequence[Example]
    valid: Sequence[Example]
    adapter: Adapter
    settings: Train
    seed: int
    pad: int
    micro_tokens: int
    recompute: bool
    precision: str
    folder: Path
    made_from: Mapping[str, str]
    keeping: Callable[[], None] = lambda: None
    watcher: Watcher | None = None
    layout: Layout = Layout()
    scorer: Callable[[Any], float] | None = None  # how good replies are, more is better; takes the fused decoder
    sampler: Callable[[Any], list[dict[str, str]]] | None = None  # some prompts and replies; takes the fused decoder


@dataclass(frozen=True)
class Outcome:
    """What came out: the adapter's tensors and configuration, how it went, parameters planned and trained."""

    tensors: dict[str, Any]
    config: dict[str, object]
    summary: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
