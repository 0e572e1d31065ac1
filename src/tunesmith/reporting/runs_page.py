"""Compares finished runs on the same rows: the values, and the page about them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import parse_yaml, read_recipe
from tunesmith.data.conversation import read_rows
from tunesmith.errors import RunError, TunesmithError
from tunesmith.evaluation.comparison import HELD_OUT
from tunesmith.evaluation.sentences import headline
from tunesmith.evaluation.verdict import MIN_GROUPS, Verdict, correct, decide
from tunesmith.reporting import plots
from tunesmith.reporting.html_page import format_number, render_page
from tunesmith.runs.run import Run, command_for_product, hash_file, hash_json

BY_TOKEN = ("loss", "perplexity")  # means over tokens, which depend on the tokenizer
SEEDS = ("seed", "train.seed")
IDENTITY = ("name", "small")  # keys that are not compared: the run's name, and what --small would change
MAX_NAME_LENGTH = 150  # characters of a page's file name; file systems allow 255 bytes


@dataclass(frozen=True)
class RunComparison:
    """The comparison of runs on their common rows.

    `rows`: by run, how many rows were asked, are common, were not asked in all runs, and have another text elsewhere.
    `sections`: by part and score: better, rows, groups, base (None if the runs' bases differ), runs (the means by run)
    and against (by run except the first, the paired difference from it as `Verdict.describe` returns it).
    `recipe`: settings that differ, with the value of each run. `facts`: facts about each run.
    """

    labels: tuple[str, ...]
    primary: str
    kind: str
    rows: dict[str, dict[str, int]]
    sections: dict[str, dict[str, dict[str, Any]]]
    verdicts: list[tuple[str, str]]
    recipe: list[tuple[str, list[str]]]
    facts: dict[str, dict[str, str]]
    notes: list[str]
    page: Path | None = None

    @property
    def common(self) -> int:
        """The number of rows that all runs were asked."""
        return self.rows[self.labels[0]]["common"]

    def lines(self) -> list[str]:
        """Returns the comparison as text for a terminal."""
        text_lines = [text for _, text in self.verdicts]
        text_lines += [f"{label}: {_rows_sentence(self.rows[label])}" for label in self.labels]
        text_lines += self.notes
        text_lines += [f"{key}: {', '.join(values)}" for key, values in self.recipe]
        return text_lines if self.recipe else [*text_lines, "the recipes differ only in their names"]


@dataclass(frozen=True)
class _RunData:
    """The data of one run. `asked`: by row id, its part, its group and its identity, which is equal in other runs."""

    label: str
    run: Run
    recipe: dict[str, Any]
    scores: dict[str, Any]
    fingerprints: dict[str, dict[str, Any]]
    asked: dict[str, tuple[str, str, Any]]
    tuned: dict[str, dict[str, float]]
    base: dict[str, dict[str, float]]
    replies: dict[str, str]
    note: str

    def setting(self, *keys: str) -> Any:
        value: Any = self.recipe
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def page_name(labels: Sequence[str]) -> str:
    """Returns the file name of the page that compares these runs."""
    plain = "-".join(re.sub(r"[^\w.-]+", "_", label) for label in labels)
    if len(plain) > MAX_NAME_LENGTH:
        plain = f"{plain[:MAX_NAME_LENGTH]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
    return f"compare-{plain}.html"


def compare_run_folders(folders: Sequence[Path]) -> RunComparison:
    """Compares the runs in `folders`, each with the first, on the rows that all were asked.

    A row is the same if its id and all turns are equal; a probe, if the file of probes and the system message are.
    Raises RunError if a run is not evaluated, is damaged or has scores of an older adapter, or if no row is common.
    """
    members = [_read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]
    first = members[0]
    common = [key for key in first.asked if all(_is_same_row(first, another, key) for another in members[1:])]
    if not common:
        row_counts = ", ".join(f"{member.label}: {len(member.asked)} rows" for member in members)
        advice = "Compare runs with the same rows, data.split, prompt.system and seed"
        raise RunError("no row was asked in all of these runs", where=row_counts, next=advice)
    notes = [f"{member.label}: {member.note}" for member in members if member.note]
    left_out = _incomparable_scores(members)
    notes += [f"left out, because the runs count tokens differently: {', '.join(left_out)}"] if left_out else []
    notes += _settings_notes(members)
    base_note = _base_note(members, common)
    sections = {
        title: section
        for place, (title, keys) in enumerate(_parts(members, common).items())
        if (section := _compare(members, keys, left_out, shared_base=not base_note, decides=place == 0))
    }
    kind = str(first.scores.get("kind", "group"))
    recipe_differences = _recipe_differences(members)
    same_recipe = bool(recipe_differences) and all(key in SEEDS for key, _ in recipe_differences)
    notes += [_trainings_note(same_recipe=same_recipe)]
    verdicts = _verdicts(members, sections, kind, same_recipe=same_recipe)
    return RunComparison(
        labels=tuple(member.label for member in members),
        primary=first.scores["primary"],
        kind=kind,
        rows={member.label: _count_rows(member, members, set(common)) for member in members},
        sections=sections,
        verdicts=verdicts,
        recipe=recipe_differences,
        facts={member.label: _facts(member) for member in members},
        notes=[*notes, *([base_note] if base_note else [])],
    )


def runs_page(comparison: RunComparison) -> str:
    """Renders the comparison as an offline page."""
    from tunesmith.reporting.replies import part_title

    main = next(iter(comparison.sections.values()))
    return render_page(
        "runs.html",
        comparison=comparison,
        first=comparison.labels[0],
        others=comparison.labels[1:],
        titles={part: part_title(part, comparison.kind) for part in comparison.sections},
        counted={label: _rows_sentence(comparison.rows[label]) for label in comparison.labels},
        facts={name: [comparison.facts[label].get(name, "–") for label in comparison.labels] for name in _FACTS},
        main=main,
        plot=_plot(comparison, main),
        few=MIN_GROUPS,
        pairs=sum(len(score["against"]) for part in comparison.sections.values() for score in part.values()),
    )


def _plot(comparison: RunComparison, main: Mapping[str, Any]) -> str:
    """Plots every score with a good direction for two runs, the primary score for more; '' without intervals."""
    names = [comparison.primary] if len(comparison.labels) > 2 and comparison.primary in main else list(main)
    items = []
    for name in names:
        for label, difference in main[name]["against"].items():
            if difference["better"] == "neither" or difference["low"] is None:
                continue
            words = label if len(names) == 1 else name.replace("_", " ")
            lower = " (lower is better)" if difference["better"] == "lower" else ""
            items.append((words + lower, difference["low"], difference["difference"], difference["high"]))
    if not items:
        return ""
    axis = names[0].replace("_", " ") if len(names) == 1 else "difference"
    return plots.interval_plot(items, axis=f"{axis}: a run minus the first")


# --- reading -----------------------------------------------------------------------------------------------


def _labels(folders: Sequence[Path]) -> list[str]:
    """Returns a label for each run: the end of its path, as long as needed to tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        tails = ["/".join(path_parts[-length:]) for path_parts in parts]
        if len(set(tails)) == len(tails):
            return tails
    raise AssertionError(f"a run is listed twice in {folders}")


def _read(folder: Path, label: str) -> _RunData:
    run = Run(folder)
    records = {product: run.read_fingerprints(product) for product in ("prepare", "train", "evaluate")}
    for product, record in records.items():
        if record is None:
            raise RunError(f"{product} is not finished", where=str(folder), next=command_for_product(product, folder))
    finished = {product: record for product, record in records.items() if record}
    if finished["evaluate"]["inputs"].get("adapter") != run.fingerprint("train"):
        raise RunError(
            "its scores are older than its adapter", where=str(folder), next=command_for_product("evaluate", run.path)
        )
    for product, names in (("prepare", ("data/test.jsonl", "data/unseen.jsonl")), ("evaluate", None)):
        _check_files(run, finished[product]["files"], names)
    scores = run.read_json("scores.json")
    recipe, note = _recipe(folder, finished["train"])
    base, tuned = ({row["id"]: row[which] for row in scores["rows"]} for which in ("base", "tuned"))
    return _RunData(
        label,
        run,
        recipe,
        scores,
        finished,
        _asked_rows(run, scores, finished, recipe),
        tuned,
        base,
        _replies(run),
        note,
    )


def _check_files(run: Run, files: Mapping[str, str], names: Sequence[str] | None) -> None:
    for name in names or files:
        if name in files and (not (run / name).is_file() or hash_file(run / name) != files[name]):
            raise RunError(
                f"{name} is missing or was changed", where=str(run.path), next=command_for_product("evaluate", run.path)
            )


def _recipe(folder: Path, trained: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the run's recipe with current defaults filled in, and a note on it or ''."""
    try:
        recipe = parse_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder / "recipe.yaml"))[0]
    except (OSError, UnicodeDecodeError) as error:
        advice = "Restore it from a backup"
        raise RunError(f"recipe.yaml cannot be read: {error}", where=str(folder), next=advice) from error
    changed = _changed_sections(recipe, trained["inputs"])
    note = f"the recipe was changed after training ({', '.join(changed)}), so what differs may not be why" * bool(
        changed
    )
    try:
        return read_recipe(str(folder)).dump(), note
    except TunesmithError:
        return recipe, note or "the recipe is from another version: settings that it lacks are shown as –"


def _changed_sections(recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """Returns the sections of recipe.yaml that differ from those that the adapter was trained with."""
    prompt = {
        key: value for key, value in (recipe.get("prompt") or {}).items() if key != "stop"
    }  # does not affect training
    sections = {"adapter": recipe.get("adapter"), "prompt": prompt}
    sections |= {f"train.{key}": value for key, value in (recipe.get("train") or {}).items()}
    if prompt.get("template") != "model":
        del sections["prompt"]  # the fingerprint has the resolved path, not that of the recipe
    return [name for name, value in sections.items() if name in inputs and hash_json(value) != inputs[name]]


def _asked_rows(
    run: Run, scores: Mapping[str, Any], records: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, tuple[str, str, Any]]:
    """Returns, by row id, its part, its group, and its identity, which must be equal to be the same row elsewhere."""
    files = [run / f"data/{part}.jsonl" for part in HELD_OUT]
    held_out = {row.id: row for file in files if file.exists() for row in read_rows(file)}
    inputs, system = records["evaluate"]["inputs"], (recipe.get("prompt") or {}).get("system")
    asked_rows = {}
    for scored_row in scores["rows"]:
        name, _, perturbation = str(scored_row["id"]).partition(
            "~"
        )  # a perturbed twin: its text follows from the settings
        if row := held_out.get(name):
            turns = [(turn.role, turn.text) for turn in row.turns]
            identity: Any = (turns, inputs["evaluate"], inputs["seed"]) if perturbation else turns
        else:
            identity = (
                (inputs["probes"], system) if inputs.get("probes") else run.path
            )  # unknown: equal to no other run
        asked_rows[scored_row["id"]] = (scored_row["part"], row.group if row else "", identity)
    return asked_rows


def _replies(run: Run) -> dict[str, str]:
    text = (run / "replies/base.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.split("\n") if line]
    return {reply["id"]: reply["text"] for reply in records}


# --- the same rows -----------------------------------------------------------------------------------------


def _is_same_row(first: _RunData, second: _RunData, key: str) -> bool:
    return key in second.asked and first.asked[key][2] == second.asked[key][2]


def _count_rows(member: _RunData, members: Sequence[_RunData], common: set[str]) -> dict[str, int]:
    others = [key for key in member.asked if key not in common]
    everywhere = sum(all(key in run.asked for run in members) for key in others)
    alone = len(others) - everywhere
    return {"asked": len(member.asked), "common": len(common), "elsewhere_not": alone, "other_words": everywhere}


def _rows_sentence(rows: Mapping[str, int]) -> str:
    text = f"{rows['common']} of {rows['asked']} rows are common to all runs"
    if rows["elsewhere_not"]:
        text += f", {rows['elsewhere_not']} were not asked everywhere"
    if rows["other_words"]:
        text += f", {rows['other_words']} have another prompt or answer elsewhere"
    return text


def _parts(members: Sequence[_RunData], common: Sequence[str]) -> dict[str, list[str]]:
    """Returns the common rows by part: all held-out rows, those in the same part in every run, each kind of probe."""
    parts = {key: {member.asked[key][0] for member in members} for key in common}
    held_out = [key for key in common if parts[key] <= set(HELD_OUT)]
    agreed = {part: [key for key in held_out if parts[key] == {part}] for part in HELD_OUT}
    keys_by_part = {"all": held_out} if held_out else {}
    if sum(map(bool, agreed.values())) > 1:
        keys_by_part |= agreed
    for key in common:
        if key not in held_out:
            keys_by_part.setdefault(members[0].asked[key][0], []).append(key)
    return keys_by_part


def _incomparable_scores(members: Sequence[_RunData]) -> list[str]:
    """Returns the per-token scores of these runs that cannot be compared, because their tokens differ."""
    tokenizations = {
        (
            member.fingerprints["prepare"]["inputs"].get("tokenizer"),
            learn := member.setting("prompt", "learn"),
            member.fingerprints["prepare"]["inputs"].get("template file") if learn == "everything" else "",
        )
        for member in members
    }
    names = {name for member in members for scores in member.tuned.values() for name in scores}
    return [name for name in BY_TOKEN if name in names] if len(tokenizations) > 1 else []


def _settings_notes(members: Sequence[_RunData]) -> list[str]:
    notes = []
    for key in ("max_new_tokens", "metrics", "primary"):
        values = [_as_text(member.setting("evaluate", key)) for member in members]
        if len(set(values)) > 1:
            shown_values = ", ".join(f"{member.label} {value}" for member, value in zip(members, values, strict=True))
            notes.append(f"evaluate.{key} is not the same: {shown_values}")
    return notes


def _trainings_note(*, same_recipe: bool) -> str:
    if same_recipe:
        return "these are trainings of one recipe, so a difference is between adapters, not between recipes"
    return "each run counts with one training, so a difference may come from its seed as well as from its settings"


def _base_note(members: Sequence[_RunData], common: Sequence[str]) -> str:
    """Returns why the base has no column; '' if all runs have the same base with the same replies."""
    bases = {(member.fingerprints["train"].get("weights"), member.setting("base", "bits")) for member in members}
    if len(bases) > 1:
        return "the base has no column, because the runs have different ones"
    replies = [[member.replies.get(key) for key in common] for member in members]
    if differing := sum(len(set(texts)) > 1 for texts in zip(*replies, strict=True)):
        return f"the base has no column, because {differing} of its {len(common)} replies differ from run to run"
    return ""


def _compare(
    members: Sequence[_RunData], keys: Sequence[str], left_out: Sequence[str], *, shared_base: bool, decides: bool
) -> dict[str, dict[str, Any]]:
    """Compares the scores of one part. `decides`: the verdict is about this part.

    Then, with two runs, the primary score is not corrected for multiple testing.
    """
    first, *others = members
    names = dict.fromkeys(name for key in keys for name in first.tuned[key] if name not in left_out)
    values_by_score: dict[str, dict[str, Any]] = {}
    differences: dict[tuple[str, str], Verdict] = {}
    for name in names:
        facts = _score_facts(first, name)
        both = [key for key in keys if all(member.tuned[key].get(name) is not None for member in members)]
        if not both or facts is None:
            continue
        fold, limits = facts.get("fold", "mean"), facts.get("limits")
        scored_keys = [key for key in keys if any(name in member.tuned[key] for member in members)]
        for another in others:
            values = [[member.tuned[key].get(name) for key in scored_keys] for member in (first, another)]
            difference = decide(
                values[0],
                values[1],
                [first.asked[key][1] for key in scored_keys],
                better=facts["better"],
                seed=int(first.setting("seed") or 0),
                fold=fold,
                limits=(float(limits[0]), float(limits[1])) if limits else None,
                rows_asked=len(keys),
            )
            differences[another.label, name] = difference
        base = [value for key in both if (value := first.base[key].get(name)) is not None]
        base_known = shared_base and len(base) == len(both)
        values_by_score[name] = {
            "better": facts["better"],
            "rows": len(both),
            "groups": len({first.asked[key][1] or key for key in both}),
            "base": _aggregate(base, fold) if base_known else None,
            "runs": {member.label: _aggregate([member.tuned[key][name] for key in both], fold) for member in members},
        }
    alone = (others[0].label, str(first.scores["primary"])) if decides and len(others) == 1 else None
    settled = correct(differences, primary=alone)
    for name, facts in values_by_score.items():
        facts["against"] = {other_run.label: settled[other_run.label, name].describe() for other_run in others}
    return values_by_score


def _aggregate(values: Sequence[float], fold: str) -> float:
    mean = sum(values) / len(values)
    return math.exp(mean) if fold == "exp" else mean


def _score_facts(member: _RunData, name: str) -> dict[str, Any] | None:
    """Returns the entry of the score `name` in the run's own scores, which has its good direction."""
    return next((part[name] for part in member.scores["sections"].values() if name in part), None)


def _verdicts(
    members: Sequence[_RunData], sections: Mapping[str, Mapping[str, Any]], kind: str, *, same_recipe: bool
) -> list[tuple[str, str]]:
    """Returns, for each run except the first, its verdict by the first run's primary score and a sentence."""
    first, primary = members[0], str(members[0].scores["primary"])
    main = next(iter(sections.values()), {}).get(primary)
    if main is None:
        return [("not measured", f"'{primary}' was not measured on the same rows, so there is no verdict.")]
    verdicts = []
    for label, difference in main["against"].items():
        text = headline(difference, primary, kind, name=label, against=first.label, same_recipe=same_recipe)
        verdicts.append((difference["verdict"], text))
    return verdicts


# --- what differs ------------------------------------------------------------------------------------------

_FACTS: dict[str, Callable[[_RunData], Any]] = {
    "Base model": lambda member: member.setting("base", "model"),
    "Rows to learn from": lambda member: f"{member.run.read_json('audit.json')['parts']['train']:,}",
    "Steps": lambda member: f"{member.fingerprints['train']['summary']['steps']:,}",
    "Training, seconds": lambda member: format_number(member.fingerprints["train"]["seconds"]),
    "Adapter": lambda member: member.fingerprints["train"]["files"]["adapter"][:16],
    "Its own verdict": lambda member: member.scores["verdict"],
}


def _facts(member: _RunData) -> dict[str, str]:
    facts = {}
    for name, get in _FACTS.items():
        try:
            facts[name] = str(get(member))
        except (KeyError, TypeError):  # missing in runs of another version
            facts[name] = "–"
    return facts


def _recipe_differences(members: Sequence[_RunData]) -> list[tuple[str, list[str]]]:
    """Returns the settings that differ, each with its value in every run."""
    flat = [dict(_flatten({key: value for key, value in m.recipe.items() if key not in IDENTITY})) for m in members]
    keys = dict.fromkeys(key for flat_recipe in flat for key in flat_recipe)
    settings = [(key, [flat_recipe.get(key, "–") for flat_recipe in flat]) for key in keys]
    return [(key, values) for key, values in settings if len(set(values)) > 1]


def _flatten(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in _flatten(inner, f"{path}.{key}" if path else str(key))]
    return [(path, _as_text(value))]


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
