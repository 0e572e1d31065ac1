"""A loaded model's decoder as hand-written functions: which layers are joined, in which form their weights stand.

The fused decoder owns no weight of its own that the model could use as well: joined dense weights replace those of the
layers (which become views of them), and the adapter's parameters become views of two flat arrays, one for A and one for
B, so that a step is one product for the norm and one for the optimizer.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.kernels import attention, block, cross_entropy, fp8, nf4, norm
from tunesmith.kernels.attention import Bounds
from tunesmith.kernels.block import Block, Keep
from tunesmith.kernels.lora_linear import BaseForm, Joined, Target
from tunesmith.kernels.rope import Table
from tunesmith.models import fused_config
from tunesmith.models.build import Model
from tunesmith.models.offload import Shelf, shelve_table
from tunesmith.models.qlora import FrozenLinear, LoraLinear
from tunesmith.prompt.pack import Packed

GROUPS = (  # of each joined product the names of its layers: apart, or as the family already joins them
    (("q_proj", "k_proj", "v_proj"), ("qkv_proj",)),
    (("o_proj",),),
    (("gate_proj", "up_proj"), ("gate_up_proj",)),
    (("down_proj",),),
)
Forms = BaseForm | tuple[BaseForm, BaseForm, BaseForm, BaseForm]  # of a block, or of each of its joined products


def reasons(model: Model) -> list[str]:
    """Why this loaded model with its adapter cannot be fused, for people; empty when it can."""
    found = fused_config.config_reasons(model.network.config) + model.fast_path()
    if any(layer.start_A is not None for layer in model.lora.values()):
        found.append("the adapter's start was taken from the base")
    return found


@dataclass(frozen=True)
class Flat:
    """Packed examples on the device: ids, places in their example, and which tokens' successors are learnt.

    `ids`, `places`: tokens; `chosen`, `targets`: learnt tokens (a target of -100 is padding).
    """

    ids: Tensor
    places: Tensor
    bounds: Bounds
    chosen: Tensor
    targets: Tensor


def flat_of(batch: Packed, longest: int, device: torch.device) -> Flat:
    """`batch`, whose examples have at most `longest` tokens, as tensors."""
    starts = torch.from_numpy(batch.starts).to(device, torch.int32)
    ids, places, chosen, targets = (
        torch.from_numpy(each).to(device) for each in (batch.ids, batch.places, batch.chosen, batch.targets)
    )
    return Flat(ids, places, Bounds(starts, longest, tuple(batch.starts.tolist())), chosen, targets)


class _Group:
    """Linear layers with the same input: their joined weight, and where their adapter's parts lie."""

    def __init__(self, layers: list[nn.Module], form: BaseForm, dtype: torch.dtype, *, behind: bool) -> None:
        """`behind` puts the scaled B behind a dense weight's rows, as `block_cuda` wants it."""
        self.bases = [layer.base if isinstance(layer, LoraLinear) else cast(FrozenLinear, layer) for layer in layers]
        self.lora = [layer for layer in layers if isinstance(layer, LoraLinear)]
        heights = [base.out_features for base in self.bases]
        starts = [sum(heights[:index]) for index in range(len(heights))]
        self.rows = [slice(s, s + h) for s, h, layer in zip(starts, heights, layers, strict=True) if layer in self.lora]
        self.height, self.width, self.dtype = sum(heights), self.bases[0].in_features, dtype
        self.ranks = sum(layer.lora_A.shape[0] for layer in self.lora)
        self.a: Tensor | None = None  # ranks x in, a part of one flat array
        self.b: Tensor | None = None  # out x ranks, blocks on the diagonal, for a card's own kernels
        self.pieces: tuple[tuple[Tensor, slice, slice], ...] = ()  # each layer's scaled B with its outputs and ranks
        self.target = Target(None, (), 1.0)
        self.base = self._joined(form, self.ranks if behind else 0)
        self.bias = self._bias()

    def _joined(self, form: BaseForm, room: int) -> Tensor | nf4.Nf4 | fp8.Fp8:
        packed = all(base.state is not None and base.dense is None for base in self.bases)
        packed = packed and nf4.alike([base.state for base in self.bases])
        if packed and form == "stored":
            return nf4.from_states([base.weight.data for base in self.bases], [b.state for b in self.bases], self.dtype)
        if form == "fp8":
            return fp8.from_dense(torch.cat([base.matrix() for base in self.bases]))
        if len(self.bases) == 1 and not room:
            self.bases[0].keep_dense()
            if self.bases[0].state is not None:
                self.bases[0].weight.data = torch.empty(0, dtype=torch.uint8, device=self.bases[0].weight.device)
            return self.bases[0].matrix()
        dense = torch.zeros(self.height, self.width + room, dtype=self.dtype, device=self.bases[0].weight.device)
        start = 0
        for base in self.bases:  # the layers' own weights become views of the joined one: nothing stands twice
            part = dense[start : start + base.out_features, : self.width]
            part.copy_(base.matrix())
            start += base.out_features
            if base.state is None:
                base.weight.data = part
            else:
                base.dense = part
                base.weight.data = torch.empty(0, dtype=torch.uint8, device=dense.device)  # the codes are not needed
        if room:
            self.b = dense[:, self.width :]
        return dense

    def _bias(self) -> Tensor | None:
        if all(base.bias is None for base in self.bases):
            return None
        device = self.bases[0].weight.device
        parts = [torch.zeros(base.out_features) if base.bias is None else base.bias.data for base in self.bases]
        return torch.cat([part.to(device, self.dtype) for part in parts])

    def joined(self) -> Joined:
        return Joined(self.base, self.bias, self.a, self.b, self.pieces)


class Fused:
    """The decoder, its head and its loss. `step` adds to the adapter's gradients, `loss` only measures."""

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
        """`forms` and `keeps` are one for all blocks or one a block; `longest` is the longest example in tokens.

        A block's form may be four, one for each entry of GROUPS.
        `chunk` is the number of learnt tokens whose logits exist at one time. Without `table` the embeddings go to the
        host's memory, where the card reads the rows that it needs.
        """
        self.model, self.chunk = model, chunk
        decoder = _decoder(model)
        self.layers = list(decoder.layers)
        many = len(self.layers)
        self.forms = [forms] * many if isinstance(forms, str) else list(forms)
        self.keeps: list[Keep] = [keeps] * many if isinstance(keeps, str) else list(keeps)
        self.dtype = model.network.get_input_embeddings().weight.dtype
        self.attentions = fused_config.layers(model.network.config)
        self.reach(longest)
        self.kernels: Any = block
        if _has_triton() and all(
            _has_own_kernels(shape, self._tables[shape.table], layer)
            for shape, layer in zip(self.shapes, self.layers, strict=True)
        ):
            from tunesmith.kernels import block_cuda

            self.kernels = block_cuda
        self.own_kernels = self.kernels is not block
        self.eight = any("fp8" in _four(form) for form in self.forms)
        if not table and self.own_kernels:
            shelve_table(model)
        self.groups = [
            _groups(layer, form, self.dtype, self.own_kernels)
            for layer, form in zip(self.layers, self.forms, strict=True)
        ]
        self.shelf: Shelf | None = None
        self._flatten()
        self.blocks = [_block(layer, groups) for layer, groups in zip(self.layers, self.groups, strict=True)]
        self.targets = [tuple(group.target for group in groups) for groups in self.groups]
        self.refresh()

    def reach(self, longest: int) -> None:
        """Makes the tables and rules for examples of at most `longest` tokens."""
        self._tables, self.shapes = self.tables(longest)

    def tables(self, longest: int) -> tuple[list[Table], list[block.Form]]:
        """The RoPE tables for texts of at most `longest` tokens, and what is constant in each block."""
        switches = {own.rope: own.switch for own in self.attentions}
        kinds = list(switches)
        return [self._table(kind, switch, longest) for kind, switch in switches.items()], [
            _form(self.model, layer, own, kinds.index(own.rope), self.dtype, longest)
            for layer, own in zip(self.layers, self.attentions, strict=True)
        ]

    def _table(self, kind: str | None, switch: int, longest: int) -> Table:
        """The table of the layers whose RoPE parameters have the key `kind`, as the family computes it."""
        device, rotary = self.model.device, _decoder(self.model).rotary_emb
        if kind is None:  # no rotation: cos 1, sin 0
            cos = torch.ones(longest, self.attentions[0].head, dtype=self.dtype, device=device)
            return Table(cos, torch.zeros_like(cos))
        by_kind = [kind] if kind else []

        def turns(length: int) -> tuple[Tensor, Tensor]:
            positions = torch.arange(length, device=device)[None]
            cos, sin = rotary(torch.empty(1, 1, 1, dtype=self.dtype, device=device), positions, *by_kind)
            return cos[0].contiguous(), sin[0].contiguous()

        if not 0 < switch < longest:
            return Table(*turns(longest))
        gap = (0, 0, 0, longest - switch)
        pairs = zip(turns(switch), turns(longest), strict=True)
        cos, sin = (torch.cat([nn.functional.pad(short, gap), long]) for short, long in pairs)
        return Table(cos, sin, switch)

    def _turns(self, flat: Flat) -> list[block.Turns]:
        """Of each table the rows of the tokens."""
        starts = flat.bounds.starts
        return [block.Turns(table.cos, table.sin, table.packed_rows(flat.places, starts)) for table in self._tables]

    @contextlib.contextmanager
    def adapter(self, on: bool) -> Iterator[None]:
        """Inside the block, with `on` False, the blocks are those of the base."""
        kept = self.blocks
        if not on:
            self.blocks = [_bare(each) for each in kept]
        try:
            yield
        finally:
            self.blocks = kept

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
        self._blocks_b: list[tuple[Tensor, Tensor]] = []  # (a block on a diagonal, the scaled B it takes)
        at_a = at_b = 0
        for group in groups:
            at_a, at_b = self._place(group, at_a, at_b)

    def _place(self, group: _Group, at_a: int, at_b: int) -> tuple[int, int]:
        """Moves a group's adapter to its places in the flat arrays; returns the next places."""
        first, ranks, gradients = at_a, 0, []
        pieces = []
        at_use = not self.own_kernels or (isinstance(group.base, nf4.Nf4) and len(group.bases) > 1)
        if group.b is None and len(group.bases) > 1 and not at_use:
            group.b = torch.zeros(group.height, group.ranks, device=self.small_b.device, dtype=self.dtype)
        for layer, rows in zip(group.lora, group.rows, strict=True):
            of = slice(ranks, ranks + layer.lora_A.shape[0])
            _move(layer.lora_A, self.flat_a, self.grad_a, at_a)
            _move(layer.lora_B, self.flat_b, self.grad_b, at_b)
            small = self.small_b[at_b : at_b + layer.lora_B.numel()].view(layer.lora_B.shape)
            pieces.append((small, rows, of))
            if group.b is not None:
                self._blocks_b.append((group.b[rows, of], small))
            elif not at_use:  # otherwise taken piece by piece, or joined with the codes when those are dequantised
                group.b = small
            gradients.append((cast(Tensor, layer.lora_B.grad), rows, of))
            at_a, at_b, ranks = at_a + layer.lora_A.numel(), at_b + layer.lora_B.numel(), of.stop
        group.pieces = tuple(pieces)
        group.a = self.small_a[first:at_a].view(group.ranks, group.width)
        group.target = Target(self.grad_a[first:at_a].view(group.ranks, group.width), tuple(gradients), self.scale)
        return at_a, at_b

    def refresh(self) -> None:
        """Copies the adapter into the number type of the products; to be called after each optimizer step."""
        self.small_a.copy_(self.flat_a)
        torch.mul(self.flat_b, self.scale, out=self.small_b)
        if self._blocks_b:
            torch._foreach_copy_([to for to, _ in self._blocks_b], [of for _, of in self._blocks_b])

    def zero_gradients(self) -> None:
        """To be called before the first micro-batch of a step."""
        self.grad_a.zero_()
        self.grad_b.zero_()

    # --- forward, backward --------------------------------------------------------------------------------------

    def step(self, flat: Flat, share: Tensor) -> Tensor:
        """The summed cross-entropy in nats; adds `share` times its gradient to the adapter's gradients."""
        with torch.no_grad():
            turns = self._turns(flat)
            h = self.embed(flat.ids)
            kept: list[Any] = []
            for index, (shape, keep) in enumerate(zip(self.shapes, self.keeps, strict=True)):
                h, each = self.kernels.forward(h, self.blocks[index], turns[shape.table], flat.bounds, shape, keep)
                kept.append(self._put(index, each, keep))
                del each
            total, dh = self._loss_and_gradient(h, flat, share)
            del h
            for index in range(len(self.blocks) - 1, -1, -1):
                self._take(index, kept, dh)
                shape = self.shapes[index]
                dh = self.kernels.backward(
                    dh, kept, self.blocks[index], turns[shape.table], flat.bounds, shape, self.targets[index]
                )
            return total

    def _put(self, index: int, kept: Any, keep: Keep) -> Any:
        """Sends a block's input to the host where the layout says so."""
        if keep != "host" or not self.own_kernels:
            return kept
        if self.shelf is None:
            self.shelf = Shelf()
        self.shelf.put(index, kept.h)
        return None

    def _take(self, index: int, kept: list[Any], like: Tensor) -> None:
        """Waits for a block's input, and starts fetching that of the block before it."""
        if self.shelf is None:
            return
        self.shelf.settle()
        if kept[index] is None:
            kept[index] = self.kernels.Kept(self.shelf.take(index, like))
        if index and kept[index - 1] is None:
            self.shelf.fetch(index - 1, like)

    def loss(self, flat: Flat) -> Tensor:
        """The summed cross-entropy in nats."""
        with torch.no_grad():
            turns = self._turns(flat)
            h = self.embed(flat.ids)
            for made, shape in zip(self.blocks, self.shapes, strict=True):
                h, _ = self.kernels.forward(h, made, turns[shape.table], flat.bounds, shape, "input")
            hidden = self._last_norm(h[flat.chosen])
            parts = zip(torch.split(hidden, self.chunk), torch.split(flat.targets, self.chunk), strict=True)
            return torch.stack([self._chunk(part, wanted, None)[0] for part, wanted in parts]).sum()

    def embed(self, ids: Tensor) -> Tensor:
        """The embeddings of `ids` (any shape x hidden), scaled as the family does."""
        return cast(Tensor, self.model.network.get_input_embeddings()(ids))

    @property
    def last_norm(self) -> tuple[Tensor, float, float]:
        """The last norm's weight, epsilon and offset."""
        return _decoder(self.model).norm.weight, self.shapes[0].eps, self.shapes[0].offset

    def _loss_and_gradient(self, h: Tensor, flat: Flat, share: Tensor) -> tuple[Tensor, Tensor]:
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
            return norm.rms(hidden, weight, eps, offset)
        from tunesmith.kernels import triton_parts

        return triton_parts.norm(hidden, None, weight, eps, offset, 0, eight=False)[1]

    def _last_norm_back(self, dy: Tensor, hidden: Tensor) -> Tensor:
        weight, eps, offset = self.last_norm
        if not self.own_kernels:
            return norm.rms_back(dy, hidden, weight, eps, offset)
        from tunesmith.kernels import triton_parts

        return triton_parts.norm_back(dy, hidden, weight, eps, offset, None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token (rows x vocabulary) of normed hidden states."""
        cap = _final_cap(self.model)
        made = self.model.network.get_output_embeddings()(hidden)
        return torch.tanh(made / cap) * cap if cap else made

    def _chunk(self, hidden: Tensor, targets: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of some tokens, and its gradient where a `share` is given."""
        layer = self.model.network.get_output_embeddings()
        cap = _final_cap(self.model)
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if self.own_kernels:
            from tunesmith.kernels import triton_parts

            logits = nn.functional.linear(hidden, weight, bias)
            total = triton_parts.head(logits, targets, cap, share).sum()
            return total, hidden if share is None else logits @ weight
        if share is None:
            return cross_entropy.loss(hidden, targets, weight, bias, cap), hidden
        return cross_entropy.loss_and_gradient(hidden, targets, weight, bias, cap, share)


def _decoder(model: Model) -> Any:
    return model.decoder_network


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _move(parameter: nn.Parameter, flat: Tensor, gradient: Tensor, at: int) -> None:
    part = slice(at, at + parameter.numel())
    flat[part].copy_(parameter.data.reshape(-1))
    parameter.data = flat[part].view(parameter.shape)
    parameter.grad = gradient[part].view(parameter.shape)


def _four(form: Forms) -> tuple[BaseForm, ...]:
    return (form,) * len(GROUPS) if isinstance(form, str) else form


def _groups(layer: Any, form: Forms, dtype: torch.dtype, own_kernels: bool) -> list[_Group]:
    found = []
    for place, names in enumerate(GROUPS):
        for choice in names:
            owner = layer.self_attn if hasattr(layer.self_attn, choice[0]) else layer.mlp
            if hasattr(owner, choice[0]):
                behind = own_kernels and place != 1  # attention's output comes without room behind its rows
                layers = [each for name in choice if (each := getattr(owner, name)) is not None]
                found.append(_Group(layers, _four(form)[place], dtype, behind=behind))
                break
    if len(found) != len(GROUPS):
        raise AssertionError("a family that is listed as fused has other layers")
    return found


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


def _bare(made: Block) -> Block:
    """The block without its adapter."""
    qkv, out, gate_up, down = (_alone(each) for each in (made.qkv, made.out, made.gate_up, made.down))
    return made._replace(qkv=qkv, out=out, gate_up=gate_up, down=down)


def _alone(made: Joined) -> Joined:
    base = made.base
    if isinstance(base, Tensor) and made.a is not None:
        base = base[:, : made.a.shape[1]]  # the scaled B may stand behind the rows
    return made._replace(base=base, a=None, b=None, pieces=())


def _form(
    model: Model, layer: Any, own: fused_config.LayerAttention, table: int, dtype: torch.dtype, longest: int
) -> block.Form:
    config = model.network.config
    family = str(config.model_type)
    cap = float(config.attn_logit_softcapping or 0.0) if family == "gemma2" else 0.0
    window = own.window if own.window < longest else 0
    packed = not cap and attention.has_flash(model.device, dtype, own.head)
    function = getattr(layer.mlp, "act_fn", None) or layer.mlp.activation_fn
    return block.Form(
        queries=own.queries,
        keys=own.keys,
        head=own.head,
        eps=float(config.rms_norm_eps),
        offset=1.0 if family in ("gemma", "gemma2", "gemma3_text") else 0.0,
        activation=cast(str, fused_config.activation(function)),
        rule=attention.Rule(float(layer.self_attn.scaling), cap, window, "packed" if packed else "rows"),
        table=table,
        shared_values=own.shared_values,
        norm_values=own.norm_values,
    )


def _has_own_kernels(form: block.Form, table: Table, layer: Any) -> bool:
    """Whether `block_cuda` computes this block: flash attention, heads normed and rotated whole, no scalar."""
    whole = not hasattr(layer.self_attn, "q_norm") or table.cos.shape[1] == form.head
    return form.rule.way == "packed" and whole and not form.norm_values and not hasattr(layer, "layer_scalar")


def _final_cap(model: Model) -> float:
    """The cap of the logits, 0 for none; families without one ignore the entry."""
    config = model.network.config
    capped = config.model_type in fused_config.LATER_GEMMAS
    return float(config.final_logit_softcapping or 0.0) if capped else 0.0
