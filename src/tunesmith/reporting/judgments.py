"""What others than the scores say of a run, in words: a model that judged, people who judged, disturbed requests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import Named, Recipe
from tunesmith.config.registry import entries, find, options
from tunesmith.evaluation.comparison import plural
from tunesmith.runs.run import hash_plain

ROBUST = "tunesmith.evaluation.perturbations"
ALIKE = {"rouge_l": "likeness to the plain reply (ROUGE-L)", "same_steps": "as many steps as the plain reply"}
Plain = dict[str, Any]
Seals = Mapping[str, Plain]


# --- a model that judged ----------------------------------------------------------------------------------------


def judged(folder: Path, recipe: Recipe, seals: Seals) -> Plain | None:
    """judge.json with what it says in sentences; None where no judge was asked."""
    found = _read(folder / "judge.json")
    if found is None:
        return None
    return {
        **found,
        "model": recipe.evaluate.judge.model,
        "verdict": _preferred(found),
        "doubts": _doubts(found),
        "stale": not found["missing"] and _stale(seals, "judge", "scores"),
    }


def _preferred(found: Plain) -> str:
    share = found["preference"]
    ties = f"{found['ties']} {plural('tie', found['ties'])}"
    if not share:
        return f"The judge showed no preference: {ties}, no pair decided."
    opening = "The judge showed no clear preference"
    if share["low"] > 0.5 or share["high"] < 0.5:
        opening = f"The judge preferred the {'tuned' if share['low'] > 0.5 else 'base'} model"
    return f"{opening}: tuned won {found['wins']} of {share['of']} decided pairs ({percent(share)}); {ties}."


def _doubts(found: Plain) -> list[str]:
    """How far the judge may be trusted, a sentence each."""
    said = []
    if found["agreement"] is not None:
        said.append(
            f"Asked twice, with the replies in either order, it agreed with itself in {_share(found['agreement'])} of "
            f"the pairs; in {_share(found['order_decided'])} the order decided and not the reply. Such pairs are ties."
        )
    if found["equal"]:
        was = "was not asked for: a tie" if found["equal"] == 1 else "were not asked for: ties"
        said.append(f"{_count(found['equal'], 'pair')} of equal replies {was}.")
    if found["missing"]:
        why = ", ".join(f"{count} {reason}" for reason, count in found["failures"].items())
        said.append(f"{_count(found['missing'], 'pair')} without two verdicts: in no figure ({why}).")
    return said


# --- people who judged ------------------------------------------------------------------------------------------


def reviewed(folder: Path, seals: Seals) -> Plain | None:
    """reviews.json, where people judged anything."""
    found = _read(folder / "reviews.json")
    if found is None or not found["sections"]:
        return None
    return {**found, "outdated": _stale(seals, "review", "evaluate")}


# --- disturbed requests -----------------------------------------------------------------------------------------


def disturbed(scores: Mapping[str, Any], named: Sequence[Named]) -> list[Plain]:
    """A table for each disturbance, its main lines and the rest, and what it says in sentences.

    `named` are the recipe's disturbances.
    """
    made = []
    for title, table in scores.get("robustness", {}).items():
        lines = _lines(table)
        first = [line for line in lines if line["alone"] or line["name"] in (scores["primary"], "expected")]
        made.append(
            {
                "title": title.replace("_", " "),
                "what": _what(title, named),
                "said": _told(table, scores["primary"]),
                "first": first or lines,
                "rest": [line for line in lines if line not in first] if first else [],
                "twins": "base" in table,
            }
        )
    return made


def _what(title: str, named: Sequence[Named]) -> str:
    """What a disturbance does, in its docstring's first words without brackets, its options filled in."""
    name, _, told = title.partition("(")
    if name not in entries(ROBUST):
        return ""
    entry = find(ROBUST, name)
    text = " ".join((entry.__doc__ or "").split("\n\n")[0].split())
    given = dict(pair.split("=", 1) for pair in told.rstrip(")").split(", ") if "=" in pair)
    alone = next((each.options for each in named if each.name == name), {}) if not told else {}
    known = {key: each.default for key, each in options(entry).items()} | dict(alone) | given
    sentence = re.split(r"[.:;]\s", re.sub(r"\s\([^)]*\)", "", text))[0].rstrip(".") + "."
    return re.sub(r"`(\w+)`", lambda word: str(known.get(word[1]) or word[1]), sentence)


def _told(table: Plain, primary: str) -> list[str]:
    asked = f"{_count(table['rows'], 'request')} {'was' if table['rows'] == 1 else 'were'} asked in this form"
    left = f", which {_count(table['left_out'], 'row')} cannot take" if table["left_out"] else ""
    said = [f"{asked}{left}."]
    name = primary.replace("_", " ")
    if alike := table.get("consistency", {}).get("rouge_l"):
        said.append(
            f"The tuned model's replies stay {_share(alike['tuned'])} alike, the base model's "
            f"{_share(alike['base'])}: {_beside(alike, 'steadier', 'less steady')}."
        )
    if change := table.get("tuned", {}).get(primary):
        said.append(f"The tuned model's {name} {_went(change)}.")
    elif met := table.get("tuned_against_base", {}).get(primary):
        said.append(f"Here {name} is {met['base']:.2f} for the base model and {met['tuned']:.2f} for the tuned one.")
    if obeyed := table.get("obeyed"):
        said.append(
            f"The hidden order was obeyed in {_share(obeyed['tuned'])} of the requests by the tuned model and in "
            f"{_share(obeyed['base'])} by the base: {_beside(obeyed, 'safer', 'easier to mislead')}."
        )
    return said


def _went(change: Plain) -> str:
    return f"went from {change['plain']:.2f} to {change['disturbed']:.2f} ({change['verdict']})"


def _beside(found: Plain, good: str, bad: str) -> str:
    words = {"better": f"{good} than the base", "worse": f"{bad} than the base"}
    return words.get(found["verdict"], "no difference was shown")


def _lines(table: Plain) -> list[Plain]:
    """A line for each score: each model's change where twins have plain rows, and tuned beside base.

    Alone are figures that have no plain side: how alike replies stay, and hidden orders obeyed.
    """
    alone = {ALIKE.get(name, name): found for name, found in table.get("consistency", {}).items()}
    if obeyed := table.get("obeyed"):
        alone["obeyed the hidden order"] = obeyed
    lines = [{"name": name, "alone": True, "base": None, "tuned": None, "beside": each} for name, each in alone.items()]
    sections = {section: table.get(section, {}) for section in ("base", "tuned", "tuned_against_base")}
    for name in dict.fromkeys(name for found in sections.values() for name in found):
        base, tuned, beside = (found.get(name) for found in sections.values())
        without_plain = base is None and tuned is None and "base" not in table
        lines.append({"name": name, "alone": without_plain, "base": base, "tuned": tuned, "beside": beside})
    return lines


# --- shared -----------------------------------------------------------------------------------------------------


def percent(share: Mapping[str, Any]) -> str:
    """A share with its interval's ends, in per cent."""
    return f"{_share(share['share'])}, 95 % interval {100 * share['low']:.0f} to {_share(share['high'])}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _count(number: int, what: str) -> str:
    return f"{number} {plural(what, number)}"


def _stale(seals: Seals, product: str, key: str) -> bool:
    """Whether the sealed product was made from other replies than the run has; unknown is no."""
    seal, made = seals.get(product), seals.get("evaluate", {}).get("files")
    return bool(seal and made) and seal["made_from"].get(key) != hash_plain(made)  # type: ignore[index]


def _read(path: Path) -> Plain | None:
    if not path.is_file():
        return None
    found: Plain = json.loads(path.read_text(encoding="utf-8"))
    return found
