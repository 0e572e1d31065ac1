"""A base's weights as they lie on disk, one at a time: what quantisation took away can be read again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.models.architecture import Architecture
from tunesmith.models.weights import Weights, headers


class Original:
    """The tensors of a model's safetensors files by the model's names; only the one asked for is read."""

    def __init__(self, weights: Weights, model: Architecture) -> None:
        """`model` says which of the files' names is which of its parameters."""
        self.weights, self.model = weights, model
        self._files: dict[str, tuple[Path, str]] = {}

    def matrix(self, layer: str, shape: tuple[int, int], *, transposed: bool) -> Tensor:
        """The weight of `layer` (out x in, float32); `transposed` says that the file holds it in x out.

        Raises ModelError when the files have no such weight or it has another shape.
        """
        from safetensors import SafetensorError, safe_open

        try:
            path, name = self._place(f"{layer}.weight")
            with safe_open(path, framework="pt") as file:
                found: Tensor = file.get_tensor(name).to(torch.float32)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"the weights cannot be read: {error}", where=self.weights.name) from error
        found = found.T if transposed else found
        if found.shape != shape:
            raise self._missing(layer)
        return found

    def _place(self, parameter: str) -> tuple[Path, str]:
        """The file that holds a whole parameter by itself, and the tensor's name in it."""
        if not self._files:
            files = {name: path for name, (path, _, _) in headers(self.weights.folder).items()}
            names = self.model.parameter_names(files)
            self._files = {own: (files[name], name) for name, (own, whole) in names.items() if whole}
        if parameter not in self._files:
            raise self._missing(parameter.removesuffix(".weight"))
        return self._files[parameter]

    def _missing(self, layer: str) -> ModelError:
        advice = "Set adapter.start to zero, or to pissa, which needs no unquantised weights"
        return ModelError(f"the files hold no weight of '{layer}' by itself", where=self.weights.name, next=advice)
