"""Replies on disk as they come, so that an evaluation that stopped goes on: a reply is written once."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tunesmith.generation.text_model import Reply


class Kept:
    """A file of JSON lines: what the replies were made from, then a reply a line.

    A torn last line is passed over. A file made from something else is begun anew.
    """

    def __init__(self, path: Path, made_from: dict[str, str]) -> None:
        """Reads what is there. Raises OSError when the file cannot be read or written."""
        self.path = path
        self.replies: dict[tuple[str, str], Reply] = {}
        lines = _read(path)
        if lines[:1] == [{"made_from": made_from}]:
            for line in lines[1:]:
                part, row = line.pop("part"), line.pop("id")
                self.replies[part, row] = Reply(**line)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"made_from": made_from}) + "\n", encoding="utf-8")
        self._file: IO[str] | None = None

    def add(self, part: str, row: str, reply: Reply) -> None:
        """Writes a reply down."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
            if not _ends_in_newline(self.path):
                self._file.write("\n")  # behind a torn line
        self.replies[part, row] = reply
        self._file.write(json.dumps({"part": part, "id": row, **asdict(reply)}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Makes sure that all of it is on disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _read(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            plain = json.loads(line)
        except ValueError:
            continue
        if isinstance(plain, dict):
            found.append(plain)
    return found


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
