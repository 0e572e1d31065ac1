"""The sizes of a model, known before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.models.experts import ExpertShape


PARAMETER_GROUPS = ("embeddings", "head", "linear", "experts", "other")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in elements; `linears` are (in, out) of the linear layers of its largest block.

    `blocks` has those of every block. `counts` are the parameters by group: embeddings, head (0 if tied), linear,
    experts, other. A shape without `blocks` and `counts` means equal blocks without experts.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int  # of the MLP; with experts, of all experts of one token together
    queries: int  # total width of query heads
    keys: int  # total width of key heads
    head: int  # width of one head
    vocabulary: int
    tied: bool
    context: int
    linears: tuple[tuple[int, int], ...]
    counts: Mapping[str, int] = field(default_factory=dict, compare=False, hash=False)
    blocks: tuple[tuple[tuple[str, int, int], ...], ...] = field(default=(), compare=False, hash=False)
    outside: tuple[tuple[str, int, int], ...] = field(default=(), compare=False, hash=False)  # not in any block
    stacked: tuple[tuple[str, ExpertShape], ...] = field(default=(), compare=False, hash=False)  # expert parameters
    used: int = field(default=0, compare=False)  # experts per token
    recurrent: frozenset[int] = field(default=frozenset(), compare=False)  # blocks with a state-space or linear mixer
    eager: bool = field(default=False, compare=False)  # whether attention saves its scores

    @property
    def names(self) -> tuple[str, ...]:
        """The last names of the linear layers, in the order of `linears`."""
        if self.blocks:
            return tuple(name for name, _, _ in largest_block(self.blocks))
        if self.family == "gpt2":
            return "c_attn", "c_proj", "c_fc", "c_proj"
        if self.family == "phi3":
            return "qkv_proj", "o_proj", "gate_up_proj", "down_proj"
        return "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"

    @property
    def linear(self) -> int:
        """The number of elements in the linear layers of all blocks."""
        return self.counts["linear"] if self.counts else self.layers * sum(inner * out for inner, out in self.linears)

    @property
    def experts(self) -> int:
        """The number of elements in the experts of all blocks."""
        return self.counts.get("experts", 0)

    @property
    def rest(self) -> int:
        """The number of elements in embeddings, head and norms."""
        if self.counts:
            return self.counts["embeddings"] + self.counts["head"] + self.counts["other"]
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """The number of all elements."""
        return self.linear + self.experts + self.rest

    def base_bytes(self, bits: int, bytes_per_element: int) -> dict[str, int]:
        """Returns bytes of the loaded base by group; `bytes_per_element` applies to what is not in 4 bits."""
        counts = self.counts or {"linear": self.linear, "other": self.rest}
        packed = {name: int(count * bytes_per_element) for name, count in counts.items()}
        if bits == 4:
            packed["linear"] = sum(nf4_bytes(inner * out) for _, inner, out in self.every())
            packed["experts"] = sum(
                expert_shape.experts * nf4_bytes(expert_shape.inputs * expert_shape.outputs)
                for _, expert_shape in self.stacked
            )
        return packed

    def every(self) -> tuple[tuple[str, int, int], ...]:
        """Returns (last name, in, out) of every linear layer that may be adapted."""
        if self.blocks:
            return (*(layer for block in self.blocks for layer in block), *self.outside)
        return tuple((name, *size) for name, size in zip(self.names, self.linears, strict=True)) * self.layers

    def adapter(self, rank: int, layers: str | Sequence[str] = "all", experts: str = "all") -> int:
        """Returns the number of elements of a LoRA adapter on the layers and experts with a last name in `layers`."""
        linear = sum(inner + out for name, inner, out in self.every() if layers == "all" or name in layers)
        if experts == "none":
            return rank * linear
        stacked = [expert_shape for name, expert_shape in self.stacked if layers == "all" or name in layers]
        return rank * linear + sum(expert_shape.adapter_parameters(rank) for expert_shape in stacked)


def nf4_bytes(count: int) -> int:
    """Returns bytes of `count` weights in NF4: codes, 8-bit scales of 64 weights, 32-bit scales of 256 scales."""
    scales = -(-count // 64)
    return -(-count // 2) + scales + 4 * (-(-scales // 256))


def largest_block(blocks: Sequence[Sequence[tuple[str, int, int]]]) -> Sequence[tuple[str, int, int]]:
    """Returns the linear layers of the block with the most weights."""
    return max(blocks, key=lambda block: sum(inner * out for _, inner, out in block), default=())
