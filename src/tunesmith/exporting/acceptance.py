"""Is a file the model that was tested? Its replies beside the adapter's, what it keeps of the gain, what is wrong."""

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
from tunesmith.evaluation.statistics import RESAMPLES, Difference, apply_holm, paired_difference, tail_probability
from tunesmith.exporting.likelihood import Likelihood, Prompts

LOSSES = ("loss", "perplexity")  # metrics that a runtime's replies do not tell
ENDS = ("stops", "run_on")  # measured whether the recipe asks for them or not
AT_ONCE = 500  # resamples made together: 4 MB for 1,000 groups

Parts = Mapping[str, Sequence[Conversation]]
Key = tuple[str, str]  # a row's part and id
Scores = dict[str, Score]


# --- replies ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replies:
    """A file's replies beside the adapter's to the same rows.

    `differences` have the adapter's figure as `base` and the file's as `tuned`, by metric, corrected for one another
    with the primary one decided alone (see statistics.settle). `identical` replies are the same to the letter; `empty`
    ones are so where the adapter's are not. `lost` metrics are those that the adapter's replies have and no reply of
    the file.
    """

    rows: int
    identical: int
    empty: int
    differences: Mapping[str, Difference]
    lost: tuple[str, ...]
    answered: tuple[RowReply, ...]

    def describe(self) -> dict[str, Any]:
        """Plain values for export.json, without the replies themselves."""
        told = {name: _beside(found) for name, found in self.differences.items()}
        plain = {"rows": self.rows, "identical": self.identical, "empty": self.empty, "lost": list(self.lost)}
        return {**plain, "scores": told}


def _beside(found: Difference) -> dict[str, Any]:
    names = {"base": "adapter", "tuned": "file"}
    return {names.get(key, key): value for key, value in found.describe().items()}


@dataclass(frozen=True)
class Scored:
    """Every row's group, and each row's scores by the metrics that replies tell, for base, adapter and file."""

    groups: Mapping[Key, str]
    base: Mapping[Key, Scores]
    adapter: Mapping[Key, Scores]
    file: Mapping[Key, Scores]


def scores_of(
    parts: Parts,
    base: Sequence[RowReply],
    adapter: Sequence[RowReply],
    file: Sequence[RowReply],
    metrics: Sequence[NamedSetting],
    known: TrainingAnswers,
) -> Scored:
    """Scores the rows of `parts` for all three; answers to other rows are passed over.

    Raises RunError when one of them did not answer a row, and as evaluate.compare.score does.
    """
    told = [metric for metric in metrics if metric.name not in LOSSES]
    told += [NamedSetting(name, {}) for name in ENDS if name not in {metric.name for metric in told}]
    rows = {(part, row.id): row for part, members in parts.items() for row in members}

    def scored(answered: Sequence[RowReply], who: str) -> dict[Key, Scores]:
        by = _by_row(answered, rows, who)
        return {key: score_row(row, by[key], told, known) for key, row in rows.items()}

    groups = {key: row.group for key, row in rows.items()}
    return Scored(groups, scored(base, "the base"), scored(adapter, "the adapter"), scored(file, "the file"))


class MissingReply(RunError):
    """A model has no reply to a row. The caller knows the run and adds the command that evaluates it again."""


def _by_row(answered: Sequence[RowReply], rows: Mapping[Key, Conversation], who: str) -> dict[Key, RowReply]:
    by = {(each.part, each.id): each for each in answered}
    if absent := rows.keys() - by.keys():
        part, row = min(absent)
        advice = "Evaluate the run again, then export it"
        raise MissingReply(f"{who} did not answer it", where=f"row '{row}' of {part}", next=advice)
    return {key: by[key] for key in rows}


def replies(
    scored: Scored, adapter: Sequence[RowReply], file: Sequence[RowReply], *, primary: str, seed: int
) -> Replies:
    """The file's replies against the adapter's, as evaluate compares models: whole groups are drawn for intervals.

    All rows of `scored` are taken together; `primary` may be a score that replies do not tell.
    """
    keys = list(scored.groups)
    rows = [(scored.groups[key], scored.adapter[key], scored.file[key]) for key in keys]
    ours = {(each.part, each.id): each.reply for each in adapter}
    theirs = {(each.part, each.id): each.reply for each in file}
    lost = {name for _, own, _ in rows for name in own} - {name for _, _, other in rows for name in other}
    return Replies(
        len(keys),
        sum(ours[key].text == theirs[key].text for key in keys),
        sum(bool(ours[key].text.strip()) and not theirs[key].text.strip() for key in keys),
        apply_holm(score_differences(rows, seed), alone=primary),
        tuple(sorted(lost)),
        tuple(file),
    )


# --- what is kept of the gain -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """What a file keeps of the adapter's gain: 1 is all of it, 0 is the base's figure, with its 95 % interval.

    None with the `reason` where there is no gain to keep a share of; an end is None where it is not known. `rows` have
    the score on all three; `drop` is the file's difference from the adapter on them.
    """

    share: float | None
    low: float | None
    high: float | None
    rows: int
    groups: int
    drop: Difference | None = None
    reason: str = ""

    def describe(self) -> dict[str, Any]:
        """Plain values for export.json."""
        drop = _beside(self.drop) if self.drop else None
        return {**{key: value for key, value in vars(self).items() if key != "drop"}, "drop": drop}


def kept_share(
    base: Sequence[float],
    adapter: Sequence[float],
    file: Sequence[float],
    groups: Sequence[str],
    *,
    better: Better,
    seed: int,
    fold: Fold = "mean",
    gain: Difference | None = None,
) -> Share:
    """(file - base) / (adapter - base) of the folded figures over the same rows; the sign of what is better cancels.

    A ratio of means, whose interval is the percentiles of the same ratio over 10,000 resamples of whole groups
    (Davison & Hinkley 1997, sections 2.4 and 3.8), as far out as `tail` says for few groups. A resample in which the
    adapter gains nothing says nothing, so it counts at both ends against them; an end beyond all others is None. `gain`
    is the adapter's difference from the base where it is known of more rows than these. None when that gain is not
    above zero with its interval, when the score has no good side, or for no rows.
    """
    if better == "neither" or not len(base):
        reason = "it is neither good nor bad" if len(base) else "no row has it for base, adapter and file"
        return Share(None, None, None, len(base), 0, reason=reason)
    drop = paired_difference(adapter, file, groups, better=better, seed=seed, fold=fold)
    gain = gain or paired_difference(base, adapter, groups, better=better, seed=seed, fold=fold)
    if gain.verdict != "better":
        reason = f"the adapter's own gain is not above zero ({_difference(gain)})"
        return Share(None, None, None, drop.rows, drop.groups, drop, reason)
    names = [name or f"row {index}" for index, name in enumerate(groups)]
    place = np.unique(names, return_inverse=True)[1]
    columns = np.array([base, adapter, file, [1.0] * len(names)])
    sums = np.stack([np.bincount(place, each).astype(float) for each in columns], 1)
    ((whole, gained),) = _shares(sums.sum(0)[None], better, fold)
    if not gained:
        reason = f"the adapter gains nothing on the {drop.rows} rows that were scored"
        return Share(None, None, None, drop.rows, drop.groups, drop, reason)
    low, high = _ends(sums, better, fold, seed) if drop.groups > 1 else (None, None)
    return Share(float(whole), low, high, drop.rows, drop.groups, drop)


def _shares(totals: NDArray[np.float64], better: Better, fold: Fold) -> NDArray[np.float64]:
    """Of totals [n, 4] of base, adapter, file and rows: the share kept, and whether the adapter gains [n, 2]."""
    means = totals[:, :3] / totals[:, 3:]
    base, adapter, file = (np.exp(means) if fold == "exp" else means).T
    gained = adapter < base if better == "lower" else adapter > base
    return np.stack([np.divide(file - base, adapter - base, where=gained, out=np.zeros_like(base)), gained], 1)


def _ends(sums: NDArray[np.float64], better: Better, fold: Fold, seed: int) -> tuple[float | None, float | None]:
    """The interval's ends, from groups' sums [groups, 4]."""
    rng, groups = np.random.default_rng(seed), len(sums)
    found = []
    for _ in range(RESAMPLES // AT_ONCE):
        times = rng.multinomial(groups, np.full(groups, 1 / groups), AT_ONCE)
        found.append(_shares(times @ sums, better, fold))
    drawn = np.concatenate(found)
    ends = []
    for unknown, beyond in ((-math.inf, tail_probability(groups)), (math.inf, 1 - tail_probability(groups))):
        values = np.where(drawn[:, 1] > 0, drawn[:, 0], unknown)
        end = float(np.quantile(values, beyond, method="inverted_cdf"))
        ends.append(end if math.isfinite(end) else None)
    return ends[0], ends[1]


def share_of_replies(scored: Scored, primary: str, seed: int) -> Share:
    """What is kept of the gain on `primary`, over the rows that have it for all three."""
    sides = (scored.base, scored.adapter, scored.file)
    keys = [key for key in scored.groups if all(primary in side[key] for side in sides)]
    base, adapter, file = ([side[key][primary].value for key in keys] for side in sides)
    first = scored.adapter[keys[0]][primary] if keys else Score(primary, 0.0, "higher")
    groups = [scored.groups[key] for key in keys]
    return kept_share(base, adapter, file, groups, better=first.better, fold=first.fold, seed=seed)


def share_of_losses(
    parts: Parts,
    base: Sequence[RowReply],
    adapter: Sequence[RowReply],
    losses: Mapping[str, float],
    *,
    fold: Fold,
    seed: int,
) -> Share:
    """The same where the primary score is the loss on the rows' own answers, or (fold exp) the perplexity.

    A runtime does not tell the loss along with its replies, so the share is over the few rows whose answers it scored
    token by token: `losses`, nats a token by row, of the same tokens as the others' losses. Whether the adapter gains
    at all is decided over all rows of `parts`.
    """
    rows = {(part, row.id): row for part, members in parts.items() for row in members}
    before, after = _by_row(base, rows, "the base"), _by_row(adapter, rows, "the adapter")
    told = [
        (row.group, one, two, losses.get(row.id))
        for key, row in rows.items()
        if (one := before[key].loss) is not None and (two := after[key].loss) is not None
    ]
    few = [(group, one, two, its) for group, one, two, its in told if its is not None and math.isfinite(its)]
    if not few:
        return kept_share([], [], [], [], better="lower", seed=seed)
    groups, firsts, seconds, _ = zip(*told, strict=True)
    gain = paired_difference(firsts, seconds, groups, better="lower", fold=fold, seed=seed)
    groups, firsts, seconds, thirds = zip(*few, strict=True)
    return kept_share(firsts, seconds, thirds, groups, better="lower", fold=fold, seed=seed, gain=gain)


# --- the verdict ------------------------------------------------------------------------------------------------


def judge(
    prompts: Prompts, likelihood: Likelihood, replies: Replies, share: Share, wish: Export, *, primary: str, exact: bool
) -> list[str]:
    """What speaks against the file being the model that was tested, a sentence each; nothing when it is verified.

    The thresholds are `wish`'s for `exact` files or for quantised ones. Where the adapter's gain is too small to keep a
    share of, a detectable drop alone counts.
    """
    keep, agree = (wish.keep_exact, wish.agree_exact) if exact else (wish.keep, wish.agree)
    suffix = "_exact" if exact else ""
    return [
        *_about_prompts(prompts),
        *_about_likelihood(likelihood, agree, f"export.agree{suffix}"),
        *_about_replies(replies),
        *_about_share(replies, share, primary, keep, f"export.keep{suffix}", exact=exact),
    ]


def _about_prompts(found: Prompts) -> list[str]:
    told = []
    others = found.unlike - found.bos_alone
    if others:
        first = found.shown[0]
        seen = f"at token {first.place} it reads {first.theirs!r}, training read {first.ours!r}"
        if first.theirs == first.ours:
            seen = f"at token {first.place} it reads {first.their_tokens}, training read {first.our_tokens}"
        told.append(
            f"The file's own template and tokenizer make other tokens than training of {others} of {found.rows} "
            f"prompts; of row '{first.row}', {first.refusal or seen}."
        )
    alone = "" if others else "; nothing else in them differs"
    if found.bos_missing:
        told.append(f"{found.bos_missing} of {found.rows} prompts lack the start token that training had{alone}.")
    if found.bos_doubled:
        told.append(f"{found.bos_doubled} of {found.rows} prompts begin with two start tokens{alone}.")
    if found.bos_added:
        what = f"{found.bos_added} of {found.rows} prompts begin with a start token that training had not"
        told.append(f"{what}{alone}.")
    return told


def _about_likelihood(found: Likelihood, agree: float, setting: str) -> list[str]:
    if not found.tokens:
        return ["No answer could be scored token by token, because no row asked has one of its own."]
    if found.broken:
        return [f"At {found.broken} of {found.tokens} tokens of given answers the file's figures are not finite."]
    if found.agreement < agree:
        return [
            f"The file's likeliest token is the adapter's at {_percent(found.agreement)} of {found.tokens} tokens of "
            f"given answers, less than {_percent(agree)} ({setting}); perplexity {found.file:.2f} against "
            f"{found.adapter:.2f}."
        ]
    return []


def _about_replies(found: Replies) -> list[str]:
    told = []
    if found.empty:
        told.append(f"{found.empty} of {found.rows} replies are empty where the adapter's are not.")
    stops = found.differences["stops"]
    if stops.verdict == "worse" or (stops.base > 0 and stops.tuned == 0):
        told.append(
            f"{_percent(stops.tuned)} of the file's replies end by themselves, {_percent(stops.base)} of the adapter's "
            f"({_difference(stops)})."
        )
    return told


def _about_share(replies: Replies, found: Share, primary: str, keep: float, setting: str, *, exact: bool) -> list[str]:
    """Of an exact file the loss must be shown, for by chance a faithful one falls below 0.995 (dev/LOG.md).

    Its likeliest tokens are held to the adapter's besides.
    """
    if primary in replies.lost:
        return [f"None of the file's replies has the score '{primary}', which the adapter's have."]
    drop = found.drop
    detected = drop is not None and drop.verdict == "worse"
    if found.share is None:
        if drop is None or not detected:
            return []
        return [f"The file is detectably worse than the adapter on '{primary}': {_beside_words(drop)}."]
    if found.share >= keep or (exact and not detected and (found.high is None or found.high >= keep)):
        return []
    ends = [_percent(end) if end is not None else "unknown" for end in (found.low, found.high)]
    said = (
        f"The file keeps {_percent(found.share)} of the adapter's gain on '{primary}' (95 % interval {ends[0]} to "
        f"{ends[1]}, {found.rows} rows), less than {_percent(keep)} ({setting})"
    )
    if drop is not None and detected:
        return [f"{said}, and is detectably worse: {_beside_words(drop)}."]
    return [f"{said}, although these rows do not show for certain that it is worse."]


def _beside_words(found: Difference) -> str:
    return f"{found.tuned:.3g} against {found.base:.3g}, {_difference(found)}"


def _difference(found: Difference) -> str:
    if found.groups < 2:
        return f"difference {found.difference:+.2g} in one group, so its interval is not known"
    return f"difference {found.difference:+.2g}, 95 % interval {found.low:+.2g} to {found.high:+.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
