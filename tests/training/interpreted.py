"""Runs the kernels for GPUs on the processor, through Triton's interpreter, against autograd; see test_interpreted."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import test_fused as cases
import torch

import tunesmith.models.fuse as fuse
from tiny import make_model
from tunesmith.kernels import base_weights, block_cuda, ops, triton_parts
from tunesmith.prompt import pack


def interpreted_head(logits: Any, targets: Any, cap: float, share: Any) -> Any:
    """The loss's kernel has a loop that the interpreter cannot run under every numpy; tests/gpu covers it."""
    identity = torch.eye(logits.shape[1], dtype=logits.dtype)
    losses = torch.stack(
        [ops.loss(row[None], wanted[None], identity, None, cap) for row, wanted in zip(logits, targets, strict=True)]
    )
    if share is not None:
        logits.copy_(ops.loss_and_gradient(logits.clone(), targets, identity, None, cap, share)[1])
    return losses


def at_home() -> None:
    """Lets the code for GPUs run here; attention alone goes row by row."""
    form, attend, attend_back = fuse._form, block_cuda.attend, block_cuda.attend_back

    def packed(*given: Any) -> Any:
        made = form(*given)
        return made._replace(rule=made.rule._replace(way="packed"))

    fuse._has_triton = lambda: True  # type: ignore[assignment]
    fuse._form = packed  # type: ignore[assignment]
    block_cuda.attend = lambda *given: attend(*given[:-1], given[-1]._replace(way="rows"))  # type: ignore[assignment]
    block_cuda.attend_back = lambda *given: attend_back(*given[:-1], given[-1]._replace(way="rows"))  # type: ignore[assignment]
    base_weights._dequantize_kernel = lambda out: triton_parts.dequantise  # type: ignore[assignment]
    triton_parts.head = interpreted_head


def main(config: str) -> None:
    """Prints the largest relative error of a gradient for each form of the base and each way of keeping."""
    at_home()
    family, changes = cases.CONFIGS[config]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("stored", "dense"):
            for keep in ("all", "attention", "input"):
                model = cases.ready(make_model(Path(folder) / form / keep, family, **changes), "float32", 4)
                table, ids = model.network.get_input_embeddings().weight, torch.tensor([3, 0, 7, 3])
                if not torch.equal(triton_parts.rows(table.data, ids), table[ids]):
                    raise AssertionError("rows of the table")
                loss, wanted = cases.reference(model)
                fused = fuse.FusedDecoder(model, longest=40, forms=form, keeps=keep, chunk=16)  # type: ignore[arg-type]
                if fused.kernels is not block_cuda:
                    raise AssertionError("not the kernels for cards")
                total = fused.step(cases.flat(pack.PackedShape(128, 10, 80, 40)), torch.tensor(1.0)).item()
                errors = [
                    ((parameter.grad - wanted[name]).norm() / wanted[name].norm()).item()
                    for name, parameter in model.trainable().items()
                    if parameter.grad is not None
                ]
                found[f"{form} {keep}"] = (abs(total - loss) / loss, max(errors))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
