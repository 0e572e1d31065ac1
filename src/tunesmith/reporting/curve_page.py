"""A learning curve: what more rows brought, and what cleaning brought; the values, the sentences and the page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.evaluation.comparison import plural
from tunesmith.evaluation.statistics import FEW_GROUPS, Difference, paired, settle
from tunesmith.reporting import plots
from tunesmith.reporting.html_page import number, render

HELD = ("test", "unseen")
MUCH = 0.5  # of what tuning gained on the base: a step that may bring more is not called unlikely to help
RAW = "raw"
Key = tuple[str, str]  # a row's part and id


@dataclass(frozen=True)
class Point:
    """One trained point. `share`: percent of the training rows, None for the rows as they came; `run`: its folder.

    `tokens` and `steps` are those that training saw, `seconds` its time; `scores` is the point's scores.json.
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
        """What the point is called in curve.json and in the run's folder."""
        return RAW if self.share is None else str(self.share)


def curve_values(
    points: Sequence[Point], groups: Mapping[Key, str], *, seed: int, raw: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Plain values for curve.json: `points` by share, the smallest first, then the rows as they came if at all.

    `groups` holds the group of every row that was asked; `raw` says what became of the rows as they came. All points
    were asked the same rows, and all have the same base. Each point stands beside the next larger share, and the rows
    as they came beside the whole of the cleaned rows (`next`), row by row. The primary score's differences are
    corrected for one another, and so are all others together (see `settle`). The section is the first one of the
    points' scores, which the verdict is about. Raises ValueError when a point was not asked the same rows as the first.
    """
    primary, kind = str(points[0].scores["primary"]), str(points[0].scores["kind"])
    section = next(iter(points[0].scores["sections"]))
    values = {point.name: _values(point.scores, section) for point in points}
    if any(each.keys() != values[points[0].name].keys() for each in values.values()):
        raise ValueError("the points were asked different rows")
    full = max((point for point in points if point.share is not None), key=lambda point: point.share or 0)
    shares = [point for point in points if point.share is not None]
    following = {small.name: large for small, large in itertools.pairwise(shares)}
    following |= {point.name: full for point in points if point.share is None}
    good = {name: each for point in points for name, each in point.scores["sections"][section].items()}
    found = {
        (small, name): made
        for small, large in following.items()
        for name, each in good.items()
        if (made := _step(values[small], values[large.name], groups, name, each, seed))
    }
    main = {key: each for key, each in found.items() if key[1] == primary}
    settled = settle(main) | settle({key: each for key, each in found.items() if key not in main})
    told = [
        {
            "name": point.name,
            "share": point.share,
            "run": point.run,
            "rows": point.rows,
            "tokens": point.tokens,
            "steps": point.steps,
            "seconds": point.seconds,
            "scores": _levels(values[point.name], groups, good),
            "base": dict(point.scores["sections"][section]),
            "next": _next(point.name, following, settled),
        }
        for point in points
    ]
    plain = {
        "primary": primary,
        "kind": kind,
        "section": section,
        "asked": len(values[points[0].name]),
        "points": told,
        "raw": dict(raw) if raw is not None else None,
    }
    return {**plain, "sentence": growth(plain), "cleaning": cleaning(plain)}


def _next(name: str, following: Mapping[str, Point], settled: Mapping[Key, Difference]) -> dict[str, Any] | None:
    if name not in following:
        return None
    scores = {metric: each.describe() for (small, metric), each in settled.items() if small == name}
    return {"against": following[name].name, "scores": scores}


def _values(scores: Mapping[str, Any], section: str) -> dict[Key, dict[str, float]]:
    parts = HELD if section == "all" else (section,)
    return {(row["part"], row["id"]): row["tuned"] for row in scores["rows"] if row["part"] in parts}


def _step(
    small: Mapping[Key, Mapping[str, float]],
    large: Mapping[Key, Mapping[str, float]],
    groups: Mapping[Key, str],
    name: str,
    facts: Mapping[str, Any],
    seed: int,
) -> Difference | None:
    """The larger point's score minus the smaller one's, over the rows that have it for both."""
    both = [key for key in small if name in small[key] and name in large[key]]
    if not both:
        return None
    return paired(
        [small[key][name] for key in both],
        [large[key][name] for key in both],
        [groups[key] for key in both],
        better=facts["better"],
        fold=facts["fold"],
        seed=seed,
        missing=sum((name in small[key]) != (name in large[key]) for key in small),
    )


def _levels(
    rows: Mapping[Key, Mapping[str, float]], groups: Mapping[Key, str], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {name: level for name, each in facts.items() if (level := _level(rows, groups, name, each))}


def _level(
    rows: Mapping[Key, Mapping[str, float]], groups: Mapping[Key, str], name: str, facts: Mapping[str, Any]
) -> dict[str, Any] | None:
    """A point's own score with its interval over groups: the difference from a score of 0 (folded: from exp 0)."""
    keys = [key for key in rows if name in rows[key]]
    if not keys:
        return None
    given = [rows[key][name] for key in keys]
    found = paired(
        [0.0] * len(given), given, [groups[key] for key in keys], better="neither", fold=facts["fold"], seed=0
    )
    from_ = 1.0 if facts["fold"] == "exp" else 0.0
    ends = (found.low + from_, found.high + from_) if found.groups > 1 else (None, None)
    sizes = {"rows": found.rows, "groups": found.groups}
    return {"value": found.tuned, "low": ends[0], "high": ends[1], "better": facts["better"], **sizes}


# --- in words ----------------------------------------------------------------------------------------------


def growth(plain: Mapping[str, Any]) -> str:
    """Whether more rows brought something: the last step of the curve, in words that claim no more than it shows."""
    shares = [point for point in plain["points"] if point["share"] is not None]
    if len(shares) < 2:
        return "One share alone is no curve: whether more rows would help is not said."
    small, full = shares[-2:]
    primary = plain["primary"]
    found = small["next"]["scores"].get(primary)
    if found is None:
        return f"'{primary}' was not measured, so nothing can be said."
    rows = f"{small['rows']:,} to {full['rows']:,}"
    span = f"From {small['share']} % to {full['share']} % of the rows ({rows}) {_changed(plain, found)}"
    return f"{span}: {_outlook(found, full['base'].get(primary))}"


def cleaning(plain: Mapping[str, Any]) -> str:
    """What the rows as they came gave beside the cleaned ones; '' where they were not trained on."""
    raw = next((point for point in plain["points"] if point["share"] is None), None)
    if raw is None:
        return ""
    full = next(point for point in plain["points"] if point["name"] == raw["next"]["against"])
    found = raw["next"]["scores"].get(plain["primary"])
    if found is None:
        return f"'{plain['primary']}' was not measured, so nothing can be said of the cleaning."
    rows = f"{raw['rows']:,} rows as they came to the {full['rows']:,} cleaned ones"
    return f"From the {rows} {_changed(plain, found)}: {_cleaned(found)}"


def _changed(plain: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    kind, groups = plain["kind"], found["groups"]
    grouped = f" in {groups} {plural(kind, groups)}" if groups < found["rows"] else ""
    ends = f"95 % interval {number(found['low'])} to {number(found['high'])}"
    span = f"one {kind} alone has no interval" if found["low"] is None else ends
    went = f"{plain['primary'].replace('_', ' ')} went from {number(found['base'])} to {number(found['tuned'])}"
    over = f"over {found['rows']} held-out rows{grouped}"
    return f"{went} {over} (difference {number(found['difference'])}, {span})"


def _outlook(found: Mapping[str, Any], gained: Mapping[str, Any] | None) -> str:
    if found["better"] == "neither":
        return "this score has no good side, so whether more rows would help is not said."
    if found["low"] is None:
        return "so whether more rows would help is not said."
    if found["verdict"] == "worse":
        return "it got worse, so more rows of this kind are unlikely to help."
    if found["verdict"] == "better" and found["holds"]:
        return "still rising, so more rows of this kind would probably help."
    if found["verdict"] == "better":
        return "rising, but of several steps one may rise by chance: more rows of this kind may help."
    possible = _good_end(found)
    won = abs(gained["difference"]) if gained and gained["verdict"] == "better" else 0.0
    if possible <= MUCH * won:
        return "no detectable change, so more rows of this kind are unlikely to help much."
    return (
        f"no detectable change, but {found['rows']} held-out rows cannot rule out a gain of {number(possible)}: "
        "whether more rows would help, they do not say."
    )


def _cleaned(found: Mapping[str, Any]) -> str:
    if found["low"] is None or found["better"] == "neither":
        return "whether cleaning helped is not said."
    if found["verdict"] == "no detectable change":
        size = found["detectable"]
        seen = f" A difference of {number(size)} would have been noticed 4 times in 5." if size is not None else ""
        return f"no detectable difference, so cleaning was not shown to help or to harm.{seen}"
    if not found["holds"]:
        return f"{found['verdict']} with the cleaned rows, but of several steps one may be so by chance."
    return "cleaning helped." if found["verdict"] == "better" else "cleaning made it worse."


def _good_end(found: Mapping[str, Any]) -> float:
    """The largest gain that the interval leaves possible."""
    return float(found["high"] if found["better"] == "higher" else -found["low"])


def curve_lines(plain: Mapping[str, Any]) -> list[str]:
    """The curve for a terminal: a line a point, then the sentences."""
    primary = plain["primary"]
    lines = []
    for point, words in _named(plain):
        level = point["scores"].get(primary)
        ends = f" ({number(level['low'])} to {number(level['high'])})" if level and level["low"] is not None else ""
        score = f"{primary.replace('_', ' ')} {number(level['value'])}{ends}" if level else f"no {primary}"
        work = f"{point['steps']:,} steps, {point['tokens']:,} tokens, {point['seconds']:,.0f} s"
        lines.append(f"{words}: {point['rows']:,} rows, {score}; {work}")
    return [*lines, plain["sentence"], *([plain["cleaning"]] if plain["cleaning"] else [])]


# --- the page ----------------------------------------------------------------------------------------------


def curve_page(name: str, plain: Mapping[str, Any], *, command: str = "") -> str:
    """The curve as one offline page: `plain` is what `curve_values` made."""
    from tunesmith.reporting.replies import title

    named, primary = _named(plain), plain["primary"]
    metrics = list(dict.fromkeys(metric for point, _ in named for metric in point["scores"]))
    full = max((point for point, _ in named if point["share"] is not None), key=lambda point: point["share"])
    any_level = next(iter(full["scores"].values()), {"groups": 0, "rows": 0})
    return render(
        "curve.html",
        name=name,
        curve=plain,
        named=named,
        metrics=metrics,
        base={metric: each["base"] for metric, each in full["base"].items()},
        good={metric: each["better"] for metric, each in full["base"].items()},
        verdict=_verdict(plain),
        cleaning_verdict=_step_verdict(next((p for p, _ in named if p["share"] is None), None), primary),
        title=title(plain["section"], plain["kind"]),
        plot=curve_plot(plain),
        groups=any_level["groups"],
        few=FEW_GROUPS,
        left_out=_left_out(plain["raw"] or {}),
        command=command,
    )


def curve_plot(plain: Mapping[str, Any]) -> str:
    """The primary score over the rows, both with the points' intervals, and the base's as a line; '' without one."""
    primary = plain["primary"]
    drawn = [(point, point["scores"][primary]) for point in plain["points"] if primary in point["scores"]]
    if not drawn:
        return ""
    figure, axes = plots._axes(plots.WIDTH, 3.2)
    for raw in (False, True):
        chosen = [(point, level) for point, level in drawn if (point["share"] is None) == raw]
        look = {"color": plots.SECOND, "marker": "s", "linestyle": ""} if raw else {"color": plots.FIRST, "marker": "o"}
        label = "rows as they came" if raw else "shares of the cleaned rows"
        if chosen:
            xs, ys = [point["rows"] for point, _ in chosen], [level["value"] for _, level in chosen]
            axes.plot(xs, ys, label=label, markersize=6, linewidth=1.4, **look)
        for point, level in chosen:
            if level["low"] is not None:
                axes.plot(
                    [point["rows"]] * 2, [level["low"], level["high"]], color=look["color"], linewidth=2, alpha=0.6
                )
    base = next((point["base"][primary]["base"] for point, _ in drawn if primary in point["base"]), None)
    if base is not None:
        axes.axhline(base, color=plots.INK, linewidth=1, linestyle="--", label="base, not tuned")
    axes.set_xscale("log", base=2)
    ticks = _ticks({point["rows"] for point, _ in drawn})
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel("rows to learn from (logarithmic scale)")
    better = drawn[0][1]["better"]
    axes.set_ylabel(plots._label(primary.replace("_", " ") + (f" ({better} is better)" if better != "neither" else "")))
    axes.legend(frameon=False, fontsize=8)
    return plots._svg(figure, "The primary score over the number of training rows, with 95 % intervals")


def _ticks(counts: Iterable[int]) -> list[int]:
    """Those of the counts whose labels do not touch: from the largest down, each a tenth below the last."""
    kept: list[int] = []
    for count in sorted(counts, reverse=True):
        if not kept or count * 1.1 <= kept[-1]:
            kept.append(count)
    return kept[::-1]


def _named(plain: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """Each point with what people call it."""
    return [(p, "rows as they came" if p["share"] is None else f"{p['share']} %") for p in plain["points"]]


def _verdict(plain: Mapping[str, Any]) -> str:
    shares = [point for point in plain["points"] if point["share"] is not None]
    return _step_verdict(shares[-2] if len(shares) > 1 else None, plain["primary"])


def _step_verdict(point: Mapping[str, Any] | None, primary: str) -> str:
    """The colour of a step's card: better or worse where that holds, else none."""
    found = point["next"]["scores"].get(primary) if point and point["next"] else None
    return str(found["verdict"]) if found and found["holds"] else ""


LEFT_OUT = {
    "unreadable": "could not be read as conversations",
    "bad_answer": "have a label that says their answer is a bad one",
    "held_out": "stand in the test or validation rows",
    "unseen_group": "belong to a group that only the test sees",
    "leaking": "have a prompt that is also, or nearly, a held-out row's",
    "too_long": "are longer than prompt.max_tokens",
    "unfit": "cannot be trained on: a turn holds a special token, or the turns are in no order",
    "not_drawn": "were not drawn: data.sample.train asks for fewer",
}


def _left_out(raw: Mapping[str, int]) -> list[tuple[int, str]]:
    return [(raw[key], words) for key, words in LEFT_OUT.items() if raw.get(key)]
