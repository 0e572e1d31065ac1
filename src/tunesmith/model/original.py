"""A base's weights as they lie on disk, one at a time: what quantisation took away can be read again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.model.weights import Weights


class Original:
    """The tensors of a model's safetensors files by name; only the one asked for is read."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        """`prefix` is the name of the decoder inside the model; some files leave it out."""
        self.weights, self.prefix = weights, f"{prefix}."
        self._files: dict[str, Path] = {}

    def matrix(self, layer: str, shape: tuple[int, int], *, transposed: bool) -> Tensor:
        """The weight of `layer` (out x in, float32); `transposed` says that the file holds it in x out.

        Raises ModelError when the files have no such weight or it has another shape.
        """
        from safetensors import SafetensorError, safe_open

        try:
            name = self._name(f"{layer}.weight")
            with safe_open(self._files[name], framework="pt") as file:
                found: Tensor = file.get_tensor(name).to(torch.float32)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"the weights cannot be read: {error}", where=self.weights.name) from error
        found = found.T if transposed else found
        if found.shape != shape:
            raise self._missing(layer)
        return found

    def _name(self, wanted: str) -> str:
        if not self._files:
            self._files = {name: path for name, (path, _, _) in headers(self.weights.folder).items()}
        for name in (wanted, wanted.removeprefix(self.prefix), f"{self.prefix}{wanted}"):
            if name in self._files:
                return name
        raise self._missing(wanted.removesuffix(".weight"))

    def _missing(self, layer: str) -> ModelError:
        advice = "Set adapter.start to zero, or to pissa, which needs no unquantised weights"
        return ModelError(f"the files hold no weight of '{layer}' by itself", where=self.weights.name, next=advice)


def headers(folder: Path) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """Of each tensor in a folder's safetensors files: its file, shape and number type (F32, BF16, …), in order."""
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                part = file.get_slice(name)
                found[name] = (path, tuple(part.get_shape()), str(part.get_dtype()))
    return found
