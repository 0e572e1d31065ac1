"""Reads Parquet and Arrow tables in batches; a gzipped one is decompressed to a temporary file first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Origin
from tunesmith.data.rows import BadRow, Row, decompressed, is_gzip
from tunesmith.errors import DataError

BATCH = 1024  # rows converted to Python values at a time
_READ_ERRORS = (ValueError, TypeError, KeyError, OverflowError, MemoryError, NotImplementedError, RecursionError)


def parquet(path: Path, name: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a Parquet file, read one row group at a time."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with _decompressed(path) as plain, parquet.ParquetFile(plain, page_checksum_verification=True) as file:
            yield from _rows(file.iter_batches(batch_size=BATCH), name)
    except (arrow.ArrowException, *_READ_ERRORS) as error:  # ValueError: text that is not UTF-8, dates out of range
        raise DataError(f"is not a Parquet file: {error}", where=name, next="Write it again") from error


def arrow(path: Path, name: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a memory-mapped Arrow file or stream."""
    import pyarrow as arrow

    try:
        with _decompressed(path) as plain, arrow.memory_map(str(plain)) as source:
            yield from _rows(map(_checked, _record_batches(source)), name)
    except (arrow.ArrowException, *_READ_ERRORS) as error:
        raise DataError(f"is not an Arrow file: {error}", where=name, next="Write it again") from error


def _rows(batches: Iterator[Any], name: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for values in batch.slice(start, BATCH).to_pylist():
                number += 1
                yield Row(values, Origin(name, number, "row"))


def _checked(batch: Any) -> Any:
    batch.validate(full=True)  # a damaged offset would be read outside the file; Parquet has none
    return batch


def _record_batches(source: Any) -> Iterator[Any]:
    import pyarrow as arrow

    try:
        stream = arrow.ipc.open_stream(source)
    except arrow.ArrowInvalid:  # the file format has its index at the end
        source.seek(0)
        reader = arrow.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from stream


@contextmanager
def _decompressed(path: Path) -> Iterator[Path]:
    """The path of the file, decompressed to a temporary file if needed."""
    if not is_gzip(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="tunesmith-") as file:
        for chunk in decompressed(path):
            file.write(chunk)
        file.flush()
        yield Path(file.name)
