"""Files that only this user may read: the server's token and the paired extensions."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import stat
from pathlib import Path

from tunesmith.errors import ResourceError, RunError

MIN_TOKEN_LENGTH = 32  # characters; ours have 43, which is 256 bits
MAX_FILE_BYTES = 1 << 16  # of a private file that are read


def config_folder() -> Path:
    """Return this user's settings folder: $XDG_CONFIG_HOME/tunesmith, by default ~/.config/tunesmith."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".config") / "tunesmith"


def token_path() -> Path:
    """Return the path of the server's token."""
    return config_folder() / "token"


def read_token(path: Path | None = None) -> str:
    """Return the token in the file; creates the file with a new token if it does not exist.

    Raises RunError for a file that others may read or write, that is not a regular file of this user, or that contains
    no token; ResourceError if it cannot be read or written.
    """
    path = path or token_path()
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32) + "\n", exclusive=True)
    token = read_private(path).strip()
    if len(token) < MIN_TOKEN_LENGTH or not (token.isascii() and token.isprintable()) or " " in token:
        advice = "Delete the file; the next start creates a new one"
        raise RunError(
            f"the file contains no token of {MIN_TOKEN_LENGTH} or more characters", where=str(path), next=advice
        )
    return token


def read_private(path: Path) -> str:
    """Return the text of a file that only this user may read. Raises the errors of `read_token`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            _check_private(os.fstat(descriptor), path)
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        advice = "It must be a regular file of yours, not a link"
        raise ResourceError(f"the file cannot be read ({error.strerror})", where=str(path), next=advice) from error


def write_private(path: Path, text: str, *, exclusive: bool = False) -> None:
    """Write a file of mode 0600 atomically, and create its folder with mode 0700 if it is missing.

    With `exclusive` an existing file is kept (FileExistsError). Raises ResourceError if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if exclusive:
                os.link(temporary, path)
                temporary.unlink()
            else:
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        advice = "Make its folder writable, or set XDG_CONFIG_HOME to a writable one"
        raise ResourceError(f"the file cannot be written ({error.strerror})", where=str(path), next=advice) from error


def _check_private(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RunError("not a regular file", where=str(path), next="Delete it; the next start creates a new one")
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077):
        advice = f"If nobody has read it, run chmod 600 {shlex.quote(str(path))}; otherwise delete it"
        raise RunError("other users may read or change this file", where=str(path), next=advice)
