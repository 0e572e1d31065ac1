"""The report page of a run, from the files in its folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import METRICS, Recipe
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Conversation
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.comparison import read_row_replies
from tunesmith.evaluation.sentences import (
    abilities_sentence,
    measured_text,
    missed_sentences,
    solved,
    too_few_sentence,
)
from tunesmith.evaluation.verdict import MIN_GROUPS
from tunesmith.reporting import plots
from tunesmith.reporting.exported_files import read_exported_files
from tunesmith.reporting.html_page import render_page
from tunesmith.reporting.judgments import judge_section, review_section, robustness_section
from tunesmith.reporting.replies import part_title, read_reply_items, reply_filters, worst_items
from tunesmith.runs.run import hash_json
from tunesmith.training.job import read_journal
from tunesmith.wording import counted, show_bytes


def report_page(
    recipe: Recipe,
    folder: Path,
    rows: Mapping[str, Sequence[Conversation]],
    *,
    command: str,
    records: Mapping[str, dict[str, Any]],
) -> str:
    """Renders the report page; `rows` are the evaluated rows by part.

    `records` holds the fingerprints of prepare, train and evaluate, and of judge, review and seeds if they exist: with
    them the page warns if their verdicts are about earlier replies, and leaves out a verdict over other trainings.
    """
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    events = read_journal(folder / "journal.jsonl")
    training = records["train"]["summary"]
    first_section = next(iter(scores["sections"].values()))
    titles = {part: part_title(part, scores["kind"]) for part in scores["sections"]}
    measured = {metric.name for metric in recipe.evaluate.metrics}
    review = review_section(folder, records)
    replies = read_reply_items(folder, rows, scores, recipe.evaluate.metrics)
    seeds = _seeds(folder, records)
    trainings = len(seeds["trainings"]) if seeds else 1
    return render_page(
        "report.html",
        name=recipe.name,
        about=recipe.about.rstrip("."),
        base=recipe.base.model,
        scores=scores,
        plot=plots.interval_plot([_interval(name, first_section[name]) for name in _plotted_scores(first_section)]),
        titles=titles,
        min_groups=MIN_GROUPS,
        kind=scores["kind"],
        meanings=_meanings(recipe),
        audit=audit,
        curves=plots.loss_curves(_points(events, "step"), _points(events, "valid"), training.get("best_step")),
        training=training,
        notes=[event for event in events if event["kind"] == "note"],
        replies={part_title(part, scores["kind"]): items for part, items in replies.items()},
        filters=reply_filters(replies, recipe.evaluate.metrics),
        worst=worst_items(replies),
        doubt_word="unsupported" if "grounded" in measured else "contradicted",
        logs=first_section.get(scores["primary"], {}).get("fold") == "exp",
        seeds=seeds,
        seeds_titles={part: part_title(part, scores["kind"]) for part in (seeds or {}).get("sections", {})},
        **_retention_section(scores.get("retention")),
        robustness=robustness_section(scores, recipe.evaluate.robustness),
        judge=judge_section(folder, recipe, records),
        review=review,
        review_titles={part: part_title(part, scores["kind"]) for part in (review or {}).get("sections", {})},
        exported=read_exported_files(folder),
        limits=[
            *limitations(scores, audit, recipe, trainings),
            *_unfinished_thoughts(folder),
        ],
        setup=_run_facts(recipe, folder, records),
        command=command,
        recipe=yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True),
    )


def _seeds(folder: Path, records: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the content of seeds.json; None if the recipe was trained once, or if it is older than the scores."""
    record = records.get("seeds")
    if not record or record["inputs"].get(".") != hash_json(records["evaluate"]["files"]):
        return None
    seeds: dict[str, Any] = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    return seeds


def _retention_section(retention: dict[str, Any] | None) -> dict[str, Any]:
    """Returns what the page shows of general abilities; `retention` is None if they were not asked."""
    if not retention:
        return {"retention": None, "abilities_sentence": ""}
    abilities = {
        name: {**verdict, "solved": {side: solved(verdict, side) for side in ("base", "tuned")}}
        for name, verdict in retention["abilities"].items()
    }
    unlearned = {name: verdict["unlearned"] for name, verdict in abilities.items() if verdict["unlearned"]}
    sentence = abilities_sentence(retention)
    return {"retention": {**retention, "abilities": abilities}, "unlearned": unlearned, "abilities_sentence": sentence}


def _plotted_scores(section: Mapping[str, dict[str, Any]]) -> list[str]:
    """Returns the scores of the interval plot, without exponentials, whose scale would hide the others."""
    return [
        name
        for name, difference in section.items()
        if difference["better"] != "neither"
        and difference["low"] is not None
        and difference.get("fold", "mean") == "mean"
    ]


def _interval(name: str, difference: dict[str, Any]) -> tuple[str, float, float, float]:
    label = name.replace("_", " ") + (" (lower is better)" if difference["better"] == "lower" else "")
    return label, difference["low"], difference["difference"], difference["high"]


def _points(events: Sequence[dict[str, Any]], kind: str) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in events if event["kind"] == kind]


def _meanings(recipe: Recipe) -> dict[str, str]:
    meanings = {}
    for metric in recipe.evaluate.metrics:
        with contextlib.suppress(TunesmithError):  # a metric of a package that is not installed here
            meanings[metric.name] = (resolve(METRICS, metric.name).__doc__ or "").split("\n\n")[0]
    return meanings


def limitations(scores: dict[str, Any], audit: dict[str, Any], recipe: Recipe, trainings: int = 1) -> list[str]:
    """Returns sentences on what the scores of a recipe that was trained so many times do not show."""
    first_section = next(iter(scores["sections"].values()))
    primary = first_section.get(scores["primary"]) or next(iter(first_section.values()))
    kind = scores["kind"]
    sentences = [
        f"The primary score was {measured_text(primary, kind)}. {_detectable_sentence(primary, kind)}",
        "The scores measure form and similarity to the rows' answers. Only people can tell whether an answer is true.",
        "Replies were generated with greedy decoding; other settings give other replies.",
        "The recipe was trained once. How much another seed changes the scores is not known; `tunesmith run` with "
        "`--seeds 3` measures it."
        if trainings == 1
        else f"The recipe was trained {trainings} times. Only the scores of the held-out rows were compared over all "
        "trainings; everything else on this page is about the adapter of this run.",
    ]
    sentences += scores.get("notes", [])
    if leaks := _leak_sentence(audit.get("leaks")):
        sentences.append(leaks)
    expanded = audit.get("expanded") or {"conversations": 0}
    if expanded["conversations"]:
        were = "conversation was" if expanded["conversations"] == 1 else "conversations were"
        sentences.append(
            f"{expanded['conversations']:,} {were} trained on as {expanded['rows']:,} rows, one for each answer, "
            "because the chat template writes an earlier answer differently from the last one. Held-out conversations "
            "were asked for their last answer."
        )
    if dropped := audit.get("reasoning_left_out"):
        sentences.append(f"The reasoning of {counted(dropped, 'row')} was left out (prompt.reasoning: drop).")
    if not scores.get("retention"):
        sentences.append("General abilities were not tested (evaluate.retention: 0), so it is not known what was lost.")
    if not audit["parts"]["unseen"]:
        sentences.append("No whole group was held out, so nothing is known about topics that the rows do not cover.")
    outside = scores["sections"].get("outside the domain", {}).get("expected")
    if outside and outside["tuned"] < 0.5:
        tuned, base = (f"{100 * outside[which]:.0f} %" for which in ("tuned", "base"))
        sentences.append(
            f"Asked about other topics, the tuned model replied as expected in {tuned} of the prompts (base: {base}). "
            "Do not send it such questions, or add rows that decline them."
        )
    return sentences


def _unfinished_thoughts(folder: Path) -> list[str]:
    """Returns a sentence per model whose replies were cut while it was still thinking."""
    sentences = []
    for which in ("base", "tuned"):
        replies = [item.reply for item in read_row_replies(folder / f"replies/{which}.jsonl")]
        count = sum(bool(reply.reasoning) and not reply.text for reply in replies)
        if count:
            sentences.append(
                f"{count} of {len(replies)} replies of the {which} model were cut at evaluate.max_new_tokens while it "
                "was still thinking, so they contain no answer. Raise the limit to see one."
            )
    return sentences


def _detectable_sentence(primary: Mapping[str, Any], kind: str) -> str:
    """Returns a sentence on the smallest change that these rows usually show."""
    if primary["verdict"] == "too few to tell":
        return too_few_sentence(primary, kind)
    unknown = "It is not known how small a change these rows would usually show."
    return next(iter(missed_sentences(primary)), unknown)


def _leak_sentence(leaks: dict[str, Any] | None) -> str:
    """Returns a sentence on training rows that also occur among the held-out rows."""
    if not leaks:
        return ""
    if leaking := max(leaks["prompts"], leaks.get("near_prompts", 0)):
        return f"{leaking} training rows have the prompt of a held-out row, or nearly: the scores are partly memory."
    near = f", and none is {leaks['threshold']:.0%} alike" if "threshold" in leaks else ""
    same_answers = (
        f" {leaks['answers']} training rows have the same answer as a held-out row." if leaks["answers"] else ""
    )
    return f"No training row has the prompt of a held-out row{near}.{same_answers}"


def _run_facts(recipe: Recipe, folder: Path, records: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    used = {
        "Machine": f"{machine['name']} ({machine['device']}), {machine['cores']} cores",
        "Number type": f"{machine['precision']} ({machine['why']})",
        "Base weights": f"{recipe.base.bits} bit, fingerprint {records['train']['weights'][:16]}",
        "Seed": str(recipe.seed) if recipe.train.seed is None else f"{recipe.seed}, training {recipe.train.seed}",
        "Memory": f"planned {show_bytes(plan['peak'])}, measured {show_bytes(plan['measured'])} while training",
        "Versions": versions,
    }
    for product in ("prepare", "train", "evaluate"):
        seconds = records[product].get("seconds")
        used[f"Time to {product}"] = f"{seconds:.0f} s" if seconds is not None else "–"
    if costs := records["evaluate"].get("costs"):
        used["A reply"] = "; ".join(
            f"{name}: {cost['tokens']:.0f} tokens on average"
            + (f", {cost['seconds']:.2f} s" if cost["seconds"] else "")
            for name, cost in costs.items()
        )
    adapter = records["train"]["files"].get("adapter", "")
    used["Adapter"] = f"fingerprint {adapter[:16]}"
    return used
