"""Lines about a packed run, for pack and unpack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

INPUTS = "inputs"
SOURCES = "sources"  # stands for the files of data.source in `without`


def describe_run(manifest: dict[str, Any]) -> str:
    """Returns the run's name, state and training steps."""
    steps = manifest.get("steps")
    progress = f", {steps[0]:,} of {steps[1]:,} steps" if isinstance(steps, list) and len(steps) == 2 else ""
    note = f" ({manifest['note']})" if manifest.get("note") else ""
    return f"{manifest['name']}, {manifest.get('state')}{note}{progress}"


def describe_files(members: Sequence[dict[str, Any]]) -> str:
    """Returns the number and total size of the files."""
    return f"{len(members):,} files, {show_size(sum(member['size'] for member in members))}"


def describe_base(base: dict[str, Any], *, packed: bool) -> str:
    """Says where the base model comes from, on another machine or here."""
    model, revision, fingerprint = str(base.get("model")), base.get("revision"), str(base.get("fingerprint") or "")[:12]
    with_fingerprint = f", fingerprint {fingerprint}" if fingerprint else ""
    if model.startswith((".", "/", "~")) or Path(model).is_absolute():
        advice = "it must exist at the same path, or be given with --set base.model=FOLDER"
        kind = "file" if Path(model).is_file() or model.endswith(".gguf") else "folder"
        if packed:
            return f"the base model is not packed: the {kind} {model}{with_fingerprint}; {advice}"
        return (
            f"the base model is the {kind} {model}{with_fingerprint}; {'it exists' if Path(model).exists() else advice}"
        )
    at_revision = f" at {revision}" if revision else ""
    fetching = "is not packed; it is downloaded there" if packed else "is downloaded by the first command if necessary"
    return f"the base model {model}{at_revision}{with_fingerprint} {fetching}"


def show_size(count: int) -> str:
    """Formats a number of bytes."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
