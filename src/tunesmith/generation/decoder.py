"""Greedy decoding of many prompts at once over the fused decoder's joined weights.

A fixed number of slots is written one token a step; a slot whose reply is done takes the next prompt (continuous
batching, Yu et al. 2022, Orca). Prompts are read one by one, and prompts with like needs of room share a cache, so that
every product has the same shape whoever else is being answered: a reply is the same to the last bit alone and in
company, which padded batches in 16 bits cannot promise.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ResourceError
from tunesmith.hardware import look
from tunesmith.kernels import decode, norm
from tunesmith.kernels.attention import Bounds
from tunesmith.kernels.block import Form
from tunesmith.kernels.decode import Cache, Stack
from tunesmith.kernels.lora_linear import BaseForm, Joined
from tunesmith.kernels.onednn import Packed, can_pack, linear, pack
from tunesmith.models.build import Model
from tunesmith.models.fuse import Fused, flat_of
from tunesmith.models.fused_config import config_reasons
from tunesmith.prompt.pack import packed
from tunesmith.prompt.tokens import Example

SLOTS = (16, 64)  # a batch is one of these: as many as fill a processor's vector units, a card's matrix units
FEWER = (4, 1)  # where a card has no room for the caches of more
ROOM = 256  # tokens; caches are multiples of it

Ended = Callable[[Sequence[int]], bool]  # whether a reply of these tokens is done


@dataclass
class _Slot:
    """One reply on its way: which prompt's, and what is written."""

    prompt: int
    written: list[int] = field(default_factory=list)


def reasons(model: Model) -> list[str]:
    """Why this model's replies cannot be written here, for people; empty when they can."""
    found = config_reasons(model.network.config)
    variant = model.variant
    if variant is not None and (variant.dora or variant.bias != "none"):
        found.append("the adapter has gains or biases of its own")
    if variant is not None and variant.train_also:
        found.append("embeddings or head are trained, which the base must not share")
    if any(layer.start_A is not None for layer in model.lora.values()):
        found.append("the adapter's start was taken from the base")
    return found


class Decoder:
    """Writes for the base and for the tuned model over the same weights."""

    def __init__(self, model: Model, fused: Fused | None = None) -> None:
        """Joins the model's layers, unless they are joined in `fused` already, which a training goes on with."""
        self.variant, self.longest, self.device = model.variant, ROOM, model.device
        self.fused = fused or Fused(model, longest=ROOM, forms=_form(model))
        self.own = fused is None
        self.kernels: Any = decode
        if self.fused.own_kernels:
            from tunesmith.kernels import decode_cuda

            self.kernels = decode_cuda
        self.head = _packed(self.fused, model) if self.own else None
        self.tables, self.shapes = self.fused.tables(ROOM)

    def write(
        self, prompts: Sequence[Sequence[int]], limit: int, batch: int, ended: Ended, *, tuned: bool
    ) -> Iterator[tuple[int, list[int]]]:
        """Each prompt's place and the tokens of its reply, in any order: at most `limit`, or until `ended` says so.

        `batch` is rounded up to one of SLOTS, or down to what a card has the memory for.
        Raises ResourceError where it has none.
        """
        many = next((slots for slots in SLOTS if slots >= batch), SLOTS[-1])
        rooms: dict[int, deque[int]] = defaultdict(deque)
        for place in sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place)):
            rooms[-(-(len(prompts[place]) + limit) // ROOM) * ROOM].append(place)
        self._ready(max(rooms, default=0))
        with torch.inference_mode(), self.fused.adapter(tuned):
            for room, queue in sorted(rooms.items()):
                yield from _Desk(self, many, room).serve(prompts, queue, limit, ended)

    def losses(self, examples: Sequence[Example], pad: int, *, tuned: bool) -> list[float]:
        """Nats a learnt token of each example, read alone. Only of a decoder that joined the layers itself."""
        self._ready(max(map(len, examples), default=0))
        found = []
        with torch.inference_mode(), self.fused.adapter(tuned):
            for example in examples:
                flat = flat_of(packed([example], pad), len(example), self.device)
                found.append(self.fused.loss(flat).item() / len(flat.chosen))
        return found

    def _ready(self, longest: int) -> None:
        if longest > self.longest:
            self.tables, self.shapes = self.fused.tables(longest)
            self.longest = longest
            if self.own:
                self.fused.reach(longest)
        self.fused.refresh()  # the adapter may have changed since


class _Desk:
    """Slots and their caches for prompts that need like room."""

    def __init__(self, decoder: Decoder, many: int, room: int) -> None:
        self.of, self.fused, self.room, device = decoder, decoder.fused, room, decoder.device
        dtype, forms = self.fused.dtype, decoder.shapes
        many = _fitting(many, 2 * sum(form.keys for form in forms) * room * dtype.itemsize, device)

        def cache(form: Form) -> Tensor:
            return torch.zeros(many, form.keys // form.head, room, form.head, dtype=dtype, device=device)

        caches = [Cache(cache(form), cache(form)) for form in forms]
        self.stack = Stack(self.fused.blocks, forms, caches, decoder.tables)
        self.switches = {table.switch for table in decoder.tables} - {0}
        self.tokens, self.places, self.taken = (torch.zeros(many, dtype=torch.int64, device=device) for _ in range(3))
        self.held: list[_Slot | None] = [None] * many
        self.graph: torch.cuda.CUDAGraph | None = None

    def serve(
        self, prompts: Sequence[Sequence[int]], queue: deque[int], limit: int, ended: Ended
    ) -> Iterator[tuple[int, list[int]]]:
        """Until the queue and all slots are empty."""
        while queue or any(self.held):
            for slot, held in enumerate(self.held):
                while held is None and queue:
                    held = self._take(slot, queue.popleft(), prompts)
                    if ended(held.written) or limit <= 1:
                        yield held.prompt, held.written[:limit]
                        held = None
                self.held[slot] = held
            if not any(self.held):
                return
            for slot, token in enumerate(self._step()):
                held = self.held[slot]
                if held is None:
                    continue
                held.written.append(self._reread(slot, [*prompts[held.prompt], *held.written], token))
                if ended(held.written) or len(held.written) >= limit:
                    yield held.prompt, held.written
                    self.held[slot] = None
                    self.taken[slot] = self.places[slot] = 0  # reads nothing, stays where it is

    def _take(self, slot: int, prompt: int, prompts: Sequence[Sequence[int]]) -> _Slot:
        """Reads a prompt into a slot; the reply's first token is known then."""
        ids = prompts[prompt]
        self.tokens[slot] = self._read(slot, torch.tensor(ids, device=self.tokens.device))
        self.places[slot], self.taken[slot] = len(ids), 1
        return _Slot(prompt, [int(self.tokens[slot])])

    def _read(self, slot: int, ids: Tensor) -> Tensor:
        many = len(ids)
        starts = torch.tensor([0, many], dtype=torch.int32, device=ids.device)
        h = self.of.kernels.read(self.fused.embed(ids), self.stack, slot, Bounds(starts, many, (0, many)))
        return self._choose(h[-1:])[0]

    def _reread(self, slot: int, ids: Sequence[int], token: int) -> int:
        """The token after `ids`: `token`, unless the text has just become so long that its keys are rotated otherwise.

        LongRoPE's factors depend on the text's length; what was cached under the short ones is computed again.
        """
        if len(ids) - 1 not in self.switches:
            return token
        self.tokens[slot] = self._read(slot, torch.tensor(ids, device=self.tokens.device))
        return int(self.tokens[slot])

    def _step(self) -> list[int]:
        """One token for every slot; a slot that holds nothing writes nonsense that nobody reads."""
        if self.graph is not None:
            self.graph.replay()
        elif self.tokens.is_cuda:
            self.graph = self._recorded()
        else:
            self._advance()
        return self.tokens.tolist()

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Makes a step and records it: launched one by one, its kernels keep a card waiting."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._advance()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # what is recorded is not run
            self._advance()
        return graph

    def _advance(self) -> None:
        h = self.of.kernels.write(self.fused.embed(self.tokens), self.stack, self.places)
        self.tokens.copy_(self._choose(h))
        self.places.add_(self.taken)

    def _choose(self, h: Tensor) -> Tensor:
        hidden = norm.rms(h, *self.fused.last_norm)
        scores = self.fused.logits(hidden) if self.of.head is None else linear(hidden, self.of.head, None)
        return scores.argmax(-1)  # a cap on the scores would not change their order


def _fitting(many: int, size: int, device: torch.device) -> int:
    """So many slots, or as many as a card has the memory for; `size` are the bytes of one slot's caches."""
    if device.type != "cuda":
        return many
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    for each in sorted({many, *(slots for slots in (*FEWER, *SLOTS) if slots < many)}, reverse=True):
        if each * size < 0.8 * free:
            return each
    raise ResourceError(
        f"the card has {free / 2**30:.1f} GiB free, less than the {size / 2**30:.1f} GiB that one reply's cache needs",
        where="writing replies",
        next="Lower evaluate.max_new_tokens or prompt.max_tokens, or close what else runs on the card",
    )


def _packed(fused: Fused, model: Model) -> Packed | None:
    """Packs the blocks' weights where the processor gains by it and has the memory; returns the head's, too."""
    head = model.network.get_output_embeddings()
    joined = [each for block in fused.blocks for each in (block.qkv, block.out, block.gate_up, block.down)]
    weights = [each.base for each in joined if isinstance(each.base, torch.Tensor)]
    size = sum(weight.nbytes for weight in weights)
    if len(weights) < len(joined) or not can_pack(weights[0]) or size > 0.25 * look().memory_free:
        return None
    fused.blocks = [
        block._replace(qkv=_pack(block.qkv), out=_pack(block.out), gate_up=_pack(block.gate_up), down=_pack(block.down))
        for block in fused.blocks
    ]
    plain = type(head) is nn.Linear and head.bias is None
    return pack(head.weight.data, SLOTS[-1]) if plain else None


def _pack(joined: Joined) -> Joined:
    return joined._replace(base=pack(joined.base, SLOTS[-1])) if isinstance(joined.base, torch.Tensor) else joined


def _form(model: Model) -> BaseForm:
    """Dequantised once where that fits: on a processor always, on a card with room to spare."""
    if model.device.type != "cuda":
        return "dense"
    free, _ = torch.cuda.mem_get_info(model.device)
    size = sum(layer.in_features * layer.out_features for layer in model.network.modules() if hasattr(layer, "state"))
    return "dense" if 3 * size < 0.8 * free else "stored"  # two bytes an element, half as much for what comes beside
