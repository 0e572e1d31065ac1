"""Compares a file's tokenization of prompts and its likelihood of reference answers with the adapter's."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import dropwhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.conversation import Conversation
from tunesmith.errors import ModelError, RunError
from tunesmith.evaluation.comparison import sample_rows
from tunesmith.exporting.job import Runtime
from tunesmith.generation.from_weights import WeightsModel
from tunesmith.generation.text_model import TokenScore
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import Example, Learn, encode_expanded, encode_prompt

SHOWN_ROWS = 3  # different prompts that are reported with their texts
CONTEXT_CHARACTERS = 40  # before and after the first difference
SHOWN_TOKENS = 8  # reported from the first different token on
RUNTIME_TOP = 64  # likeliest tokens requested from a runtime at each position
REFERENCE_TOP = 4096  # likeliest tokens of the adapter stored at each position: 32 KiB
POSITION_BATCH = 64  # positions whose log-probabilities are computed at once: 64 MB for a vocabulary of 256k
MIN_REST = 1e-6  # accuracy of one minus a sum of float32 probabilities
MIN_LOG_PROBABILITY = -690.0  # smaller ln p count as this: e^-690 is 1e-300, near float64's smallest number

OnProgress = Callable[[int, int], None]


def _no_progress(count: int, of: int) -> None:
    """Ignores progress."""


def _finite_or_none(value: float | None) -> float | None:
    """Returns None for values that JSON cannot represent."""
    return value if value is not None and math.isfinite(value) else None


# --- prompts as tokens ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptDifference:
    """A prompt whose tokens differ from training, with the text around the first difference.

    `place` is the position of the first different token, from which `our_tokens` (training) and `their_tokens` (file)
    start; `ours` and `theirs` are parts of the rendered texts. If the runtime could not render the prompt, `refusal`
    says why and the rest is empty.
    """

    row: str
    place: int
    ours: str
    theirs: str
    our_tokens: tuple[int, ...]
    their_tokens: tuple[int, ...]
    refusal: str = ""


@dataclass(frozen=True)
class PromptComparison:
    """The number of prompts whose tokens differ from training, the first of them, and errors of the start token.

    The last four fields count rows: the file's prompt lacks the start token of training; begins with two; begins with
    one where training has none; differs from training only in start tokens.
    """

    rows: int
    unlike: int
    shown: tuple[PromptDifference, ...]
    bos_missing: int
    bos_doubled: int
    bos_added: int
    bos_alone: int

    def describe(self) -> dict[str, Any]:
        """Returns JSON values for export.json."""
        return {**asdict(self), "shown": [asdict(difference) for difference in self.shown]}


def compare_prompts(
    template: Template, rows: Sequence[Conversation], runtime: Runtime, on_progress: OnProgress = _no_progress
) -> PromptComparison:
    """Compares the tokens of each row's prompt, by the file's own template in its runtime, with those of training.

    The runtime renders and tokenizes the prompt as a server does for a chat, and `encode_prompt` gives training's
    tokens. Rendered texts may differ: if the file's tokenizer adds the start token, llama.cpp removes a written one
    from the text and adds it again in tokenization. Training decides what is right: if its template writes no start
    token, the file must add none. A conversation that the runtime refuses counts as different.
    """
    other_differences: list[PromptDifference] = []
    bos_differences: list[PromptDifference] = []
    different = bos_alone = 0
    bos_faults = {"missing": 0, "doubled": 0, "added": 0}
    for count, row in enumerate(rows, start=1):
        training_tokens = encode_prompt(row.prompt, template)
        try:
            text = runtime.render(row.prompt)
            file_tokens = runtime.tokens(text)
        except ModelError as error:
            different += 1
            other_differences += (
                [PromptDifference(row.id, 0, "", "", (), (), str(error))] if len(other_differences) < SHOWN_ROWS else []
            )
            continue
        bos = template.tokenizer.bos_token_id
        if fault := _bos_fault(training_tokens, file_tokens, bos):
            bos_faults[fault] += 1
        if training_tokens != file_tokens:
            different += 1
            bos_only = _without_start(training_tokens, bos) == _without_start(file_tokens, bos)
            bos_alone += bos_only
            differences = bos_differences if bos_only else other_differences
            differences += (
                [_prompt_difference(row, training_tokens, file_tokens, text, template)]
                if len(differences) < SHOWN_ROWS
                else []
            )
        on_progress(count, len(rows))
    reported = tuple([*other_differences, *bos_differences][:SHOWN_ROWS])
    return PromptComparison(
        len(rows), different, reported, bos_faults["missing"], bos_faults["doubled"], bos_faults["added"], bos_alone
    )


def _without_start(ids: Sequence[int], bos: int | None) -> list[int]:
    return list(dropwhile(lambda token: token == bos, ids))


def _bos_fault(training_tokens: Sequence[int], file_tokens: Sequence[int], bos: int | None) -> str:
    """Returns how the leading start tokens differ: `missing`, `added` or `doubled`; empty if they do not."""
    if bos is None:
        return ""
    training_count, file_count = (
        next((n for n, token in enumerate(ids) if token != bos), len(ids)) for ids in (training_tokens, file_tokens)
    )
    if file_count >= training_count:
        return "" if file_count == training_count else "added" if file_count == 1 else "doubled"
    return "missing"


def _prompt_difference(
    row: Conversation, training_tokens: list[int], file_tokens: list[int], text: str, template: Template
) -> PromptDifference:
    place = _first_difference(training_tokens, file_tokens)
    bos = template.tokenizer.bos_token or ""
    training_text, file_text = template.render(row.prompt, generate=True).removeprefix(bos), text.removeprefix(bos)
    at = (
        _first_difference(training_text, file_text)
        if training_text != file_text
        else len(template.tokenizer.decode(training_tokens[:place]))
    )
    context = slice(max(0, at - CONTEXT_CHARACTERS), at + CONTEXT_CHARACTERS)
    end = place + SHOWN_TOKENS
    return PromptDifference(
        row.id,
        place,
        training_text[context],
        file_text[context],
        tuple(training_tokens[place:end]),
        tuple(file_tokens[place:end]),
    )


def _first_difference(first: Sequence[Any], second: Sequence[Any]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


# --- answers token by token -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """The adapter's scores of an example's tokens with loss: `tokens` and their `nats`, [positions] each.

    `ids` and `logs` [positions, top] are the likeliest tokens with ln p, the likeliest first. They always include the
    target token, as the last one if it is not among the likeliest.
    """

    row: str
    tokens: NDArray[np.int32]
    nats: NDArray[np.float32]
    ids: NDArray[np.int32]
    logs: NDArray[np.float32]


@dataclass(frozen=True)
class Likelihood:
    """The file compared with the adapter on the tokens with loss of a few reference answers.

    `adapter` and `file` are perplexities over all `tokens`; `agreement` is the share of positions where the file's
    likeliest token is the adapter's; `divergence` and `divergence_most` are mean and maximum of a lower bound of
    KL(adapter || file) in nats (see `divergence`). `losses` has the file's mean nats per token by row. `broken` counts
    positions without finite values: if there are any, or no tokens, results are nan or infinite.
    """

    rows: int
    tokens: int
    adapter: float
    file: float
    agreement: float
    divergence: float
    divergence_most: float
    broken: int
    losses: Mapping[str, float]

    def describe(self) -> dict[str, Any]:
        """Returns JSON values for export.json."""
        plain = {
            key: _finite_or_none(value) if isinstance(value, float) else value for key, value in vars(self).items()
        }
        return {**plain, "losses": {row: _finite_or_none(value) for row, value in self.losses.items()}}


def examples(
    parts: Mapping[str, Sequence[Conversation]], template: Template, *, learn: Learn, limit: int, seed: int
) -> list[Example]:
    """Samples at most `limit` rows with a reference answer, as the rows for replies are sampled, and tokenizes them."""
    answered = {part: [row for row in rows if row.answer.strip()] for part, rows in parts.items()}
    rows = [row for rows in sample_rows(answered, limit, seed).values() for row in rows]
    return [encode_expanded(row, template, learn, "auto")[-1][1] for row in rows]


def reference_scores(text: WeightsModel, examples: Sequence[Example], *, top: int = REFERENCE_TOP) -> list[Reference]:
    """Scores each example's tokens with loss with a loaded model, its adapter on or off as in `text`.

    This is one forward pass per example; logits become log-probabilities in float32.
    """
    text.model.network.eval()
    off = contextlib.nullcontext() if text.tuned else text.model.base()
    with torch.inference_mode(), off:
        return [_reference(text, example, top) for example in examples]


def _reference(text: WeightsModel, example: Example, top: int) -> Reference:
    device, places = text.model.device, _loss_positions(example)
    positions = torch.tensor(places, device=device)
    ids = torch.tensor([example.ids], device=device)
    scores = text.model.network(input_ids=ids, use_cache=False, logits_to_keep=positions - 1).logits[0]
    starts = range(0, len(places), POSITION_BATCH)
    batches = [
        _top_scores(scores[at : at + POSITION_BATCH], ids[0, positions[at : at + POSITION_BATCH]], top) for at in starts
    ]
    nats, top_ids, logs = (np.concatenate([batch[n] for batch in batches]) for n in range(3))
    tokens = np.array([example.ids[place] for place in places], np.int32)
    return Reference(example.row, tokens, nats, top_ids.astype(np.int32), logs)


def _top_scores(
    scores: torch.Tensor, target_ids: torch.Tensor, top: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Returns nats of the target tokens, and the likeliest ids with ln p, from logits [positions, vocabulary]."""
    log_probabilities = scores.float().log_softmax(-1)
    target_logs = log_probabilities.gather(1, target_ids[:, None])
    logs, ids = log_probabilities.topk(min(top, log_probabilities.shape[1]))
    absent = (ids != target_ids[:, None]).all(1)
    ids[absent, -1], logs[absent, -1] = target_ids[absent], target_logs[absent, 0]
    return (-target_logs[:, 0]).cpu().numpy(), ids.cpu().numpy(), logs.cpu().numpy()


def _loss_positions(example: Example) -> list[int]:
    """Returns positions of tokens with loss, except the first token, which nothing predicts."""
    return [place for place, has_loss in enumerate(example.loss_mask) if has_loss and place]


def compare_likelihoods(
    reference: Sequence[Reference],
    runtime: Runtime,
    examples: Sequence[Example],
    on_progress: OnProgress = _no_progress,
) -> Likelihood:
    """Scores the examples' tokens with loss in the runtime and compares them with the adapter's `reference` scores.

    The file agrees at a position if the adapter finds no token likelier than the file's likeliest. Raises RunError if
    the reference is of other tokens.
    """
    adapter_nats, file_nats, agrees, divergences, losses = (
        list[float](),
        list[float](),
        list[bool](),
        list[float](),
        dict[str, float](),
    )
    for count, (expected, example) in enumerate(zip(reference, examples, strict=True), start=1):
        scored = _runtime_scores(runtime, example)
        if [score.token for score in scored] != expected.tokens.tolist():
            problem, advice = "the adapter's scores are of other tokens", "Score the same rows with the same template"
            raise RunError(problem, where=f"row '{example.row}'", next=advice)
        adapter_nats += expected.nats.tolist()
        file_nats += [score.nats for score in scored]
        losses[example.row] = float(np.mean([score.nats for score in scored])) if scored else math.nan
        for score, ids, logs in zip(scored, expected.ids, expected.logs, strict=True):
            agrees.append(bool(score.top) and bool((logs[ids == score.top[0][0]] >= logs[0]).any()))
            divergences.append(divergence(ids, logs, score))
        on_progress(count, len(examples))
    return Likelihood(
        len(examples), len(adapter_nats), _perplexity(adapter_nats), _perplexity(file_nats), _mean(agrees),
        _mean(divergences), max(divergences) if np.isfinite(divergences).all() and divergences else math.nan,
        sum(not (math.isfinite(nats) and math.isfinite(kl)) for nats, kl in zip(file_nats, divergences, strict=True)),
        losses,
    )  # fmt: skip


def _runtime_scores(runtime: Runtime, example: Example) -> list[TokenScore]:
    """Returns the runtime's scores of the tokens with loss; tokens after the last of them are not scored."""
    places = _loss_positions(example)
    if not places:
        return []
    token_scores = list(runtime.scores(example.ids[: places[-1] + 1], start=places[0], top=RUNTIME_TOP))
    return [token_scores[place - places[0]] for place in places]


def divergence(ids: NDArray[np.int32], logs: NDArray[np.float32], score: TokenScore) -> float:
    """Returns a lower bound of KL(adapter || file) in nats at one position.

    `ids` with ln p `logs` are the adapter's likeliest tokens, `score` is the file's. Tokens that both sides scored
    count individually; all others fall into two buckets: tokens that only the file scored, and the rest. Merging
    outcomes never raises a divergence (data processing inequality; for one bucket the log-sum inequality: Cover &
    Thomas 2006, theorem 2.7.1 and section 2.8), so the true value is at least as large. How the adapter's remaining
    probability divides between the buckets is unknown, except that the first holds at most the probability outside
    `ids`; the division with the least divergence is used. The file's probability of the rest counts as at least 1e-6,
    the accuracy of float32. Apart from that, the bound is exact if both sides score the whole vocabulary. It is nan if
    the file returned a value that is not a number.
    """
    file = {**dict(score.top), score.token: -score.nats}
    q = np.clip(np.fromiter(file.values(), float, len(file)), MIN_LOG_PROBABILITY, 0.0)
    _, at, indices = np.intersect1d(ids, np.fromiter(file, np.int64, len(file)), return_indices=True)
    p = np.exp(logs.astype(float))
    hidden = float(np.delete(np.exp(q), indices).sum())
    file_rest = max(1.0 - float(np.exp(q).sum()), MIN_REST)
    remaining = max(1.0 - float(p[at].sum()), 0.0)
    share = min(remaining * hidden / (hidden + file_rest), max(1.0 - float(p.sum()), 0.0))
    shared_term = float((p[at] * (logs[at] - q[indices])).sum())
    bound = shared_term + _kl_term(share, hidden) + _kl_term(remaining - share, file_rest)
    return bound if math.isnan(bound) else max(0.0, bound)


def _kl_term(p: float, q: float) -> float:
    return p * math.log(p / q) if p > 0 else 0.0


def _perplexity(nats: Sequence[float]) -> float:
    """Returns exp of the mean; infinite beyond float64."""
    with np.errstate(over="ignore"):
        return float(np.exp(_mean(nats)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
