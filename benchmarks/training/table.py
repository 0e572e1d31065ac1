"""The table of results: one row a setting, appended as soon as it is measured, failures too."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path

PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "bitsandbytes": "bitsandbytes",
    "trl": "trl",
    "liger": "liger-kernel",
    "unsloth": "unsloth",
}


@dataclass(frozen=True)
class Setting:
    """What is measured. `data` is random or the name of a set of real rows; `budget` is in GiB, none without one.

    With real rows `batch` is the optimizer step as the recipe writes it ('8 rows', '8192 tokens') and `length` the
    longest row; with random tokens a step is `batch` rows of `length` tokens.
    """

    engine: str
    shape: str
    data: str
    batch: str
    length: int
    checkpointing: str = ""
    packing: str = ""
    rank: int = 16
    budget: str = ""


@dataclass(frozen=True)
class Row:
    """A setting and what came out of it; the columns of the table in their order."""

    time: str
    commit: str
    device: str
    engine: str
    shape: str
    data: str
    batch: str
    length: str
    checkpointing: str
    packing: str
    precision: str
    rank: str
    budget_gib: str
    tokens_s: str = ""
    tokens_s_p20: str = ""
    tokens_s_p80: str = ""
    ms_median: str = ""
    steps: str = ""
    tokens: str = ""
    seconds: str = ""
    peak_gib: str = ""
    reserved_gib: str = ""
    planned_gib: str = ""
    note: str = ""
    failure: str = ""
    torch: str = ""
    transformers: str = ""
    peft: str = ""
    bitsandbytes: str = ""
    trl: str = ""
    liger: str = ""
    unsloth: str = ""

    @property
    def setting(self) -> Setting:
        """What was measured."""
        return Setting(
            self.engine,
            self.shape,
            self.data,
            self.batch,
            int(self.length),
            self.checkpointing,
            self.packing,
            int(self.rank),
            self.budget_gib,
        )


COLUMNS = [field.name for field in fields(Row)]


def read(path: Path) -> list[Row]:
    """The rows of a table, none if there is no file. A last line cut by a crash is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    if lines and lines[0] != COLUMNS:
        raise SystemExit(f"{path}: its columns are another version's. Give another --out")
    return [Row(*line) for line in lines[1:] if len(line) == len(COLUMNS)]


def append(path: Path, row: Row) -> None:
    """Adds a row, and the heading to a new file; a cut last line is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_bytes() if path.exists() else b""
    with path.open("a", encoding="utf-8", newline="") as file:
        if text and not text.endswith(b"\n"):
            file.write("\n")
        writer = csv.writer(file, lineterminator="\n")
        if not text:
            writer.writerow(COLUMNS)
        writer.writerow([getattr(row, name) for name in COLUMNS])


def make(setting: Setting, *, commit: str, device: str, precision: str, **measured: str) -> Row:
    """The row of `setting`, with the time and the versions of the packages that decide the figures."""
    return Row(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commit=commit,
        device=device,
        engine=setting.engine,
        shape=setting.shape,
        data=setting.data,
        batch=setting.batch,
        length=str(setting.length),
        checkpointing=setting.checkpointing,
        packing=setting.packing,
        precision=precision,
        rank=str(setting.rank),
        budget_gib=setting.budget,
        **measured,
        **versions(),
    )


def versions() -> dict[str, str]:
    """Versions by column; empty for a package that is not there."""
    found = {}
    for column, package in PACKAGES.items():
        try:
            found[column] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[column] = ""
    return found
