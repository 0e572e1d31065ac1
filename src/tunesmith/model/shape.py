"""A model's shape, read from its configuration before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.model.weights import read_config


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in elements; `linears` are the (in, out) of one decoder layer's linear layers."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    queries: int  # width of all query heads together
    keys: int  # width of all key heads together
    head: int  # width of one head
    vocabulary: int
    tied: bool
    context: int
    linears: tuple[tuple[int, int], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The last parts of the linear layers' names, in the order of `linears`."""
        if self.family == "gpt2":
            return "c_attn", "c_proj", "c_fc", "c_proj"
        if self.family == "phi3":
            return "qkv_proj", "o_proj", "gate_up_proj", "down_proj"
        return "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"

    @property
    def linear(self) -> int:
        """Elements of the linear layers of all decoder layers."""
        return self.layers * sum(inner * out for inner, out in self.linears)

    @property
    def rest(self) -> int:
        """Elements of embeddings, head and norms."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    def adapter(self, rank: int) -> int:
        """Elements of a LoRA adapter of `rank` on all linear layers."""
        return rank * self.layers * sum(inner + out for inner, out in self.linears)


def read_shape(folder: Path, name: str) -> ModelShape:
    """The shape that `folder`'s config.json tells.

    Raises ModelError for a configuration that is no decoder's.
    """
    config = read_config(folder, name)
    config = {**config, **config.get("text_config", {})}

    def take(*keys: str) -> int:
        for key in keys:
            if isinstance(config.get(key), int):
                return int(config[key])
        raise ModelError(f"config.json has no '{keys[0]}'", where=name, next="Choose a causal language model")

    hidden, heads = take("hidden_size", "n_embd"), take("num_attention_heads", "n_head")
    head = config.get("head_dim") or hidden // heads
    family = str(config.get("model_type", ""))
    intermediate = int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden)
    queries, keys = heads * head, int(config.get("num_key_value_heads") or heads) * head
    return ModelShape(
        family=family,
        layers=take("num_hidden_layers", "n_layer"),
        hidden=hidden,
        intermediate=intermediate,
        queries=queries,
        keys=keys,
        head=int(head),
        vocabulary=take("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", family in ("gpt2", "gemma", "gemma2", "gemma3_text"))),
        context=take("max_position_embeddings", "n_positions", "n_ctx"),
        linears=_linears(family, hidden, intermediate, queries, keys),
    )


def _linears(family: str, hidden: int, inner: int, queries: int, keys: int) -> tuple[tuple[int, int], ...]:
    """Query, key, value, output, then the gated product's three; fused as the family fuses them."""
    if family == "gpt2":
        return (hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)
    if family == "phi3":
        return (hidden, queries + 2 * keys), (queries, hidden), (hidden, 2 * inner), (inner, hidden)
    attention = (hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)
    return *attention, (hidden, inner), (hidden, inner), (inner, hidden)
