"""Rows given as Python objects: lists of dicts, DataFrames, datasets and Arrow tables become a JSONL file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.runs.run import write_atomic


def is_rows(value: Any) -> bool:
    """Whether a value holds rows itself, instead of naming files."""
    if hasattr(value, "to_pylist") or hasattr(value, "to_dict"):  # an Arrow table is not iterable
        return True
    if isinstance(value, (str, Path, Mapping)) or not isinstance(value, Iterable):
        return False
    return not (isinstance(value, (list, tuple)) and value and all(isinstance(item, (str, Path)) for item in value))


def write_rows(rows: Any, folder: Path) -> Path:
    """Writes the rows to `folder` and returns the file, whose name is a hash of its content.

    `rows` is an iterable of mappings (a list, a datasets.Dataset), a pandas or polars DataFrame, or a pyarrow Table.
    Missing values (NaN, NaT) become null. Raises DataError for anything else, and for no rows.
    """
    lines = [json.dumps(_plain(row, number), ensure_ascii=False) for number, row in enumerate(_records(rows), start=1)]
    if not lines:
        raise DataError("there are no rows", where="rows", next="Give at least a list of one dict")
    text = "\n".join(lines) + "\n"
    path = folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return path


def _records(rows: Any) -> Iterable[Any]:
    if hasattr(rows, "to_dicts"):  # polars
        return rows.to_dicts()  # type: ignore[no-any-return]
    if hasattr(rows, "to_pylist"):  # pyarrow
        return rows.to_pylist()  # type: ignore[no-any-return]
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # pandas
        return rows.to_dict("records")  # type: ignore[no-any-return]
    if isinstance(rows, Iterable):
        return rows
    kind = type(rows).__name__
    raise DataError(f"rows must be dicts, a DataFrame or a dataset, not {kind}", where="rows")


def _plain(row: Any, number: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        advice = 'Write each row as a dict, such as {"prompt": "…", "answer": "…"}'
        raise DataError(f"it is {type(row).__name__}, not a dict", where=f"row {number}", next=advice)
    return {str(key): _value(value) for key, value in row.items()}


def _value(value: Any) -> Any:
    """Returns a value that JSON can hold: numbers of numpy as Python's, missing values as None, others as text."""
    if isinstance(value, Mapping):
        return {str(key): _value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy
        return _value(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return None if str(value) in ("NaT", "<NA>") else str(value)
