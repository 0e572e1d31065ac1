"""Training in several processes, one per GPU, as torchrun starts them.

Each process has the whole adapter and computes its part of a step's rows. All know the loss's denominator, the step's
tokens with loss, so gradients only have to be summed: for the fused decoder one all-reduce of two flat arrays per step.
Then every process clips and steps alike, and only the main process writes, so checkpoints do not depend on the number
of processes. Micro-batches may differ between processes, except with a sharded base (fsdp.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tunesmith.errors import Paused, RecipeError, ResourceError, RunError
from tunesmith.models.build import Model
from tunesmith.models.qlora import FrozenLinear
from tunesmith.runs.run import is_main_process, process_count
from tunesmith.training.job import Journal

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # longer than writing a checkpoint or capturing graphs takes one process
DOWNLOAD_TIMEOUT = timedelta(days=1)  # for the main process to download a base model


def world_size() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Returns this process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


# --- beginning and end ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started, one per GPU, for the duration of the block.

    Only the first process that fails raises its error; the others end silently with SystemExit. Raises ResourceError if
    there are fewer GPUs than processes, RunError if a process disappeared.
    """
    if process_count() == 1 or dist.is_initialized():
        yield
        return
    _join()
    try:
        yield
    except Exception as error:
        store = _store()
        is_first_error = store.add("failed", 1) == 1
        if is_first_error:
            store.set("exit code", str(getattr(error, "exit_code", 1)))
        code = int(store.get("exit code"))
        if isinstance(error, Paused):
            dist.destroy_process_group()  # after other errors some processes may still wait in a collective
        if is_first_error and _is_lost(error):
            raise RunError(
                "another training process has ended unexpectedly",
                where="torchrun",
                next="Run the same command again to resume from the last checkpoint",
            ) from error
        if is_first_error:
            raise
        time.sleep(30)  # torchrun ends this process as soon as the first to fail has printed its error and ended
        raise SystemExit(code) from None
    dist.destroy_process_group()


def _join() -> None:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=TIMEOUT)
        return
    if local >= torch.cuda.device_count():
        raise ResourceError(
            f"process {local + 1} of {process_count()} has no GPU: this machine has {torch.cuda.device_count()}",
            where="torchrun",
            next="Start at most as many processes as there are GPUs",
        )
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", timeout=TIMEOUT, device_id=torch.device("cuda", local))


def _is_lost(error: Exception) -> bool:
    """Returns whether an error means that another process no longer answers."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Lets the main process run the block before the others, so that they find what it downloaded."""
    if world_size() == 1:
        yield
        return
    if not is_main_process():
        _store().wait(["in turn"], DOWNLOAD_TIMEOUT)
    yield
    if is_main_process():
        _store().set("in turn", "done")


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        all_reduce_max(0)


def broadcast_object(compute: Callable[[], T]) -> T:
    """Calls `compute` in the main process and returns its result in all processes."""
    if world_size() == 1:
        return compute()
    objects = [compute() if is_main_process() else None]
    dist.broadcast_object_list(objects, src=0)
    return cast(T, objects[0])


# --- a step ---------------------------------------------------------------------------------------------------------


def divide_rows(rows: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Divides `rows` into `parts` lists of about equal tokens, deterministically; some may be empty.

    Assigns the longest row first to the part with the fewest tokens (LPT, Graham 1969: at most 4/3 of the optimum).
    """
    divided: list[list[int]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        index = min(range(parts), key=lambda part: (tokens[part], part))
        divided[index].append(row)
        tokens[index] += lengths[row]
    order = {row: index for index, row in enumerate(rows)}
    return [sorted(part_rows, key=order.__getitem__) for part_rows in divided]


def local_rows(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Returns this process's part of `rows`."""
    return list(rows) if world_size() == 1 else divide_rows(rows, lengths, world_size())[rank()]


def all_reduce_sum(trained: Sequence[nn.Parameter], numbers: Sequence[float], device: torch.device) -> list[float]:
    """Sums gradients over all processes in place (None counts as zero); returns the sums of `numbers`."""
    if world_size() == 1:
        return list(numbers)
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [cast(Tensor, parameter.grad) for parameter in trained]
    if len(gradients) <= 2:  # flat already
        for gradient in gradients:
            dist.all_reduce(gradient)
    else:
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return cast("list[float]", sums.tolist())


def all_reduce_max(number: int) -> int:
    """Returns the largest `number` of all processes."""
    if world_size() == 1:
        return number
    value = torch.tensor(number, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Copies the main process's values to all processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


class SilentJournal(Journal):
    """The journal of processes other than the main one; it writes nothing."""

    def __init__(self) -> None:
        """Opens nothing."""

    def tell(self, kind: str, step: int, **values: Any) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Closes nothing."""


def shard_base(model: Model) -> None:
    """Moves `model` to this process's device, keeping 1/N of each decoder layer's frozen weights.

    A model on the CPU is moved layer by layer, so the GPU never holds all of it. Raises RecipeError for experts.
    """
    if model.experts():
        raise RecipeError(
            "a mixture of experts cannot be sharded", where="train.parallel", next="Set train.parallel to ddp"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_type, torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu")
    mesh = init_device_mesh(device_type, (world_size(),))
    decoder = model.decoder_network
    trained = set(model.trainable().values())
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    for layer in _decoder_layers(decoder):
        _move_scales(layer, device)
        _view_codes_as_float8(layer)
        fully_shard(layer, mesh=mesh, ignored_params=trained, reshard_after_forward=True)
    unsharded = {p for p in decoder.parameters() if not hasattr(p, "to_local")}
    for owner in model.network.modules():
        _move_unsharded(owner, device)
    fully_shard(decoder, mesh=mesh, ignored_params=unsharded | trained)  # the root enables prefetching of layers


def _decoder_layers(decoder: Any) -> nn.ModuleList:
    return next(child for child in decoder.children() if isinstance(child, nn.ModuleList))


def _move_scales(layer: nn.Module, device: torch.device) -> None:
    """Moves a layer's scales and code books, which are not parameters."""
    for module in layer.modules():
        if isinstance(module, FrozenLinear) and module.state is not None:
            module.state.to(device)


def _view_codes_as_float8(layer: nn.Module) -> None:
    """Views the codes as float8: before torch 2.13 FSDP2's shards require gradients, which uint8 cannot have."""
    for module in layer.modules():
        if isinstance(module, FrozenLinear) and module.state is not None:
            module.weight = nn.Parameter(module.weight.detach().view(torch.float8_e4m3fn), requires_grad=False)


def _move_unsharded(module: nn.Module, device: torch.device) -> None:
    """Moves a module's own parameters and buffers except those that FSDP2 manages."""
    for parameter in module.parameters(recurse=False):
        if not hasattr(parameter, "to_local"):
            parameter.data = parameter.data.to(device)
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(device))
