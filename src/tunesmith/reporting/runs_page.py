"""Finished runs side by side on the same rows: the values, and the page about them."""

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
from tunesmith.evaluation.comparison import plural
from tunesmith.evaluation.statistics import FEW_GROUPS, Difference, paired, settle
from tunesmith.reporting import plots
from tunesmith.reporting.html_page import number, render
from tunesmith.runs.run import Run, hash_file, hash_plain, how_to_make

HELD = ("test", "unseen")
BY_TOKEN = ("loss", "perplexity")  # means over tokens: another tokenizer has other tokens
IDENTITY = ("name", "small")  # what a run is called, and what --small would change: neither is a difference of work
LONGEST = 150  # characters of a page's name; file systems take 255 bytes


@dataclass(frozen=True)
class SideBySide:
    """Runs on the rows that all were asked, in plain values.

    `rows`: by run, how many were asked, are common, were asked here alone, and under the same id said something else.
    `sections`: by part and score: better, rows, groups, base (None where the runs' bases differ), runs (the means
    by run) and against (by run but the first, the paired difference from it as `Difference.describe` gives it).
    `recipe`: keys that differ, each with the runs' values as text. `facts`: what each run is.
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
        """How many rows all runs were asked."""
        return self.rows[self.labels[0]]["common"]

    def lines(self) -> list[str]:
        """The comparison in words, for a terminal."""
        said = [text for _, text in self.verdicts]
        said += [f"{label}: {_counted(self.rows[label])}" for label in self.labels]
        said += self.notes
        said += [f"{key}: {', '.join(values)}" for key, values in self.recipe]
        return said if self.recipe else [*said, "the recipes differ in nothing but their names"]


@dataclass(frozen=True)
class _Member:
    """One run as it is read. `asked`: by row its part, its group and what makes it the same row elsewhere."""

    label: str
    run: Run
    recipe: dict[str, Any]
    scores: dict[str, Any]
    seals: dict[str, dict[str, Any]]
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
    """The file's name for a comparison of these runs."""
    plain = "-".join(re.sub(r"[^\w.-]+", "_", label) for label in labels)
    if len(plain) > LONGEST:
        plain = f"{plain[:LONGEST]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
    return f"compare-{plain}.html"


def side_by_side(folders: Sequence[Path]) -> SideBySide:
    """Compares the runs in `folders`, each with the first, on the rows that all were asked.

    A row is the same where its id and every turn are; a probe, where the file of probes and the system message are.
    Raises RunError for a run that is not evaluated, is damaged or has scores of an older adapter, and where no row is
    common.
    """
    members = [_read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]
    first = members[0]
    common = [key for key in first.asked if all(_same(first, other, key) for other in members[1:])]
    if not common:
        asked = ", ".join(f"{member.label}: {len(member.asked)} rows" for member in members)
        advice = "Compare runs of the same rows with the same data.split, prompt.system and seed"
        raise RunError("no row was asked in all of these runs", where=asked, next=advice)
    notes = [f"{member.label}: {member.note}" for member in members if member.note]
    left_out = _uneven(members)
    notes += [f"left out, because the runs count tokens differently: {', '.join(left_out)}"] if left_out else []
    notes += _asked_otherwise(members)
    base_note = _bases_differ(members, common)
    sections = {
        title: found
        for place, (title, keys) in enumerate(_parts(members, common).items())
        if (found := _compare(members, keys, left_out, shared_base=not base_note, decides=place == 0))
    }
    kind = str(first.scores.get("kind", "group"))
    verdicts = _verdicts(members, sections, kind)
    return SideBySide(
        labels=tuple(member.label for member in members),
        primary=first.scores["primary"],
        kind=kind,
        rows={member.label: _count(member, members, set(common)) for member in members},
        sections=sections,
        verdicts=verdicts,
        recipe=_differences(members),
        facts={member.label: _facts(member) for member in members},
        notes=[*notes, *([base_note] if base_note else [])],
    )


def runs_page(found: SideBySide) -> str:
    """The comparison as one offline page."""
    from tunesmith.reporting.replies import title

    main = next(iter(found.sections.values()))
    return render(
        "runs.html",
        found=found,
        first=found.labels[0],
        others=found.labels[1:],
        titles={part: title(part, found.kind) for part in found.sections},
        counted={label: _counted(found.rows[label]) for label in found.labels},
        facts={name: [found.facts[label].get(name, "–") for label in found.labels] for name in _FACTS},
        main=main,
        plot=_plot(found, main),
        few=FEW_GROUPS,
        pairs=sum(len(each["against"]) for part in found.sections.values() for each in part.values()),
    )


def _plot(found: SideBySide, main: Mapping[str, Any]) -> str:
    """Two runs: every score that has a good side; more: the primary score of each. None with ends: no plot."""
    names = [found.primary] if len(found.labels) > 2 and found.primary in main else list(main)
    items = []
    for name in names:
        for label, each in main[name]["against"].items():
            if each["better"] == "neither" or each["low"] is None:
                continue
            words = label if len(names) == 1 else name.replace("_", " ")
            lower = " (lower is better)" if each["better"] == "lower" else ""
            items.append((words + lower, each["low"], each["difference"], each["high"]))
    if not items:
        return ""
    axis = names[0].replace("_", " ") if len(names) == 1 else "difference"
    return plots.intervals(items, axis=f"{axis}: a run minus the first")


# --- reading -----------------------------------------------------------------------------------------------


def _labels(folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, with as many of the folders around it as set all apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        tails = ["/".join(each[-length:]) for each in parts]
        if len(set(tails)) == len(tails):
            return tails
    raise AssertionError(f"a run stands twice in {folders}")


def _read(folder: Path, label: str) -> _Member:
    run = Run(folder)
    seals = {product: run.read_seal(product) for product in ("prepare", "train", "evaluate")}
    for product, seal in seals.items():
        if seal is None:
            raise RunError(f"{product} is not finished", where=str(folder), next=how_to_make(product, folder))
    whole = {product: seal for product, seal in seals.items() if seal}
    if whole["evaluate"]["made_from"].get("adapter") != run.fingerprint("train"):
        raise RunError(
            "its scores are older than its adapter", where=str(folder), next=how_to_make("evaluate", run.path)
        )
    for product, names in (("prepare", ("data/test.jsonl", "data/unseen.jsonl")), ("evaluate", None)):
        _check(run, whole[product]["files"], names)
    scores = run.read_json("scores.json")
    recipe, note = _recipe(folder, whole["train"])
    base, tuned = ({row["id"]: row[which] for row in scores["rows"]} for which in ("base", "tuned"))
    return _Member(
        label, run, recipe, scores, whole, _asked(run, scores, whole, recipe), tuned, base, _replies(run), note
    )


def _check(run: Run, files: Mapping[str, str], names: Sequence[str] | None) -> None:
    for name in names or files:
        if name in files and (not (run / name).is_file() or hash_file(run / name) != files[name]):
            raise RunError(
                f"{name} is gone or was changed", where=str(run.path), next=how_to_make("evaluate", run.path)
            )


def _recipe(folder: Path, trained: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The run's recipe with today's defaults filled in, and what should be known about it."""
    try:
        written = parse_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder / "recipe.yaml"))[0]
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"recipe.yaml cannot be read: {error}", where=str(folder), next="Restore it") from error
    changed = _changed(written, trained["made_from"])
    note = f"the recipe was changed after training ({', '.join(changed)}), so what differs may not be why" * bool(
        changed
    )
    try:
        return read_recipe(str(folder)).dump(), note
    except TunesmithError:
        return written, note or "the recipe is of another version: settings that it lacks are shown as –"


def _changed(written: Mapping[str, Any], made_from: Mapping[str, str]) -> list[str]:
    """Sections that recipe.yaml now writes otherwise than the adapter was trained with."""
    prompt = {key: value for key, value in (written.get("prompt") or {}).items() if key != "stop"}  # not of training
    told = {"adapter": written.get("adapter"), "prompt": prompt}
    told |= {f"train.{key}": value for key, value in (written.get("train") or {}).items()}
    if prompt.get("template") != "model":
        del told["prompt"]  # a template's path stands as it was found, not as the recipe wrote it
    return [name for name, value in told.items() if name in made_from and hash_plain(value) != made_from[name]]


def _asked(
    run: Run, scores: Mapping[str, Any], seals: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, tuple[str, str, Any]]:
    """By row its part, its group, and what must be equal for the row to be the same in another run."""
    files = [run / f"data/{part}.jsonl" for part in HELD]
    held = {row.id: row for file in files if file.exists() for row in read_rows(file)}
    made_from, system = seals["evaluate"]["made_from"], (recipe.get("prompt") or {}).get("system")
    asked = {}
    for each in scores["rows"]:
        name, _, disturbed = str(each["id"]).partition("~")  # a disturbed twin's id: its text follows from the settings
        if row := held.get(name):
            turns = [(turn.role, turn.text) for turn in row.turns]
            same: Any = (turns, made_from["evaluate"], made_from["seed"]) if disturbed else turns
        else:
            same = (made_from["probes"], system) if made_from.get("probes") else run.path  # unknown: like nothing else
        asked[each["id"]] = (each["part"], row.group if row else "", same)
    return asked


def _replies(run: Run) -> dict[str, str]:
    text = (run / "replies/base.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.split("\n") if line]
    return {reply["id"]: reply["text"] for reply in found}


# --- the same rows -----------------------------------------------------------------------------------------


def _same(one: _Member, other: _Member, key: str) -> bool:
    return key in other.asked and one.asked[key][2] == other.asked[key][2]


def _count(member: _Member, members: Sequence[_Member], common: set[str]) -> dict[str, int]:
    others = [key for key in member.asked if key not in common]
    everywhere = sum(all(key in each.asked for each in members) for key in others)
    alone = len(others) - everywhere
    return {"asked": len(member.asked), "common": len(common), "elsewhere_not": alone, "other_words": everywhere}


def _counted(rows: Mapping[str, int]) -> str:
    said = f"{rows['common']} of {rows['asked']} rows are common to all runs"
    if rows["elsewhere_not"]:
        said += f", {rows['elsewhere_not']} were not asked everywhere"
    if rows["other_words"]:
        said += f", {rows['other_words']} have another prompt or answer elsewhere"
    return said


def _parts(members: Sequence[_Member], common: Sequence[str]) -> dict[str, list[str]]:
    """The common rows by part: all held-out ones, those that every run has in the same part, each kind of probe."""
    parts = {key: {member.asked[key][0] for member in members} for key in common}
    held = [key for key in common if parts[key] <= set(HELD)]
    agreed = {part: [key for key in held if parts[key] == {part}] for part in HELD}
    found = {"all": held} if held else {}
    if sum(map(bool, agreed.values())) > 1:
        found |= agreed
    for key in common:
        if key not in held:
            found.setdefault(members[0].asked[key][0], []).append(key)
    return found


def _uneven(members: Sequence[_Member]) -> list[str]:
    """Scores by token that these runs have and that cannot be compared."""
    counted = {
        (
            member.seals["prepare"]["made_from"].get("tokenizer"),
            learn := member.setting("prompt", "learn"),
            member.seals["prepare"]["made_from"].get("template file") if learn == "everything" else "",
        )
        for member in members
    }
    known = {name for member in members for found in member.tuned.values() for name in found}
    return [name for name in BY_TOKEN if name in known] if len(counted) > 1 else []


def _asked_otherwise(members: Sequence[_Member]) -> list[str]:
    said = []
    for key in ("max_new_tokens", "metrics", "primary"):
        values = [_text(member.setting("evaluate", key)) for member in members]
        if len(set(values)) > 1:
            told = ", ".join(f"{member.label} {value}" for member, value in zip(members, values, strict=True))
            said.append(f"evaluate.{key} is not the same: {told}")
    return said


def _bases_differ(members: Sequence[_Member], common: Sequence[str]) -> str:
    """Why the base has no column; '' where all runs have the same one with the same replies."""
    known = {(member.seals["train"].get("weights"), member.setting("base", "bits")) for member in members}
    if len(known) > 1:
        return "the base has no column, because the runs have different ones"
    replies = [[member.replies.get(key) for key in common] for member in members]
    if odd := sum(len(set(texts)) > 1 for texts in zip(*replies, strict=True)):
        return f"the base has no column, because {odd} of its {len(common)} replies differ from run to run"
    return ""


def _compare(
    members: Sequence[_Member], keys: Sequence[str], left_out: Sequence[str], *, shared_base: bool, decides: bool
) -> dict[str, dict[str, Any]]:
    """The scores of one part. `decides`: the verdict is about this part, so of two runs the primary score is alone."""
    first, *others = members
    names = dict.fromkeys(name for key in keys for name in first.tuned[key] if name not in left_out)
    found: dict[str, dict[str, Any]] = {}
    differences: dict[tuple[str, str], Difference] = {}
    for name in names:
        facts = _known(first, name)
        both = [key for key in keys if all(member.tuned[key].get(name) is not None for member in members)]
        if not both or facts is None:
            continue
        groups, fold = [first.asked[key][1] for key in both], facts.get("fold", "mean")
        for other in others:
            values = [[member.tuned[key][name] for key in both] for member in (first, other)]
            seed = int(first.setting("seed") or 0)
            made = paired(values[0], values[1], groups, better=facts["better"], seed=seed, fold=fold)
            differences[other.label, name] = made
        base = [value for key in both if (value := first.base[key].get(name)) is not None]
        known = shared_base and len(base) == len(both)
        found[name] = {
            "better": facts["better"],
            "rows": len(both),
            "groups": made.groups,
            "base": _figure(base, fold) if known else None,
            "runs": {first.label: made.base, **{each.label: differences[each.label, name].tuned for each in others}},
        }
    alone = (others[0].label, str(first.scores["primary"])) if decides and len(others) == 1 else None
    settled = settle(differences, alone=alone)
    for name, facts in found.items():
        facts["against"] = {each.label: settled[each.label, name].describe() for each in others}
    return found


def _figure(values: Sequence[float], fold: str) -> float:
    mean = sum(values) / len(values)
    return math.exp(mean) if fold == "exp" else mean


def _known(member: _Member, name: str) -> dict[str, Any] | None:
    """What the run's own scores say about the score `name`: which way is good."""
    return next((part[name] for part in member.scores["sections"].values() if name in part), None)


def _verdicts(
    members: Sequence[_Member], sections: Mapping[str, Mapping[str, Any]], kind: str
) -> list[tuple[str, str]]:
    """For each run but the first: better, worse or neither by the first run's primary score, and a sentence."""
    first, primary = members[0], str(members[0].scores["primary"])
    name = primary.replace("_", " ")
    main = next(iter(sections.values()), {}).get(primary)
    if main is None:
        return [("not measured", f"'{name}' was not measured on the same rows, so nothing can be said.")]
    said = []
    for label, each in main["against"].items():
        opening = {
            "better": f"{label} is better than {first.label}",
            "worse": f"{label} is worse than {first.label}",
            "no detectable change": f"No detectable difference between {first.label} and {label}",
        }.get(each["verdict"], f"{label} differs from {first.label}")
        grouped = f" in {main['groups']} {plural(kind, main['groups'])}" if main["groups"] < main["rows"] else ""
        span = (
            f"95 % interval {number(each['low'])} to {number(each['high'])}"
            if each["low"] is not None
            else (f"one {kind} alone has no interval")
        )
        over = f"over {main['rows']} rows{grouped}"
        scores = f"{name} {number(each['base'])} and {number(each['tuned'])}"
        text = f"{opening}: {scores} {over} (difference {number(each['difference'])}, {span})."
        said.append((each["verdict"], text))
    return said


# --- what differs ------------------------------------------------------------------------------------------

_FACTS: dict[str, Callable[[_Member], Any]] = {
    "Base model": lambda member: member.setting("base", "model"),
    "Rows to learn from": lambda member: f"{member.run.read_json('audit.json')['parts']['train']:,}",
    "Steps": lambda member: f"{member.seals['train']['summary']['steps']:,}",
    "Training, seconds": lambda member: number(member.seals["train"]["seconds"]),
    "Adapter": lambda member: member.seals["train"]["files"]["adapter"][:16],
    "Its own verdict": lambda member: member.scores["verdict"],
}


def _facts(member: _Member) -> dict[str, str]:
    found = {}
    for name, get in _FACTS.items():
        try:
            found[name] = str(get(member))
        except (KeyError, TypeError):  # a run of another version may not have it
            found[name] = "–"
    return found


def _differences(members: Sequence[_Member]) -> list[tuple[str, list[str]]]:
    """Settings that differ, each with its value in every run."""
    flat = [dict(_flat({key: value for key, value in m.recipe.items() if key not in IDENTITY})) for m in members]
    keys = dict.fromkeys(key for each in flat for key in each)
    told = [(key, [each.get(key, "–") for each in flat]) for key in keys]
    return [(key, values) for key, values in told if len(set(values)) > 1]


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
