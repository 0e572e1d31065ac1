"""How the fused decoder is laid out in a budget: which base forms, what is kept, which micro-batch; how long it takes.

Bytes are counted as the fused step allocates them (kernels/block_cuda.py); seconds are products over the measured rate,
passes over memory over the measured bandwidth, and launches. docs/performance.md shows both beside what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tunesmith.errors import ResourceError
from tunesmith.hardware import Machine, Speed
from tunesmith.kernels.attention import SHORT
from tunesmith.kernels.attention_rows import STRIPE
from tunesmith.kernels.block import Keep
from tunesmith.kernels.lora_linear import BaseForm
from tunesmith.models.fused_config import LATER_GEMMAS, LayerAttention
from tunesmith.models.shape import ModelShape
from tunesmith.planning.autograd import NF4_BYTES, OPTIMIZER_BYTES, SHARE, Plan, parse_bytes, show_bytes
from tunesmith.prompt.pack import best_fit_batches

CHUNK = 1024  # learnt tokens whose logits exist at one time
LAUNCH = 2.5e-6  # seconds a kernel, launched from a graph on an H200
KERNELS = {"stored": 50, "dense": 50, "fp8": 80}  # of a block, both directions
TRAFFIC = 13  # passes over what a block keeps, beside its products; fitted to profiles on an H200 (dev/LOG.md)
ATTENTION = 0.17  # of the products' rate that torch's flash attention reaches at 512 tokens
HOST = 2.0  # what a copy to the host and back disturbs, in times of a copy on the card
BUS = 2e10  # bytes/s that a card reads of the host's memory, at least (PCIe 4, 16 lanes)
FRAGMENTS = 0.03  # of a budget that torch reserves beyond what it allocates; 2 to 6 % on an H200
DEQUANTISE = 0.68  # of the bandwidth
NORMED = ("gemma3_text", "gemma4_text", "qwen3")  # norms of queries and keys


@dataclass(frozen=True)
class StepWork:
    """What is to be trained: the lengths of the rows of some steps, the longest row of all, steps, share learnt."""

    sample: tuple[tuple[int, ...], ...]
    longest: int
    steps: int
    loss_share: float = 1.0

    @property
    def mean_step(self) -> float:
        """Tokens of a step."""
        return sum(map(sum, self.sample)) / len(self.sample)

    def micro_batches(self, room: int) -> tuple[int, float]:
        """Tokens of the largest micro-batch that rows packed into `room` make, and how many a step has."""
        made = [
            [sum(lengths[row] for row in part) for part in best_fit_batches(range(len(lengths)), lengths, room)]
            for lengths in self.sample
        ]
        return max(self.longest, max(map(max, made))), sum(map(len, made)) / len(made)


@dataclass(frozen=True)
class PlanSettings:
    """The settings that bytes and seconds depend on. `layers` as in the recipe's adapter section."""

    bits: int
    rank: int
    layers: str | tuple[str, ...]
    optimizer: str
    fast: bool = False
    recompute: str = "auto"


def plan_fused(
    shape: ModelShape, machine: Machine, speed: Speed, work: StepWork, wish: PlanSettings, memory: str,
    layers: Sequence[LayerAttention] = (),
) -> Plan:  # fmt: skip
    """The fastest layout that fits. Raises ResourceError when none does.

    `layers` is the attention of each layer; without it all layers see all earlier tokens.
    """
    budget = parse_bytes(memory) if memory != "auto" else int(machine.memory_free * SHARE)
    room = int(budget * (1 - FRAGMENTS)) if memory != "auto" and machine.device == "cuda" else budget
    count = _Count(shape, machine, speed, work, wish, layers)
    sizes = _sizes(work)
    found = [made for size in sizes if (made := count.best(*size, room)) is not None]
    if not found:
        need = count.least(*min(sizes))
        raise ResourceError(
            f"training needs about {show_bytes(need)} and {show_bytes(budget)} may be used",
            where=f"train.memory {memory}",
            next="Choose a smaller base.model, base.bits 4, a smaller adapter.rank or prompt.max_tokens",
        )
    best = min(found, key=lambda layout: count.step_seconds(layout))
    return _plan(count, best, budget)


@dataclass(frozen=True)
class _Layout:
    """Micro-batch and counts of blocks: those kept whole, those whose gate is made again, those in another form."""

    tokens: int  # of the largest
    many: float  # in a step
    whole: int
    gateless: int
    other: int
    inputs: int = 0  # blocks whose input stays on the card; the rest of those made again wait on the host
    table: bool = True  # the embeddings are on the card; otherwise they wait on the host


class _Count:
    """Bytes and seconds of a layout."""

    def __init__(
        self, shape: ModelShape, machine: Machine, speed: Speed, work: StepWork, wish: PlanSettings,
        layers: Sequence[LayerAttention],
    ) -> None:  # fmt: skip
        self.shape, self.machine, self.speed, self.work, self.wish = shape, machine, speed, work, wish
        self.number = 4 if machine.precision == "float32" else 2
        self.layers = list(layers) or [LayerAttention(shape.queries, shape.keys, shape.head, 0)] * shape.layers
        self.queries = sum(layer.queries for layer in self.layers) // shape.layers  # in the mean
        self.keys = sum(layer.keys for layer in self.layers) // shape.layers
        self.columns, self.scores = self._columns(), self._scores()
        # whether the kernels of block_cuda run, which alone keep inputs and embeddings on the host
        self.card = (
            machine.device == "cuda"
            and self.number == 2
            and shape.family not in ("gemma2", "gemma4_text")
            and all(layer.head % 8 == 0 and layer.head <= 256 for layer in self.layers)
        )
        trained = [wish.layers == "all" or name in wish.layers for name in shape.names]
        self.ranks = [wish.rank if each else 0 for each in trained]
        self.adapter = shape.layers * sum(
            rank * (inner + out) for rank, (inner, out) in zip(self.ranks, shape.linears, strict=True)
        )
        self.other: BaseForm = "fp8" if wish.fast else "dense"

    # --- bytes -----------------------------------------------------------------------------------------------

    def block_linear(self) -> int:
        """Elements of one block's linear layers."""
        return self.shape.linear // self.shape.layers

    def form_bytes(self, form: BaseForm) -> float:
        """What a block costs more in a form: beside or instead of its codes."""
        if form == "stored":
            return 0.0
        if form == "fp8":
            return 2.0 * self.block_linear()  # codes for both directions; the NF4 codes stay for exact scoring
        if self.wish.bits == 16:
            return 0.0
        return self.block_linear() * (self.number - 0.5)  # the codes go, their scales stay

    def table_bytes(self) -> int:
        """The embeddings that can wait on the host: those of a card that are neither the head as well nor scaled."""
        scaled = self.shape.family.startswith("gemma")
        waits = self.card and not self.shape.tied and not scaled
        return self.shape.vocabulary * self.shape.hidden * self.number if waits else 0

    def rope_bytes(self) -> int:
        """cos and sin of each kind of RoPE; LongRoPE has them twice where rows are that long."""
        longest = self.work.longest
        kinds = {layer.rope: layer for layer in self.layers}.values()
        rows = sum(layer.head * (2 if 0 < layer.switch < longest else 1) for layer in kinds)
        return 2 * rows * longest * self.number

    def fixed(self, layout: _Layout) -> dict[str, int]:
        """Bytes that are there all the time."""
        stored = NF4_BYTES if self.wish.bits == 4 else self.number
        state = 4 + 4 + self.number + OPTIMIZER_BYTES.get(self.wish.optimizer, 8.0)  # master, gradient, copy, moments
        base = self.shape.linear * stored + self.shape.rest * self.number
        base -= 0 if layout.table else self.table_bytes()
        parts = {
            "base": int(base),
            "adapter": int(self.adapter * state) + self._diagonals(layout),
            # cuBLAS's workspaces; on a processor Python, libraries, what malloc keeps
            "runtime": ((192 if self.machine.device == "cuda" else 1600) << 20) + self.rope_bytes(),
        }
        for form in ("fp8", "dense"):
            if copies := int(self.forms(layout).count(form) * self.form_bytes(form)):
                parts[f"{form} copy"] = copies
        return parts

    def _diagonals(self, layout: _Layout) -> int:
        """The joined B, their blocks on diagonals; where codes are dequantised, they are joined then."""
        s, r = self.shape, self.wish.rank
        wide = (self.queries + 2 * self.keys) * 3 * r + 2 * s.intermediate * 2 * r
        layers = layout.other if self.wish.bits == 4 else s.layers
        return layers * wide * self.number if self.adapter and self.card else 0

    def kept(self, keep: Keep) -> int:
        """Bytes of one token in one block."""
        s, n = self.shape, self.number
        if keep in ("input", "host"):
            return s.hidden * n if keep == "input" else 0
        heads = s.queries // max(1, s.head)
        small = sum(self.ranks) * n + 4 * heads
        hidden = (4 if s.family in LATER_GEMMAS else 2) * s.hidden  # with what the norms after both parts were given
        whole = (hidden + 2 * self.queries + 2 * self.keys) * n + small
        if not self.card:  # the attention's weights are kept (kernels/attention_rows.py)
            whole += heads * self.columns * n
        return whole + (2 * s.intermediate * n if keep == "all" else 0)

    def _columns(self) -> int:
        """The keys of a query whose attention weights are kept (kernels/attention.py), in the mean over all layers."""
        longest = self.work.longest
        kept = [
            min(longest, layer.window + STRIPE) if 0 < layer.window <= SHORT else min(longest, SHORT)
            for layer in self.layers
        ]
        return sum(kept) // len(kept)

    def working(self, keep: Keep, form: BaseForm, tokens: int) -> int:
        """The most that one block's backward has beside what was kept."""
        s, n = self.shape, self.number
        rank = self.wish.rank
        gate = (s.hidden + 2 * s.intermediate + rank) * n  # the gate's gradient is written over the gate
        up = (3 * s.hidden + 2 * rank) * n
        queries, keys = max(layer.queries for layer in self.layers), max(layer.keys for layer in self.layers)
        again = queries + 2 * keys if s.family in NORMED else 0  # normed and rotated a second time
        mix = (s.hidden + queries + 2 * (queries + 2 * keys) + again) * n + 4 * queries - 2 * s.intermediate * n
        eight = 2 * s.intermediate if form == "fp8" else 0
        weight = 2 * s.intermediate * (s.hidden + 2 * rank) * n if form == "stored" and self.wish.bits == 4 else 0
        remade: dict[Keep, int] = {
            "all": 0,
            "attention": 2 * s.intermediate * n,
            "input": self.kept("all") - s.hidden * n,
        }
        remade["host"] = self.kept("all") + s.hidden * n  # two inputs are on the way at a time
        wide = 1 if self.card else 3  # the plain functions hold a few of these in 32 bits
        most = max(wide * tokens * (gate + eight), wide * tokens * (up + eight) + weight, wide * tokens * mix)
        return tokens * remade[keep] + most

    def head(self, tokens: int) -> int:
        """The head's step: hidden states, their gradients, the logits of a chunk."""
        s, n = self.shape, self.number
        learnt = int(tokens * self.work.loss_share) + 1
        chunk = min(CHUNK, learnt)
        logits = chunk * s.vocabulary * (n if self.card else 8)
        return (2 * tokens + 3 * learnt) * s.hidden * n + logits

    def keeps(self, layout: _Layout) -> list[Keep]:
        """What each block keeps; blocks near the end keep more, for their backward comes first."""
        again = self.shape.layers - layout.whole - layout.gateless
        first = min(layout.inputs, again) if self.card else again
        counted: list[tuple[Keep, int]] = [("host", again - first), ("input", first)]
        counted += [("attention", layout.gateless), ("all", layout.whole)]
        return [keep for keep, many in counted for _ in range(many)]

    def forms(self, layout: _Layout) -> list[BaseForm]:
        """The form of each block's base. In 8 bits the first and the last block stay exact (dev/LOG.md says why)."""
        made: list[BaseForm] = ["stored"] * self.shape.layers
        inner = list(range(1, self.shape.layers - 1))
        order = [*inner, 0, self.shape.layers - 1] if self.other == "fp8" else range(self.shape.layers)
        for place in list(order)[: layout.other]:
            made[place] = self.other if self.other == "dense" or place in inner else "dense"
        return made

    def activations(self, layout: _Layout) -> int:
        """The most that forward and backward need at one time."""
        keeps, forms = self.keeps(layout), self.forms(layout)
        sums, most = 0, 0
        for keep, form in zip(keeps, forms, strict=True):
            sums += self.kept(keep) * layout.tokens
            most = max(most, sums + self.working(keep, form, layout.tokens))
        return max(most, sums + self.head(layout.tokens))

    def peak(self, layout: _Layout) -> int:
        """Everything."""
        return sum(self.parts(layout).values())

    def parts(self, layout: _Layout) -> dict[str, int]:
        """Everything, by part."""
        return {**self.fixed(layout), "activations": self.activations(layout)}

    def least(self, tokens: int, many: float) -> int:
        """The smallest peak that can be had."""
        return self.peak(_Layout(tokens, many, *self._floor()))

    def _floor(self) -> tuple[int, int, int, int, bool]:
        whole = self.shape.layers if self.wish.recompute == "no" else 0
        dense = self.shape.layers if self.wish.bits == 16 and not self.wish.fast else 0
        return whole, 0, dense, whole, not self.table_bytes()

    def best(self, tokens: int, many: float, budget: int) -> _Layout | None:
        """The fastest layout of micro-batches of `tokens`, by what each byte saves; None when none fits."""
        layout = _Layout(tokens, many, *self._floor())
        if self.peak(layout) > budget:
            return None
        layers = self.shape.layers
        for step in self._steps(tokens):
            low, high = 0, layers  # the most blocks for which the step still fits
            while low < high:
                middle = (low + high + 1) // 2
                if self.peak(step(layout, middle)) <= budget:
                    low = middle
                else:
                    high = middle - 1
            layout = step(layout, low)
        return layout

    def _steps(self, tokens: int) -> list[Callable[[_Layout, int], _Layout]]:
        """Ways to spend memory, the one that saves most seconds a byte first."""
        layers = self.shape.layers
        made: list[tuple[float, float, Callable[[_Layout, int, int], _Layout]]] = []
        if self.wish.recompute == "auto":
            if self.card:
                moved = 2 * self.kept("input") * tokens
                made.append((HOST * moved / self.speed.bandwidth, moved / 2, _keep_input))
            keeping = (self.kept("attention") - self.kept("host" if self.card else "input")) * tokens
            made.append((self.again("input", tokens) - self.again("attention", tokens), keeping, _keep_attention))
            gate = (self.kept("all") - self.kept("attention")) * tokens
            made.append((self.again("attention", tokens), gate, _keep_all))
        if self.table_bytes():
            made.append((self.table_seconds(tokens), self.table_bytes(), _keep_table))
        if self.wish.bits == 4 or self.wish.fast:
            gain = self.product_seconds("stored", tokens) - self.product_seconds(self.other, tokens)
            made.append((gain, self.form_bytes(self.other), _other_form))
        made.sort(key=lambda each: -each[0] / max(1.0, each[1]))
        return [partial(_with_layers, how, layers) for _, _, how in made]

    # --- seconds ---------------------------------------------------------------------------------------------

    def product_seconds(self, form: BaseForm, tokens: int) -> float:
        """The frozen products of one block, forward and backward, with what dequantising costs."""
        flops = 4.0 * self.block_linear() * tokens
        if form == "fp8":
            return flops / self.speed.eight
        unpacked = self.block_linear() * (NF4_BYTES + self.number) / (self.speed.bandwidth * DEQUANTISE)
        return flops / self.speed.products + (2 * unpacked if form == "stored" and self.wish.bits == 4 else 0.0)

    def again(self, keep: Keep, tokens: int) -> float:
        """What is made again in one block's backward."""
        if keep == "all":
            return 0.0
        s = self.shape
        gate = s.hidden * 2 * s.intermediate
        linear = gate if keep == "attention" else self.block_linear() - s.hidden * s.intermediate
        rate = self.speed.eight if self.wish.fast else self.speed.products
        moved = TRAFFIC / 4 * self.kept("all") * (gate / self.block_linear() if keep == "attention" else 1.0)
        attention = 0.0 if keep == "attention" else self.attention(tokens) / 4.5
        unpacked = 0.0 if self.wish.fast else linear * (NF4_BYTES + self.number) / (self.speed.bandwidth * DEQUANTISE)
        return 2.0 * linear * tokens / rate + tokens * moved / self.speed.bandwidth + attention + unpacked

    def table_seconds(self, tokens: int) -> float:
        """Reading the embeddings of so many tokens from the host."""
        return tokens * self.shape.hidden * self.number / BUS

    def attention(self, tokens: int) -> float:
        """Scores of a mean block, forward (2 products of a causal half) and backward (5 of them)."""
        return tokens * 7.0 * self.scores / (self.speed.products * ATTENTION)

    def _scores(self) -> float:
        """Keys that a query sees, times 2 and the queries' width, in the mean over all layers.

        Of a row L that is L / 2 keys in the mean, with a window w it is w - w^2 / 2L.
        """
        longest, found = self.work.longest, 0.0
        for layer in self.layers:
            window = min(layer.window or longest, longest)
            found += window * (2 - window / longest) * layer.queries
        return found / len(self.layers)

    def micro_seconds(self, layout: _Layout, tokens: float) -> float:
        """One micro-batch of so many tokens."""
        whole = int(tokens)
        blocks = 0.0
        for keep, form in zip(self.keeps(layout), self.forms(layout), strict=True):
            blocks += self.product_seconds(form, whole) + self.again(keep, whole) + self.attention(whole)
            blocks += whole * TRAFFIC * self.kept("all") / self.speed.bandwidth + KERNELS[form] * self.speed.launch
        head = 4.0 * self.shape.vocabulary * self.shape.hidden * whole * self.work.loss_share / self.speed.products
        return blocks + head + (0.0 if layout.table else self.table_seconds(whole))

    def step_seconds(self, layout: _Layout) -> float:
        """One optimizer step."""
        many = layout.many
        update = self.adapter * 44 / self.speed.bandwidth  # gradients cleared, normed, read; moments and copies
        return many * self.micro_seconds(layout, self.work.mean_step / many) + update


def _with_layers(how: Callable[[_Layout, int, int], _Layout], layers: int, layout: _Layout, many: int) -> _Layout:
    return how(layout, many, layers)


def _keep_table(layout: _Layout, many: int, layers: int) -> _Layout:
    return replace(layout, table=many == layers)


def _keep_input(layout: _Layout, many: int, layers: int) -> _Layout:
    return replace(layout, inputs=many)


def _keep_attention(layout: _Layout, many: int, layers: int) -> _Layout:
    return replace(layout, gateless=min(many, layers - layout.whole))


def _keep_all(layout: _Layout, many: int, layers: int) -> _Layout:
    return replace(layout, whole=many, gateless=min(layout.gateless, layers - many))


def _other_form(layout: _Layout, many: int, layers: int) -> _Layout:
    return replace(layout, other=many)


def _sizes(work: StepWork) -> Sequence[tuple[int, float]]:
    """Micro-batches worth a look: tokens of the largest and how many a step has, for the largest step in parts."""
    largest = max(map(sum, work.sample))
    rooms = {max(work.longest, -(-largest // parts)) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)}
    return sorted({work.micro_batches(room) for room in rooms})


def _plan(count: _Count, layout: _Layout, budget: int) -> Plan:
    seconds = count.step_seconds(layout)
    return Plan(
        budget=budget,
        parts=count.parts(layout),
        micro_tokens=layout.tokens,
        recompute=layout.whole < count.shape.layers,
        dense=False,
        why=_why(count, layout),
        forms=tuple(count.forms(layout)),
        keeps=tuple(count.keeps(layout)),
        chunk=CHUNK,
        table=layout.table,
        step_seconds=seconds,
        total_seconds=seconds * count.work.steps,
        better=_better(count, layout, budget),
    )


def _why(count: _Count, layout: _Layout) -> str:
    layers = count.shape.layers
    again = layers - layout.whole - layout.gateless
    said = []
    if layout.other:
        eight, dense = (count.forms(layout).count(form) for form in ("fp8", "dense"))
        said += [f"{_of(eight, layers)} 8-bit products"] if eight else []
        said += [f"{_of(dense, layers)} dequantised once"] if dense else []
    elif count.wish.bits == 4:
        said.append("the base is dequantised at each use")
    if layout.gateless:
        said.append(f"{layout.gateless} of {layers} blocks make their gate again")
    if again:
        said.append(f"{again} of {layers} blocks are made again in the backward")
    if waiting := count.keeps(layout).count("host"):
        said.append(f"{waiting} inputs wait in the host's memory")
    if not layout.table:
        said.append("the embeddings wait in the host's memory")
    return "; ".join(said) or "everything is kept"


def _of(some: int, layers: int) -> str:
    return "all blocks" if some == layers else f"{some} of {layers} blocks"


def _better(count: _Count, layout: _Layout, budget: int) -> str:
    """The next faster layout and what it would need, or nothing when there is none."""
    peak, seconds, sizes = count.peak(layout), count.step_seconds(layout), _sizes(count.work)
    for factor in (1.25, 1.5, 2.0, 3.0, 5.0, 10.0):
        options = [made for size in sizes if (made := count.best(*size, int(budget * factor))) is not None]
        best = min(options, key=count.step_seconds)
        if count.step_seconds(best) < 0.95 * seconds and count.peak(best) > peak:
            gain = seconds / count.step_seconds(best)
            return f"with {show_bytes(count.peak(best))} a step would be {gain:.2f} times as fast"
    return ""
