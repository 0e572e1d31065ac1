"""Judges a recipe over several trainings that differ in their seed alone, from their scores of the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.evaluation.comparison import HELD_OUT, RowKey, verdict_sentence
from tunesmith.evaluation.verdict import Verdict, correct, decide_over_trainings


@dataclass(frozen=True)
class Training:
    """One training of the recipe: its folder, its train.seed, and its scores.json."""

    run: str
    seed: int
    scores: Mapping[str, Any]


def compare_trainings(trainings: Sequence[Training], groups: Mapping[RowKey, str], *, seed: int) -> dict[str, Any]:
    """Returns the content of seeds.json: the recipe's verdict and, by held-out section and score, that over trainings.

    `groups` holds the group of every evaluated row. `tuned` is the mean over `trainings`, the list of each training's
    value (see verdict.decide_over_trainings). The scores of a section are corrected for multiple testing, except the
    primary score in the first section. The base's scores are those of the first training. Raises ValueError if the
    trainings were not evaluated on the same rows.
    """
    first = trainings[0].scores
    rows = [{(row["part"], row["id"]): row for row in training.scores["rows"]} for training in trainings]
    if any(keyed.keys() != rows[0].keys() for keyed in rows):
        raise ValueError("the trainings were evaluated on different rows")
    primary, kind = str(first["primary"]), str(first["kind"])
    sections: dict[str, dict[str, Verdict]] = {}
    for title, facts in first["sections"].items():
        parts = HELD_OUT if title == "all" else (title,)
        keys = [key for key in rows[0] if key[0] in parts]
        if not set(parts) <= set(HELD_OUT) or not keys:
            continue
        verdicts = {
            name: verdict
            for name, score in facts.items()
            if (verdict := _verdict(rows, keys, [groups[key] for key in keys], name, score, seed))
        }
        sections[title] = correct(verdicts, primary=None if sections else primary)
    main = next(iter(sections.values()), {}).get(primary)
    return {
        "primary": primary,
        "kind": kind,
        "trainings": [{"run": training.run, "seed": training.seed} for training in trainings],
        "verdict": verdict_sentence(primary, main, kind),
        "helped": main.outcome if main else "not measured",
        "sections": {
            title: {name: verdict.describe() for name, verdict in verdicts.items()}
            for title, verdicts in sections.items()
        },
    }


def _verdict(
    rows: Sequence[Mapping[RowKey, Mapping[str, Any]]],
    keys: Sequence[RowKey],
    groups: Sequence[str],
    name: str,
    facts: Mapping[str, Any],
    seed: int,
) -> Verdict | None:
    """Returns the verdict on one score; None if no row has it for the base and in every training."""
    base = [rows[0][key]["base"].get(name) for key in keys]
    tuned = [[keyed[key]["tuned"].get(name) for key in keys] for keyed in rows]
    if not any(None not in scores for scores in zip(base, *tuned, strict=True)):
        return None
    limits = facts.get("limits")
    return decide_over_trainings(
        base,
        tuned,
        groups,
        better=facts["better"],
        fold=facts["fold"],
        limits=(float(limits[0]), float(limits[1])) if limits else None,
        seed=seed,
    )
