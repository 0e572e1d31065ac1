"""A memory-mapped sequence of conversations that may be larger than memory.

The rows are in one Arrow file (https://arrow.apache.org/docs/format/Columnar.html), 1,000 per record batch.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import Conversation, conversation_from_dict, conversation_to_dict
from tunesmith.runs.run import translate_disk_errors

BATCH = 1000  # rows: about 1 MB of text; larger batches are not faster


class Table(Sequence[Conversation]):
    """Conversations of an Arrow file, decoded on access. A selection shares its file."""

    def __init__(self, path: Path, indices: npt.NDArray[np.int64] | None = None) -> None:
        """Opens a file that `write` wrote; `indices` selects rows, in that order."""
        import pyarrow

        self.path = path
        self._batches: list[Any] = []
        if path.stat().st_size:
            reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.indices = np.arange(sum(map(len, self._batches))) if indices is None else indices

    @classmethod
    def write(cls, path: Path, rows: Iterable[Conversation]) -> Table:
        """Writes the rows to `path`, one batch in memory at a time. Raises ResourceError if the disk is full."""
        import pyarrow

        # large_binary: 64-bit offsets, and any bytes: a row may have a lone surrogate, which is not UTF-8
        schema = pyarrow.schema([("row", pyarrow.large_binary())])
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            translate_disk_errors(path),
            pyarrow.OSFile(str(path), "wb") as sink,
            pyarrow.ipc.new_file(sink, schema) as writer,
        ):
            row_iterator = iter(rows)
            while batch := [_to_bytes(row) for row in itertools.islice(row_iterator, BATCH)]:
                writer.write_batch(pyarrow.record_batch([pyarrow.array(batch, pyarrow.large_binary())], schema=schema))
        return cls(path)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> Conversation | Table:
        if isinstance(index, slice):
            return Table(self.path, self.indices[index])
        batch, offset = divmod(int(self.indices[index]), BATCH)
        return _from_bytes(self._batches[batch].column(0)[offset].as_py())

    def __iter__(self) -> Iterator[Conversation]:
        for index in self.indices.tolist():
            batch, offset = divmod(index, BATCH)
            yield _from_bytes(self._batches[batch].column(0)[offset].as_py())

    def take(self, indices: Iterable[int]) -> Table:
        """The rows at `indices` (from 0), in that order."""
        return Table(self.path, self.indices[np.fromiter(indices, dtype=np.int64)])


def _to_bytes(row: Conversation) -> bytes:
    return json.dumps(conversation_to_dict(row), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _from_bytes(data: bytes) -> Conversation:
    return conversation_from_dict(json.loads(data.decode("utf-8", "surrogatepass")))
