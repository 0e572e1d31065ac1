"""Verifies in a file's own runtime that it is the model that was evaluated."""

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
    GainShare,
    ReplyComparison,
    compare_replies,
    find_problems,
    gain_share_from_losses,
    gain_share_from_replies,
    score_rows,
)
from tunesmith.exporting.job import File, Runtime
from tunesmith.exporting.likelihood import Likelihood, PromptComparison, Reference, compare_likelihoods, compare_prompts
from tunesmith.generation.text_model import RuntimeStats, TextModel
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import Example


@dataclass(frozen=True)
class Verification:
    """The measurements of a file, and its `problems`: deviations from the model that was evaluated."""

    name: str
    exact: bool
    primary: str
    prompts: PromptComparison
    likelihood: Likelihood
    replies: ReplyComparison
    share: GainShare
    facts: RuntimeStats
    problems: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """Whether the file has no problems."""
        return not self.problems

    def describe(self) -> dict[str, Any]:
        """Returns JSON values for export.json."""
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
    settings: Export,
    evaluate: Evaluate,
    seed: int,
    reply_log_path: Path,
    inputs: dict[str, str],
    training_answers: TrainingAnswers = NO_TRAINING_ANSWERS,
    on_progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Verification:
    """Compares `file`, run in `runtime`, with the adapter.

    `rows` are all held-out rows: the file must tokenize their prompts as training did. `parts` are the rows that the
    file replies to, which must have replies in `base` and `adapter`; other replies are ignored. Every part counts, so
    leave out probes. `examples` are rows of `parts` with tokens with loss (see likelihood.examples), and `reference`
    the adapter's scores of these tokens. Replies are appended to `reply_log_path` and reused while `inputs` (hashes of
    file, rows and settings) is the same; the caller removes that file. `on_progress` receives the stage (prompts,
    likelihood or replies), the number done and the total.

    Raises RunError for no rows, for rows without a reply of base or adapter and for a reference of other tokens,
    ModelError if the runtime fails.
    """
    if not any(parts.values()):
        raise RunError(
            "there are no test rows, so the file cannot be verified",
            where=file.name,
            next="Increase data.split.test so that some rows are held out",
        )
    prompts = compare_prompts(template, rows, runtime, partial(on_progress, "prompts"))
    likelihood = compare_likelihoods(reference, runtime, examples, partial(on_progress, "likelihood"))
    row_replies = _runtime_replies(runtime, parts, evaluate, reply_log_path, inputs, partial(on_progress, "replies"))
    scored = score_rows(parts, base, adapter, row_replies, evaluate.metrics, training_answers)
    primary = evaluate.primary
    comparison = compare_replies(scored, adapter, row_replies, primary=primary, seed=seed)
    if primary in LOSSES:
        fold: Fold = "exp" if primary == "perplexity" else "mean"
        share = gain_share_from_losses(parts, base, adapter, likelihood.losses, fold=fold, seed=seed)
    else:
        share = gain_share_from_replies(scored, primary, seed)
    problems = tuple(find_problems(prompts, likelihood, comparison, share, settings, primary=primary, exact=file.exact))
    return Verification(file.name, file.exact, primary, prompts, likelihood, comparison, share, runtime.facts, problems)


def _runtime_replies(
    runtime: Runtime,
    parts: Mapping[str, Sequence[Conversation]],
    evaluate: Evaluate,
    path: Path,
    inputs: dict[str, str],
    tell: Callable[[int, int], None],
) -> list[RowReply]:
    log = ReplyLog(path, inputs)
    try:
        return generate_replies(  # which needs only `replies` of the runtime, not a stream
            cast(TextModel, runtime), parts, max_new_tokens=evaluate.max_new_tokens, batch=evaluate.batch, losses=None,
            on_progress=tell, reply_log=log,
        )  # fmt: skip
    finally:
        log.close()
