"""Greedy decoding of many prompts at once with the joined weights of the fused decoder.

A fixed number of slots generates one token per step, and a slot whose reply is complete takes the next prompt
(continuous batching, Yu et al. 2022, Orca). Prompts are read one by one, and prompts that need caches of the same size
share a batch. Every matrix product therefore has the same shape whatever else is in the batch, so a reply is the same
to the last bit alone and in a batch. Padded batches in 16 bits do not have this property.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ResourceError
from tunesmith.hardware import detect_hardware
from tunesmith.kernels import decode, ops
from tunesmith.kernels.attention import SequenceBounds
from tunesmith.kernels.base_weights import OneDnnWeight, can_pack_onednn, onednn_linear, pack_onednn
from tunesmith.kernels.block import BlockShape
from tunesmith.kernels.decode import Cache, Stack
from tunesmith.kernels.lora_linear import BaseForm, JoinedLinear
from tunesmith.models.build import Model
from tunesmith.models.fuse import FusedDecoder, flat_batch
from tunesmith.models.fused_config import config_reasons
from tunesmith.prompt.pack import pack_examples
from tunesmith.prompt.tokens import Example

SLOTS = (16, 64)  # batch sizes that fill a CPU's vector units and a GPU's matrix units
FALLBACK_SLOTS = (4, 1)  # for a GPU without memory for more caches
CACHE_BLOCK = 256  # tokens; cache lengths are multiples of it

StoppingCriterion = Callable[[Sequence[int]], bool]  # whether a reply with these tokens is complete


@dataclass
class _Sequence:
    """One reply in progress: the index of its prompt and its tokens so far."""

    prompt_index: int
    tokens: list[int] = field(default_factory=list)


def unsupported_reasons(model: Model) -> list[str]:
    """Return the reasons, for users, why this decoder cannot run the model; empty if it can."""
    reasons = config_reasons(model.network.config)
    variant = model.variant
    if variant is not None and (variant.dora or variant.bias != "none"):
        reasons.append("the adapter has its own magnitudes (DoRA) or biases")
    if variant is not None and variant.train_also:
        reasons.append("the embeddings or the head are trained, so the base cannot share them")
    if any(layer.start_A is not None for layer in model.lora.values()):
        reasons.append("the adapter's initial weights were taken from the base")
    return reasons


class Decoder:
    """Generates with the base and with the tuned model over the same weights."""

    def __init__(self, model: Model, fused: FusedDecoder | None = None) -> None:
        """Joins the model's layers, unless `fused` holds them joined already, as during training."""
        self.variant, self.max_length, self.device = model.variant, CACHE_BLOCK, model.device
        self.fused = fused or FusedDecoder(model, longest=CACHE_BLOCK, forms=_base_format(model))
        self.owns_layers = fused is None
        self.kernels: Any = decode
        if self.fused.own_kernels:
            from tunesmith.kernels import decode_cuda

            self.kernels = decode_cuda
        self.head = _pack_weights(self.fused, model) if self.owns_layers else None
        self.tables, self.shapes = self.fused.tables(CACHE_BLOCK)

    def write(
        self, prompts: Sequence[Sequence[int]], limit: int, batch: int, ended: StoppingCriterion, *, tuned: bool
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield each prompt's index and its reply's tokens, in any order: at most `limit`, or until `ended` is true.

        `batch` is rounded up to one of SLOTS, or down to what fits the memory of the GPU. Raises ResourceError if
        nothing fits.
        """
        slot_count = next((slots for slots in SLOTS if slots >= batch), SLOTS[-1])
        queues: dict[int, deque[int]] = defaultdict(deque)
        for index in sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index)):
            queues[-(-(len(prompts[index]) + limit) // CACHE_BLOCK) * CACHE_BLOCK].append(index)
        self._prepare(max(queues, default=0))
        with torch.inference_mode(), self.fused.adapter(tuned):
            for capacity, queue in sorted(queues.items()):
                yield from _Batch(self, slot_count, capacity).serve(prompts, queue, limit, ended)

    def losses(self, examples: Sequence[Example], pad: int, *, tuned: bool) -> list[float]:
        """Return the mean loss of each example in nats per token with loss, each example in its own batch.

        Only for a decoder that joined the layers itself.
        """
        self._prepare(max(map(len, examples), default=0))
        token_losses = []
        with torch.inference_mode(), self.fused.adapter(tuned):
            for example in examples:
                flat = flat_batch(pack_examples([example], pad), len(example), self.device)
                token_losses.append(self.fused.loss(flat).item() / len(flat.chosen))
        return token_losses

    def _prepare(self, length: int) -> None:
        if length > self.max_length:
            self.tables, self.shapes = self.fused.tables(length)
            self.max_length = length
            if self.owns_layers:
                self.fused.reach(length)
        self.fused.refresh()  # the adapter may have changed since the last call


class _Batch:
    """The slots and caches for prompts that need caches of the same size."""

    def __init__(self, decoder: Decoder, slot_count: int, capacity: int) -> None:
        self.decoder, self.fused, self.capacity, device = decoder, decoder.fused, capacity, decoder.device
        dtype, forms = self.fused.dtype, decoder.shapes
        slot_count = _slots_that_fit(
            slot_count, 2 * sum(form.keys for form in forms) * capacity * dtype.itemsize, device
        )

        def cache(form: BlockShape) -> Tensor:
            return torch.zeros(slot_count, form.keys // form.head, capacity, form.head, dtype=dtype, device=device)

        caches = [Cache(cache(form), cache(form)) for form in forms]
        self.stack = Stack(self.fused.blocks, forms, caches, decoder.tables)
        self.switches = {table.switch for table in decoder.tables} - {0}
        self.tokens, self.positions, self.active = (
            torch.zeros(slot_count, dtype=torch.int64, device=device) for _ in range(3)
        )
        self.sequences: list[_Sequence | None] = [None] * slot_count
        self.graph: torch.cuda.CUDAGraph | None = None

    def serve(
        self, prompts: Sequence[Sequence[int]], queue: deque[int], limit: int, ended: StoppingCriterion
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield replies until the queue and all slots are empty."""
        while queue or any(self.sequences):
            for slot, sequence in enumerate(self.sequences):
                while sequence is None and queue:
                    sequence = self._admit(slot, queue.popleft(), prompts)
                    if ended(sequence.tokens) or limit <= 1:
                        yield sequence.prompt_index, sequence.tokens[:limit]
                        sequence = None
                self.sequences[slot] = sequence
            if not any(self.sequences):
                return
            for slot, token in enumerate(self._step()):
                sequence = self.sequences[slot]
                if sequence is None:
                    continue
                sequence.tokens.append(
                    self._after_rope_change(slot, [*prompts[sequence.prompt_index], *sequence.tokens], token)
                )
                if ended(sequence.tokens) or len(sequence.tokens) >= limit:
                    yield sequence.prompt_index, sequence.tokens
                    self.sequences[slot] = None
                    self.active[slot] = self.positions[slot] = 0  # an empty slot stays at its position

    def _admit(self, slot: int, prompt: int, prompts: Sequence[Sequence[int]]) -> _Sequence:
        """Read a prompt into a slot, which yields the first token of the reply."""
        ids = prompts[prompt]
        self.tokens[slot] = self._prefill(slot, torch.tensor(ids, device=self.tokens.device))
        self.positions[slot], self.active[slot] = len(ids), 1
        return _Sequence(prompt, [int(self.tokens[slot])])

    def _prefill(self, slot: int, ids: Tensor) -> Tensor:
        length = len(ids)
        starts = torch.tensor([0, length], dtype=torch.int32, device=ids.device)
        h = self.decoder.kernels.read(
            self.fused.embed(ids), self.stack, slot, SequenceBounds(starts, length, (0, length))
        )
        return self._argmax(h[-1:])[0]

    def _after_rope_change(self, slot: int, ids: Sequence[int], token: int) -> int:
        """Return the token after `ids`: `token`, unless the text just reached the length where the RoPE factors change.

        LongRoPE's factors depend on the length of the text. The cache was computed with the short factors, so it is
        computed again.
        """
        if len(ids) - 1 not in self.switches:
            return token
        self.tokens[slot] = self._prefill(slot, torch.tensor(ids, device=self.tokens.device))
        return int(self.tokens[slot])

    def _step(self) -> list[int]:
        """Return one token for every slot; the token of an empty slot is ignored."""
        if self.graph is not None:
            self.graph.replay()
        elif self.tokens.is_cuda:
            self.graph = self._capture_graph()
        else:
            self._decode_step()
        return self.tokens.tolist()

    def _capture_graph(self) -> torch.cuda.CUDAGraph:
        """Run a step and capture it as a CUDA graph: kernels launched one by one leave the GPU waiting."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._decode_step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # capturing does not run the kernels
            self._decode_step()
        return graph

    def _decode_step(self) -> None:
        h = self.decoder.kernels.write(self.fused.embed(self.tokens), self.stack, self.positions)
        self.tokens.copy_(self._argmax(h))
        self.positions.add_(self.active)

    def _argmax(self, h: Tensor) -> Tensor:
        hidden = ops.rms(h, *self.fused.last_norm)
        scores = (
            self.fused.logits(hidden) if self.decoder.head is None else onednn_linear(hidden, self.decoder.head, None)
        )
        return scores.argmax(-1)  # soft-capping the logits would not change their order


def _slots_that_fit(slot_count: int, slot_bytes: int, device: torch.device) -> int:
    """Return `slot_count`, or the number of slots of `slot_bytes` that fits the memory of the GPU."""
    if device.type != "cuda":
        return slot_count
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    for count in sorted(
        {slot_count, *(slots for slots in (*FALLBACK_SLOTS, *SLOTS) if slots < slot_count)}, reverse=True
    ):
        if count * slot_bytes < 0.8 * free:
            return count
    raise ResourceError(
        f"the GPU has {free / 2**30:.1f} GiB free, but the cache of one reply needs {slot_bytes / 2**30:.1f} GiB",
        where="generating replies",
        next="Lower evaluate.max_new_tokens or prompt.max_tokens, or end other programs on the GPU",
    )


def _pack_weights(fused: FusedDecoder, model: Model) -> OneDnnWeight | None:
    """Pack the blocks' weights if that is faster on this processor and fits its memory; return the packed head."""
    head = model.network.get_output_embeddings()
    layers = [layer for block in fused.blocks for layer in (block.qkv, block.out, block.gate_up, block.down)]
    weights = [layer.base for layer in layers if isinstance(layer.base, torch.Tensor)]
    size = sum(weight.nbytes for weight in weights)
    if len(weights) < len(layers) or not can_pack_onednn(weights[0]) or size > 0.25 * detect_hardware().memory_free:
        return None
    fused.blocks = [
        block._replace(
            qkv=_pack_layer(block.qkv),
            out=_pack_layer(block.out),
            gate_up=_pack_layer(block.gate_up),
            down=_pack_layer(block.down),
        )
        for block in fused.blocks
    ]
    plain = type(head) is nn.Linear and head.bias is None
    return pack_onednn(head.weight.data, SLOTS[-1]) if plain else None


def _pack_layer(layer: JoinedLinear) -> JoinedLinear:
    return layer._replace(base=pack_onednn(layer.base, SLOTS[-1])) if isinstance(layer.base, torch.Tensor) else layer


def _base_format(model: Model) -> BaseForm:
    """Return "dense" if the dequantized weights fit: always on a processor, on a GPU only with memory to spare."""
    if model.device.type != "cuda":
        return "dense"
    free, _ = torch.cuda.mem_get_info(model.device)
    size = sum(layer.in_features * layer.out_features for layer in model.network.modules() if hasattr(layer, "state"))
    return "dense" if 3 * size < 0.8 * free else "stored"  # two bytes per element, and half as much for everything else
