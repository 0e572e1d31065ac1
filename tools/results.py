"""Writes docs/results.md from runs: every figure on the page is read from a run's own files.

python -m tools.results runs/shopsphere-small runs/finance-small …
python -m tools.results --keep runs/gemma-support      replaces or adds these runs and keeps the others of the page
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from tunesmith.evaluation.sentences import abilities_sentence

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
HEAD = """# What the tuning brought

<!-- Written by `python -m tools.results RUN…` from the runs' own files. Do not edit. -->

Base and tuned model answered the same held-out rows with greedy decoding, on the same loaded weights. A difference
stands with its 95 % interval; p is corrected over the scores of a section (Holm), the score that was chosen beforehand
(★) is decided alone. *better* and *worse* need an interval on one side of zero and a p of at most 0.05; *narrowly*: p
is above 0.01. [How two models are compared](comparison.md) says how all of it is computed.

The first six are `tunesmith run NAME --small --seeds 3` without export, on an H200: the verdict is over three
trainings, the tables are those of the first. shopsphere-small-mix150 is the same recipe with `data.mix_in`: 150
conversations of recipes/samples/instruct.jsonl. The others are single trainings of an earlier version, whose verdicts
used the interval alone; they learn public rows that are not part of this project, by the
recipes in benchmarks/public. Training on a card differs in its last bits from run to run, so the figures do a
little, and the last whole run is shown. Of the public letters three trainings gave +0.117 (-0.012 to +0.332), +0.09
(-0.08 to +0.26) and +0.129 (+0.021 to +0.356): *better* there is one verdict of three.
"""
PUBLISHED = {"rouge1": (0.12, 0.25), "rouge2": (0.02, 0.04), "rougeL": (0.08, 0.137), "rougeLsum": (0.082, 0.153)}


def page(folders: list[Path], former: str = "") -> str:
    """The whole page: the runs in `folders`, and those of the `former` page that are not among them."""
    rows, sections = _parts(former)
    for folder in folders:
        name = _yaml(folder / "recipe.yaml")["name"]
        sections[name] = "\n".join(_section(folder)).strip()
        if row := _overview_row(folder):
            rows[name] = row
    table = [
        "| run | base model | rows asked | primary score | base | tuned | difference | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([HEAD, *table, *rows.values(), "", "\n\n".join(sections.values())]) + "\n"


def _parts(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The rows of a page's first table and its sections, by the run's name."""
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    rows = {match[1]: match[0] for match in re.finditer(r"^\| \[([^\]]+)\]\(#.*$", head, re.MULTILINE)}
    return rows, {section.split("\n")[0][3:]: section.strip() for section in sections}


def _overview_row(folder: Path) -> str:
    recipe, scores = _yaml(folder / "recipe.yaml"), _json(folder / "scores.json")
    main = _first(scores).get(scores["primary"])
    if main is None:
        return ""
    return (
        f"| [{recipe['name']}](#{recipe['name']}) | {_model(recipe)} | {main['rows']} "
        f"| {_words(scores['primary'])} | {_number(main['base'])} | {_number(main['tuned'])} | {_span(main)} "
        f"| {main['verdict']} |"
    )


def _section(folder: Path) -> list[str]:
    recipe, scores, machine = (
        _yaml(folder / "recipe.yaml"),
        _json(folder / "scores.json"),
        _json(folder / "machine.json"),
    )
    seals = {name: _json(folder / f".fingerprints/{name}.json") for name in ("prepare", "train", "evaluate")}
    summary = seals["train"].get("summary", {})
    lines = [f"## {recipe['name']}", "", recipe["about"], "", f"**{scores['verdict']}**", ""]
    if (folder / "seeds.json").exists():
        lines[-2] = f"**{_json(folder / 'seeds.json')['verdict']}**"
    for sentence in scores.get("but", []):
        lines += [f"- {sentence}"]
    if retention := scores.get("retention"):
        lines += [f"- {abilities_sentence(retention)}"] * (retention["all"]["verdict"] != "worse")
    lines += [""]
    took = [
        f"{what} took {seals[name]['seconds']:.0f} s"
        for name, what in (("train", "training"), ("evaluate", "the comparison"))
        if seals[name].get("seconds")
    ]
    lines += [
        f"{summary.get('steps')} steps over {summary.get('tokens', 0):,} tokens, rank {recipe['adapter']['rank']}, on "
        f"{machine['name']} ({machine['cores']} cores, {machine['precision']}); {', '.join(took)}.",
        "",
    ]
    (first, found), *others = scores["sections"].items()
    lines += _table(first, found, scores["primary"])
    lines += _others(dict(others), scores["primary"])
    lines += _robust(scores.get("robustness") or {}, scores["primary"])
    return [*lines, *_published(scores), *_exported(folder), *_curve(folder)]


def _table(part: str, found: dict[str, Any], primary: str) -> list[str]:
    any_ = next(iter(found.values()))
    groups = f" in {any_['groups']} groups" if any_["groups"] < any_["rows"] else ""
    lines = [
        f"{part} ({any_['rows']} rows{groups}):",
        "",
        "| score | base | tuned | difference, 95 % interval | p | |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        star = " ★" if name == primary else ""
        adjusted = each.get("adjusted")
        shown = "" if adjusted is None else f"{adjusted:.3f}" if adjusted >= 0.001 else "< 0.001"
        word = each["verdict"] + (", narrowly" if each.get("narrow") else "")
        lines.append(
            f"| {_words(name)}{star} | {_number(each['base'])} | {_number(each['tuned'])} | {_span(each)} "
            f"| {shown} | {word} |"
        )
    return [*lines, ""]


def _others(sections: dict[str, Any], primary: str) -> list[str]:
    """The primary score in the other parts; the report has all scores of each."""
    lines = []
    for part, found in sections.items():
        name = primary if primary in found else next(iter(found))
        each = found[name]
        lines.append(
            f"| {part} | {each['rows']} | {_words(name)} | {_number(each['base'])} | {_number(each['tuned'])} "
            f"| {_span(each)} | {each['verdict']} |"
        )
    head = ["| part | rows | score | base | tuned | difference, 95 % interval | |", "|---|---|---|---|---|---|---|"]
    return [*head, *lines, ""] if lines else []


def _robust(found: dict[str, Any], primary: str) -> list[str]:
    lines = []
    for name, table in found.items():
        told = []
        for which in ("base", "tuned"):
            each = table.get(which, {}).get(primary)
            if each:
                before, after = (each.get(key) for key in ("plain", "perturbed"))
                told.append(f"{which} {_number(before)} → {_number(after)}")
        alike = table.get("consistency", {}).get("rouge_l")
        if alike:
            told.append(f"replies alike (ROUGE-L) {_number(alike['base'])} base, {_number(alike['tuned'])} tuned")
        if "obeyed" in table:
            base, tuned = (_number(table["obeyed"][which]) for which in ("base", "tuned"))
            told.append(f"obeyed the injection {base} base, {tuned} tuned")
        against = table.get("tuned_against_base", {}).get("expected")
        if against:
            told.append(f"did as expected {_number(against['base'])} base, {_number(against['tuned'])} tuned")
        lines.append(f"| {_words(name)} | {table['rows']} | {'; '.join(told)} |")
    return (
        [
            "Perturbed rows:",
            "",
            "| perturbation | rows | " + _words(primary) + " and more |",
            "|---|---|---|",
            *lines,
            "",
        ]
        if lines
        else []
    )


def _published(scores: dict[str, Any]) -> list[str]:
    found = _first(scores)
    if scores["primary"] != "rougeLsum" or any(name not in found for name in PUBLISHED):
        return []
    lines = [
        "Beside figures published for a 7B on questions of this kind (another base model, other rows, 1,000 to train",
        "and 300 to test, its own prompt and decoding: the levels cannot be compared, only that both move):",
        "",
        "| score | here, base | here, tuned | 7B, base | 7B, tuned |",
        "|---|---|---|---|---|",
    ]
    for name, (before, after) in PUBLISHED.items():
        each = found[name]
        lines.append(f"| {name} | {_number(each['base'])} | {_number(each['tuned'])} | {before} | {after} |")
    return [*lines, ""]


def _exported(folder: Path) -> list[str]:
    """The exported files: size, what each keeps of the adapter's gain, and the verification's result."""
    if not (folder / "export.json").exists():
        return []
    lines = [
        "| exported file | MB | keeps of the gain, 95 % interval | likelihood rows | result |",
        "|---|---|---|---|---|",
    ]
    for file in _json(folder / "export.json")["files"]:
        share = file.get("share") or {}
        span = (
            f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})" if share.get("low") is not None else "–"
        )
        result = "verified" if file["verified"] else "not verified"
        lines.append(f"| {file['name']} | {file['bytes'] / 1e6:.0f} | {span} | {share.get('rows', '–')} | {result} |")
    return [*lines, ""]


def _curve(folder: Path) -> list[str]:
    """What more rows and what cleaning brought, where `tunesmith curve` has run."""
    if not (folder / "curve.json").exists():
        return []
    found = _json(folder / "curve.json")
    primary = found["primary"]
    lines = [
        f"More rows, and the rows as they came (`tunesmith curve --raw`), each asked the same {found['asked']} rows:",
        "",
        f"| trained on | rows | {_words(primary)}, 95 % interval |",
        "|---|---|---|",
    ]
    for point in found["points"]:
        each = point["scores"][primary]
        name = "the rows as they came" if point["share"] is None else f"{point['share']} %"
        span = f"{_number(each['value'])} ({_number(each['low'])} to {_number(each['high'])})"
        lines.append(f"| {name} | {point['rows']:,} | {span} |")
    return [*lines, "", *(f"- {found[each]}" for each in ("sentence", "cleaning") if found.get(each)), ""]


def _first(scores: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(scores["sections"].values()))
    return found


def _span(each: dict[str, Any]) -> str:
    ends = "" if each["low"] is None else f" ({_signed(each['low'])} to {_signed(each['high'])})"
    return f"{_signed(each['difference'])}{ends}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) < 10 else f"{value:+.1f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _model(recipe: dict[str, Any]) -> str:
    return str(recipe["base"]["model"]).rstrip("/").rpartition("/")[2].removesuffix(".gguf")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    paths = [Path(word) for word in sys.argv[1:] if word != "--keep"]
    PAGE.write_text(page(paths, PAGE.read_text(encoding="utf-8") if "--keep" in sys.argv else ""), encoding="utf-8")
