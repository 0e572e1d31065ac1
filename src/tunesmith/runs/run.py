"""The folder of one run: products and their fingerprints, the lock, atomic writes, the log.

A product is written under a temporary name, flushed and renamed. The fingerprints of its inputs and of its files are
stored in .fingerprints/. A product is up to date if both still match.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import ResourceError, RunError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)

_TORCHRUN = {
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}  # all must be set: some schedulers set only a few of them


def process_count() -> int:
    """Returns the number of processes that torchrun started for this command; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if os.environ.keys() >= _TORCHRUN else 1


def is_main_process() -> bool:
    """Returns whether this is the process that writes files and prints."""
    return process_count() == 1 or os.environ["RANK"] == "0"


def hash_bytes(data: bytes) -> str:
    """Returns the SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Returns the SHA-256 of JSON values, independent of the order of keys."""
    return hash_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def hash_path(path: Path) -> str:
    """Returns the SHA-256 of a file, or of the names and contents in a folder."""
    if path.is_file():
        return hash_file(path)
    return hash_json({str(f.relative_to(path)): hash_file(f) for f in sorted(path.rglob("*")) if f.is_file()})


def command_for_product(product: str, folder: Path) -> str:
    """Returns the command that creates the `product` of a run."""
    return f"Run: tunesmith {product} {shlex.quote(str(folder))}"


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turns operating system errors for a full disk or an unwritable folder into ResourceError."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number in _DISK_FULL:
            raise ResourceError(
                "the disk is full; finished work is kept",
                where=str(path),
                next="Free some space, then run the same command again to resume",
            ) from error
        if number in _NOT_WRITABLE:
            raise ResourceError(
                f"this cannot be written ({os.strerror(number).lower()}); finished work is kept",
                where=str(path),
                next="Make the folder writable, then run the same command again to resume",
            ) from error
        raise


def _error_number(error: Exception) -> int:
    """Returns the errno of an error; safetensors puts it into its message."""
    if isinstance(error, OSError):
        return error.errno or 0
    match = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(match[1]) if match else 0


def sync_folder(path: Path) -> None:
    """Flushes renames inside the folder `path` to disk."""
    if os.name != "posix":  # Windows has no folder handles to flush
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: Path, open_temporary: Callable[[Path], IO[Any]]) -> Iterator[IO[Any]]:
    """Yields the temporary file that `open_temporary` opens; it is renamed to `path` if the block succeeds.

    Raises ResourceError if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with translate_disk_errors(path):
        try:
            with open_temporary(temporary) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: str | bytes, *, mode: int = 0o666) -> None:
    """Writes a file atomically, with `mode` minus the umask. Raises ResourceError if the disk is full."""

    def create(temporary: Path) -> IO[bytes]:
        temporary.unlink(missing_ok=True)  # a crashed process with this id may have left one with another mode
        return os.fdopen(os.open(temporary, _NEW, mode), "wb")

    with atomic_file(path, create) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def atomic_text_file(path: Path) -> contextlib.AbstractContextManager[IO[str]]:
    """Opens a text file that is renamed to `path` if the block succeeds. Line endings are not converted.

    Its `name` is the temporary path. Raises ResourceError if the disk is full.
    """
    return atomic_file(
        path, lambda temporary: temporary.open("w", encoding="utf-8", errors="surrogatepass", newline="")
    )


def child_folder(folder: Path, name: str | None, kind: str) -> Path:
    """Returns the folder `name` directly inside `folder`. Raises RunError for a path or a missing folder."""
    if not name:
        raise RunError(f"no {kind} is selected", where=str(folder), next="Select one, or create one on the page Start")
    path = folder / name
    if not _NAME.fullmatch(name) or not path.is_dir() or path.resolve().parent != folder.resolve():
        raise RunError(f"there is no {kind} called '{name}'", where=str(folder), next="Select one from the list")
    return path


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that replaces `path` if the block succeeds and is deleted if it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            if path.exists():
                path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
            sync_folder(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _line(file: IO[str], value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")


class Run:
    """The folder of one run, which holds all of its state."""

    def __init__(self, path: Path) -> None:
        """Opens `path`; creates it if it does not exist."""
        self.path = path
        self.new_recipe: str | None = None  # content of the recipe.yaml to write, if it differs
        with translate_disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def relative(self, path: Path) -> str:
        """Returns the path of a file in the run, relative to the run's folder."""
        return path.resolve().relative_to(self.path.resolve()).as_posix()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the run. Raises RunError if another process holds the lock.

        In distributed training only the main process takes the lock.
        """
        from filelock import FileLock, Timeout

        if not is_main_process():
            yield
            return

        lock, owner = FileLock(self / ".lock", timeout=0), self / ".lock.owner"
        try:
            lock.acquire()
        except Timeout as error:
            who = owner.read_text() if owner.exists() else "unknown"
            raise RunError(
                f"another process ({who}) is using this run",
                where=str(self.path),
                next="Wait until it ends, or stop it",
            ) from error
        try:
            with translate_disk_errors(self.path):
                owner.write_text(f"pid {os.getpid()}")
            yield
        finally:
            lock.release()

    def log(self, text: str) -> None:
        """Appends a line with date and time to run.log, in the main process only."""
        if not is_main_process():
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with translate_disk_errors(self.path), (self / "run.log").open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {text}\n")

    def write(self, name: str, data: str | bytes) -> Path:
        """Writes a file of the run atomically and returns its path."""
        write_atomic(self / name, data)
        return self / name

    def write_recipe(self) -> None:
        """Writes the recipe that this run was opened with to recipe.yaml, if it differs.

        Called just before a product that depends on it is written: a command that fails earlier changes nothing, and
        one that fails later can be resumed.
        """
        if self.new_recipe is not None and is_main_process():
            self.write("recipe.yaml", self.new_recipe)
            self.new_recipe = None

    @contextlib.contextmanager
    def lines(self, name: str) -> Iterator[Callable[[Any], None]]:
        """Yields a function that appends a value as a JSON line; the file appears if the block succeeds."""
        with atomic_text_file(self / name) as file:
            yield lambda value: _line(file, value)

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a value as indented JSON."""
        return self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Returns the values of a JSON file. Raises RunError if it is missing or damaged."""
        try:
            return json.loads((self / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(
                f"{name} does not exist yet", where=str(self.path), next="Run the step that creates it"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{name} is damaged", where=str(self.path), next="Delete it and run the step that creates it again"
            ) from error

    def write_fingerprints(self, product: str, inputs: Mapping[str, str], files: list[str], **notes: Any) -> None:
        """Records that `product` is finished: fingerprints of its inputs and files, and `notes`."""
        hashes = {name: hash_path(self / name) for name in files}
        record = {"product": product, "inputs": dict(inputs), "files": hashes, **notes}
        self.write_json(f".fingerprints/{product}.json", record)

    def read_fingerprints(self, product: str) -> dict[str, Any] | None:
        """Returns the record of a finished product, or None."""
        try:
            record = json.loads((self / f".fingerprints/{product}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and {"inputs", "files"} <= record.keys() else None

    def changed(self, product: str, inputs: Mapping[str, str]) -> list[str] | None:
        """Returns what changed since `product` was finished: [] if it is up to date, None if it was never finished."""
        record = self.read_fingerprints(product)
        if record is None:
            return None
        former = record["inputs"]
        keys = sorted({*former, *inputs})
        reasons = [f"{key} changed" for key in keys if former.get(key) != inputs.get(key)]
        for name, stored in record["files"].items():
            path = self / name
            if not path.exists():
                reasons.append(f"{name} is missing")
            elif hash_path(path) != stored:
                reasons.append(f"{name} was edited or is damaged")
        return reasons

    def fingerprint(self, product: str) -> str:
        """Returns the fingerprint of a finished product, an input of others. Raises RunError if there is none."""
        record = self.read_fingerprints(product)
        if record is None:
            raise RunError(
                f"{product} is not finished", where=str(self.path), next=command_for_product(product, self.path)
            )
        return hash_json(record["files"])
