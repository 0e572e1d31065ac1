"""The report's section on exported files, compared with the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.wording import show_bytes

Plain = dict[str, Any]


def read_exported_files(folder: Path) -> Plain | None:
    """Prepares export.json for the page; None if nothing was exported."""
    try:
        export = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = [entry for entry in export["files"] if (folder / entry["path"]).exists()]
    if not files:
        return None
    return {
        "proofs": [_verification_row(entry) for entry in files],
        "costs": [_cost_row(entry) for entry in files],
        "problems": {entry["name"]: entry["problems"] for entry in files if entry["problems"]},
        "commands": {entry["name"]: entry["commands"] for entry in files if entry["commands"]},
        "scores": [_scores(entry) for entry in files if entry.get("replies")],
        "merge_note": _merge_note(files) if export.get("merge_into") == "original" else "",
    }


def _merge_note(files: list[Plain]) -> str:
    """Explains the effect of merging into the original weights, as measured on the first file that shows it."""
    sentence = "The adapter was merged into the original weights, not into the 4-bit weights of training."
    evidence = next(
        (entry for entry in files if entry.get("exact") and (entry.get("likelihood") or {}).get("file")), None
    )
    if evidence is None:
        return sentence
    likelihood, agreement = evidence["likelihood"], _percent(evidence["likelihood"]["agreement"])
    return (
        f"{sentence} {evidence['name']}, which has almost no rounding error, shows the effect: {agreement} of its "
        f"most likely tokens are the adapter's, and the perplexity went from {likelihood['adapter']:.2f} to "
        f"{likelihood['file']:.2f}."
    )


def _verification_row(entry: Plain) -> Plain:
    prompts, likelihood, replies = entry.get("prompts"), entry.get("likelihood"), entry.get("replies")
    share, ends = _retained_share(entry.get("share"))
    return {
        "name": entry["name"],
        "verified": not entry["problems"],
        "keeps": share,
        "ends": ends,
        "prompts": f"{prompts['rows'] - prompts['unlike']} of {prompts['rows']}" if prompts else "",
        "same": f"{replies['identical']} of {replies['rows']}" if replies else "",
        "likeliest": _percent(likelihood["agreement"]) if likelihood else "",
        "divergence": _two_digits(likelihood["divergence"]) if likelihood else "",
        "perplexity": f"{likelihood['adapter']:.2f} → {likelihood['file']:.2f}"
        if likelihood and likelihood["file"]
        else "",
    }


def _cost_row(entry: Plain) -> Plain:
    facts = entry.get("facts")
    return {
        "name": entry["name"],
        "path": entry["path"].rpartition("/")[2],
        "size": show_bytes(entry["bytes"]),
        "load": f"{facts['load_seconds']:.1f} s" if facts else "",
        "memory": show_bytes(facts["memory_bytes"]) if facts else "",
        "rate": f"{facts['rate']:.0f}" if facts else "",
        "slots": facts["slots"] if facts else "",
        "threads": facts["threads"] if facts else "",
    }


def _scores(entry: Plain) -> Plain:
    """Returns a file's scores and the adapter's on the same rows."""
    scores = [
        {"score": name.replace("_", " "), **{key: score[key] for key in ("adapter", "file", "low", "high", "verdict")}}
        for name, score in entry["replies"]["scores"].items()
    ]
    return {"file": entry["name"], "rows": entry["replies"]["rows"], "scores": scores}


def _retained_share(retained: Plain | None) -> tuple[str, str]:
    """Returns the share of the gain that the file keeps, and its interval."""
    if not retained or retained["share"] is None:
        return ("" if not retained else "–"), ""
    has_interval = retained["low"] is not None and retained["high"] is not None
    return _percent(
        retained["share"]
    ), f"{100 * retained['low']:.1f} to {_percent(retained['high'])}" if has_interval else "no interval"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
