"""Verdicts in sentences, for the headline of every report, card, curve and comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.wording import plural

Described = Mapping[str, Any]  # what Verdict.describe returns
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "neither": ""}


def headline(verdict: Described, metric: str, kind: str, *, name: str = "", against: str = "") -> str:
    """Returns a verdict on one score in sentences: what was shown, on how many rows, how certain it is.

    It is about base and tuned, or about the model `name` compared with `against`. `kind` is what a group of rows is
    called, such as "topic".
    """
    base, tuned = score_pair(verdict["base"], verdict["tuned"])
    label = metric.replace("_", " ")
    change = f"{label} is {tuned} against {base}" if name else f"{label} went from {base} to {tuned}"
    direction = f" ({DIRECTIONS[verdict['better']]})" if DIRECTIONS[verdict["better"]] else ""
    opening = _opening(verdict, kind, name, against)
    sentences = [f"{opening}: {change}{direction}, {measured_text(verdict, kind)} ({p_text(verdict['p'])})."]
    return " ".join([*sentences, *certainty_sentences(verdict, kind)])


def certainty_sentences(verdict: Described, kind: str) -> list[str]:
    """Returns the sentences on missing rows, on the likely range of the difference, and on what would be missed."""
    if verdict["verdict"] == "too few to tell":
        return [*missing_sentences(verdict), too_few_sentence(verdict, kind)]
    if verdict["verdict"] == "too many missing":
        return missing_sentences(verdict)
    sentences = [*missing_sentences(verdict), *likely_sentences(verdict), *narrow_sentences(verdict)]
    return [*sentences, *(missed_sentences(verdict) if verdict["verdict"] == "no change shown" else [])]


def measured_text(verdict: Described, kind: str) -> str:
    """Returns how many of the asked rows were measured, and in how many groups."""
    rows, groups = verdict["rows"], verdict["groups"]
    in_groups = f" in {groups} {plural(kind, groups)}" if groups < rows else ""
    return f"measured in {rows} of {max(rows, verdict['asked'])} held-out rows{in_groups}"


def likely_sentences(verdict: Described) -> list[str]:
    """Returns the sentence on the 95 % interval of the difference; none if it is not known."""
    if verdict["low"] is None or verdict["low"] == verdict["high"]:
        return []
    low, high = signed(verdict["low"]), signed(verdict["high"])
    return [f"With other questions of this kind the difference would probably lie between {low} and {high}."]


def narrow_sentences(verdict: Described) -> list[str]:
    """Returns the sentence on a difference that was shown, but not clearly; none otherwise."""
    return ["The result is narrow: a few other rows could have hidden it."] if verdict["narrow"] else []


def missed_sentences(verdict: Described) -> list[str]:
    """Returns the sentence on the smallest change that is usually found; none if it was not computed."""
    if verdict["detectable"] is None:
        return []
    return [f"Smaller changes than {_rounded(verdict['detectable'])} would usually be missed."]


def too_few_sentence(verdict: Described, kind: str) -> str:
    """Returns how many groups or rows are needed before anything can be shown."""
    noun = unit(verdict, kind)
    return (
        f"With {verdict['groups']} {plural(noun, verdict['groups'])} nothing can be shown, because chance alone often "
        f"gives such a result; at least {verdict['min_groups']} {plural(noun)} are needed."
    )


def worse_elsewhere(scores: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each thing that tuning made worse beside the score that the verdict is about.

    `scores` is the content of scores.json. These are, in this order: general abilities, requests outside the task and
    probes, and other scores of the held-out rows. Only what is shown to be worse (see verdict.Verdict) is named.
    """
    sections = scores["sections"]
    main = next(iter(sections), "")
    elsewhere = [(title, section) for title, section in sections.items() if title not in (main, "test", "unseen")]
    elsewhere += [
        (f"requests of the kind '{title}'", table["tuned_against_base"])
        for title, table in scores.get("robustness", {}).items()
        if "consistency" not in table and "tuned_against_base" in table  # no twins of held-out rows
    ]
    sentences = [
        f"But on {title}, {_change(name, verdict)}."
        for title, section in elsewhere
        for name, verdict in section.items()
        if verdict["verdict"] == "worse"
    ]
    others = {name: verdict for name, verdict in sections.get(main, {}).items() if name != scores["primary"]}
    sentences += [
        f"But {_change(name, verdict)} on the same rows."
        for name, verdict in others.items()
        if verdict["verdict"] == "worse"
    ]
    return [*_lost_abilities(scores.get("retention")), *sentences]


def _change(name: str, verdict: Described) -> str:
    base, tuned = score_pair(verdict["base"], verdict["tuned"])
    return f"{name.replace('_', ' ')} got worse, from {base} to {tuned} ({p_text(verdict['p'])})"


def _lost_abilities(retention: Mapping[str, Any] | None) -> list[str]:
    """Returns the sentence on general prompts that the base model solved and the tuned model does not; or none."""
    if not retention:
        return []
    lost = {name: verdict for name, verdict in retention["abilities"].items() if verdict["verdict"] == "worse"}
    if retention["all"]["verdict"] == "worse":
        by_loss = sorted(
            retention["abilities"].items(), key=lambda item: solved(item[1], "tuned") - solved(item[1], "base")
        )
        examples = [(name, verdict) for name, verdict in by_loss[:3] if verdict["tuned"] < verdict["base"]]
        listed = ", ".join(
            f"{name} ({solved(verdict, 'base')} to {solved(verdict, 'tuned')})" for name, verdict in examples
        )
        every = retention["all"]
        return [
            f"But of {every['rows']} general prompts outside the task the tuned model solved {solved(every, 'tuned')}, "
            f"the base model {solved(every, 'base')} ({p_text(every['p'])}). Most was lost in {listed}."
        ]
    return [
        f"But in {name} the tuned model solved {solved(verdict, 'tuned')} of {verdict['rows']} general prompts, the "
        f"base model {solved(verdict, 'base')} (p = {verdict['adjusted']:.3f}, corrected for all abilities)."
        for name, verdict in lost.items()
    ]


def abilities_sentence(retention: Mapping[str, Any]) -> str:
    """Returns how many of the general prompts both models solved, and how certain the difference is."""
    every = retention["all"]
    counts = (
        f"Of {every['rows']} general prompts the tuned model solved {solved(every, 'tuned')}, "
        f"the base model {solved(every, 'base')} ({p_text(every['p'])})"
    )
    if every["verdict"] in ("better", "worse"):
        return f"{counts}: {every['verdict']}."
    return " ".join([f"{counts}; no change was shown.", *missed_sentences(every)])


def solved(verdict: Described, side: str) -> int:
    """Returns how many of the prompts `base` or `tuned` solved."""
    passed: float = verdict[side] * verdict["rows"]
    return round(passed)


def missing_sentences(verdict: Described) -> list[str]:
    """Returns the sentence on rows that were measured for one model only; none if there are none."""
    missing, worst = verdict["missing"], verdict["worst"]
    if not missing:
        return []
    have = f"{missing} {plural('row', missing)} {'has' if missing == 1 else 'have'} a score for one of the models only"
    if worst is None:
        return [f"{have} and {'is' if missing == 1 else 'are'} left out."]
    they, difference = "it" if missing == 1 else "all", signed(worst["difference"])
    return [f"{have}; if {they} spoke against this, the difference would be {difference}."]


def unit(verdict: Described, kind: str) -> str:
    """Returns what is counted as independent: the groups, or single rows if each is its own group."""
    return kind if verdict["groups"] < verdict["rows"] else "row"


def p_text(p: float) -> str:
    """Formats a p-value, such as 'p = 0.031' or 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def signed(value: float) -> str:
    """Formats a difference with its sign: two decimals, or one digit that is not zero. Zero has no sign."""
    if not value:
        return "0.00"
    return f"{value:+.2f}" if abs(value) >= 0.01 or not math.isfinite(value) else f"{value:+.1g}"


def score_pair(base: float, tuned: float) -> tuple[str, str]:
    """Formats two scores with two decimals, or three if they would look equal without being so."""
    looks_equal = f"{base:.2f}" == f"{tuned:.2f}" and f"{base:.3f}" != f"{tuned:.3f}"
    return (f"{base:.3f}", f"{tuned:.3f}") if looks_equal else (f"{base:.2f}", f"{tuned:.2f}")


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def _opening(verdict: Described, kind: str, name: str, against: str) -> str:
    outcome = verdict["verdict"]
    shared = {
        "too few to tell": f"Too few {plural(unit(verdict, kind))} to tell",
        "too many missing": "Too many replies are missing to tell",
    }
    if outcome in shared:
        return shared[outcome]
    if name:
        openings = {
            "better": f"{name} is better than {against}",
            "worse": f"{name} is worse than {against}",
            "no change shown": f"No difference was shown between {name} and {against}",
        }
        return openings.get(outcome, f"{name} differs from {against}")
    openings = {
        "better": "Tuning helped",
        "worse": "Tuning made it worse",
        "no change shown": "No change was shown",
    }
    return openings.get(outcome, "Tuning changed it")
