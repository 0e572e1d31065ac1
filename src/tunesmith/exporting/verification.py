"""Proves in its own runtime that an exported file is the model that was tested, or says what speaks against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from tunesmith.config.recipe import Evaluate, Export
from tunesmith.data.conversation import Conversation
from tunesmith.errors import RunError
from tunesmith.evaluation.comparison import NO_TRAINING_ANSWERS, RowReply, generate_replies
from tunesmith.evaluation.reply_log import ReplyLog
from tunesmith.evaluation.score import Fold, TrainingAnswers
from tunesmith.exporting.acceptance import (
    LOSSES,
    Replies,
    Share,
    judge,
    replies,
    scores_of,
    share_of_losses,
    share_of_replies,
)
from tunesmith.exporting.job import File, Runtime
from tunesmith.exporting.likelihood import Likelihood, Prompts, Reference, conversations, likelihoods
from tunesmith.generation.text_model import RuntimeStats, TextModel
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import Example


@dataclass(frozen=True)
class Proof:
    """What was measured of a file, and `problems`: what speaks against its being the model that was tested."""

    name: str
    exact: bool
    primary: str
    prompts: Prompts
    likelihood: Likelihood
    replies: Replies
    share: Share
    facts: RuntimeStats
    problems: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    def describe(self) -> dict[str, Any]:
        """Plain values for export.json."""
        return {
            "name": self.name,
            "exact": self.exact,
            "verified": self.verified,
            "problems": list(self.problems),
            "primary": self.primary,
            "share": self.share.describe(),
            "replies": self.replies.describe(),
            "likelihood": self.likelihood.describe(),
            "prompts": self.prompts.describe(),
            "facts": {**asdict(self.facts), "rate": self.facts.rate},
        }


def prove(
    file: File,
    runtime: Runtime,
    *,
    template: Template,
    rows: Sequence[Conversation],
    parts: Mapping[str, Sequence[Conversation]],
    base: Sequence[RowReply],
    adapter: Sequence[RowReply],
    examples: Sequence[Example],
    reference: Sequence[Reference],
    wish: Export,
    evaluate: Evaluate,
    seed: int,
    kept: Path,
    made_from: dict[str, str],
    known: TrainingAnswers = NO_TRAINING_ANSWERS,
    tell: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Proof:
    """Measures `file` in `runtime` beside the adapter.

    `rows` are all held-out rows: their prompts must become training's tokens. `parts` are the rows that are asked,
    which `base` and `adapter` answered before; answers to others are passed over, and every part counts, so probes are
    better left out. `examples` are learnt tokens (see likelihood.examples) of rows in `parts`, and `reference` what the
    adapter thinks of them. Replies are put down in `kept` as they come and are not asked for again while `made_from`
    (the file's hash, the rows', the settings') is the same; the file `kept` is the caller's to remove. `tell` hears
    which of prompts, likelihood and replies is under way, how much is done, of how much.

    Raises RunError for no rows, for rows that base or adapter did not answer and for a reference of other tokens,
    ModelError when the runtime fails.
    """
    if not any(parts.values()):
        raise RunError(
            "no row is asked, so nothing can be proven", where=file.name, next="Hold some rows out for tests"
        )
    prompts = conversations(template, rows, runtime, partial(tell, "prompts"))
    likelihood = likelihoods(reference, runtime, examples, partial(tell, "likelihood"))
    answered = _answered(runtime, parts, evaluate, kept, made_from, partial(tell, "replies"))
    scored = scores_of(parts, base, adapter, answered, evaluate.metrics, known)
    primary = evaluate.primary
    beside = replies(scored, adapter, answered, primary=primary, seed=seed)
    if primary in LOSSES:
        fold: Fold = "exp" if primary == "perplexity" else "mean"
        share = share_of_losses(parts, base, adapter, likelihood.losses, fold=fold, seed=seed)
    else:
        share = share_of_replies(scored, primary, seed)
    problems = tuple(judge(prompts, likelihood, beside, share, wish, primary=primary, exact=file.exact))
    return Proof(file.name, file.exact, primary, prompts, likelihood, beside, share, runtime.facts, problems)


def _answered(
    runtime: Runtime,
    parts: Mapping[str, Sequence[Conversation]],
    evaluate: Evaluate,
    path: Path,
    made_from: dict[str, str],
    tell: Callable[[int, int], None],
) -> list[RowReply]:
    kept = ReplyLog(path, made_from)
    try:
        return generate_replies(  # which asks for replies alone, not for a stream
            cast(TextModel, runtime), parts, max_new_tokens=evaluate.max_new_tokens, batch=evaluate.batch, losses=None,
            on_progress=tell, reply_log=kept,
        )  # fmt: skip
    finally:
        kept.close()
