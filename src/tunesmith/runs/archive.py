"""One checked archive: plain files in a tar whose first member tells of every other its name, size and SHA-256.

The same files give the same bytes: owners are left out, times are whole seconds, nothing says when or where it was
written. Weights do not compress: gzip's fastest level takes 8 % off a run of 523 MiB, in 18 s where 3 do without, so
an archive is compressed only where its name asks for it. Reading trusts nothing: a file is made by this code alone, and
only under a name, of a size and with a hash that the manifest tells.
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
from tunesmith.runs.run import disk, hash_plain, sync_folder

FORMAT = 1
MANIFEST = "MANIFEST.json"
PIECE = 1 << 20  # bytes read at once; no header is longer either, so that a forged one cannot fill the memory
MOST = 100_000  # files
LARGEST_MANIFEST = 256 * MOST  # bytes: a file's line has 64 of SHA-256, some 40 of keys, and a name
LATEST = 1 << 33  # seconds: a time up to the year 2242, which every file system takes
PACKED, PLAIN = (".tar.gz", ".tgz"), ".tar"

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\:]")  # control characters, and what Windows reads as folder or drive
_DAMAGED = (
    tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, LookupError, OverflowError, RecursionError,
)  # fmt: skip
_AGAIN = "Carry it over again, or pack the run again"


@dataclass(frozen=True)
class Member:
    """A file to be packed: its name in the archive, where it lies (or its bytes), its time in seconds since 1970."""

    name: str
    content: Path | bytes
    time: int = 0

    def open(self) -> io.BytesIO | io.BufferedReader:
        """Its bytes, from the start."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")


def safe(part: str) -> str:
    """`part` of a name without what `fault` finds wrong in it."""
    return _FORBIDDEN.sub("_", part).lstrip(".") or "_"


def fault(name: str) -> str:
    """Why `name` may not stand in an archive; '' where it may."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        return "leads out of the run's folder"
    if any(part.startswith(".") and part != ".seals" for part in parts):
        return "is hidden"
    if _FORBIDDEN.search(name):
        return "has a character that not every system allows in a name"
    try:
        long = len(name.encode()) > 1000 or any(len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:
        return "has a character that not every system allows in a name"
    return "is too long" if long else ""


# --- writing -----------------------------------------------------------------------------------------------


def write(target: Path, members: Sequence[Member], about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `target` whole or not at all, and returns its manifest: what `about` says, and the members.

    The members are read twice, first for the manifest. Raises RunError when one changes meanwhile or the target cannot
    be written, ResourceError when the disk is full.
    """
    for member in members:
        if wrong := fault(member.name):
            raise RunError(f"its name {wrong}", where=member.name, next="Rename it, or leave it out with --without")
    plain: dict[str, Any] = {"format": FORMAT, **about, "members": [_measured(member) for member in members]}
    manifest = {**plain, "check": hash_plain(plain)}
    first = Member(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")
    with (
        _taking_its_name(target) as file,
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
    info.size, info.mtime = facts["size"], min(max(member.time, 0), LATEST)
    with member.open() as file:
        read = _Hashed(file)
        try:
            tar.addfile(info, read)
        except OSError as error:
            if error.args != ("unexpected end of data",):  # tarfile's words for a file that became shorter
                raise
        if read.digest.hexdigest() != facts["sha256"] or file.read(1):
            raise RunError(
                f"{member.name} was changed while it was packed",
                where=str(member.content),
                next="Stop what writes into it, and give the same command again",
            )


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.digest.update(data)
        return data


@contextlib.contextmanager
def _taking_its_name(target: Path) -> Iterator[IO[bytes]]:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk(target):
            _sweep(target)
            try:
                with temporary.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
                sync_folder(target.parent)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        what, where = f"nothing was packed: {error.strerror or error}", str(error.filename or target)
        raise RunError(what, where=where, next="See that it may be read, or name another place with --out") from error


def _sweep(target: Path) -> None:
    """Removes what processes that were killed have left of this archive: it may be as large as the archive."""
    import psutil

    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition(".")[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def _packed(file: IO[bytes], target: Path) -> Iterator[IO[bytes]]:
    if not target.name.endswith(PACKED):
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed:
        yield packed  # type: ignore[misc]  # GzipFile is a binary file in all but its type


# --- reading -----------------------------------------------------------------------------------------------


class Reader:
    """An archive that is read once, from its start; nothing of it is believed before it is checked."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        """Reads the manifest. Raises DataError for what is no archive of a run, RunError for one of a newer version."""
        self.path, self._file = path, _Bounded(file)
        with _damage(path):
            self._tar = tarfile.open(fileobj=self._file, mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
            first = self._tar.next()
            if first is None or first.name != MANIFEST or not _plain_file(first) or first.size > LARGEST_MANIFEST:
                raise _foreign(path)
            text = b"".join(self._bytes(first))
        self.manifest = _checked(path, text)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(each["size"]) for each in self.manifest["members"])

    def extract(self, folder: Path) -> None:
        """Writes every file below the empty `folder`, and reads the archive to its end.

        Raises DataError for whatever is not as the manifest says. What was written by then is to be thrown away.
        """
        made: set[Path] = set()
        for facts in self.manifest["members"]:
            info = self._next(facts, folder)
            path = folder / facts["name"]
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            digest = hashlib.sha256()
            with path.open("xb") as file:
                for piece in self._bytes(info):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != facts["sha256"]:
                raise DataError(f"{facts['name']} is damaged", where=str(self.path), next=_AGAIN)
            os.utime(path, (info.mtime, info.mtime))
        self._finish()

    def _next(self, facts: Mapping[str, Any], folder: Path) -> tarfile.TarInfo:
        with _damage(self.path):
            info: tarfile.TarInfo | None = self._tar.next()
            if info is None:
                raise DataError(f"is cut off or damaged before {facts['name']}", where=str(self.path), next=_AGAIN)
            if info.name != facts["name"] or info.size != facts["size"]:
                what = f"holds {info.name!r} where its manifest says {facts['name']!r} of {facts['size']} bytes"
                raise DataError(what, where=str(self.path), next=_AGAIN)
            if not _plain_file(info) or not 0 <= info.mtime <= LATEST:
                raise _hostile(self.path, info.name, "is a link, a device or no plain file")
            tarfile.data_filter(info, str(folder))
            return info

    def _bytes(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        """A member's bytes in pieces; the zeros that fill its last block are looked at too."""
        with _damage(self.path):
            self._file.seek(info.offset_data)
            left, filled = info.size, -info.size % tarfile.BLOCKSIZE
            while left:
                piece = self._file.read(min(PIECE, left))
                if not piece:
                    raise DataError(f"is cut off within {info.name}", where=str(self.path), next=_AGAIN)
                left -= len(piece)
                yield piece
            if self._file.read(filled) != bytes(filled):
                raise DataError(f"is damaged or cut off behind {info.name}", where=str(self.path), next=_AGAIN)

    def _finish(self) -> None:
        """Behind the last file stand two blocks of zeros or more, and nothing else."""
        with _damage(self.path):
            rest = b""
            while piece := self._file.read(tarfile.RECORDSIZE):
                rest += piece
                if len(rest) > 2 * tarfile.RECORDSIZE:
                    break
            if len(rest) < 2 * tarfile.BLOCKSIZE:
                raise DataError("is cut off at its end", where=str(self.path), next=_AGAIN)
            if rest.strip(b"\0") or len(rest) > 2 * tarfile.RECORDSIZE:
                raise _hostile(self.path, "what stands behind the last file", "is not in its manifest")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """The archive at `path`. Raises what `Reader` raises, DataError when there is no such file."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=str(path), next="Give the file that tunesmith pack wrote"
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
    """A file that is read in pieces of at most PIECE bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= PIECE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise DataError(f"is damaged, cut off or no archive of a run: {error}", where=str(path), next=_AGAIN) from error


def _plain_file(info: tarfile.TarInfo) -> bool:
    return info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and info.sparse is None


def _foreign(path: Path) -> DataError:
    return DataError("is no archive of a run", where=str(path), next="Give the file that tunesmith pack wrote")


def _hostile(path: Path, name: str, what: str) -> DataError:
    return DataError(f"{name} {what}", where=str(path), next="Do not use it: tunesmith pack writes no such archive")


def _checked(path: Path, text: bytes) -> dict[str, Any]:
    """The manifest, every part of it that is used looked at."""
    with _damage(path):
        plain = json.loads(text)
    if not isinstance(plain, dict) or type(plain.get("format")) is not int:
        raise _foreign(path)
    if plain["format"] != FORMAT:
        raise RunError(
            f"was packed by tunesmith {plain.get('tunesmith')} in form {plain['format']}, and this one reads {FORMAT}",
            where=str(path),
            next="Unpack it with that version, or a newer one",
        )
    check = plain.pop("check", None)
    with _damage(path):
        whole = check == hash_plain(plain)
    if not whole:
        raise DataError("its manifest is damaged", where=str(path), next=_AGAIN)
    _check_members(path, plain.get("members"))
    return plain


def _check_members(path: Path, members: Any) -> None:
    if not isinstance(members, list) or not members or len(members) > MOST:
        raise _hostile(path, "its list of files", f"is empty or has more than {MOST:,}")
    names: set[str] = set()
    for each in members:
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise _foreign(path)
        name, size, digest = each["name"], each.get("size"), each.get("sha256")
        if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            raise _hostile(path, repr(name), "has no size or hash")
        if wrong := fault(name):
            raise _hostile(path, repr(name), wrong)
        if name in names or name == MANIFEST:
            raise _hostile(path, repr(name), "stands there twice")
        names.add(name)
    for name in names:
        parts = name.split("/")
        if any("/".join(parts[:end]) in names for end in range(1, len(parts))):
            raise _hostile(path, repr(name), "lies in a file")
