"""The exported files beside the adapter, as the report shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Plain = dict[str, Any]


def shipped(folder: Path) -> Plain | None:
    """export.json as rows of a table and sentences; None where nothing was exported."""
    try:
        found = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = [entry for entry in found["files"] if (folder / entry["path"]).exists()]
    if not files:
        return None
    return {
        "proofs": [_proof(entry) for entry in files],
        "costs": [_cost(entry) for entry in files],
        "problems": {entry["name"]: entry["problems"] for entry in files if entry["problems"]},
        "commands": {entry["name"]: entry["commands"] for entry in files if entry["commands"]},
        "scores": [_scores(entry) for entry in files if entry.get("replies")],
        "onto": _onto(files) if found.get("onto") == "original" else "",
    }


def _onto(files: list[Plain]) -> str:
    """What it changes that the adapter was merged onto the weights as they came, by the first file that shows it."""
    said = "The adapter was merged onto the weights as they came, not as training saw them in 4 bits."
    shown = next((entry for entry in files if entry.get("exact") and (entry.get("likelihood") or {}).get("file")), None)
    if shown is None:
        return said
    likely, name = shown["likelihood"], shown["name"]
    same, before, after = _percent(likely["agreement"]), f"{likely['adapter']:.2f}", f"{likely['file']:.2f}"
    return (
        f"{said} What that changes, {name} shows, which rounds next to nothing itself: {same} of its likeliest tokens "
        f"are the adapter's, and the perplexity went from {before} to {after}."
    )


def _proof(entry: Plain) -> Plain:
    prompts, likely, replies = entry.get("prompts"), entry.get("likelihood"), entry.get("replies")
    share, ends = _share(entry.get("share"))
    return {
        "name": entry["name"],
        "verified": not entry["problems"],
        "keeps": share,
        "ends": ends,
        "prompts": f"{prompts['rows'] - prompts['unlike']} of {prompts['rows']}" if prompts else "",
        "same": f"{replies['identical']} of {replies['rows']}" if replies else "",
        "likeliest": _percent(likely["agreement"]) if likely else "",
        "divergence": _figure(likely["divergence"]) if likely else "",
        "perplexity": f"{likely['adapter']:.2f} → {likely['file']:.2f}" if likely and likely["file"] else "",
    }


def _cost(entry: Plain) -> Plain:
    facts = entry.get("facts")
    return {
        "name": entry["name"],
        "path": entry["path"].rpartition("/")[2],
        "size": _megabytes(entry["bytes"]),
        "load": f"{facts['load_seconds']:.1f} s" if facts else "",
        "memory": _megabytes(facts["memory_bytes"]) if facts else "",
        "rate": f"{facts['rate']:.0f}" if facts else "",
        "slots": facts["slots"] if facts else "",
        "threads": facts["threads"] if facts else "",
    }


def _scores(entry: Plain) -> Plain:
    """A file's scores beside the adapter's on the same rows."""
    told = [
        {"score": name.replace("_", " "), **{key: each[key] for key in ("adapter", "file", "low", "high", "verdict")}}
        for name, each in entry["replies"]["scores"].items()
    ]
    return {"file": entry["name"], "rows": entry["replies"]["rows"], "scores": told}


def _share(found: Plain | None) -> tuple[str, str]:
    """The share that is kept, and its interval."""
    if not found or found["share"] is None:
        return ("" if not found else "–"), ""
    known = found["low"] is not None and found["high"] is not None
    return _percent(
        found["share"]
    ), f"{100 * found['low']:.1f} to {_percent(found['high'])}" if known else "no interval"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
