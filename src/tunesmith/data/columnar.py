"""Parquet and Arrow tables, in batches; a packed one is unpacked to a temporary file first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Origin
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.stream import is_packed, unpacked
from tunesmith.errors import DataError

BATCH = 1024  # rows as Python values at once
_SURPRISES = (ValueError, TypeError, KeyError, OverflowError, MemoryError, NotImplementedError, RecursionError)


def parquet(path: Path, shown: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a Parquet file, a row group at a time."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with _plain(path) as plain, parquet.ParquetFile(plain, page_checksum_verification=True) as file:
            yield from _rows(file.iter_batches(batch_size=BATCH), shown)
    except (arrow.ArrowException, *_SURPRISES) as error:  # ValueError: text that is not UTF-8, dates out of range
        raise DataError(f"is no parquet file: {error}", where=shown, next="Write it again") from error


def arrow(path: Path, shown: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of an Arrow file or stream, mapped into memory."""
    import pyarrow as arrow

    try:
        with _plain(path) as plain, arrow.memory_map(str(plain)) as source:
            yield from _rows(map(_checked, _record_batches(source)), shown)
    except (arrow.ArrowException, *_SURPRISES) as error:
        raise DataError(f"is no Arrow file: {error}", where=shown, next="Write it again") from error


def _rows(batches: Iterator[Any], shown: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for values in batch.slice(start, BATCH).to_pylist():
                number += 1
                yield Row(values, Origin(shown, number, "row"))


def _checked(batch: Any) -> Any:
    batch.validate(full=True)  # a damaged offset would be followed out of the file; Parquet has none
    return batch


def _record_batches(source: Any) -> Iterator[Any]:
    import pyarrow as arrow

    try:
        stream = arrow.ipc.open_stream(source)
    except arrow.ArrowInvalid:  # the file format has its index at the end
        source.seek(0)
        opened = arrow.ipc.open_file(source)
        for index in range(opened.num_record_batches):
            yield opened.get_batch(index)
    else:
        yield from stream


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """The path of the unpacked file."""
    if not is_packed(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="tunesmith-") as file:
        for chunk in unpacked(path):
            file.write(chunk)
        file.flush()
        yield Path(file.name)
