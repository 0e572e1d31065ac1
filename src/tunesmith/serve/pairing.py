"""Browser extensions that may ask: each let in once by a code from the terminal, then by a token of its own.

A code is shown to whoever sits at this machine, lives ten minutes, works once and dies with the fifth wrong try. A
token belongs to the origin it was given to; only its SHA-256 is kept, in a file that this user alone reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import RunError, TunesmithError
from tunesmith.serve.openai_models import Text
from tunesmith.web.errors import ApiError
from tunesmith.web.token_file import config_folder, read_private, write_private

SECONDS = 600  # that a code lives
TRIES = 5  # wrong ones end it
LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # none that is taken for another; 8 of them are 40 bits
LENGTH = 8
MOST = 32  # extensions that are kept
PLACE = "/v1/pair"
_ORIGIN = re.compile(r"chrome-extension://[a-p]{32}")  # Chrome, Chromium, Edge, Brave, Opera


@dataclass(frozen=True)
class Pair:
    """An extension that was let in: its origin, what it called itself, its token's SHA-256, when (seconds, UTC)."""

    origin: str
    name: str
    sha256: str
    made: int


class PairRequest(BaseModel):
    """The code that the terminal shows, and what the extension calls itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    code: Annotated[Text, Field(min_length=LENGTH, max_length=32)]
    name: Annotated[Text, Field(max_length=80)] = ""


class Paired(BaseModel):
    """The extension's own token."""

    token: str


class Pairing:
    """Who was paired, and the code that lets one more in. See guard.Pairs."""

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the pairs from `path` (default: pairs_path()). `clock` tells seconds for the code's life.

        Raises what token_file.read_private does, RunError for a file that is damaged.
        """
        self._path, self._clock, self._lock = path or pairs_path(), clock, threading.Lock()
        self._code, self._until, self._open_until, self._tries = b"", 0.0, 0.0, 0
        self._stamp, self._pairs = _stamp(self._path), paired(self._path)

    def code(self) -> str:
        """A new code, in two groups of four; an earlier one ends."""
        made = "".join(secrets.choice(LETTERS) for _ in range(LENGTH))
        with self._lock:
            self._code, self._tries = _hash(made), TRIES
            self._until = self._open_until = self._clock() + SECONDS
        return f"{made[:4]}-{made[4:]}"

    def knows(self, origin: str, path: str) -> bool:
        """Whether pages of `origin` may ask: those paired for anything, other extensions to pair while a code is shown.

        They may as well when the code was used up or tried too often, so that they can read why they are refused.
        """
        with self._lock:
            self._read()
            if any(each.origin == origin for each in self._pairs):
                return True
            return path == PLACE and self._clock() < self._open_until and bool(_ORIGIN.fullmatch(origin))

    def accepts(self, token: str, origin: str) -> bool:
        """Whether `token` was given to `origin`; "" is what a paired extension sends with GET. In constant time."""
        wanted, found = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest(), False
        with self._lock:
            self._read()
            for each in self._pairs:
                same = hmac.compare_digest(each.sha256, wanted)
                found = found or (same and origin in ("", each.origin))
        return found

    def pair(self, code: str, origin: str, name: str = "") -> str:
        """A token for `origin`, in whose place an earlier one of the same origin is forgotten. The code is used up.

        Raises ApiError (403) for a wrong, used, old or missing code and for an origin that is no extension's.
        """
        if not _ORIGIN.fullmatch(origin):
            raise ApiError(403, "only a browser extension can be paired", code="origin_not_allowed")
        given = _hash(re.sub(r"[\s-]", "", code).upper())
        with self._lock:
            alive = self._tries > 0 and self._clock() < self._until
            right = hmac.compare_digest(given, self._code or bytes(len(given)))
            if not (alive and right):
                self._tries -= alive
                what = "the code is wrong, used up or too old. For a new one start the server with --pair"
                raise ApiError(403, what, code="pairing_failed", param="code")
            self._tries = 0
            token = secrets.token_urlsafe(32)
            self._read()
            new = Pair(origin, _line(name), hashlib.sha256(token.encode()).hexdigest(), int(time.time()))
            kept = [each for each in self._pairs if each.origin != origin]
            self._write([*kept, new][-MOST:])
        return token

    def router(self) -> APIRouter:
        """POST /v1/pair."""
        made = APIRouter()

        @made.post(PLACE, response_model=Paired)
        async def pair(asked: PairRequest, request: Request) -> Paired:
            """Gives a browser extension its own token for the code that the terminal shows."""
            return Paired(token=self.pair(asked.code, request.headers.get("origin", ""), asked.name))

        return made

    def _read(self) -> None:
        """The file, where it is another than before: extensions are unpaired while the server runs.

        One that cannot be read any more lets nobody in.
        """
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._pairs, self._stamp = [], stamp
            with contextlib.suppress(TunesmithError):
                self._pairs = paired(self._path)

    def _write(self, pairs: list[Pair]) -> None:
        write_pairs(pairs, self._path)
        self._pairs, self._stamp = pairs, _stamp(self._path)


def pairs_path() -> Path:
    """Where the pairs are kept."""
    return config_folder() / "paired.json"


def paired(path: Path | None = None) -> list[Pair]:
    """The extensions that were let in, the oldest first; none where there is no file.

    Raises RunError for a file that others may read or that is damaged, ResourceError for one that cannot be read.
    """
    path = path or pairs_path()
    if not path.exists():
        return []
    try:
        return [Pair(**each) for each in json.loads(read_private(path))["pairs"]]
    except (ValueError, TypeError, KeyError) as error:
        raise RunError("is damaged", where=str(path), next="Delete it, and pair the extensions anew") from error


def unpair(which: str = "", path: Path | None = None) -> list[Pair]:
    """Lets extensions in no more: those whose origin or name is `which`, all for ''. Returns those it was.

    Raises RunError where none is called so, and what `paired` raises.
    """
    known = paired(path)
    gone = [each for each in known if which in ("", each.origin, each.name)]
    if which and not gone:
        names = ", ".join(sorted({each.name or each.origin for each in known})) or "none"
        raise RunError(f"no extension called '{which}' is paired", where="--unpair", next=f"There are: {names}")
    if gone:
        write_pairs([each for each in known if each not in gone], path or pairs_path())
    return gone


def write_pairs(pairs: list[Pair], path: Path) -> None:
    """Keeps these pairs and no others."""
    write_private(path, json.dumps({"pairs": [asdict(each) for each in pairs]}, indent=1) + "\n")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


def _hash(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()


def _line(name: str) -> str:
    """A name as it can stand in a terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
