"""Log of replies on disk, so that an interrupted evaluation resumes without generating a reply twice."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tunesmith.generation.text_model import Reply


class ReplyLog:
    """A file of JSON lines: fingerprints of the inputs, then one reply per line.

    An incomplete last line is skipped. A file that was made from other inputs is started anew.
    """

    def __init__(self, path: Path, inputs: dict[str, str]) -> None:
        """Reads the file. Raises OSError if it cannot be read or written."""
        self.path = path
        self.replies: dict[tuple[str, str], Reply] = {}
        lines = _read(path)
        if lines[:1] == [{"inputs": inputs}]:
            for line in lines[1:]:
                part, row = line.pop("part"), line.pop("id")
                self.replies[part, row] = Reply(**line)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"inputs": inputs}) + "\n", encoding="utf-8")
        self._file: IO[str] | None = None

    def add(self, part: str, row: str, reply: Reply) -> None:
        """Appends a reply."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
            if not _ends_in_newline(self.path):
                self._file.write("\n")  # after an incomplete line
        self.replies[part, row] = reply
        self._file.write(json.dumps({"part": part, "id": row, **asdict(reply)}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Syncs the file to disk and closes it."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
