"""One run on several processes, one a card, as torchrun starts them.

Each process has the whole adapter and takes its part of a step's rows. The loss's denominator, the learnt tokens of the
whole step, is known to all from the rows, so the gradients of the parts only have to be added up: for the fused decoder
one all-reduce of two flat arrays a step. Afterwards every process clips, steps and decides alike, so nothing that
is kept depends on how many there are, and only the first one writes. What the micro-batches are is each one's own
matter, because nothing is exchanged between them (`shard` is the exception).
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

from tunesmith.errors import Paused, ResourceError, RunError
from tunesmith.runs.run import is_main_process, process_count
from tunesmith.training.journal import Journal

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # longer than a checkpoint on a slow disk, or the recording of graphs, takes one alone
FETCHING = timedelta(days=1)  # what the first process may take to fetch a base model


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if dist.is_initialized() else 0


# --- beginning and end ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Inside the block the processes that torchrun started know each other, and each computes on a card of its own.

    Of errors only the first is raised as it is; another process then ends with SystemExit and says nothing. Raises
    ResourceError when there are fewer cards than processes, RunError when one of them is gone without a word.
    """
    if process_count() == 1 or dist.is_initialized():
        yield
        return
    _join()
    try:
        yield
    except Exception as error:
        store = _store()
        alone = store.add("failed", 1) == 1
        if alone:
            store.set("exit code", str(getattr(error, "exit_code", 1)))
        code = int(store.get("exit code"))
        if isinstance(error, Paused):
            dist.destroy_process_group()  # all have come here; after another error some may still wait for this one
        if alone and _is_lost(error):
            raise RunError(
                "another of the processes that train together has gone",
                where="torchrun",
                next="Give the same command again: it goes on after the last checkpoint",
            ) from error
        if alone:
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
            f"process {local + 1} of {process_count()} has no card, for there are {torch.cuda.device_count()}",
            where="torchrun",
            next="Start as many processes as there are cards",
        )
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", timeout=TIMEOUT, device_id=torch.device("cuda", local))


def _is_lost(error: Exception) -> bool:
    """Whether an error says that a process no longer answers."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The first process goes through the block alone, then the others: what it fetches they find."""
    if world_size() == 1:
        yield
        return
    if not is_main_process():
        _store().wait(["in turn"], FETCHING)
    yield
    if is_main_process():
        _store().set("in turn", "done")


def barrier() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        all_reduce_max(0)


def broadcast_object(make: Callable[[], T]) -> T:
    """What the first process makes, for all."""
    if world_size() == 1:
        return make()
    held = [make() if is_main_process() else None]
    dist.broadcast_object_list(held, src=0)
    return cast(T, held[0])


# --- a step ---------------------------------------------------------------------------------------------------------


def divide_rows(rows: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """`rows` in `parts` parts of about as many tokens each, some perhaps empty; the same wherever it is computed.

    The longest row first, each to the part that has least (Graham 1969: at most 4/3 of the best division's largest).
    """
    made: list[list[int]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        place = min(range(parts), key=lambda part: (tokens[part], part))
        made[place].append(row)
        tokens[place] += lengths[row]
    order = {row: place for place, row in enumerate(rows)}
    return [sorted(each, key=order.__getitem__) for each in made]


def local_rows(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """This process's part of `rows`."""
    return list(rows) if world_size() == 1 else divide_rows(rows, lengths, world_size())[rank()]


def all_reduce_sum(trained: Sequence[nn.Parameter], numbers: Sequence[float], device: torch.device) -> list[float]:
    """Adds the gradients of all processes up in place (no gradient counts as zero); returns the sums of `numbers`."""
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
    """The largest `number` of all processes."""
    if world_size() == 1:
        return number
    held = torch.tensor(number, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return int(held)


def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Gives all processes the first one's values."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


class SilentJournal(Journal):
    """The journal of a process that is not the first: nothing is written."""

    def __init__(self) -> None:
        """Opens nothing."""

    def tell(self, kind: str, step: int, **values: Any) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Nothing is open."""
