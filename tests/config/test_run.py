"""A run's folder: a file is as before or whole, one process writes, and what changed is said precisely."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ResourceError, RunError
from tunesmith.runs.run import Run, atomic_folder, hash_bytes, hash_file, hash_json, hash_path, write_atomic

FULL = "the disk is full; finished work is kept"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "toy")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def failing(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def full(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))


# --- writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["grüße\n", b"\x00\xff"])
def test_write_atomic_writes_and_replaces(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "deep" / "file"
    for _ in range(2):
        write_atomic(path, data)
        assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
        path.write_bytes(b"something longer that stood there before")
    assert names(tmp_path) == ["deep", "deep/file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, number: int
) -> None:
    path = tmp_path / "file"
    if before:
        path.write_text(before)
    full(monkeypatch, number)
    with pytest.raises(ResourceError) as caught:
        write_atomic(path, "new")
    assert (caught.value.what, caught.value.where, caught.value.exit_code) == (FULL, str(path), 6)
    assert caught.value.next == "Free some space, then run the same command again to resume"
    assert names(tmp_path) == (["file"] if before else [])
    assert not before or path.read_text() == before


def test_another_failure_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")
    full(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        write_atomic(tmp_path / "file", "new")
    assert caught.value.errno == errno.EIO
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_text_that_cannot_be_encoded_changes_nothing(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "file", "\ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("before", [False, True])
def test_new_folder_takes_the_place_as_a_whole(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "deep" / "adapter"
    if before:
        path.mkdir(parents=True)
        (path / "old").write_text("old")
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
        (temporary / "inner").mkdir()
        (temporary / "inner" / "b").write_text("2")
        assert path.exists() == before  # nothing is seen before the block has ended
    assert names(tmp_path) == ["deep", "deep/adapter", "deep/adapter/a", "deep/adapter/inner", "deep/adapter/inner/b"]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("why", ["error in the block", "full disk", "failed rename"])
def test_new_folder_leaves_everything_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, why: str
) -> None:
    path = tmp_path / "adapter"
    if before:
        path.mkdir()
        (path / "old").write_text("old")
    expected, rename = names(tmp_path), Path.rename

    def rename_but_the_new(self: Path, target: Path) -> Path:
        return failing(errno.ENOSPC)() if self.suffix == ".tmp" else rename(self, target)

    if why == "full disk":
        full(monkeypatch)
    elif why == "failed rename":
        monkeypatch.setattr(Path, "rename", rename_but_the_new)
    with pytest.raises(KeyError if why == "error in the block" else ResourceError), atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
        if why == "error in the block":
            raise KeyError("x")
    assert names(tmp_path) == expected


# --- the lock ------------------------------------------------------------------------------------------------


def locked_elsewhere(run: Run) -> subprocess.CompletedProcess[str]:
    """Takes the lock in a second process; exit 0 when it gets it, else the error on stdout and exit 5."""
    code = (
        "import sys; from pathlib import Path; from tunesmith.runs.run import Run\n"
        "from tunesmith.errors import RunError\n"
        f"try:\n  with Run(Path({str(run.path)!r})).lock(): pass\n"
        "except RunError as error: print(error); sys.exit(error.exit_code)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_second_process_is_refused_and_told_who_works(run: Run) -> None:
    with run.lock():
        second = locked_elsewhere(run)
        assert (second.returncode, second.stderr) == (5, "")
        assert second.stdout == (
            f"{run.path}: another process (pid {os.getpid()}) is using this run. Wait until it ends, or stop it.\n"
        )
    after = locked_elsewhere(run)
    assert (after.returncode, after.stdout, after.stderr) == (0, "", "")


def test_the_lock_goes_with_its_process(run: Run) -> None:
    code = (
        "import os; from pathlib import Path; from tunesmith.runs.run import Run\n"
        f"with Run(Path({str(run.path)!r})).lock(): print(os.getpid(), flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -9
    assert (run / ".lock.owner").read_text() == f"pid {killed.stdout.strip()}"
    with run.lock():
        assert (run / ".lock.owner").read_text() == f"pid {os.getpid()}"


def test_the_lock_is_given_back_after_an_error(run: Run) -> None:
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        pass


# --- fingerprints ----------------------------------------------------------------------------------------------

INPUTS = {"data": "d1", "seed": "7"}


@pytest.fixture
def sealed(run: Run) -> Run:
    run.write("scores.json", "{}")
    run.write("adapter/weights", b"\x01")
    run.write("adapter/config", "c")
    run.write_fingerprints("train", INPUTS, ["adapter", "scores.json"], seconds=1.5)
    return run


def edit(run: Run) -> None:
    (run / "adapter" / "config").write_text("C")


def add(run: Run) -> None:
    (run / "adapter" / "more").write_text("")


def swap(run: Run) -> None:
    (run / "adapter" / "config").rename(run / "adapter" / "c")


def lose(run: Run) -> None:
    (run / "scores.json").unlink()


def touch(run: Run) -> None:
    os.utime(run / "scores.json", (1, 1))
    (run / "unsealed").write_text("x")


def ruin(run: Run) -> None:
    (run / ".fingerprints" / "train.json").write_text("{")


def empty(run: Run) -> None:
    (run / ".fingerprints" / "train.json").write_text("[]")


@pytest.mark.parametrize(
    ("does", "inputs", "expected"),
    [
        ([], INPUTS, []),
        ([touch], dict(reversed(INPUTS.items())), []),
        ([], {**INPUTS, "seed": "8"}, ["seed changed"]),
        ([], {"data": "d1"}, ["seed changed"]),
        ([], {**INPUTS, "tokenizer": "t", "data": "d2"}, ["data changed", "tokenizer changed"]),
        ([edit], INPUTS, ["adapter was edited or is damaged"]),
        ([add], INPUTS, ["adapter was edited or is damaged"]),
        ([swap], INPUTS, ["adapter was edited or is damaged"]),
        ([lose], INPUTS, ["scores.json is missing"]),
        (
            [edit, lose],
            {"data": "d1", "seed": "8"},
            ["seed changed", "adapter was edited or is damaged", "scores.json is missing"],
        ),
        ([ruin], INPUTS, None),
        ([empty], INPUTS, None),
    ],
)
def test_what_changed_is_said_precisely(
    sealed: Run, does: list[Any], inputs: dict[str, str], expected: list[str] | None
) -> None:
    for step in does:
        step(sealed)
    assert sealed.changed("train", inputs) == expected


def test_a_fingerprint_keeps_its_notes_and_is_of_one_product(sealed: Run) -> None:
    seal = sealed.read_fingerprints("train")
    assert seal is not None
    assert (seal["product"], seal["inputs"], seal["seconds"]) == ("train", INPUTS, 1.5)
    assert seal["files"]["scores.json"] == hash_bytes(b"{}")
    assert sealed.changed("evaluate", INPUTS) is None
    assert sealed.read_fingerprints("evaluate") is None


def test_a_fingerprint_follows_the_files_alone(sealed: Run) -> None:
    first = sealed.fingerprint("train")
    sealed.write_fingerprints("train", {"data": "other"}, ["adapter", "scores.json"], seconds=9)
    assert sealed.fingerprint("train") == first
    edit(sealed)
    sealed.write_fingerprints("train", INPUTS, ["adapter", "scores.json"])
    assert sealed.fingerprint("train") != first
    with pytest.raises(RunError) as caught:
        sealed.fingerprint("evaluate")
    expected = ("evaluate is not finished", str(sealed.path), f"Run: tunesmith evaluate {sealed.path}")
    assert (caught.value.what, caught.value.where, caught.value.next) == expected


def test_hashes(tmp_path: Path) -> None:
    assert hash_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "a").write_bytes(b"x")
    assert hash_path(tmp_path / "a") == hash_file(tmp_path / "a") == hash_bytes(b"x")
    assert hash_json({"a": 1, "b": "ü"}) == hash_json({"b": "ü", "a": 1}) != hash_json({"a": "1", "b": "ü"})
    before = hash_path(tmp_path)
    (tmp_path / "empty").mkdir()
    assert hash_path(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "empty" / "a")
    assert hash_path(tmp_path) != before


# --- reading and the log -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem", "next"),
    [
        (None, "plan.json does not exist yet", "Run the step that creates it"),
        (b"", "plan.json is damaged", "Delete it and run the step that creates it again"),
        (b'{"a": 1', "plan.json is damaged", "Delete it and run the step that creates it again"),
        (b'{"a": "\xff"}', "plan.json is damaged", "Delete it and run the step that creates it again"),
    ],
)
def test_read_json_says_what_is_wrong(run: Run, content: bytes | None, problem: str, next: str) -> None:
    if content is not None:
        (run / "plan.json").write_bytes(content)
    with pytest.raises(RunError) as caught:
        run.read_json("plan.json")
    assert (caught.value.what, caught.value.where, caught.value.next) == (problem, str(run.path), next)
    assert caught.value.exit_code == 5


def test_json_is_written_readably_and_comes_back(run: Run) -> None:
    value = {"ü": [1, 2.5, None], "line": "a\u2028b\n"}
    path = run.write_json("plan.json", value)
    assert path == run.path / "plan.json" == run / "plan.json"
    assert '"ü"' in path.read_text(encoding="utf-8")
    assert run.read_json("plan.json") == value == json.loads(path.read_text(encoding="utf-8"))


def test_the_log_grows_by_dated_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.log("train --small")
    run.log("grüße")
    stamps, texts = zip(
        *[(line[:19], line[20:]) for line in (run / "run.log").read_text("utf-8").splitlines()], strict=True
    )
    assert texts == ("train --small", "grüße")
    assert all(len(stamp.split("-")) == 3 and stamp[10] == " " and stamp[13] == stamp[16] == ":" for stamp in stamps)
    monkeypatch.setattr(Path, "open", failing(errno.ENOSPC))
    with pytest.raises(ResourceError, match="the disk is full"):
        run.log("more")


def test_a_full_disk_is_said_when_a_run_is_opened_or_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", failing(errno.ENOSPC))
        with pytest.raises(ResourceError), run.lock():
            pass
    with run.lock():  # and the lock was given back
        pass
    monkeypatch.setattr(Path, "mkdir", failing(errno.ENOSPC))
    with pytest.raises(ResourceError):
        Run(tmp_path / "b")
