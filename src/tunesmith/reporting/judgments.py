"""The report's sections on the judging model, on human reviews and on robustness, in sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import NamedSetting, Recipe
from tunesmith.config.registry import entries, entry_options, resolve
from tunesmith.evaluation.sentences import p_text
from tunesmith.runs.run import hash_json
from tunesmith.wording import counted

PERTURBATIONS = "tunesmith.evaluation.perturbations"
CONSISTENCY_LABELS = {
    "rouge_l": "likeness to the plain reply (ROUGE-L)",
    "same_steps": "as many steps as the plain reply",
}
Plain = dict[str, Any]
Records = Mapping[str, Plain]


# --- the judging model ------------------------------------------------------------------------------------------


def judge_section(folder: Path, recipe: Recipe, records: Records) -> Plain | None:
    """Returns judge.json with its result in sentences; None if no judge was asked."""
    content = _read_json(folder / "judge.json")
    if content is None:
        return None
    return {
        **content,
        "model": recipe.evaluate.judge.model,
        "verdict": _preference_sentence(content),
        "doubts": _reliability_notes(content),
        "stale": not content["missing"] and _is_outdated(records, "judge", "scores"),
    }


def _preference_sentence(judge: Plain) -> str:
    preference = judge["preference"]
    ties = counted(judge["ties"], "tie")
    if not preference:
        return f"The judge showed no preference: {ties}, no pair decided."
    difference = judge["difference"]
    openings = {
        "better": "The judge preferred the tuned model",
        "worse": "The judge preferred the base model",
        "too few to tell": "Too few pairs were judged to tell a preference",
        "too many missing": "Too many verdicts are missing to tell a preference",
    }
    opening = openings.get(difference["verdict"], "The judge showed no clear preference")
    decided = f"{judge['wins']} of {preference['of']} decided pairs ({format_share(preference)})"
    return f"{opening}: tuned won {decided}; {ties}, {p_text(difference['p'])}."


def _reliability_notes(judge: Plain) -> list[str]:
    """Returns sentences on the reliability of the judge."""
    sentences = []
    if judge["agreement"] is not None:
        sentences.append(
            "Asked twice, with the replies in both orders, the judge agreed with itself in "
            f"{_percent(judge['agreement'])} of the pairs; in {_percent(judge['order_decided'])} the order decided, "
            "not the reply. Such pairs are ties."
        )
    if judge["equal"]:
        was = "was not judged and counts as a tie" if judge["equal"] == 1 else "were not judged and count as ties"
        sentences.append(f"{counted(judge['equal'], 'pair')} with equal replies {was}.")
    if judge["missing"]:
        were = "was" if judge["missing"] == 1 else "were"
        reasons = ", ".join(f"{count} {reason}" for reason, count in judge["failures"].items())
        sentences.append(f"{counted(judge['missing'], 'pair')} without two verdicts {were} left out ({reasons}).")
    return sentences


# --- human reviews ----------------------------------------------------------------------------------------------


def review_section(folder: Path, records: Records) -> Plain | None:
    """Returns reviews.json; None if nobody judged anything."""
    content = _read_json(folder / "reviews.json")
    if content is None or not content["sections"]:
        return None
    return {**content, "outdated": _is_outdated(records, "review", "evaluate")}


# --- robustness -------------------------------------------------------------------------------------------------


def robustness_section(scores: Mapping[str, Any], perturbations: Sequence[NamedSetting]) -> list[Plain]:
    """Returns a table for each perturbation: its main lines, the other lines, and its result in sentences.

    `perturbations` are those of the recipe.
    """
    tables = []
    for title, table in scores.get("robustness", {}).items():
        lines = _table_lines(table)
        main_lines = [line for line in lines if line["alone"] or line["name"] in (scores["primary"], "expected")]
        tables.append(
            {
                "title": title.replace("_", " "),
                "what": _description(title, perturbations),
                "said": _sentences(table, scores["primary"]),
                "first": main_lines or lines,
                "rest": [line for line in lines if line not in main_lines] if main_lines else [],
                "twins": "base" in table,
            }
        )
    return tables


def _description(title: str, perturbations: Sequence[NamedSetting]) -> str:
    """Describes a perturbation by the first clause of its docstring, without parentheses and with options filled in."""
    name, _, option_text = title.partition("(")
    if name not in entries(PERTURBATIONS):
        return ""
    entry = resolve(PERTURBATIONS, name)
    text = " ".join((entry.__doc__ or "").split("\n\n")[0].split())
    title_options = dict(pair.split("=", 1) for pair in option_text.rstrip(")").split(", ") if "=" in pair)
    recipe_options = (
        next((option.options for option in perturbations if option.name == name), {}) if not option_text else {}
    )
    values = (
        {key: option.default for key, option in entry_options(entry).items()} | dict(recipe_options) | title_options
    )
    sentence = re.split(r"[.:;]\s", re.sub(r"\s\([^)]*\)", "", text))[0].rstrip(".") + "."
    return re.sub(r"`(\w+)`", lambda word: str(values.get(word[1]) or word[1]), sentence)


def _sentences(table: Plain, primary: str) -> list[str]:
    requests = f"{counted(table['rows'], 'request')} {'was' if table['rows'] == 1 else 'were'} asked in this form"
    without_twin = f"; {counted(table['left_out'], 'row')} could not be changed like this" if table["left_out"] else ""
    sentences = [f"{requests}{without_twin}."]
    name = primary.replace("_", " ")
    if consistency := table.get("consistency", {}).get("rouge_l"):
        sentences.append(
            f"The tuned model's replies stay {_percent(consistency['tuned'])} alike, the base model's "
            f"{_percent(consistency['base'])}: {_compared_with_base(consistency, 'steadier', 'less steady')}."
        )
    if change := table.get("tuned", {}).get(primary):
        sentences.append(f"The tuned model's {name} {_change_text(change)}.")
    elif against_base := table.get("tuned_against_base", {}).get(primary):
        base, tuned = f"{against_base['base']:.2f}", f"{against_base['tuned']:.2f}"
        sentences.append(f"Here {name} is {base} for the base model and {tuned} for the tuned one.")
    if obeyed := table.get("obeyed"):
        sentences.append(
            f"The tuned model obeyed the hidden order in {_percent(obeyed['tuned'])} of the requests, the base model "
            f"in {_percent(obeyed['base'])}: {_compared_with_base(obeyed, 'safer', 'easier to mislead')}."
        )
    return sentences


def _change_text(change: Plain) -> str:
    return f"went from {change['plain']:.2f} to {change['perturbed']:.2f} ({change['verdict']})"


def _compared_with_base(difference: Plain, good: str, bad: str) -> str:
    words = {"better": f"{good} than the base", "worse": f"{bad} than the base"}
    return words.get(difference["verdict"], "no difference was shown")


def _table_lines(table: Plain) -> list[Plain]:
    """Returns a line for each score: each model's change from the original requests, and tuned compared with base.

    Lines with `alone` have no values on the original requests: similarity of replies, and obeyed injections.
    """
    alone = {
        CONSISTENCY_LABELS.get(name, name): differences for name, differences in table.get("consistency", {}).items()
    }
    if obeyed := table.get("obeyed"):
        alone["obeyed the hidden order"] = obeyed
    lines = [
        {"name": name, "alone": True, "base": None, "tuned": None, "beside": difference}
        for name, difference in alone.items()
    ]
    sections = {section: table.get(section, {}) for section in ("base", "tuned", "tuned_against_base")}
    for name in dict.fromkeys(name for differences in sections.values() for name in differences):
        base, tuned, beside = (differences.get(name) for differences in sections.values())
        without_plain = base is None and tuned is None and "base" not in table
        lines.append({"name": name, "alone": without_plain, "base": base, "tuned": tuned, "beside": beside})
    return lines


# --- shared -----------------------------------------------------------------------------------------------------


def format_share(share: Mapping[str, Any]) -> str:
    """Formats a share with its interval in percent."""
    return f"{_percent(share['share'])}, 95 % interval {100 * share['low']:.0f} to {_percent(share['high'])}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _is_outdated(records: Records, product: str, key: str) -> bool:
    """Returns whether the product was made from other replies than the run has now; False if unknown."""
    record, files = records.get(product), records.get("evaluate", {}).get("files")
    return bool(record and files) and record["inputs"].get(key) != hash_json(files)  # type: ignore[index]


def _read_json(path: Path) -> Plain | None:
    if not path.is_file():
        return None
    content: Plain = json.loads(path.read_text(encoding="utf-8"))
    return content
