"""The learning curve: effect of more training rows and of cleaning, as values, sentences and a page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.evaluation.comparison import HELD_OUT, RowKey
from tunesmith.evaluation.score import Limits
from tunesmith.evaluation.sentences import TWO_TRAININGS, certainty_sentences, measured_text, p_text, score_pair
from tunesmith.evaluation.verdict import MIN_GROUPS, Verdict, correct, decide, level_interval
from tunesmith.reporting import plots
from tunesmith.reporting.html_page import format_number, render_page

MUCH = 0.5  # share of the gain of tuning: if a step may gain more than this, "unlikely to help" is not said
RAW = "raw"


@dataclass(frozen=True)
class Point:
    """One trained point. `share`: percent of the training rows, None for the raw rows; `run`: its folder.

    `tokens`, `steps` and `seconds` are those of its training; `scores` is its scores.json.
    """

    share: int | None
    run: str
    rows: int
    tokens: int
    steps: int
    seconds: float
    scores: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the point in curve.json and in the run's folder."""
        return RAW if self.share is None else str(self.share)


def curve_values(
    points: Sequence[Point], groups: Mapping[RowKey, str], *, seed: int, raw: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Returns the content of curve.json: `points` by share, the smallest first, then the raw rows if they were trained.

    `groups` holds the group of every evaluated row; `raw` counts the raw rows by what happened to them. All points have
    the same held-out rows and the same base. Each point is compared, row by row, with the next larger share (`next`),
    and the raw rows with all cleaned rows. The differences of the primary score are corrected for multiple testing
    among themselves, and so are those of all other scores (see verdict.correct). `section` is the section that the
    verdict is about. Raises ValueError if the points were not evaluated on the same rows.
    """
    primary, kind = str(points[0].scores["primary"]), str(points[0].scores["kind"])
    section = next(iter(points[0].scores["sections"]))
    values = {point.name: _scores_by_row(point.scores, section) for point in points}
    if any(facts.keys() != values[points[0].name].keys() for facts in values.values()):
        raise ValueError("the points were evaluated on different rows")
    full = max((point for point in points if point.share is not None), key=lambda point: point.share or 0)
    shares = [point for point in points if point.share is not None]
    next_point = {small.name: large for small, large in itertools.pairwise(shares)}
    next_point |= {point.name: full for point in points if point.share is None}
    facts_by_name = {name: facts for point in points for name, facts in point.scores["sections"][section].items()}
    differences = {
        (small, name): difference
        for small, large in next_point.items()
        for name, facts in facts_by_name.items()
        if (difference := _step_difference(values[small], values[large.name], groups, name, facts, seed))
    }
    primary_differences = {key: facts for key, facts in differences.items() if key[1] == primary}
    settled = correct(primary_differences) | correct(
        {key: facts for key, facts in differences.items() if key not in primary_differences}
    )
    point_values = [
        {
            "name": point.name,
            "share": point.share,
            "run": point.run,
            "rows": point.rows,
            "tokens": point.tokens,
            "steps": point.steps,
            "seconds": point.seconds,
            "scores": _score_levels(values[point.name], groups, facts_by_name),
            "base": dict(point.scores["sections"][section]),
            "next": _next_step(point.name, next_point, settled),
        }
        for point in points
    ]
    plain = {
        "primary": primary,
        "kind": kind,
        "section": section,
        "asked": len(values[points[0].name]),
        "points": point_values,
        "raw": dict(raw) if raw is not None else None,
    }
    return {**plain, "sentence": growth_sentence(plain), "cleaning": cleaning_sentence(plain)}


def _next_step(name: str, next_point: Mapping[str, Point], settled: Mapping[RowKey, Verdict]) -> dict[str, Any] | None:
    if name not in next_point:
        return None
    scores = {metric: difference.describe() for (small, metric), difference in settled.items() if small == name}
    return {"against": next_point[name].name, "scores": scores}


def _scores_by_row(scores: Mapping[str, Any], section: str) -> dict[RowKey, dict[str, float]]:
    parts = HELD_OUT if section == "all" else (section,)
    return {(row["part"], row["id"]): row["tuned"] for row in scores["rows"] if row["part"] in parts}


def _step_difference(
    small: Mapping[RowKey, Mapping[str, float]],
    large: Mapping[RowKey, Mapping[str, float]],
    groups: Mapping[RowKey, str],
    name: str,
    facts: Mapping[str, Any],
    seed: int,
) -> Verdict | None:
    """Returns the larger point's score minus the smaller one's, over the rows that have it for both."""
    if not any(name in small[key] and name in large[key] for key in small):
        return None
    return decide(
        [small[key].get(name) for key in small],
        [large[key].get(name) for key in small],
        [groups[key] for key in small],
        better=facts["better"],
        fold=facts["fold"],
        limits=_limits(facts),
        seed=seed,
    )


def _score_levels(
    rows: Mapping[RowKey, Mapping[str, float]], groups: Mapping[RowKey, str], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {
        name: level for name, metric_facts in facts.items() if (level := _score_level(rows, groups, name, metric_facts))
    }


def _score_level(
    rows: Mapping[RowKey, Mapping[str, float]], groups: Mapping[RowKey, str], name: str, facts: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns a point's score with its interval over groups."""
    keys = [key for key in rows if name in rows[key]]
    if not keys:
        return None
    values, names = [rows[key][name] for key in keys], [groups[key] for key in keys]
    ends = level_interval(values, names, fold=facts["fold"], limits=_limits(facts)) or (None, None)
    mean = sum(values) / len(values)
    value = math.exp(mean) if facts["fold"] == "exp" else mean
    sizes = {"rows": len(keys), "groups": len({name or index for index, name in enumerate(names)})}
    return {"value": value, "low": ends[0], "high": ends[1], "better": facts["better"], **sizes}


def _limits(facts: Mapping[str, Any]) -> Limits | None:
    """Returns the range of a score from its entry in scores.json, where it is a list."""
    limits = facts.get("limits")
    return (float(limits[0]), float(limits[1])) if limits else None


# --- in words ----------------------------------------------------------------------------------------------


def growth_sentence(curve: Mapping[str, Any]) -> str:
    """Returns a sentence on whether more rows would help, from the last step of the curve."""
    shares = [point for point in curve["points"] if point["share"] is not None]
    if len(shares) < 2:
        return "A single share makes no curve, so there is no answer to whether more rows would help."
    small, full = shares[-2:]
    primary = curve["primary"]
    difference = small["next"]["scores"].get(primary)
    if difference is None:
        return f"'{primary}' was not measured, so there is no verdict."
    rows = f"{small['rows']:,} to {full['rows']:,}"
    change = f"From {small['share']} % to {full['share']} % of the rows ({rows}) {_change_text(curve, difference)}"
    return f"{change}: {_growth_outlook(difference, full['base'].get(primary), curve['kind'])}"


def cleaning_sentence(curve: Mapping[str, Any]) -> str:
    """Returns a sentence on the effect of cleaning; '' if the raw rows were not trained on."""
    raw = next((point for point in curve["points"] if point["share"] is None), None)
    if raw is None:
        return ""
    full = next(point for point in curve["points"] if point["name"] == raw["next"]["against"])
    difference = raw["next"]["scores"].get(curve["primary"])
    if difference is None:
        return f"'{curve['primary']}' was not measured, so there is no verdict on the cleaning."
    rows = f"{raw['rows']:,} raw rows to the {full['rows']:,} cleaned ones"
    return f"From the {rows} {_change_text(curve, difference)}: {_cleaning_outcome(difference, curve['kind'])}"


def _change_text(curve: Mapping[str, Any], difference: Mapping[str, Any]) -> str:
    base, tuned = score_pair(difference["base"], difference["tuned"])
    change = f"{curve['primary'].replace('_', ' ')} went from {base} to {tuned}"
    return f"{change}, {measured_text(difference, curve['kind'])} ({p_text(difference['p'])})"


def _growth_outlook(difference: Mapping[str, Any], base_difference: Mapping[str, Any] | None, kind: str) -> str:
    outcome, certainty = difference["verdict"], " ".join(certainty_sentences(difference, kind))
    if difference["better"] == "neither":
        return "this score has no good direction, so there is no answer to whether more rows would help."
    if outcome in ("too few to tell", "too many missing"):
        return f"so there is no answer to whether more rows would help. {certainty}"
    certainty = f"{certainty} {TWO_TRAININGS}"
    if outcome == "worse":
        return f"it got worse, so more rows of this kind are unlikely to help. {certainty}"
    if outcome == "better":
        return f"still rising, so more rows of this kind would probably help. {certainty}"
    possible = _largest_possible_gain(difference)
    gain = abs(base_difference["difference"]) if base_difference and base_difference["verdict"] == "better" else 0.0
    if possible <= MUCH * gain:
        return f"no change was shown, so more rows of this kind are unlikely to help much. {certainty}"
    return (
        f"no change was shown, but these rows cannot rule out a gain of {format_number(possible)}: they do not show "
        f"whether more rows would help. {certainty}"
    )


def _cleaning_outcome(difference: Mapping[str, Any], kind: str) -> str:
    outcome, certainty = difference["verdict"], " ".join(certainty_sentences(difference, kind))
    texts = {
        "better": "of these two trainings, the one on cleaned rows is better, so cleaning probably helped.",
        "worse": "of these two trainings, the one on cleaned rows is worse, so cleaning probably made it worse.",
        "no change shown": "no difference was shown between these two trainings, so cleaning was not shown to help or "
        "to harm.",
    }
    certainty += f" {TWO_TRAININGS}" * (outcome in ("better", "worse"))
    return f"{texts.get(outcome, 'there is no answer to whether cleaning helped.')} {certainty}".rstrip()


def _largest_possible_gain(difference: Mapping[str, Any]) -> float:
    """Returns the largest gain within the interval."""
    return float(difference["high"] if difference["better"] == "higher" else -difference["low"])


def curve_lines(curve: Mapping[str, Any]) -> list[str]:
    """Returns the curve as text for a terminal: a line per point, then the sentences."""
    primary = curve["primary"]
    lines = []
    for point, label in _labeled_points(curve):
        level = point["scores"].get(primary)
        interval = (
            f" ({format_number(level['low'])} to {format_number(level['high'])})"
            if level and level["low"] is not None
            else ""
        )
        score = f"{primary.replace('_', ' ')} {format_number(level['value'])}{interval}" if level else f"no {primary}"
        work = f"{point['steps']:,} steps, {point['tokens']:,} tokens, {point['seconds']:,.0f} s"
        lines.append(f"{label}: {point['rows']:,} rows, {score}; {work}")
    return [*lines, curve["sentence"], *([curve["cleaning"]] if curve["cleaning"] else [])]


# --- the page ----------------------------------------------------------------------------------------------


def curve_page(name: str, plain: Mapping[str, Any], *, command: str = "") -> str:
    """Renders the curve as an offline page; `plain` is the result of `curve_values`."""
    from tunesmith.reporting.replies import part_title

    labeled, primary = _labeled_points(plain), plain["primary"]
    metrics = list(dict.fromkeys(metric for point, _ in labeled for metric in point["scores"]))
    largest = max((point for point, _ in labeled if point["share"] is not None), key=lambda point: point["share"])
    any_level = next(iter(largest["scores"].values()), {"groups": 0, "rows": 0})
    return render_page(
        "curve.html",
        name=name,
        curve=plain,
        named=labeled,
        metrics=metrics,
        base={metric: difference["base"] for metric, difference in largest["base"].items()},
        good={metric: difference["better"] for metric, difference in largest["base"].items()},
        verdict=_last_step_verdict(plain),
        cleaning_verdict=_step_verdict(next((p for p, _ in labeled if p["share"] is None), None), primary),
        title=part_title(plain["section"], plain["kind"]),
        plot=curve_plot(plain),
        groups=any_level["groups"],
        few=MIN_GROUPS,
        left_out=_left_out(plain["raw"] or {}),
        command=command,
    )


def curve_plot(curve: Mapping[str, Any]) -> str:
    """Plots the primary score with intervals over the number of rows, and the base as a line; '' without scores."""
    primary = curve["primary"]
    measured = [(point, point["scores"][primary]) for point in curve["points"] if primary in point["scores"]]
    if not measured:
        return ""
    figure, axes = plots._axes(plots.WIDTH, 3.2)
    for raw in (False, True):
        series = [(point, level) for point, level in measured if (point["share"] is None) == raw]
        style = (
            {"color": plots.SECOND, "marker": "s", "linestyle": ""} if raw else {"color": plots.FIRST, "marker": "o"}
        )
        label = "raw rows" if raw else "shares of the cleaned rows"
        if series:
            xs, ys = [point["rows"] for point, _ in series], [level["value"] for _, level in series]
            axes.plot(xs, ys, label=label, markersize=6, linewidth=1.4, **style)
        for point, level in series:
            if level["low"] is not None:
                axes.plot(
                    [point["rows"]] * 2, [level["low"], level["high"]], color=style["color"], linewidth=2, alpha=0.6
                )
    base = next((point["base"][primary]["base"] for point, _ in measured if primary in point["base"]), None)
    if base is not None:
        axes.axhline(base, color=plots.INK, linewidth=1, linestyle="--", label="base, not tuned")
    axes.set_xscale("log", base=2)
    ticks = _ticks({point["rows"] for point, _ in measured})
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel("rows to learn from (logarithmic scale)")
    better = measured[0][1]["better"]
    axes.set_ylabel(plots._label(primary.replace("_", " ") + (f" ({better} is better)" if better != "neither" else "")))
    axes.legend(frameon=False, fontsize=8)
    return plots._svg(figure, "The primary score over the number of training rows, with 95 % intervals")


def _ticks(counts: Iterable[int]) -> list[int]:
    """Returns the counts whose tick labels do not overlap, from the largest down, each at least a tenth smaller."""
    ticks: list[int] = []
    for count in sorted(counts, reverse=True):
        if not ticks or count * 1.1 <= ticks[-1]:
            ticks.append(count)
    return ticks[::-1]


def _labeled_points(curve: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """Returns each point with its label."""
    return [(p, "raw rows" if p["share"] is None else f"{p['share']} %") for p in curve["points"]]


def _last_step_verdict(curve: Mapping[str, Any]) -> str:
    shares = [point for point in curve["points"] if point["share"] is not None]
    return _step_verdict(shares[-2] if len(shares) > 1 else None, curve["primary"])


def _step_verdict(point: Mapping[str, Any] | None, primary: str) -> str:
    """Returns the CSS class of a step's card: better or worse if a difference was shown, else ''."""
    difference = point["next"]["scores"].get(primary) if point and point["next"] else None
    return str(difference["verdict"]) if difference and difference["verdict"] in ("better", "worse") else ""


LEFT_OUT_REASONS = {
    "unreadable": "could not be read as conversations",
    "bad_answer": "have a label that says their answer is a bad one",
    "held_out": "are test or validation rows",
    "unseen_group": "belong to a group that only the test sees",
    "leaking": "have the same prompt as a held-out row, or nearly",
    "too_long": "are longer than prompt.max_tokens",
    "unfit": "cannot be trained on: a turn contains a special token, or the turns do not alternate",
    "not_drawn": "were not sampled: data.sample.train asks for fewer",
}


def _left_out(raw: Mapping[str, int]) -> list[tuple[int, str]]:
    return [(raw[key], words) for key, words in LEFT_OUT_REASONS.items() if raw.get(key)]
