"""Token files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tunesmith.errors import ResourceError, RunError
from tunesmith.web.token_file import read_private, read_token, token_path, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    old = os.umask(0)
    try:
        token = read_token()
    finally:
        os.umask(old)
    assert token_path() == tmp_path / "config" / "tunesmith" / "token"
    assert len(token) == 43
    assert mode(token_path()) == 0o600
    assert mode(token_path().parent) == 0o700
    assert read_token() == token
    assert read_token(tmp_path / "other") != token
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # the specification says to pass over such a value
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert token_path() == tmp_path / "home" / ".config" / "tunesmith" / "token"


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o602, 0o604, 0o620])
def test_a_token_that_others_may_read_or_write_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "token"
    read_token(path)
    path.chmod(bits)
    with pytest.raises(RunError, match="other users may read or change this file") as error:
        read_token(path)
    assert f"chmod 600 {path}" in error.value.next


@pytest.mark.parametrize("text", ["", "short", "x" * 31, "with blanks " * 5, "ü" * 40])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    write_private(path, text)
    with pytest.raises(RunError, match="contains no token"):
        read_token(path)


def test_links_and_folders_are_refused(tmp_path: Path) -> None:
    read_token(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ResourceError, match="cannot be read"):
        read_token(tmp_path / "link")
    (tmp_path / "folder").mkdir()
    with pytest.raises((RunError, ResourceError), match=r"not a regular file|cannot be read"):
        read_token(tmp_path / "folder")


def test_what_is_written_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secrets.json"
    write_private(path, "one")
    write_private(path, "two")
    assert read_private(path) == "two"
    assert mode(path) == 0o600
    with pytest.raises(FileExistsError):
        write_private(path, "three", exclusive=True)
    assert read_private(path) == "two"
    assert [item.name for item in path.parent.iterdir()] == ["secrets.json"]
