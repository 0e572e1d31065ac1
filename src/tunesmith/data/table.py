"""Rows on disk, mapped into memory: a sequence of conversations that need not fit in it.

The rows lie in one Arrow file (https://arrow.apache.org/docs/format/Columnar.html), one record batch for every 1,000.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import Conversation, from_plain, to_plain
from tunesmith.runs.run import disk

BATCH = 1000  # rows: about 1 MB of text; larger batches bring no speed


class Table(Sequence[Conversation]):
    """Conversations of an Arrow file, made when they are asked for. A selection shares its file."""

    def __init__(self, path: Path, places: npt.NDArray[np.int64] | None = None) -> None:
        """Maps `path`, as `write` left it; `places` chooses rows, in that order."""
        import pyarrow

        self.path = path
        self._batches: list[Any] = []
        if path.stat().st_size:
            opened = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
            self._batches = [opened.get_batch(number) for number in range(opened.num_record_batches)]
        self.places = np.arange(sum(map(len, self._batches))) if places is None else places

    @classmethod
    def write(cls, path: Path, rows: Iterable[Conversation]) -> Table:
        """The rows, written to `path` as they come; one batch of them is held at a time.

        Raises ResourceError when the disk is full.
        """
        import pyarrow

        # large_binary: offsets of 64 bits, and any bytes: a row may hold half a surrogate pair, which is no UTF-8
        schema = pyarrow.schema([("row", pyarrow.large_binary())])
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk(path), pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
            given = iter(rows)
            while batch := [_pack(row) for row in itertools.islice(given, BATCH)]:
                writer.write_batch(pyarrow.record_batch([pyarrow.array(batch, pyarrow.large_binary())], schema=schema))
        return cls(path)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Conversation: ...
    @overload
    def __getitem__(self, place: slice) -> Table: ...
    def __getitem__(self, place: int | slice) -> Conversation | Table:
        if isinstance(place, slice):
            return Table(self.path, self.places[place])
        batch, inside = divmod(int(self.places[place]), BATCH)
        return _unpack(self._batches[batch].column(0)[inside].as_py())

    def __iter__(self) -> Iterator[Conversation]:
        for place in self.places.tolist():
            batch, inside = divmod(place, BATCH)
            yield _unpack(self._batches[batch].column(0)[inside].as_py())

    def take(self, places: Iterable[int]) -> Table:
        """The rows at `places` (from 0, in that order)."""
        return Table(self.path, self.places[np.fromiter(places, dtype=np.int64)])


def _pack(row: Conversation) -> bytes:
    return json.dumps(to_plain(row), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _unpack(data: bytes) -> Conversation:
    return from_plain(json.loads(data.decode("utf-8", "surrogatepass")))
