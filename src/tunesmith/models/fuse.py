"""Runs a loaded model's decoder with the hand-written kernels, with layers of the same input joined.

Weights are not duplicated: the layers' dense weights become views of the joined ones. The adapter's parameters become
views of two flat arrays, one for A and one for B, so that gradient norm and optimizer step are single operations.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.kernels import attention, base_weights, block, ops
from tunesmith.kernels.attention import SequenceBounds
from tunesmith.kernels.block import Block, Keep
from tunesmith.kernels.lora_linear import BaseForm, GradientTarget, JoinedLinear
from tunesmith.kernels.ops import RopeTable
from tunesmith.models import fused_config
from tunesmith.models.build import Model
from tunesmith.models.offload import BlockInputOffload, offload_embeddings
from tunesmith.models.qlora import FrozenLinear, LoraLinear
from tunesmith.prompt.pack import PackedBatch

JOINED_LAYERS = (  # layer names of each joined product: separate, or already joined by the family
    (("q_proj", "k_proj", "v_proj"), ("qkv_proj",)),
    (("o_proj",),),
    (("gate_proj", "up_proj"), ("gate_up_proj",)),
    (("down_proj",),),
)
Forms = BaseForm | tuple[BaseForm, BaseForm, BaseForm, BaseForm]  # of a block, or of each of its groups


def unfused_reasons(model: Model) -> list[str]:
    """Returns the reasons why this loaded model with its adapter cannot be fused; empty if it can."""
    messages = fused_config.config_reasons(model.network.config) + model.unfused_reasons()
    if any(layer.start_A is not None for layer in model.lora.values()):
        messages.append("the adapter's initial update was subtracted from the base")
    return messages


@dataclass(frozen=True)
class FlatBatch:
    """Packed examples on the device.

    `ids` and `places` (position ids) have one entry per token; `chosen` (indices of tokens whose successor carries
    loss) and `targets` (those successors) one per token with loss. A target of -100 is padding.
    """

    ids: Tensor
    places: Tensor
    bounds: SequenceBounds
    chosen: Tensor
    targets: Tensor


def flat_batch(batch: PackedBatch, longest: int, device: torch.device) -> FlatBatch:
    """Returns `batch`, whose examples have at most `longest` tokens, as tensors."""
    cu_seqlens = torch.from_numpy(batch.starts).to(device, torch.int32)
    ids, places, loss_positions, targets = (
        torch.from_numpy(array).to(device) for array in (batch.ids, batch.places, batch.chosen, batch.targets)
    )
    return FlatBatch(
        ids, places, SequenceBounds(cu_seqlens, longest, tuple(batch.starts.tolist())), loss_positions, targets
    )


class _Group:
    """Linear layers with the same input: their joined weight, and the positions of their adapters in it."""

    def __init__(self, layers: list[nn.Module], form: BaseForm, dtype: torch.dtype, *, behind: bool) -> None:
        """`behind` stores the scaled B after each row of a dense weight, as `block_cuda` expects."""
        self.bases = [layer.base if isinstance(layer, LoraLinear) else cast(FrozenLinear, layer) for layer in layers]
        self.lora = [layer for layer in layers if isinstance(layer, LoraLinear)]
        heights = [base.out_features for base in self.bases]
        starts = [sum(heights[:index]) for index in range(len(heights))]
        self.rows = [slice(s, s + h) for s, h, layer in zip(starts, heights, layers, strict=True) if layer in self.lora]
        self.height, self.width, self.dtype = sum(heights), self.bases[0].in_features, dtype
        self.ranks = sum(layer.lora_A.shape[0] for layer in self.lora)
        self.a: Tensor | None = None  # ranks x in, a part of one flat array
        self.b: Tensor | None = None  # out x ranks, block-diagonal, for the Triton kernels
        self.pieces: tuple[tuple[Tensor, slice, slice], ...] = ()  # each layer's scaled B with its outputs and ranks
        self.target = GradientTarget(None, (), 1.0)
        self.base = self._joined(form, self.ranks if behind else 0)
        self.bias = self._bias()

    def _joined(self, form: BaseForm, extra: int) -> Tensor | base_weights.Nf4 | base_weights.Fp8:
        packed = all(base.state is not None and base.dense is None for base in self.bases)
        packed = packed and base_weights.same_nf4_layout([base.state for base in self.bases])
        if packed and form == "stored":
            return base_weights.nf4_from_states(
                [base.weight.data for base in self.bases], [b.state for b in self.bases], self.dtype
            )
        if form == "fp8":
            return base_weights.fp8_from_dense(torch.cat([base.matrix() for base in self.bases]))
        if len(self.bases) == 1 and not extra:
            self.bases[0].keep_dense()
            if self.bases[0].state is not None:
                self.bases[0].weight.data = torch.empty(0, dtype=torch.uint8, device=self.bases[0].weight.device)
            return self.bases[0].matrix()
        dense = torch.zeros(self.height, self.width + extra, dtype=self.dtype, device=self.bases[0].weight.device)
        start = 0
        for base in self.bases:  # the layers' weights become views of the joined one
            part = dense[start : start + base.out_features, : self.width]
            part.copy_(base.matrix())
            start += base.out_features
            if base.state is None:
                base.weight.data = part
            else:
                base.dense = part
                base.weight.data = torch.empty(0, dtype=torch.uint8, device=dense.device)  # frees the codes
        if extra:
            self.b = dense[:, self.width :]
        return dense

    def _bias(self) -> Tensor | None:
        if all(base.bias is None for base in self.bases):
            return None
        device = self.bases[0].weight.device
        parts = [torch.zeros(base.out_features) if base.bias is None else base.bias.data for base in self.bases]
        return torch.cat([part.to(device, self.dtype) for part in parts])

    def joined(self) -> JoinedLinear:
        return JoinedLinear(self.base, self.bias, self.a, self.b, self.pieces)


class FusedDecoder:
    """The fused decoder with head and loss. `step` adds to the adapter's gradients, `loss` only computes the loss."""

    def __init__(
        self,
        model: Model,
        *,
        longest: int,
        forms: Sequence[Forms] | BaseForm = "stored",
        keeps: Sequence[Keep] | Keep = "all",
        chunk: int = 1024,
        table: bool = True,
    ) -> None:
        """`forms` and `keeps` are one value for all blocks, or one per block; `longest` is the longest example.

        A block's form may be four values, one per entry of GROUPS. `chunk` is the number of tokens with loss whose
        logits exist at the same time. Without `table` the embeddings move to host memory, from where the GPU reads the
        rows that it needs.
        """
        self.model, self.chunk = model, chunk
        decoder = _decoder(model)
        self.layers = list(decoder.layers)
        count = len(self.layers)
        self.forms = [forms] * count if isinstance(forms, str) else list(forms)
        self.keeps: list[Keep] = [keeps] * count if isinstance(keeps, str) else list(keeps)
        self.dtype = model.network.get_input_embeddings().weight.dtype
        self.attentions = fused_config.layer_attentions(model.network.config)
        self.reach(longest)
        self.kernels: block.BlockKernels = block
        if _has_triton() and all(
            _has_triton_block(shape, self._tables[shape.table], layer)
            for shape, layer in zip(self.shapes, self.layers, strict=True)
        ):
            from tunesmith.kernels import block_cuda

            self.kernels = block_cuda
        self.own_kernels = self.kernels is not block
        self.eight = any("fp8" in _per_group(form) for form in self.forms)
        if not table and self.own_kernels:
            offload_embeddings(model)
        self.groups = [
            _groups(layer, form, self.dtype, self.own_kernels)
            for layer, form in zip(self.layers, self.forms, strict=True)
        ]
        self.offload: BlockInputOffload | None = None
        self._flatten()
        self.blocks = [_block(layer, groups) for layer, groups in zip(self.layers, self.groups, strict=True)]
        self.targets = [cast(block.Targets, tuple(group.target for group in groups)) for groups in self.groups]
        self.refresh()

    def reach(self, longest: int) -> None:
        """Sets up RoPE tables and block shapes for examples of at most `longest` tokens."""
        self._tables, self.shapes = self.tables(longest)

    def tables(self, longest: int) -> tuple[list[RopeTable], list[block.BlockShape]]:
        """Returns the RoPE tables for at most `longest` tokens, and the constants of each block."""
        switches = {layer_attention.rope: layer_attention.switch for layer_attention in self.attentions}
        kinds = list(switches)
        return [self._table(kind, switch, longest) for kind, switch in switches.items()], [
            _form(self.model, layer, layer_attention, kinds.index(layer_attention.rope), self.dtype, longest)
            for layer, layer_attention in zip(self.layers, self.attentions, strict=True)
        ]

    def _table(self, kind: str | None, switch: int, longest: int) -> RopeTable:
        """Returns the table of the layers with RoPE parameters `kind`, as computed by the family's module."""
        device, rotary = self.model.device, _decoder(self.model).rotary_emb
        if kind is None:  # no rotation: cos 1, sin 0
            cos = torch.ones(longest, self.attentions[0].head, dtype=self.dtype, device=device)
            return RopeTable(cos, torch.zeros_like(cos))
        by_kind = [kind] if kind else []

        def cos_sin(length: int) -> tuple[Tensor, Tensor]:
            positions = torch.arange(length, device=device)[None]
            cos, sin = rotary(torch.empty(1, 1, 1, dtype=self.dtype, device=device), positions, *by_kind)
            return cos[0].contiguous(), sin[0].contiguous()

        if not 0 < switch < longest:
            return RopeTable(*cos_sin(longest))
        gap = (0, 0, 0, longest - switch)
        pairs = zip(cos_sin(switch), cos_sin(longest), strict=True)
        cos, sin = (torch.cat([nn.functional.pad(short, gap), long]) for short, long in pairs)
        return RopeTable(cos, sin, switch)

    def _turns(self, flat: FlatBatch) -> list[block.RopeTables]:
        """Returns the tokens' rows of each RoPE table."""
        starts = flat.bounds.starts
        return [
            block.RopeTables(table.cos, table.sin, table.packed_rows(flat.places, starts)) for table in self._tables
        ]

    @contextlib.contextmanager
    def adapter(self, on: bool) -> Iterator[None]:
        """Turns the adapter off inside the block if `on` is False."""
        adapted = self.blocks
        if not on:
            self.blocks = [_without_adapter(layer_block) for layer_block in adapted]
        try:
            yield
        finally:
            self.blocks = adapted

    # --- the adapter in flat arrays ---------------------------------------------------------------------------

    def _flatten(self) -> None:
        groups = [group for groups in self.groups for group in groups if group.lora]
        device = self.model.device
        size_a = sum(layer.lora_A.numel() for group in groups for layer in group.lora)
        size_b = sum(layer.lora_B.numel() for group in groups for layer in group.lora)
        number = groups[0].lora[0].lora_A.dtype if groups else torch.float32
        self.flat_a, self.flat_b = (torch.empty(size, device=device, dtype=number) for size in (size_a, size_b))
        self.grad_a, self.grad_b = (torch.zeros(size, device=device, dtype=number) for size in (size_a, size_b))
        self.small_a = torch.empty(size_a, device=device, dtype=self.dtype)
        self.small_b = torch.empty(size_b, device=device, dtype=self.dtype)
        self.scale = groups[0].lora[0].scale if groups else 1.0
        self._blocks_b: list[tuple[Tensor, Tensor]] = []  # (a diagonal block, the scaled B that is copied into it)
        at_a = at_b = 0
        for group in groups:
            at_a, at_b = self._place(group, at_a, at_b)

    def _place(self, group: _Group, at_a: int, at_b: int) -> tuple[int, int]:
        """Moves a group's adapter into the flat arrays; returns the next offsets."""
        begin_a, ranks, gradients = at_a, 0, []
        pieces = []
        at_use = not self.own_kernels or (isinstance(group.base, base_weights.Nf4) and len(group.bases) > 1)
        if group.b is None and len(group.bases) > 1 and not at_use:
            group.b = torch.zeros(group.height, group.ranks, device=self.small_b.device, dtype=self.dtype)
        for layer, rows in zip(group.lora, group.rows, strict=True):
            rank_slice = slice(ranks, ranks + layer.lora_A.shape[0])
            _move_to_flat(layer.lora_A, self.flat_a, self.grad_a, at_a)
            _move_to_flat(layer.lora_B, self.flat_b, self.grad_b, at_b)
            scaled_b = self.small_b[at_b : at_b + layer.lora_B.numel()].view(layer.lora_B.shape)
            pieces.append((scaled_b, rows, rank_slice))
            if group.b is not None:
                self._blocks_b.append((group.b[rows, rank_slice], scaled_b))
            elif not at_use:  # otherwise used piece by piece, or joined when the codes are dequantized
                group.b = scaled_b
            gradients.append((cast(Tensor, layer.lora_B.grad), rows, rank_slice))
            at_a, at_b, ranks = at_a + layer.lora_A.numel(), at_b + layer.lora_B.numel(), rank_slice.stop
        group.pieces = tuple(pieces)
        group.a = self.small_a[begin_a:at_a].view(group.ranks, group.width)
        group.target = GradientTarget(
            self.grad_a[begin_a:at_a].view(group.ranks, group.width), tuple(gradients), self.scale
        )
        return at_a, at_b

    def refresh(self) -> None:
        """Copies the adapter into the dtype of the products; call it after each optimizer step."""
        self.small_a.copy_(self.flat_a)
        torch.mul(self.flat_b, self.scale, out=self.small_b)
        if self._blocks_b:
            torch._foreach_copy_([to for to, _ in self._blocks_b], [of for _, of in self._blocks_b])

    def zero_gradients(self) -> None:
        """Zeroes the adapter's gradients; call it before the first micro-batch of a step."""
        self.grad_a.zero_()
        self.grad_b.zero_()

    # --- forward, backward --------------------------------------------------------------------------------------

    def step(self, flat: FlatBatch, share: Tensor) -> Tensor:
        """Returns the summed cross-entropy in nats and adds `share` times its gradient to the adapter's gradients."""
        with torch.no_grad():
            ropes = self._turns(flat)
            h = self.embed(flat.ids)
            saved: list[Any] = []
            for index, (shape, keep) in enumerate(zip(self.shapes, self.keeps, strict=True)):
                h, activations = self.kernels.forward(
                    h, self.blocks[index], ropes[shape.table], flat.bounds, shape, keep
                )
                saved.append(self._put(index, activations, keep))
                del activations
            total, dh = self._loss_and_gradient(h, flat, share)
            del h
            for index in range(len(self.blocks) - 1, -1, -1):
                self._take(index, saved, dh)
                shape = self.shapes[index]
                dh = self.kernels.backward(
                    dh, saved, self.blocks[index], ropes[shape.table], flat.bounds, shape, self.targets[index]
                )
            return total

    def _put(self, index: int, saved: Any, keep: Keep) -> Any:
        """Copies a block's input to host memory if `keep` says so."""
        if keep != "host" or not self.own_kernels:
            return saved
        if self.offload is None:
            self.offload = BlockInputOffload()
        self.offload.put(index, saved.h)
        return None

    def _take(self, index: int, saved: list[Any], like: Tensor) -> None:
        """Waits for a block's input, and starts fetching that of the previous block."""
        if self.offload is None:
            return
        self.offload.settle()
        if saved[index] is None:
            saved[index] = block.SavedActivations(self.offload.take(index, like))
        if index and saved[index - 1] is None:
            self.offload.fetch(index - 1, like)

    def loss(self, flat: FlatBatch) -> Tensor:
        """Returns the summed cross-entropy in nats."""
        with torch.no_grad():
            ropes = self._turns(flat)
            h = self.embed(flat.ids)
            for layer_block, shape in zip(self.blocks, self.shapes, strict=True):
                h, _ = self.kernels.forward(h, layer_block, ropes[shape.table], flat.bounds, shape, "input")
            hidden = self._last_norm(h[flat.chosen])
            parts = zip(torch.split(hidden, self.chunk), torch.split(flat.targets, self.chunk), strict=True)
            return torch.stack([self._chunk(part, targets, None)[0] for part, targets in parts]).sum()

    def embed(self, ids: Tensor) -> Tensor:
        """Returns the embeddings of `ids` (any shape x hidden), scaled as in the family."""
        return cast(Tensor, self.model.network.get_input_embeddings()(ids))

    @property
    def last_norm(self) -> tuple[Tensor, float, float]:
        """Weight, epsilon and offset of the final norm."""
        return _decoder(self.model).norm.weight, self.shapes[0].eps, self.shapes[0].offset

    def _loss_and_gradient(self, h: Tensor, flat: FlatBatch, share: Tensor) -> tuple[Tensor, Tensor]:
        hidden = h[flat.chosen]
        normed = self._last_norm(hidden)
        totals = []
        for start in range(0, len(normed), self.chunk):
            part = slice(start, start + self.chunk)
            total, gradient = self._chunk(normed[part], flat.targets[part], share)
            totals.append(total)
            normed[part] = gradient
        dhidden = self._last_norm_back(normed, hidden)
        return torch.stack(totals).sum(), torch.zeros_like(h).index_add_(0, flat.chosen, dhidden)

    def _last_norm(self, hidden: Tensor) -> Tensor:
        weight, eps, offset = self.last_norm
        if not self.own_kernels:
            return ops.rms(hidden, weight, eps, offset)
        from tunesmith.kernels import triton_parts

        return triton_parts.norm(hidden, None, weight, eps, offset, 0, eight=False)[1]

    def _last_norm_back(self, dy: Tensor, hidden: Tensor) -> Tensor:
        weight, eps, offset = self.last_norm
        if not self.own_kernels:
            return ops.rms_back(dy, hidden, weight, eps, offset)
        from tunesmith.kernels import triton_parts

        return triton_parts.norm_back(dy, hidden, weight, eps, offset, None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns next-token logits (rows x vocabulary) of normalized hidden states."""
        cap = _final_cap(self.model)
        scores = self.model.network.get_output_embeddings()(hidden)
        return torch.tanh(scores / cap) * cap if cap else scores

    def _chunk(self, hidden: Tensor, targets: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the loss of some tokens, and with a `share` its gradient, else `hidden`."""
        layer = self.model.network.get_output_embeddings()
        cap = _final_cap(self.model)
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if self.own_kernels:
            from tunesmith.kernels import triton_parts

            logits = nn.functional.linear(hidden, weight, bias)
            total = triton_parts.head(logits, targets, cap, share).sum()
            return total, hidden if share is None else logits @ weight
        if share is None:
            return ops.loss(hidden, targets, weight, bias, cap), hidden
        return ops.loss_and_gradient(hidden, targets, weight, bias, cap, share)


def _decoder(model: Model) -> Any:
    return model.decoder_network


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _move_to_flat(parameter: nn.Parameter, flat: Tensor, gradient: Tensor, at: int) -> None:
    part = slice(at, at + parameter.numel())
    flat[part].copy_(parameter.data.reshape(-1))
    parameter.data = flat[part].view(parameter.shape)
    parameter.grad = gradient[part].view(parameter.shape)


def _per_group(form: Forms) -> tuple[BaseForm, ...]:
    return (form,) * len(JOINED_LAYERS) if isinstance(form, str) else form


def _groups(layer: Any, form: Forms, dtype: torch.dtype, own_kernels: bool) -> list[_Group]:
    groups = []
    for index, names in enumerate(JOINED_LAYERS):
        for names_in_family in names:
            owner = layer.self_attn if hasattr(layer.self_attn, names_in_family[0]) else layer.mlp
            if hasattr(owner, names_in_family[0]):
                behind = own_kernels and index != 1  # attention's output has no space after its rows
                layers = [linear for name in names_in_family if (linear := getattr(owner, name)) is not None]
                groups.append(_Group(layers, _per_group(form)[index], dtype, behind=behind))
                break
    if len(groups) != len(JOINED_LAYERS):
        raise AssertionError("a family listed as fused has other layers")
    return groups


def _block(layer: Any, groups: Sequence[_Group]) -> Block:
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    second = layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
    qkv, out, gate_up, down = (group.joined() for group in groups)
    inner = layer.self_attn
    return Block(
        norm_1=layer.input_layernorm.weight.data,
        norm_2=second.weight.data,
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        after_1=layer.post_attention_layernorm.weight.data if sandwich else None,
        after_2=layer.post_feedforward_layernorm.weight.data if sandwich else None,
        norm_q=inner.q_norm.weight.data if hasattr(inner, "q_norm") else None,
        norm_k=inner.k_norm.weight.data if hasattr(inner, "k_norm") else None,
        scalar=getattr(layer, "layer_scalar", None),
    )


def _without_adapter(layer_block: Block) -> Block:
    """Returns the block without its adapter."""
    qkv, out, gate_up, down = (
        _base_product(joined) for joined in (layer_block.qkv, layer_block.out, layer_block.gate_up, layer_block.down)
    )
    return layer_block._replace(qkv=qkv, out=out, gate_up=gate_up, down=down)


def _base_product(joined: JoinedLinear) -> JoinedLinear:
    base = joined.base
    if isinstance(base, Tensor) and joined.a is not None:
        base = base[:, : joined.a.shape[1]]  # without the scaled B, which may be stored after the rows
    return joined._replace(base=base, a=None, b=None, pieces=())


def _form(
    model: Model, layer: Any, layer_attention: fused_config.LayerAttention, table: int, dtype: torch.dtype, longest: int
) -> block.BlockShape:
    config = model.network.config
    family = str(config.model_type)
    cap = float(config.attn_logit_softcapping or 0.0) if family == "gemma2" else 0.0
    window = layer_attention.window if layer_attention.window < longest else 0
    packed = not cap and attention.has_flash(model.device, dtype, layer_attention.head)
    function = getattr(layer.mlp, "act_fn", None) or layer.mlp.activation_fn
    return block.BlockShape(
        queries=layer_attention.queries,
        keys=layer_attention.keys,
        head=layer_attention.head,
        eps=float(config.rms_norm_eps),
        offset=1.0 if family in ("gemma", "gemma2", "gemma3_text") else 0.0,
        activation=cast(str, fused_config.fused_activation(function)),
        rule=attention.AttentionRule(float(layer.self_attn.scaling), cap, window, "packed" if packed else "rows"),
        table=table,
        shared_values=layer_attention.shared_values,
        norm_values=layer_attention.norm_values,
    )


def _has_triton_block(form: block.BlockShape, table: RopeTable, layer: Any) -> bool:
    """Whether `block_cuda` supports this block: flash attention, RoPE over whole normed heads, no scalar."""
    whole = not hasattr(layer.self_attn, "q_norm") or table.cos.shape[1] == form.head
    return form.rule.way == "packed" and whole and not form.norm_values and not hasattr(layer, "layer_scalar")


def _final_cap(model: Model) -> float:
    """Returns the cap of the logits, 0 for none; families without one ignore the config entry."""
    config = model.network.config
    capped = config.model_type in fused_config.LATER_GEMMAS
    return float(config.final_logit_softcapping or 0.0) if capped else 0.0
