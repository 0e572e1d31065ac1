"""Decides whether a file is the model that was evaluated, by its replies, likelihood and share of the gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.recipe import Export, NamedSetting
from tunesmith.data.conversation import Conversation
from tunesmith.errors import RunError
from tunesmith.evaluation.comparison import RowReply, score_differences, score_row
from tunesmith.evaluation.score import Better, Fold, Score, TrainingAnswers
from tunesmith.evaluation.statistics import RESAMPLES, index_groups, tail_probability
from tunesmith.evaluation.verdict import Verdict, correct, decide
from tunesmith.exporting.likelihood import Likelihood, PromptComparison

LOSSES = ("loss", "perplexity")  # metrics that cannot be computed from replies
STOP_METRICS = ("stops", "run_on")  # always measured
RESAMPLE_BATCH = 500  # resamples drawn at once: 4 MB for 1,000 groups

Parts = Mapping[str, Sequence[Conversation]]
Key = tuple[str, str]  # a row's part and id
Scores = dict[str, Score]


# --- replies ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplyComparison:
    """A file's replies compared with the adapter's replies to the same rows.

    `differences` by metric have the adapter's score as `base` and the file's as `tuned`; all but the primary metric are
    corrected for multiple testing (see verdict.correct). `identical` counts equal replies, `empty` replies of the
    file that are empty where the adapter's are not. `lost` names metrics that the adapter's replies have and no reply
    of the file has.
    """

    rows: int
    identical: int
    empty: int
    differences: Mapping[str, Verdict]
    lost: tuple[str, ...]
    answered: tuple[RowReply, ...]

    def describe(self) -> dict[str, Any]:
        """Returns JSON values for export.json, without the replies themselves."""
        scores = {name: _describe_difference(difference) for name, difference in self.differences.items()}
        counts = {"rows": self.rows, "identical": self.identical, "empty": self.empty, "lost": list(self.lost)}
        return {**counts, "scores": scores}


def _describe_difference(difference: Verdict) -> dict[str, Any]:
    names = {"base": "adapter", "tuned": "file"}
    return {names.get(key, key): value for key, value in difference.describe().items()}


@dataclass(frozen=True)
class RowScores:
    """Each row's group, and its scores of base, adapter and file by the metrics that can be computed from replies."""

    groups: Mapping[Key, str]
    base: Mapping[Key, Scores]
    adapter: Mapping[Key, Scores]
    file: Mapping[Key, Scores]


def score_rows(
    parts: Parts,
    base: Sequence[RowReply],
    adapter: Sequence[RowReply],
    file: Sequence[RowReply],
    metrics: Sequence[NamedSetting],
    training_answers: TrainingAnswers,
) -> RowScores:
    """Scores the replies of base, adapter and file to the rows of `parts`; replies to other rows are ignored.

    Raises RunError if one of them has no reply to a row, and the errors of evaluation.comparison.score_row.
    """
    reply_metrics = [metric for metric in metrics if metric.name not in LOSSES]
    reply_metrics += [
        NamedSetting(name, {}) for name in STOP_METRICS if name not in {metric.name for metric in reply_metrics}
    ]
    rows = {(part, row.id): row for part, members in parts.items() for row in members}

    def scored(row_replies: Sequence[RowReply], model: str) -> dict[Key, Scores]:
        reply_by_row = _replies_by_row(row_replies, rows, model)
        return {key: score_row(row, reply_by_row[key], reply_metrics, training_answers) for key, row in rows.items()}

    groups = {key: row.group for key, row in rows.items()}
    return RowScores(groups, scored(base, "the base"), scored(adapter, "the adapter"), scored(file, "the file"))


class MissingReply(RunError):
    """A model has no reply to a row. The caller knows the run and adds the command that evaluates it again."""


def _replies_by_row(
    row_replies: Sequence[RowReply], rows: Mapping[Key, Conversation], model: str
) -> dict[Key, RowReply]:
    reply_by_row = {(reply.part, reply.id): reply for reply in row_replies}
    if missing := rows.keys() - reply_by_row.keys():
        part, row = min(missing)
        advice = "Evaluate the run again, then export it"
        raise MissingReply(f"{model} has no reply to it", where=f"row '{row}' of {part}", next=advice)
    return {key: reply_by_row[key] for key in rows}


def compare_replies(
    scored: RowScores, adapter: Sequence[RowReply], file: Sequence[RowReply], *, primary: str, seed: int
) -> ReplyComparison:
    """Compares the file's replies with the adapter's as `evaluate` compares models: intervals resample whole groups.

    All rows of `scored` are pooled; `primary` may be a metric that cannot be computed from replies.
    """
    keys = list(scored.groups)
    rows = [(scored.groups[key], scored.adapter[key], scored.file[key]) for key in keys]
    adapter_replies = {(row_reply.part, row_reply.id): row_reply.reply for row_reply in adapter}
    file_replies = {(row_reply.part, row_reply.id): row_reply.reply for row_reply in file}
    lost = {name for _, adapter_scores, _ in rows for name in adapter_scores} - {
        name for _, _, file_scores in rows for name in file_scores
    }
    return ReplyComparison(
        len(keys),
        sum(adapter_replies[key].text == file_replies[key].text for key in keys),
        sum(bool(adapter_replies[key].text.strip()) and not file_replies[key].text.strip() for key in keys),
        correct(score_differences(rows, seed, power=False), primary=primary),
        tuple(sorted(lost)),
        tuple(file),
    )


# --- share of the gain ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GainShare:
    """The share of the adapter's gain that a file keeps, with its 95 % interval: 1 is all of it, 0 is the base's score.

    `share` is None, with a `reason`, if there is no gain; `low` or `high` is None if it is unknown. `rows` counts rows
    with a score of all three models; `drop` is the file's difference from the adapter on them.
    """

    share: float | None
    low: float | None
    high: float | None
    rows: int
    groups: int
    drop: Verdict | None = None
    reason: str = ""

    def describe(self) -> dict[str, Any]:
        """Returns JSON values for export.json."""
        drop = _describe_difference(self.drop) if self.drop else None
        return {**{key: value for key, value in vars(self).items() if key != "drop"}, "drop": drop}


def gain_share(
    base: Sequence[float],
    adapter: Sequence[float],
    file: Sequence[float],
    groups: Sequence[str],
    *,
    better: Better,
    seed: int,
    fold: Fold = "mean",
    gain: Verdict | None = None,
) -> GainShare:
    """Returns (file - base) / (adapter - base) of the folded scores over the same rows, whichever direction is better.

    This is a ratio of means. Its interval is a percentile bootstrap over 10,000 resamples of whole groups (Davison &
    Hinkley 1997, sections 2.4 and 3.8), widened for few groups (see statistics.tail_probability). In a resample without
    a gain the ratio is undefined, so it counts as minus infinity for the lower end and infinity for the upper one; an
    infinite end is None. `gain` is the adapter's difference from the base, if it is known for more rows than these. The
    share is None if no gain was shown, if the score has no better direction, or for no rows. Of too few groups to show
    anything, the interval decides alone: a file must not pass because few rows were asked.
    """
    if better == "neither" or not len(base):
        reason = "it is neither good nor bad" if len(base) else "no row has it for base, adapter and file"
        return GainShare(None, None, None, len(base), 0, reason=reason)
    drop = decide(adapter, file, groups, better=better, seed=seed, fold=fold, power=False)
    gain = gain or decide(base, adapter, groups, better=better, seed=seed, fold=fold, power=False)
    excludes_zero = gain.low > 0 or gain.high < 0
    if gain.outcome != "better" and not (gain.outcome == "too few to tell" and excludes_zero and gain.wins):
        reason = f"the adapter's own gain is not above zero ({_difference_text(gain)})"
        return GainShare(None, None, None, drop.rows, drop.groups, drop, reason)
    group_index = index_groups(groups)
    columns = np.array([base, adapter, file, [1.0] * len(groups)])
    sums = np.stack([np.bincount(group_index, column).astype(float) for column in columns], 1)
    ((share, gained),) = _shares(sums.sum(0)[None], better, fold)
    if not gained:
        reason = f"the adapter gains nothing on the {drop.rows} rows that were scored"
        return GainShare(None, None, None, drop.rows, drop.groups, drop, reason)
    low, high = _interval(sums, better, fold, seed) if drop.groups > 1 else (None, None)
    return GainShare(float(share), low, high, drop.rows, drop.groups, drop)


def _shares(totals: NDArray[np.float64], better: Better, fold: Fold) -> NDArray[np.float64]:
    """Returns share and whether the adapter gains [n, 2], from totals [n, 4] of base, adapter, file and rows."""
    means = totals[:, :3] / totals[:, 3:]
    base, adapter, file = (np.exp(means) if fold == "exp" else means).T
    gained = adapter < base if better == "lower" else adapter > base
    return np.stack([np.divide(file - base, adapter - base, where=gained, out=np.zeros_like(base)), gained], 1)


def _interval(sums: NDArray[np.float64], better: Better, fold: Fold, seed: int) -> tuple[float | None, float | None]:
    """Returns the bootstrap interval from the sums of each group [groups, 4]."""
    rng, groups = np.random.default_rng(seed), len(sums)
    batches = []
    for _ in range(RESAMPLES // RESAMPLE_BATCH):
        counts = rng.multinomial(groups, np.full(groups, 1 / groups), RESAMPLE_BATCH)
        batches.append(_shares(counts @ sums, better, fold))
    resampled = np.concatenate(batches)
    ends = []
    for unknown, probability in ((-math.inf, tail_probability(groups)), (math.inf, 1 - tail_probability(groups))):
        values = np.where(resampled[:, 1] > 0, resampled[:, 0], unknown)
        end = float(np.quantile(values, probability, method="inverted_cdf"))
        ends.append(end if math.isfinite(end) else None)
    return ends[0], ends[1]


def gain_share_from_replies(scored: RowScores, primary: str, seed: int) -> GainShare:
    """Returns the share of the gain on `primary`, over the rows that have it for all three models."""
    sides = (scored.base, scored.adapter, scored.file)
    keys = [key for key in scored.groups if all(primary in side[key] for side in sides)]
    base, adapter, file = ([side[key][primary].value for key in keys] for side in sides)
    first = scored.adapter[keys[0]][primary] if keys else Score(primary, 0.0, "higher")
    groups = [scored.groups[key] for key in keys]
    return gain_share(base, adapter, file, groups, better=first.better, fold=first.fold, seed=seed)


def gain_share_from_losses(
    parts: Parts,
    base: Sequence[RowReply],
    adapter: Sequence[RowReply],
    losses: Mapping[str, float],
    *,
    fold: Fold,
    seed: int,
) -> GainShare:
    """Returns the share of the gain if the primary metric is the loss on reference answers or (fold exp) perplexity.

    A runtime's replies have no loss, so the share covers the few rows whose answers it scored token by token: `losses`,
    in nats per token by row, of the same tokens as the other losses. Whether the adapter gains at all is decided over
    all rows of `parts`.
    """
    rows = {(part, row.id): row for part, members in parts.items() for row in members}
    base_replies, adapter_replies = (
        _replies_by_row(base, rows, "the base"),
        _replies_by_row(adapter, rows, "the adapter"),
    )
    with_losses = [
        (row.group, base_loss, adapter_loss, losses.get(row.id))
        for key, row in rows.items()
        if (base_loss := base_replies[key].loss) is not None and (adapter_loss := adapter_replies[key].loss) is not None
    ]
    scored = [
        (group, base_loss, adapter_loss, file_loss)
        for group, base_loss, adapter_loss, file_loss in with_losses
        if file_loss is not None and math.isfinite(file_loss)
    ]
    if not scored:
        return gain_share([], [], [], [], better="lower", seed=seed)
    groups, base_losses, adapter_losses, _ = zip(*with_losses, strict=True)
    gain = decide(base_losses, adapter_losses, groups, better="lower", fold=fold, seed=seed)
    groups, base_losses, adapter_losses, file_losses = zip(*scored, strict=True)
    return gain_share(base_losses, adapter_losses, file_losses, groups, better="lower", fold=fold, seed=seed, gain=gain)


# --- problems ---------------------------------------------------------------------------------------------------


def find_problems(
    prompts: PromptComparison,
    likelihood: Likelihood,
    replies: ReplyComparison,
    share: GainShare,
    settings: Export,
    *,
    primary: str,
    exact: bool,
) -> list[str]:
    """Returns why the file is not accepted as the evaluated model, one sentence each; empty if it is verified.

    `settings` has separate thresholds for `exact` and quantized files. If the adapter has no detectable gain, only a
    detectable drop counts.
    """
    min_share, min_agreement = (settings.keep_exact, settings.agree_exact) if exact else (settings.keep, settings.agree)
    suffix = "_exact" if exact else ""
    return [
        *_prompt_problems(prompts),
        *_likelihood_problems(likelihood, min_agreement, f"export.agree{suffix}"),
        *_reply_problems(replies),
        *(
            _share_problems(replies, share, primary, min_share, f"export.keep{suffix}", exact=exact)
            or _score_problems(replies, primary, settings.margin)
        ),
    ]


def _prompt_problems(prompts: PromptComparison) -> list[str]:
    problems = []
    others = prompts.unlike - prompts.bos_alone
    if others:
        first = prompts.shown[0]
        detail = f"at token {first.place} it reads {first.theirs!r}, training read {first.ours!r}"
        if first.theirs == first.ours:
            detail = f"at token {first.place} it reads {first.their_tokens}, training read {first.our_tokens}"
        problems.append(
            f"The file's own template and tokenizer produce other tokens than training for {others} of {prompts.rows} "
            f"prompts; for row '{first.row}', {first.refusal or detail}."
        )
    bos_only = "" if others else "; nothing else differs"
    if prompts.bos_missing:
        problems.append(
            f"{prompts.bos_missing} of {prompts.rows} prompts lack the start token that training had{bos_only}."
        )
    if prompts.bos_doubled:
        problems.append(f"{prompts.bos_doubled} of {prompts.rows} prompts begin with two start tokens{bos_only}.")
    if prompts.bos_added:
        problem = f"{prompts.bos_added} of {prompts.rows} prompts begin with a start token that training did not have"
        problems.append(f"{problem}{bos_only}.")
    return problems


def _likelihood_problems(likelihood: Likelihood, min_agreement: float, setting: str) -> list[str]:
    if not likelihood.tokens:
        return ["No answer could be scored token by token, because none of the test rows has a reference answer."]
    if likelihood.broken:
        return [
            f"At {likelihood.broken} of {likelihood.tokens} tokens of given answers the file's figures are not finite."
        ]
    if likelihood.agreement < min_agreement:
        return [
            f"The file's likeliest token is the adapter's at {_percent(likelihood.agreement)} of {likelihood.tokens} "
            f"tokens of given answers, less than {_percent(min_agreement)} ({setting}); perplexity "
            f"{likelihood.file:.2f} against {likelihood.adapter:.2f}."
        ]
    return []


def _reply_problems(replies: ReplyComparison) -> list[str]:
    problems = []
    if replies.empty:
        problems.append(f"{replies.empty} of {replies.rows} replies are empty where the adapter's are not.")
    stops = replies.differences["stops"]
    if stops.outcome == "worse" or (stops.base > 0 and stops.tuned == 0):
        problems.append(
            f"{_percent(stops.tuned)} of the file's replies end by themselves, {_percent(stops.base)} of the adapter's "
            f"({_difference_text(stops)})."
        )
    return problems


def _share_problems(
    replies: ReplyComparison, gain: GainShare, primary: str, min_share: float, setting: str, *, exact: bool
) -> list[str]:
    """Returns problems of the share; an exact file must also be detectably worse.

    By chance alone, the share of a faithful file can fall below 0.995 (dev/LOG.md).
    The agreement of an exact file's likeliest tokens with the adapter's is checked separately.
    """
    if primary in replies.lost:
        return [f"None of the file's replies has a score '{primary}', but the adapter's do."]
    drop = gain.drop
    detected = drop is not None and drop.outcome == "worse"
    if gain.share is None:
        if drop is None or not detected:
            return []
        return [f"The file is detectably worse than the adapter on '{primary}': {_adapter_and_file(drop)}."]
    if gain.share >= min_share or (exact and not detected and (gain.high is None or gain.high >= min_share)):
        return []
    ends = [_percent(end) if end is not None else "unknown" for end in (gain.low, gain.high)]
    problem = (
        f"The file keeps {_percent(gain.share)} of the adapter's gain on '{primary}' (95 % interval {ends[0]} to "
        f"{ends[1]}, {gain.rows} rows), less than {_percent(min_share)} ({setting})"
    )
    if drop is not None and detected:
        return [f"{problem}, and is detectably worse: {_adapter_and_file(drop)}."]
    return [f"{problem}, although these rows do not prove that it is worse."]


def _score_problems(replies: ReplyComparison, primary: str, margin: float) -> list[str]:
    """Returns the problem of the other scores: a loss that is shown, corrected for all scores, and exceeds the margin.

    The primary score may hide such a loss, for instance because every reply has its best value.
    """
    losses: dict[str, float] = {}
    for name, verdict in replies.differences.items():
        if name != primary and name not in STOP_METRICS and verdict.outcome == "worse":
            scale = verdict.limits[1] - verdict.limits[0] if verdict.limits else abs(verdict.base)
            losses[name] = abs(verdict.difference) / scale if scale else math.inf
    excessive = sorted((name for name, loss in losses.items() if loss > margin), key=lambda name: -losses[name])
    if not excessive:
        return []
    first, *others = excessive
    also = f"; also worse: {', '.join(others)}" if others else ""
    detail = _adapter_and_file(replies.differences[first])
    return [
        f"On '{first}' the file's replies are worse than the adapter's by more than {_percent(margin)} of its range "
        f"(export.margin): {detail}{also}."
    ]


def _adapter_and_file(difference: Verdict) -> str:
    return f"{difference.tuned:.3g} against {difference.base:.3g}, {_difference_text(difference)}"


def _difference_text(result: Verdict) -> str:
    if result.groups < 2:
        return f"difference {result.difference:+.2g} in one group, so its interval is unknown"
    return f"difference {result.difference:+.2g}, 95 % interval {result.low:+.2g} to {result.high:+.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
