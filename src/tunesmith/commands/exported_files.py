"""Looks up the exported files of a run."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.runs.run import Run

BEST = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")  # the closest to the adapter first; other types follow, larger files first


def export_entries(run: Run) -> list[dict[str, Any]]:
    """Returns the entries of export.json whose files exist."""
    try:
        files = json.loads((run / "export.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return []
    return [entry for entry in files if (run / entry["path"]).exists()]


def verified_ggufs(run: Run) -> list[dict[str, Any]]:
    """Returns the entries of export.json for verified GGUF files, the best one first."""
    try:
        entries = run.read_json("export.json")["files"]
        files = [dict(entry) for entry in entries if entry["target"] == "gguf" and entry["verified"]]
        return sorted((entry for entry in files if not entry.get("problems")), key=_rank)
    except (TunesmithError, LookupError, TypeError):
        return []


def is_of_current_adapter(run: Run) -> bool:
    """Returns whether the GGUF files were exported from the current adapter."""
    record = run.read_fingerprints("export-gguf") or {"inputs": {}}
    return bool(record["inputs"].get("adapter") == run.fingerprint("train"))


def _rank(entry: dict[str, Any]) -> tuple[int, int]:
    name = str(entry["name"]).lower()
    return (BEST.index(name) if name in BEST else len(BEST), -int(entry.get("bytes", 0)))
