"""The report, from what lies in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import entries, find
from tunesmith.data.conversation import Conversation
from tunesmith.evaluation.comparison import plural, read_answered
from tunesmith.planning.autograd import show_bytes
from tunesmith.reporting import plots
from tunesmith.reporting.exported_files import shipped
from tunesmith.reporting.html_page import render
from tunesmith.reporting.judgments import disturbed, judged, reviewed
from tunesmith.reporting.replies import read_items, sieves, title, worst
from tunesmith.training.journal import read_journal

__all__ = ["limits", "report_page", "title"]

TOO_FEW = 5  # groups, whose 2⁵ sign flips give no p below 0.0625 (statistics.permuted)


def report_page(
    recipe: Recipe,
    folder: Path,
    rows: Mapping[str, Sequence[Conversation]],
    *,
    command: str,
    seals: Mapping[str, dict[str, Any]],
) -> str:
    """The page about the run: `rows` are the rows that were asked, by part.

    `seals` are the run's seals by product: prepare, train and evaluate; with those of judge and review, where there
    are such, the page says when their verdicts are of earlier replies.
    """
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    events = read_journal(folder / "journal.jsonl")
    training = seals["train"]["summary"]
    first = next(iter(scores["sections"].values()))
    titles = {part: title(part, scores["kind"]) for part in scores["sections"]}
    measured = {metric.name for metric in recipe.evaluate.metrics}
    review = reviewed(folder, seals)
    replies = read_items(folder, rows, scores, recipe.evaluate.metrics)
    return render(
        "report.html",
        name=recipe.name,
        about=recipe.about.rstrip("."),
        base=recipe.base.model,
        scores=scores,
        plot=plots.intervals([_interval(name, first[name]) for name in _drawn(first)]),
        titles=titles,
        few=any(next(iter(found.values()))["groups"] <= TOO_FEW for found in scores["sections"].values()),
        kind=scores["kind"],
        meanings=_meanings(recipe),
        audit=audit,
        curves=plots.curves(_points(events, "step"), _points(events, "valid"), training.get("best_step")),
        training=training,
        notes=[event for event in events if event["kind"] == "note"],
        replies={title(part, scores["kind"]): items for part, items in replies.items()},
        sieves=sieves(replies, recipe.evaluate.metrics),
        worst=worst(replies),
        doubt_word="unsupported" if "grounded" in measured else "contradicted",
        logs=first.get(scores["primary"], {}).get("fold") == "exp",
        disturbed=disturbed(scores, recipe.evaluate.robustness),
        judge=judged(folder, recipe, seals),
        review=review,
        review_titles={part: title(part, scores["kind"]) for part in (review or {}).get("sections", {})},
        shipped=shipped(folder),
        limits=[*limits(scores, audit, recipe), *_thoughts(folder)],
        used=_used(recipe, folder, seals),
        command=command,
        recipe=yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True),
    )


def _drawn(found: Mapping[str, dict[str, Any]]) -> list[str]:
    """The scores whose intervals stand beside one another: an exponential would press the others into a point."""
    return [
        name
        for name, each in found.items()
        if each["better"] != "neither" and each["low"] is not None and each.get("fold", "mean") == "mean"
    ]


def _interval(name: str, found: dict[str, Any]) -> tuple[str, float, float, float]:
    shown = name.replace("_", " ") + (" (lower is better)" if found["better"] == "lower" else "")
    return shown, found["low"], found["difference"], found["high"]


def _points(events: Sequence[dict[str, Any]], kind: str) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in events if event["kind"] == kind]


def _meanings(recipe: Recipe) -> dict[str, str]:
    found = {}
    for metric in recipe.evaluate.metrics:
        if metric.name in entries("tunesmith.evaluation.metrics"):
            found[metric.name] = (find("tunesmith.evaluation.metrics", metric.name).__doc__ or "").split("\n\n")[0]
    return found


def limits(scores: dict[str, Any], audit: dict[str, Any], recipe: Recipe) -> list[str]:
    """What the scores do not show, a sentence each."""
    first = next(iter(scores["sections"].values()))
    primary = first.get(scores["primary"]) or next(iter(first.values()))
    groups = f"{primary['groups']} {plural(scores['kind'], primary['groups'])}"
    said = [
        f"{primary['rows']} questions in {groups} were asked. {_unnoticed(primary)}",
        "The scores look at form and at likeness to the rows' own answers. Whether an answer is true, people must say.",
        "Replies were written with greedy decoding; other settings give other replies.",
    ]
    if leaks := _leaks(audit.get("leaks")):
        said.append(leaks)
    expanded = audit.get("expanded") or {"conversations": 0}
    if expanded["conversations"]:
        were = "conversation was" if expanded["conversations"] == 1 else "conversations were"
        said.append(
            f"{expanded['conversations']:,} {were} learned as {expanded['rows']:,} rows, one for each answer, because "
            "the chat template writes an earlier answer differently from the last one. Held-out ones were asked for "
            "their last answer."
        )
    if dropped := audit.get("reasoning_left_out"):
        said.append(f"The reasoning of {dropped:,} {plural('row', dropped)} was left out (prompt.reasoning: drop).")
    if not audit["parts"]["unseen"]:
        said.append("No whole group was held out, so nothing is known about topics that the rows do not cover.")
    outside = scores["sections"].get("outside the domain", {}).get("expected")
    if outside and outside["tuned"] < 0.5:
        tuned, base = (f"{100 * outside[which]:.0f} %" for which in ("tuned", "base"))
        said.append(
            f"Asked about other things, the tuned model did what it should in {tuned} of the prompts (base: {base}). "
            "Keep such questions away from it, or add rows that decline."
        )
    if primary["low"] == primary["high"]:
        said.append("Every row changed by the same amount, so the interval shows no width; more rows would show some.")
    return said


def _thoughts(folder: Path) -> list[str]:
    """What to know about replies that ended before the model's thought did."""
    said = []
    for which in ("base", "tuned"):
        replies = [item.reply for item in read_answered(folder / f"replies/{which}.jsonl")]
        count = sum(bool(reply.reasoning) and not reply.text for reply in replies)
        if count:
            said.append(
                f"{count} of {len(replies)} replies of the {which} model were still a thought when "
                "evaluate.max_new_tokens ended them, so they hold no answer. A higher limit would show one."
            )
    return said


def _unnoticed(primary: Mapping[str, Any]) -> str:
    """How small a change these rows would have missed."""
    if "detectable" not in primary:  # scores of an earlier version
        return "A change smaller than half the interval's width would not be noticed."
    if primary["detectable"] is None:
        return "How small a change they would have shown is not known."
    found = primary["detectable"]
    size = f"{found:.2f}" if found >= 0.01 else f"{found:.1g}"
    return f"A change smaller than {size} would have gone unnoticed 1 time in 5 or more often."


def _leaks(found: dict[str, Any] | None) -> str:
    """What was counted of training rows among the held-out ones."""
    if not found:
        return ""
    if leaking := max(found["prompts"], found.get("near_prompts", 0)):
        return f"{leaking} training rows have a held-out row's prompt, or nearly: the scores are partly memory."
    near = f", and none is {found['threshold']:.0%} alike" if "threshold" in found else ""
    same = f" {found['answers']} training rows have the same answer as a held-out row." if found["answers"] else ""
    return f"No training row has the prompt of a held-out row{near}.{same}"


def _used(recipe: Recipe, folder: Path, seals: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    used = {
        "Machine": f"{machine['name']} ({machine['device']}), {machine['cores']} cores",
        "Number type": f"{machine['precision']} ({machine['why']})",
        "Base weights": f"{recipe.base.bits} bit, fingerprint {seals['train']['weights'][:16]}",
        "Seed": str(recipe.seed),
        "Memory": f"planned {show_bytes(plan['peak'])}, measured {show_bytes(plan['measured'])} while training",
        "Versions": versions,
    }
    for product in ("prepare", "train", "evaluate"):
        seconds = seals[product].get("seconds")
        used[f"Time to {product}"] = f"{seconds:.0f} s" if seconds is not None else "–"
    adapter = seals["train"]["files"].get("adapter", "")
    used["Adapter"] = f"fingerprint {adapter[:16]}"
    return used
