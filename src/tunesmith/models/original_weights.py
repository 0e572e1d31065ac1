"""Reads single weights of a base model from its files, as they were before quantization."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.models.architecture import Architecture
from tunesmith.models.weights import Weights, tensor_headers


class OriginalWeights:
    """Access to the tensors in a model's safetensors files by layer name, one at a time."""

    def __init__(self, weights: Weights, model: Architecture) -> None:
        """`model` maps tensor names in the files to its parameters."""
        self.weights, self.model = weights, model
        self._files: dict[str, tuple[Path, str]] = {}

    def matrix(self, layer: str, shape: tuple[int, int], *, transposed: bool) -> Tensor:
        """Returns the weight of `layer` (out x in, float32); `transposed` says that the file stores it as in x out.

        Raises ModelError if the files have no such weight or it has another shape.
        """
        from safetensors import SafetensorError, safe_open

        try:
            path, name = self._place(f"{layer}.weight")
            with safe_open(path, framework="pt") as file:
                weight: Tensor = file.get_tensor(name).to(torch.float32)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"the weights cannot be read: {error}", where=self.weights.name) from error
        weight = weight.T if transposed else weight
        if weight.shape != shape:
            raise self._missing(layer)
        return weight

    def _place(self, parameter: str) -> tuple[Path, str]:
        """Returns the file that holds a whole parameter as one tensor, and the tensor's name in it."""
        if not self._files:
            files = {name: path for name, (path, _, _) in tensor_headers(self.weights.folder).items()}
            names = self.model.parameter_names(files)
            self._files = {
                parameter_name: (files[name], name) for name, (parameter_name, whole) in names.items() if whole
            }
        if parameter not in self._files:
            raise self._missing(parameter.removesuffix(".weight"))
        return self._files[parameter]

    def _missing(self, layer: str) -> ModelError:
        advice = "Set adapter.start to zero, or to pissa, which needs no unquantized weights"
        return ModelError(f"the files have no separate weight for '{layer}'", where=self.weights.name, next=advice)
