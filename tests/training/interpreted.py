"""Runs the kernels for GPUs on the processor, through Triton's interpreter, against autograd; see test_interpreted."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith.models.fuse as fuse
from tiny import make_model
from training import test_fused as cases
from tunesmith.kernels import base_weights, block_cuda, ops, triton_parts
from tunesmith.kernels.attention import attend, attend_back
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


def by_rows(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns attention's forward or backward that goes row by row, whatever its rule says."""
    return lambda *parts: call(*parts[:-1], parts[-1]._replace(way="rows"))


def at_home() -> None:
    """Lets the code for cards run here; attention alone goes row by row."""
    form, patch = fuse._form, pytest.MonkeyPatch()

    def packed(*given: Any) -> Any:
        made = form(*given)
        return made._replace(rule=made.rule._replace(way="packed"))

    patch.setattr(fuse, "_has_triton", lambda: True)
    patch.setattr(fuse, "_form", packed)
    patch.setattr(block_cuda, "attend", by_rows(attend))
    patch.setattr(block_cuda, "attend_back", by_rows(attend_back))
    patch.setattr(base_weights, "_dequantize_kernel", lambda out: triton_parts.dequantise)
    patch.setattr(triton_parts, "head", interpreted_head)


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
                fused = fuse.FusedDecoder(model, longest=40, forms=form, keeps=keep, chunk=16)
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
