"""The report, from what lies in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.data.conversation import Conversation
from tunesmith.evaluate.compare import plural
from tunesmith.find import entries, find
from tunesmith.memory import show_bytes
from tunesmith.recipe import Recipe
from tunesmith.report import plots
from tunesmith.report.page import render
from tunesmith.train.journal import read_journal


def report_page(
    recipe: Recipe,
    folder: Path,
    rows: Mapping[str, Sequence[Conversation]],
    *,
    command: str,
    seals: Mapping[str, dict[str, Any]],
) -> str:
    """The page about the run: `rows` are the rows that were asked, by part."""
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    events = read_journal(folder / "journal.jsonl")
    training = seals["train"]["summary"]
    first = next(iter(scores["sections"].values()))
    titles = {part: title(part, scores["kind"]) for part in scores["sections"]}
    chosen = [name for name in first if first[name]["better"] != "neither" and first[name]["low"] is not None]
    return render(
        "report.html",
        name=recipe.name,
        about=recipe.about.rstrip("."),
        base=recipe.base.model,
        scores=scores,
        plot=plots.intervals([_interval(name, first[name]) for name in chosen]),
        titles=titles,
        kind=scores["kind"],
        meanings=_meanings(recipe),
        audit=audit,
        curves=plots.curves(_points(events, "step"), _points(events, "valid"), training.get("best_step")),
        training=training,
        notes=[event for event in events if event["kind"] == "note"],
        replies=_replies(folder, rows, scores),
        limits=limits(scores, audit, recipe),
        used=_used(recipe, folder, seals),
        command=command,
        recipe=yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True),
    )


def _interval(name: str, found: dict[str, Any]) -> tuple[str, float, float, float]:
    shown = name.replace("_", " ") + (" (lower is better)" if found["better"] == "lower" else "")
    return shown, found["low"], found["difference"], found["high"]


def title(part: str, kind: str) -> str:
    """A part of the held-out rows in words; `kind` is what the rows' groups are called."""
    known = {
        "all": "all held-out rows",
        "test": f"new questions, {plural(kind)} known from training",
        "unseen": f"{plural(kind)} never seen in training",
    }
    return known.get(part, part)


def _points(events: Sequence[dict[str, Any]], kind: str) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in events if event["kind"] == kind]


def _meanings(recipe: Recipe) -> dict[str, str]:
    found = {}
    for metric in recipe.evaluate.metrics:
        if metric.name in entries("tunesmith.evaluate.metrics"):
            found[metric.name] = (find("tunesmith.evaluate.metrics", metric.name).__doc__ or "").split("\n\n")[0]
    return found


def _replies(
    folder: Path, rows: Mapping[str, Sequence[Conversation]], scores: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    texts = {
        which: {(item["part"], item["id"]): item for item in _lines(folder / "replies" / f"{which}.jsonl")}
        for which in ("base", "tuned")
    }
    values = {(item["part"], item["id"]): item for item in scores["rows"]}
    shown: dict[str, list[dict[str, Any]]] = {}
    main = scores["primary"]
    for part, members in rows.items():
        for row in members:
            key = (part, row.id)
            wanted = row.answer or str(row.fields.get("good_reply", ""))
            shown.setdefault(title(part, scores["kind"]), []).append(
                {
                    "question": row.question,
                    "group": row.group,
                    "base": texts["base"][key],
                    "tuned": texts["tuned"][key],
                    "base_scores": values[key]["base"],
                    "tuned_scores": values[key]["tuned"],
                    "marks": [values[key][which].get(main) for which in ("base", "tuned")],
                    "wanted": wanted,
                    "wanted_title": "The row's own answer" if row.answer else "What a good reply does",
                }
            )
    return shown


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")  # not splitlines(): a reply may hold U+2028, which JSON leaves as it is
    return [json.loads(line) for line in text.split("\n") if line]


def limits(scores: dict[str, Any], audit: dict[str, Any], recipe: Recipe) -> list[str]:
    """What the scores do not show, a sentence each."""
    first = next(iter(scores["sections"].values()))
    primary = first.get(scores["primary"]) or next(iter(first.values()))
    groups = f"{primary['groups']} {plural(scores['kind'], primary['groups'])}"
    said = [
        f"{primary['rows']} questions in {groups} were asked. A change smaller than half the interval's width would "
        "not be noticed.",
        "The scores look at form and at likeness to the rows' own answers. Whether an answer is true, people must say.",
        "Replies were written with greedy decoding; other settings give other replies.",
    ]
    if leaks := _leaks(audit.get("leaks")):
        said.append(leaks)
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
