"""Pairs browser extensions: a code from the terminal is exchanged once for a token of the extension's own.

A code is shown in the terminal, is valid for ten minutes, works once, and expires after five wrong tries. A token
belongs to one origin; only its SHA-256 is stored, in a file that only this user may read.
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

CODE_SECONDS = 600  # lifetime of a code
MAX_TRIES = 5  # wrong tries until a code expires
CODE_LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # without look-alikes; 8 of them are 40 bits
CODE_LENGTH = 8
MAX_PAIRS = 32  # stored extensions
PAIR_PATH = "/v1/pair"
_ORIGIN = re.compile(r"chrome-extension://[a-p]{32}")  # Chrome, Chromium, Edge, Brave, Opera


@dataclass(frozen=True)
class PairedExtension:
    """A paired extension: its origin, the name it gave, its token's SHA-256, and when it was paired (seconds, UTC)."""

    origin: str
    name: str
    sha256: str
    made: int


class PairRequest(BaseModel):
    """The code that the terminal shows, and the extension's name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    code: Annotated[Text, Field(min_length=CODE_LENGTH, max_length=32)]
    name: Annotated[Text, Field(max_length=80)] = ""


class PairResponse(BaseModel):
    """The extension's own token."""

    token: str


class Pairing:
    """The paired extensions, and the code that pairs one more; implements web.auth.PairingStore."""

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the extensions from `path` (default: pairs_path()). `clock` returns seconds for the lifetime of a code.

        Raises the errors of token_file.read_private, and RunError for a damaged file.
        """
        self._path, self._clock, self._lock = path or pairs_path(), clock, threading.Lock()
        self._code, self._expires_at, self._pairing_open_until, self._tries_left = b"", 0.0, 0.0, 0
        self._version, self._extensions = _file_version(self._path), read_pairs(self._path)

    def code(self) -> str:
        """Return a new code in two groups of four; an earlier code expires."""
        letters = "".join(secrets.choice(CODE_LETTERS) for _ in range(CODE_LENGTH))
        with self._lock:
            self._code, self._tries_left = _hash(letters), MAX_TRIES
            self._expires_at = self._pairing_open_until = self._clock() + CODE_SECONDS
        return f"{letters[:4]}-{letters[4:]}"

    def allows_origin(self, origin: str, path: str) -> bool:
        """Return whether pages of `origin` may request `path`; unpaired extensions may pair while a code is shown.

        That includes codes that were used or tried too often, so that the extension can read the error.
        """
        with self._lock:
            self._reload()
            if any(extension.origin == origin for extension in self._extensions):
                return True
            return path == PAIR_PATH and self._clock() < self._pairing_open_until and bool(_ORIGIN.fullmatch(origin))

    def accepts_token(self, token: str, origin: str) -> bool:
        """Return whether `token` belongs to `origin`, or to any extension if `origin` is "" as in their GET requests.

        Compares in constant time.
        """
        digest, accepted = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest(), False
        with self._lock:
            self._reload()
            for extension in self._extensions:
                matches = hmac.compare_digest(extension.sha256, digest)
                accepted = accepted or (matches and origin in ("", extension.origin))
        return accepted

    def pair(self, code: str, origin: str, name: str = "") -> str:
        """Use up the code and return a token for `origin`, which replaces an earlier one of the same origin.

        Raises ApiError (403) for a wrong, used, expired or missing code, and for an origin that is not an extension's.
        """
        if not _ORIGIN.fullmatch(origin):
            raise ApiError(403, "only a browser extension can be paired", code="origin_not_allowed")
        code_hash = _hash(re.sub(r"[\s-]", "", code).upper())
        with self._lock:
            valid = self._tries_left > 0 and self._clock() < self._expires_at
            matches = hmac.compare_digest(code_hash, self._code or bytes(len(code_hash)))
            if not (valid and matches):
                self._tries_left -= valid
                message = "the code is wrong, used or expired. For a new one, restart the server with --pair"
                raise ApiError(403, message, code="pairing_failed", param="code")
            self._tries_left = 0
            token = secrets.token_urlsafe(32)
            self._reload()
            new = PairedExtension(origin, _one_line(name), hashlib.sha256(token.encode()).hexdigest(), int(time.time()))
            others = [extension for extension in self._extensions if extension.origin != origin]
            self._write([*others, new][-MAX_PAIRS:])
        return token

    def router(self) -> APIRouter:
        """Routes: POST /v1/pair."""
        api_router = APIRouter()

        @api_router.post(PAIR_PATH, response_model=PairResponse)
        async def pair(payload: PairRequest, request: Request) -> PairResponse:
            """Exchange the code that the terminal shows for a token of the extension's own."""
            return PairResponse(token=self.pair(payload.code, request.headers.get("origin", ""), payload.name))

        return api_router

    def _reload(self) -> None:
        """Read the file again if it has changed, because extensions can be unpaired while the server runs.

        If the file cannot be read any more, no extension is accepted.
        """
        version = _file_version(self._path)
        if version != self._version:
            self._extensions, self._version = [], version
            with contextlib.suppress(TunesmithError):
                self._extensions = read_pairs(self._path)

    def _write(self, extensions: list[PairedExtension]) -> None:
        write_pairs(extensions, self._path)
        self._extensions, self._version = extensions, _file_version(self._path)


def pairs_path() -> Path:
    """Return the path of the file with the paired extensions."""
    return config_folder() / "paired.json"


def read_pairs(path: Path | None = None) -> list[PairedExtension]:
    """Return the paired extensions, the oldest first; none if the file does not exist.

    Raises RunError for a file that others may read or that is damaged, ResourceError for one that cannot be read.
    """
    path = path or pairs_path()
    if not path.exists():
        return []
    try:
        return [PairedExtension(**entry) for entry in json.loads(read_private(path))["pairs"]]
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            "the file is damaged", where=str(path), next="Delete it, and pair the extensions again"
        ) from error


def unpair(which: str = "", path: Path | None = None) -> list[PairedExtension]:
    """Revoke the extensions whose origin or name is `which`, or all for ''. Returns the revoked ones.

    Raises RunError if there is none with that name, and the errors of `read_pairs`.
    """
    extensions = read_pairs(path)
    removed = [extension for extension in extensions if which in ("", extension.origin, extension.name)]
    if which and not removed:
        names = ", ".join(sorted({extension.name or extension.origin for extension in extensions})) or "none"
        raise RunError(f"no paired extension is called '{which}'", where="--unpair", next=f"Paired extensions: {names}")
    if removed:
        write_pairs([extension for extension in extensions if extension not in removed], path or pairs_path())
    return removed


def write_pairs(extensions: list[PairedExtension], path: Path) -> None:
    """Replace the stored extensions."""
    write_private(path, json.dumps({"pairs": [asdict(extension) for extension in extensions]}, indent=1) + "\n")


def _file_version(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino
    return None


def _hash(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()


def _one_line(name: str) -> str:
    """Return a name that is safe to print in a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())
