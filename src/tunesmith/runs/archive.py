"""Tar archives whose first member, the manifest, lists the name, size and SHA-256 of every other file.

The same files give the same bytes: owners are omitted, times are whole seconds, and nothing says when or where the
archive was written. Weights hardly compress: gzip's fastest level shrinks a run of 523 MiB by 8 % and takes 18 s
instead of 3 s, so an archive is compressed only if its name ends in .tar.gz. Reading trusts nothing: a file is
created only by this module, with a name, size and hash from the manifest.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import DataError, RunError
from tunesmith.runs.run import atomic_file, hash_json, translate_disk_errors

FORMAT = 1
MANIFEST = "MANIFEST.json"
CHUNK = 1 << 20  # bytes per read; a header may not be longer, so that a forged one cannot fill the memory
MAX_FILES = 100_000
MAX_MANIFEST = 256 * MAX_FILES  # bytes: 64 of SHA-256 for each file, about 40 of keys, and a name
MAX_TIME = 1 << 33  # seconds since 1970, the year 2242: every file system supports it
PACKED, PLAIN = (".tar.gz", ".tgz"), ".tar"

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\:]")  # control characters, and separators of folders and drives on Windows
_DAMAGED = (
    tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, LookupError, OverflowError, RecursionError,
)  # fmt: skip
_COPY_AGAIN = "Copy the archive again, or pack the run again"


@dataclass(frozen=True)
class Member:
    """A file to pack: its name in the archive, its path or bytes, and its modification time in seconds since 1970."""

    name: str
    content: Path | bytes
    time: int = 0

    def open(self) -> io.BytesIO | io.BufferedReader:
        """Opens the file at its start."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")


def safe_name(part: str) -> str:
    """Returns a part of a name without characters that `fault` refuses."""
    return _FORBIDDEN.sub("_", part).lstrip(".") or "_"


def name_problem(name: str) -> str:
    """Returns why `name` is not allowed in an archive, or ''."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        return "is outside the run's folder"
    if any(part.startswith(".") and part != ".fingerprints" for part in parts):
        return "is hidden"
    if _FORBIDDEN.search(name):
        return "has a character that some systems do not allow"
    try:
        long = len(name.encode()) > 1000 or any(len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:
        return "has a character that some systems do not allow"
    return "is too long" if long else ""


# --- writing -----------------------------------------------------------------------------------------------


def write(target: Path, members: Sequence[Member], about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `target` atomically and returns its manifest: the keys of `about`, and the members.

    The members are read twice, first for the manifest. Raises RunError if one changes meanwhile or the target cannot be
    written, ResourceError if the disk is full.
    """
    for member in members:
        if problem := name_problem(member.name):
            raise RunError(f"its name {problem}", where=member.name, next="Rename it, or exclude it with --without")
    plain: dict[str, Any] = {"format": FORMAT, **about, "members": [_measured(member) for member in members]}
    manifest = {**plain, "check": hash_json(plain)}
    first = Member(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")
    with (
        _new_archive(target) as file,
        _packed(file, target) as sink,
        tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member, facts in [(first, _measured(first)), *zip(members, manifest["members"], strict=True)]:
            _add(tar, member, facts)
    return manifest


def _measured(member: Member) -> dict[str, Any]:
    with member.open() as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": member.name, "size": file.seek(0, os.SEEK_END), "sha256": digest}


def _add(tar: tarfile.TarFile, member: Member, facts: Mapping[str, Any]) -> None:
    info = tarfile.TarInfo(member.name)
    info.size, info.mtime = facts["size"], min(max(member.time, 0), MAX_TIME)
    with member.open() as file:
        read = _Hashed(file)
        try:
            tar.addfile(info, read)
        except OSError as error:
            if error.args != ("unexpected end of data",):  # tarfile's message for a file that became shorter
                raise
        if read.digest.hexdigest() != facts["sha256"] or file.read(1):
            raise RunError(
                f"{member.name} was changed while it was packed",
                where=str(member.content),
                next="Stop the program that writes to it, and run the same command again",
            )


class _Hashed(io.RawIOBase):
    """Hashes a file while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data


@contextlib.contextmanager
def _new_archive(target: Path) -> Iterator[IO[bytes]]:
    try:
        with translate_disk_errors(target):
            _sweep(target)
        with atomic_file(target, lambda temporary: temporary.open("wb")) as file:
            yield file
    except OSError as error:
        problem, where = f"nothing was packed: {error.strerror or error}", str(error.filename or target)
        raise RunError(problem, where=where, next="Check its permissions, or use another path with --out") from error


def _sweep(target: Path) -> None:
    """Removes temporary files of killed processes for this archive; they can be as large as the archive."""
    import psutil

    for file in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        number = file.name.removesuffix(".tmp").rpartition(".")[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _packed(file: IO[bytes], target: Path) -> Iterator[IO[bytes]]:
    if not target.name.endswith(PACKED):
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed:
        yield packed  # type: ignore[misc]  # GzipFile is a binary file in all but its type


# --- reading -----------------------------------------------------------------------------------------------


class Reader:
    """Reads an archive once, from start to end, and checks everything before it is used."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        """Reads the manifest. Raises DataError if this is not an archive of a run, RunError if its format is newer."""
        self.path, self._file = path, _Bounded(file)
        with _damage(path):
            self._tar = tarfile.open(fileobj=self._file, mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
            first = self._tar.next()
            if first is None or first.name != MANIFEST or not _plain_file(first) or first.size > MAX_MANIFEST:
                raise _foreign(path)
            text = b"".join(self._bytes(first))
        self.manifest = _checked(path, text)

    @property
    def size(self) -> int:
        """Total size of all files in bytes."""
        return sum(int(member["size"]) for member in self.manifest["members"])

    def extract(self, folder: Path) -> None:
        """Writes every file into the empty `folder`, and reads the archive to its end.

        Raises DataError for anything that differs from the manifest; the caller then deletes what was written.
        """
        folders: set[Path] = set()
        for facts in self.manifest["members"]:
            info = self._next(facts, folder)
            path = folder / facts["name"]
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            digest = hashlib.sha256()
            with path.open("xb") as file:
                for piece in self._bytes(info):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != facts["sha256"]:
                raise DataError(f"{facts['name']} is damaged", where=str(self.path), next=_COPY_AGAIN)
            os.utime(path, (info.mtime, info.mtime))
        self._finish()

    def _next(self, facts: Mapping[str, Any], folder: Path) -> tarfile.TarInfo:
        with _damage(self.path):
            info: tarfile.TarInfo | None = self._tar.next()
            if info is None:
                raise DataError(
                    f"is truncated or damaged before {facts['name']}", where=str(self.path), next=_COPY_AGAIN
                )
            if info.name != facts["name"] or info.size != facts["size"]:
                problem = f"contains {info.name!r} where its manifest lists {facts['name']!r} of {facts['size']} bytes"
                raise DataError(problem, where=str(self.path), next=_COPY_AGAIN)
            if not _plain_file(info) or not 0 <= info.mtime <= MAX_TIME:
                raise _hostile(self.path, info.name, "is a link, a device or not a regular file")
            tarfile.data_filter(info, str(folder))
            return info

    def _bytes(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        """Yields a member's bytes in chunks; checks the zeros that pad its last block too."""
        with _damage(self.path):
            self._file.seek(info.offset_data)
            remaining, padding = info.size, -info.size % tarfile.BLOCKSIZE
            while remaining:
                piece = self._file.read(min(CHUNK, remaining))
                if not piece:
                    raise DataError(f"is truncated within {info.name}", where=str(self.path), next=_COPY_AGAIN)
                remaining -= len(piece)
                yield piece
            if self._file.read(padding) != bytes(padding):
                raise DataError(f"is damaged or truncated after {info.name}", where=str(self.path), next=_COPY_AGAIN)

    def _finish(self) -> None:
        """Checks that two or more blocks of zeros, and nothing else, follow the last file."""
        with _damage(self.path):
            trailer = b""
            while piece := self._file.read(tarfile.RECORDSIZE):
                trailer += piece
                if len(trailer) > 2 * tarfile.RECORDSIZE:
                    break
            if len(trailer) < 2 * tarfile.BLOCKSIZE:
                raise DataError("is truncated at its end", where=str(self.path), next=_COPY_AGAIN)
            if trailer.strip(b"\0") or len(trailer) > 2 * tarfile.RECORDSIZE:
                raise _hostile(self.path, "data after the last file", "is not in its manifest")


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Reader]:
    """Opens the archive at `path`. Raises what `Reader` raises, and DataError if the file cannot be read."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=str(path), next="Give a file that tunesmith pack wrote"
        ) from error
    with file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield Reader(path, file)
            return
        with gzip.GzipFile(fileobj=file, mode="rb") as opened:
            yield Reader(path, opened)  # type: ignore[arg-type]  # GzipFile is a binary file in all but its type


class _Bounded:
    """Limits each read of a file to CHUNK bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise DataError(
            f"is damaged, truncated or not an archive of a run: {error}", where=str(path), next=_COPY_AGAIN
        ) from error


def _plain_file(info: tarfile.TarInfo) -> bool:
    return info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and info.sparse is None


def _foreign(path: Path) -> DataError:
    return DataError("is not an archive of a run", where=str(path), next="Give a file that tunesmith pack wrote")


def _hostile(path: Path, name: str, problem: str) -> DataError:
    return DataError(
        f"{name} {problem}", where=str(path), next="Do not use it: tunesmith pack does not write such archives"
    )


def _checked(path: Path, text: bytes) -> dict[str, Any]:
    """Parses the manifest and checks every part that is used."""
    with _damage(path):
        plain = json.loads(text)
    if not isinstance(plain, dict) or type(plain.get("format")) is not int:
        raise _foreign(path)
    if plain["format"] != FORMAT:
        raise RunError(
            f"was packed by tunesmith {plain.get('tunesmith')} in format {plain['format']}; "
            f"this version reads {FORMAT}",
            where=str(path),
            next="Unpack it with that version, or a newer one",
        )
    check = plain.pop("check", None)
    with _damage(path):
        whole = check == hash_json(plain)
    if not whole:
        raise DataError("its manifest is damaged", where=str(path), next=_COPY_AGAIN)
    _check_members(path, plain.get("members"))
    return plain


def _check_members(path: Path, members: Any) -> None:
    if not isinstance(members, list) or not members or len(members) > MAX_FILES:
        raise _hostile(path, "its list of files", f"is empty or has more than {MAX_FILES:,}")
    names: set[str] = set()
    for member in members:
        if not isinstance(member, dict) or not isinstance(member.get("name"), str):
            raise _foreign(path)
        name, size, digest = member["name"], member.get("size"), member.get("sha256")
        if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            raise _hostile(path, repr(name), "has no size or hash")
        if problem := name_problem(name):
            raise _hostile(path, repr(name), problem)
        if name in names or name == MANIFEST:
            raise _hostile(path, repr(name), "is listed twice")
        names.add(name)
    for name in names:
        parts = name.split("/")
        if any("/".join(parts[:end]) in names for end in range(1, len(parts))):
            raise _hostile(path, repr(name), "is inside another file")
