"""A memory-mapped sequence of conversations that may be larger than memory.

The file holds the rows as JSON, one behind the other, then where each row ends (uint64, little-endian), and at the end
the number of rows (uint64).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import Conversation, conversation_from_dict, conversation_to_dict
from tunesmith.runs.run import translate_disk_errors

_NUMBER = np.dtype("<u8")
_NO_ROWS = np.zeros(1, _NUMBER).tobytes()


class Table(Sequence[Conversation]):
    """Conversations of a file, decoded on access. A selection shares its file."""

    def __init__(self, path: Path, indices: npt.NDArray[np.int64] | None = None) -> None:
        """Opens a file that `write` wrote; `indices` selects rows, in that order."""
        self.path = path
        with path.open("rb") as file:
            empty = path.stat().st_size == 0  # cannot be mapped
            self._data = _NO_ROWS if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.frombuffer(self._data[-_NUMBER.itemsize :], _NUMBER)[0])
        ends = np.frombuffer(self._data, _NUMBER, count, len(self._data) - (count + 1) * _NUMBER.itemsize)
        self._bounds = np.concatenate([np.zeros(1, _NUMBER), ends]).astype(np.int64)
        self.indices = np.arange(count) if indices is None else indices

    @classmethod
    def write(cls, path: Path, rows: Iterable[Conversation]) -> Table:
        """Writes the rows to `path`, one at a time in memory. Raises ResourceError if the disk is full."""
        path.parent.mkdir(parents=True, exist_ok=True)
        ends: list[int] = []
        with translate_disk_errors(path), path.open("wb") as file:
            for row in rows:
                data = _to_bytes(row)
                file.write(data)
                ends.append((ends[-1] if ends else 0) + len(data))
            file.write(np.array([*ends, len(ends)], _NUMBER).tobytes())
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
        return self._row(int(self.indices[index]))

    def __iter__(self) -> Iterator[Conversation]:
        for index in self.indices.tolist():
            yield self._row(index)

    def _row(self, index: int) -> Conversation:
        return _from_bytes(self._data[self._bounds[index] : self._bounds[index + 1]])

    def take(self, indices: Iterable[int]) -> Table:
        """The rows at `indices` (from 0), in that order."""
        return Table(self.path, self.indices[np.fromiter(indices, dtype=np.int64)])


def _to_bytes(row: Conversation) -> bytes:
    return json.dumps(conversation_to_dict(row), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _from_bytes(data: bytes) -> Conversation:
    return conversation_from_dict(json.loads(data.decode("utf-8", "surrogatepass")))
