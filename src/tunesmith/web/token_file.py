"""Secrets in files that only this user reads: the server's token, and what pairing keeps."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import stat
from pathlib import Path

from tunesmith.errors import ResourceError, RunError

SHORTEST = 32  # characters of a token; ours have 43, which are 256 bits
LARGEST = 1 << 16  # bytes of such a file


def config_folder() -> Path:
    """Where settings of this user are kept: $XDG_CONFIG_HOME/tunesmith, by default ~/.config/tunesmith."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".config") / "tunesmith"


def token_path() -> Path:
    """Where the server's token lies."""
    return config_folder() / "token"


def read_token(path: Path | None = None) -> str:
    """The token in the file; a new one is written where there is none.

    Raises RunError for a file that others may read or write, that is no file of this user's, or that holds no token;
    ResourceError where it cannot be read or written.
    """
    path = path or token_path()
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32) + "\n", fresh=True)
    token = read_private(path).strip()
    if len(token) < SHORTEST or not (token.isascii() and token.isprintable()) or " " in token:
        advice = "Delete the file: a new one is made at the next start"
        raise RunError(f"holds no token of {SHORTEST} characters or more", where=str(path), next=advice)
    return token


def read_private(path: Path) -> str:
    """The text of a file that only this user may read. Raises what `read_token` does."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, encoding="utf-8", errors="replace") as file:
            _check(os.fstat(handle), path)
            return file.read(LARGEST)
    except OSError as error:
        advice = "It must be a plain file of yours, no link"
        raise ResourceError(f"cannot be read ({error.strerror})", where=str(path), next=advice) from error


def write_private(path: Path, text: str, *, fresh: bool = False) -> None:
    """Writes a file of mode 0600 whole or not at all, its folder of mode 0700 made where it is missing.

    `fresh` leaves a file that is there as it is (FileExistsError). Raises ResourceError where it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                os.link(beside, path)
                beside.unlink()
            else:
                beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        advice = "Make its folder writable, or set XDG_CONFIG_HOME"
        raise ResourceError(f"cannot be written ({error.strerror})", where=str(path), next=advice) from error


def _check(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise RunError("is no plain file", where=str(path), next="Delete it: a new one is made at the next start")
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077):
        advice = f"If nobody has read it: chmod 600 {shlex.quote(str(path))}; else delete it, and a new one is made"
        raise RunError("others may read or change this file", where=str(path), next=advice)
