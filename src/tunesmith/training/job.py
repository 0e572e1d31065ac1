"""Input and result of a training engine."""

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
    """Memory layout of the fused decoder: each block's base form and saved activations.

    `chunk` is how many tokens with loss have their logits in memory at a time. Without `table` the embeddings are
    offloaded to the host. Empty `forms` mean that the decoder is not fused.
    """

    forms: tuple[Forms, ...] = ()
    keeps: tuple[Keep, ...] = ()
    chunk: int = 1024
    table: bool = True


@dataclass(frozen=True)
class Job:
    """A fine-tune to run.

    `inputs` holds the fingerprints of the adapter's inputs. `keeping` is called before each checkpoint is written,
    to store what resuming from it needs.
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
    inputs: Mapping[str, str]
    keeping: Callable[[], None] = lambda: None
    watcher: Watcher | None = None
    layout: Layout = Layout()
    scorer: Callable[[Any], float] | None = (
        None  # score of generated replies, higher is better; takes the fused decoder
    )
    sampler: Callable[[Any], list[dict[str, str]]] | None = None  # sample prompts and replies; takes the fused decoder


@dataclass(frozen=True)
class Outcome:
    """Result of a training: the adapter's tensors and configuration, a summary, parameters planned and trained."""

    tensors: dict[str, Any]
    config: dict[str, object]
    summary: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
