"""A run's exported files: which are there, and which stands for its adapter."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.runs.run import Run

BEST = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")  # the nearest to the adapter first; then the larger before the smaller


def entries(run: Run) -> list[dict[str, Any]]:
    """What export.json holds of files that are still there."""
    try:
        found = json.loads((run / "export.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return []
    return [entry for entry in found if (run / entry["path"]).exists()]


def verified(run: Run) -> list[dict[str, Any]]:
    """The entries of export.json for verified GGUF files, the one to use first; none where none can be read."""
    try:
        listed = run.read_json("export.json")["files"]
        found = [dict(each) for each in listed if each["target"] == "gguf" and each["verified"]]
        return sorted((each for each in found if not each.get("problems")), key=_rank)
    except (TunesmithError, LookupError, TypeError):
        return []


def of_this_adapter(run: Run) -> bool:
    """Whether the GGUF files were made of the adapter as it is now."""
    seal = run.read_seal("export-gguf") or {"made_from": {}}
    return bool(seal["made_from"].get("adapter") == run.fingerprint("train"))


def _rank(entry: dict[str, Any]) -> tuple[int, int]:
    name = str(entry["name"]).lower()
    return (BEST.index(name) if name in BEST else len(BEST), -int(entry.get("bytes", 0)))
