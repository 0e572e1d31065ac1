"""The folder of one run: where each product lies, what it was made from, the lock, atomic writes, the log.

A product is written under a temporary name, flushed and renamed. Beside it stands a seal: the fingerprints of
what it was made from. A product whose seal agrees is fresh.
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
}  # some schedulers set a few of them alone


def processes() -> int:
    """How many processes work on this command together: those that torchrun started, or this one alone."""
    return int(os.environ["WORLD_SIZE"]) if os.environ.keys() >= _TORCHRUN else 1


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return processes() == 1 or os.environ["RANK"] == "0"


def hash_bytes(data: bytes) -> str:
    """SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_plain(value: Any) -> str:
    """SHA-256 of plain values, independent of the order of keys."""
    return hash_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names and contents."""
    if path.is_file():
        return hash_file(path)
    return hash_plain({str(f.relative_to(path)): hash_file(f) for f in sorted(path.rglob("*")) if f.is_file()})


def how_to_make(product: str, folder: Path) -> str:
    """The advice to make a run's `product`, as a command that can be pasted."""
    return f"Run: tunesmith {product} {shlex.quote(str(folder))}"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns a full disk, or a folder that cannot be written, into one clear error."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number in _FULL:
            raise ResourceError(
                "the disk is full; what was finished before is kept",
                where=str(path),
                next="Free some space and give the same command again: it goes on",
            ) from error
        if number in _CLOSED:
            raise ResourceError(
                f"this cannot be written ({os.strerror(number).lower()}); what was finished before is kept",
                where=str(path),
                next="Make the folder writable and give the same command again: it goes on",
            ) from error
        raise


def _error_number(error: Exception) -> int:
    """The operating system's number of an error; safetensors writes it into its message."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else 0


def sync_folder(path: Path) -> None:
    """Makes renames inside `path` survive a loss of power."""
    if os.name != "posix":  # Windows has no folder handles to flush
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: str | bytes, *, mode: int = 0o666) -> None:
    """Writes `path` so that it is either as before or whole, made with `mode` (less the umask).

    Raises ResourceError when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk(path):
        try:
            temporary.unlink(missing_ok=True)  # a crashed process of this number may have left one of another mode
            with os.fdopen(os.open(temporary, _NEW, mode), "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[tuple[IO[str], Path]]:
    """A text file that takes its name when the block ends well, and the name it has until then.

    Lines end as they are written. Raises ResourceError when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk(path):
        try:
            with temporary.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
                yield file, temporary
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def inside(folder: Path, name: str | None, what: str) -> Path:
    """The folder called `name` right below `folder`. Raises RunError for anything else that a name may try to be."""
    if not name:
        raise RunError(f"no {what} is chosen", where=str(folder), next="Choose one, or make one on the page Start")
    path = folder / name
    if not _NAME.fullmatch(name) or not path.is_dir() or path.resolve().parent != folder.resolve():
        raise RunError(f"there is no {what} called '{name}'", where=str(folder), next="Choose one of the list")
    return path


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and goes when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk(path):
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
    """One run's folder. Nothing else keeps state."""

    def __init__(self, path: Path) -> None:
        """Opens `path`, creating it if need be."""
        self.path = path
        self.new_recipe: str | None = None  # text of the recipe.yaml that the commands of now work with, if it differs
        with disk(path):
            path.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second process from writing here. Raises RunError while another holds it.

        Of processes that work together the first one holds it for all.
        """
        from filelock import FileLock, Timeout

        if not first():
            yield
            return

        lock, owner = FileLock(self / ".lock", timeout=0), self / ".lock.owner"
        try:
            lock.acquire()
        except Timeout as error:
            who = owner.read_text() if owner.exists() else "unknown"
            raise RunError(
                f"another process ({who}) works on this run",
                where=str(self.path),
                next="Wait for it to end, or stop it",
            ) from error
        try:
            with disk(self.path):
                owner.write_text(f"pid {os.getpid()}")
            yield
        finally:
            lock.release()

    def log(self, text: str) -> None:
        """One dated line in run.log, from the first process."""
        if not first():
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with disk(self.path), (self / "run.log").open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {text}\n")

    def write(self, name: str, data: str | bytes) -> Path:
        """Writes a product's file atomically."""
        write_atomic(self / name, data)
        return self / name

    def keep_recipe(self) -> None:
        """Writes the recipe that this run was opened with as its recipe.yaml, if that says something else.

        It is called when something that depends on it is about to stand in the run: a command that fails before then
        changes nothing, and what is made by then can be resumed.
        """
        if self.new_recipe is not None and first():
            self.write("recipe.yaml", self.new_recipe)
            self.new_recipe = None

    @contextlib.contextmanager
    def lines(self, name: str) -> Iterator[Callable[[Any], None]]:
        """A function that writes plain values as JSON lines; the file appears when the block ends well."""
        with writing(self / name) as (file, _):
            yield lambda value: _line(file, value)

    def write_json(self, name: str, value: Any) -> Path:
        """Writes plain values, readably."""
        return self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Plain values of a product.

        Raises RunError when it is missing or damaged.
        """
        try:
            return json.loads((self / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"there is no {name} yet", where=str(self.path), next="Run the stage before it") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{name} is damaged", where=str(self.path), next="Delete it and run its stage again"
            ) from error

    def seal(self, product: str, made_from: Mapping[str, str], files: list[str], **notes: Any) -> None:
        """Says that `product` is finished: its `files`, what it was made from, and notes worth keeping."""
        hashes = {name: hash_path(self / name) for name in files}
        record = {"product": product, "made_from": dict(made_from), "files": hashes, **notes}
        self.write_json(f".seals/{product}.json", record)

    def read_seal(self, product: str) -> dict[str, Any] | None:
        """The seal of a finished product, or None."""
        try:
            seal = json.loads((self / f".seals/{product}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return seal if isinstance(seal, dict) and {"made_from", "files"} <= seal.keys() else None

    def changed(self, product: str, made_from: Mapping[str, str]) -> list[str] | None:
        """Why `product` must be made (again): None for never made, [] for fresh, else what changed."""
        seal = self.read_seal(product)
        if seal is None:
            return None
        before = seal["made_from"]
        keys = sorted({*before, *made_from})
        reasons = [f"{key} changed" for key in keys if before.get(key) != made_from.get(key)]
        for name, stored in seal["files"].items():
            path = self / name
            if not path.exists():
                reasons.append(f"{name} is gone")
            elif hash_path(path) != stored:
                reasons.append(f"{name} was changed by hand or damaged")
        return reasons

    def fingerprint(self, product: str) -> str:
        """A finished product's own fingerprint, for the seal of what is made from it."""
        seal = self.read_seal(product)
        if seal is None:
            raise RunError(f"{product} is not finished", where=str(self.path), next=how_to_make(product, self.path))
        return hash_plain(seal["files"])
