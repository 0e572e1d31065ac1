"""Small finished runs, built through the run's own folder: no model, no training."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from handmade import row
from strict_pages import account
from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Conversation, conversation_to_dict
from tunesmith.evaluation.comparison import RowReply, compare
from tunesmith.generation.text_model import Reply
from tunesmith.runs.run import Run

STAGES = ("prepare", "train", "evaluate", "report")


def make_recipe(name: str, **changes: Any) -> Recipe:
    """A recipe of a made-up base; `changes` have __ for dots."""
    plain: dict[str, Any] = {
        "name": name,
        "about": "Short help about topics",
        "seed": 5,
        "base": {"model": "someone/base"},
        "data": {"source": "rows.jsonl", "format": {"columns": {"group": "topic"}}, "checks": ["empty", "personal"]},
        "evaluate": {"metrics": ["loss", "stops", "length"], "primary": "loss", "max_new_tokens": 32},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = plain
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return Recipe.model_validate(plain)


def held_rows(groups: int = 20, each: int = 3) -> dict[str, list[Conversation]]:
    """Held-out rows of so many topics, the last fifth of the topics in `unseen`."""
    rows = [
        row(g * each + n, f"how about {g}, {n}?", f"Answer {g} {n}.", group=f"t{g}")
        for g in range(groups)
        for n in range(each)
    ]
    cut = (groups - groups // 5) * each
    return {"test": rows[:cut], "unseen": rows[cut:]}


def finish(
    recipe: Recipe,
    folder: Path,
    *,
    until: str = "report",
    rows: Mapping[str, list[Conversation]] | None = None,
    gain: float = 1.0,
    base_text: str = "the base says so",
    tokenizer: str = "t0k",
    weights: str = "w" * 64,
    audit: dict[str, Any] | None = None,
) -> Run:
    """A run of `recipe` in `folder`, done up to `until`; `gain` is how much lower its loss is than the base's 2."""
    rows = rows or held_rows()
    run = Run(folder)
    run.write("recipe.yaml", yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True))
    todo = STAGES[: STAGES.index(until) + 1]
    for part in ("train", "valid", "test", "unseen"):
        run.write(
            f"data/{part}.jsonl", "".join(json.dumps(conversation_to_dict(each)) + "\n" for each in rows.get(part, []))
        )
    told = audit or account()
    run.write_json("audit.json", told)
    inputs = {"tokenizer": tokenizer, "template file": "model"}
    files = [*(f"data/{part}.jsonl" for part in ("train", "valid", "test", "unseen")), "audit.json"]
    run.write_fingerprints("prepare", inputs, files, seconds=1.0)
    if "train" in todo:
        _train(run, recipe, weights)
    if "evaluate" in todo:
        _evaluate(run, recipe, rows, gain, base_text)
    if "report" in todo:
        run.write("report.html", "<p>")
        run.write_fingerprints("report", {"scores": run.fingerprint("evaluate")}, ["report.html"])
    return run


def _train(run: Run, recipe: Recipe, weights: str) -> None:
    from tunesmith.runs.run import hash_json

    run.write("adapter/adapter_config.json", json.dumps({"name": recipe.name}))
    machine = {"device": "cpu", "name": "Processor 9000", "cores": 2, "precision": "float32", "why": "so it is"}
    run.write_json("machine.json", {**machine, "versions": {"torch": "2.9", "peft": "0.21"}})
    run.write_json("plan.json", {"peak": 3 << 30, "measured": 2 << 30})
    run.write("journal.jsonl", "".join(json.dumps(event) + "\n" for event in journal(12, 12)))
    inputs = {
        "data": run.fingerprint("prepare"),
        "adapter": hash_json(recipe.adapter.model_dump(mode="json")),
        "prompt": hash_json(recipe.prompt.model_dump(mode="json", exclude={"stop"})),
        **{f"train.{key}": hash_json(value) for key, value in recipe.train.model_dump(mode="json").items()},
    }
    summary = {"steps": 12, "best_step": 10, "best_loss": 1.1, "tokens": 4321, "seconds": 60.0}
    run.write_fingerprints("train", inputs, ["adapter"], seconds=62.5, summary=summary, weights=weights)


def journal(done: int, total: int) -> list[dict[str, Any]]:
    """The events of a training that came so far."""
    steps = [{"kind": "step", "step": n, "total": total, "loss": 2.0} for n in range(1, done + 1)]
    return [{"kind": "start", "step": 0, "total": total}, *steps]


def _evaluate(run: Run, recipe: Recipe, rows: Mapping[str, list[Conversation]], gain: float, base_text: str) -> None:
    held = {part: members for part, members in rows.items() if part not in ("train", "valid")}
    draw = random.Random(recipe.name)
    answered: dict[str, list[RowReply]] = {}
    for which, lower, text in (("base", 0.0, base_text), ("tuned", gain, f"{recipe.name} says so")):
        answered[which] = [
            RowReply(
                each.id, part, Reply(text, which == "tuned", 5), 2.0 - lower + draw.uniform(-0.2, 0.2) * bool(lower)
            )
            for part, members in held.items()
            for each in members
        ]
        lines = "".join(json.dumps(item.describe()) + "\n" for item in answered[which])
        run.write(f"replies/{which}.jsonl", lines)
    scores = compare(
        held,
        answered["base"],
        answered["tuned"],
        recipe.evaluate.metrics,
        primary=recipe.evaluate.primary,
        kind="topic",
        seed=recipe.seed,
    )
    run.write_json("scores.json", scores)
    inputs = {"adapter": run.fingerprint("train"), "data": run.fingerprint("prepare"), "evaluate": "e", "seed": "5"}
    run.write_fingerprints(
        "evaluate", inputs, ["scores.json", "replies/base.jsonl", "replies/tuned.jsonl"], seconds=9.0
    )
