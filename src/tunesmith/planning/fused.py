"""Plans the fused decoder in a memory budget: base forms, saved activations, micro-batch, and estimated time.

Bytes are counted as the fused step allocates them (kernels/block_cuda.py). Seconds are FLOPs over the measured rate,
bytes over the measured bandwidth, and launches. docs/performance.md compares both with measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tunesmith.errors import ResourceError
from tunesmith.hardware import Machine, Speed
from tunesmith.kernels.attention import SHORT, STRIPE
from tunesmith.kernels.block import Keep
from tunesmith.kernels.lora_linear import BaseForm
from tunesmith.models.fused_config import LATER_GEMMAS, LayerAttention
from tunesmith.models.shape import ModelShape
from tunesmith.planning.autograd import MEMORY_SHARE, NF4_BYTES, OPTIMIZER_BYTES, Plan, parse_bytes
from tunesmith.prompt.pack import best_fit_batches
from tunesmith.wording import show_bytes

CHUNK = 1024  # tokens with loss whose logits are in memory at a time
LAUNCH_SECONDS = 2.5e-6  # per kernel, launched from a CUDA graph on an H200
KERNELS_PER_BLOCK = {"stored": 50, "dense": 50, "fp8": 80}  # forward and backward
MEMORY_PASSES = 13  # over a block's saved activations, without its products; fitted to profiles on an H200 (dev/LOG.md)
ATTENTION_EFFICIENCY = 0.17  # share of the FLOP rate that flash attention reaches at 512 tokens
HOST_COPY_COST = 2.0  # slowdown by a copy to the host and back, in copies on the GPU
PCIE_BYTES_PER_SECOND = 2e10  # reads of host memory by a GPU, at least (PCIe 4, 16 lanes)
FRAGMENTATION = 0.03  # of a budget, reserved by torch beyond its allocations; 2 to 6 % on an H200
DEQUANTIZE_EFFICIENCY = 0.68  # share of the bandwidth
QK_NORM_FAMILIES = ("gemma3_text", "gemma4_text", "qwen3")  # norms of queries and keys


@dataclass(frozen=True)
class StepWork:
    """A training's work: row lengths of sampled steps, the longest row, steps, and the share of tokens with loss."""

    sample: tuple[tuple[int, ...], ...]
    longest: int
    steps: int
    loss_share: float = 1.0

    @property
    def mean_step(self) -> float:
        """Returns the mean tokens of a step."""
        return sum(map(sum, self.sample)) / len(self.sample)

    def micro_batches(self, capacity: int) -> tuple[int, float]:
        """Returns the largest micro-batch of rows packed into `capacity` tokens, and the mean number per step."""
        bins_of_steps = [
            [
                sum(lengths[row] for row in bin_rows)
                for bin_rows in best_fit_batches(range(len(lengths)), lengths, capacity)
            ]
            for lengths in self.sample
        ]
        return max(self.longest, max(map(max, bins_of_steps))), sum(map(len, bins_of_steps)) / len(bins_of_steps)


@dataclass(frozen=True)
class PlanSettings:
    """The settings that bytes and seconds depend on. `layers` is as in the recipe's adapter section."""

    bits: int
    rank: int
    layers: str | tuple[str, ...]
    optimizer: str
    fast: bool = False
    recompute: str = "auto"


def plan_fused(
    shape: ModelShape, machine: Machine, speed: Speed, work: StepWork, settings: PlanSettings, memory: str,
    layers: Sequence[LayerAttention] = (),
) -> Plan:  # fmt: skip
    """Returns the fastest layout that fits. Raises ResourceError if none does.

    `layers` is the attention of each layer; without it all layers use full causal attention.
    """
    budget = parse_bytes(memory) if memory != "auto" else int(machine.memory_free * MEMORY_SHARE)
    capacity = int(budget * (1 - FRAGMENTATION)) if memory != "auto" and machine.device == "cuda" else budget
    estimate = _CostModel(shape, machine, speed, work, settings, layers)
    sizes = _micro_batch_sizes(work)
    layouts = [candidate for size in sizes if (candidate := estimate.best(*size, capacity)) is not None]
    if not layouts:
        needed = estimate.smallest_peak(*min(sizes))
        raise ResourceError(
            f"training needs about {show_bytes(needed)} but the memory budget is {show_bytes(budget)}",
            where=f"train.memory {memory}",
            next="Choose a smaller base.model, set base.bits to 4, or lower adapter.rank or prompt.max_tokens",
        )
    best = min(layouts, key=lambda layout: estimate.step_seconds(layout))
    return _plan(estimate, best, budget)


@dataclass(frozen=True)
class _Layout:
    """Micro-batch, and numbers of blocks that save everything, that recompute their gate, and in a converted form."""

    tokens: int  # of the largest
    micro_batches: float  # in a step
    whole: int
    no_gate: int
    converted: int
    inputs: int = 0  # recomputed blocks whose input stays on the GPU; those of the others are offloaded
    table: bool = True  # embeddings are on the device; otherwise offloaded to the host


class _CostModel:
    """Estimates bytes and seconds of a layout."""

    def __init__(
        self, shape: ModelShape, machine: Machine, speed: Speed, work: StepWork, settings: PlanSettings,
        layers: Sequence[LayerAttention],
    ) -> None:  # fmt: skip
        self.shape, self.machine, self.speed, self.work, self.settings = shape, machine, speed, work, settings
        self.element_bytes = 4 if machine.precision == "float32" else 2
        self.layers = list(layers) or [LayerAttention(shape.queries, shape.keys, shape.head, 0)] * shape.layers
        self.queries = sum(layer.queries for layer in self.layers) // shape.layers  # mean over layers
        self.keys = sum(layer.keys for layer in self.layers) // shape.layers
        self.columns, self.scores = self._columns(), self._scores()
        # only the kernels of block_cuda can offload inputs and embeddings to the host
        self.has_cuda_kernels = (
            machine.device == "cuda"
            and self.element_bytes == 2
            and shape.family not in ("gemma2", "gemma4_text")
            and all(layer.head % 8 == 0 and layer.head <= 256 for layer in self.layers)
        )
        trained = [settings.layers == "all" or name in settings.layers for name in shape.names]
        self.ranks = [settings.rank if is_trained else 0 for is_trained in trained]
        self.adapter = shape.layers * sum(
            rank * (inner + out) for rank, (inner, out) in zip(self.ranks, shape.linears, strict=True)
        )
        self.other_form: BaseForm = "fp8" if settings.fast else "dense"

    # --- bytes -----------------------------------------------------------------------------------------------

    def block_linear(self) -> int:
        """Returns the elements of one block's linear layers."""
        return self.shape.linear // self.shape.layers

    def form_bytes(self, form: BaseForm) -> float:
        """Returns a block's additional bytes in a form."""
        if form == "stored":
            return 0.0
        if form == "fp8":
            return 2.0 * self.block_linear()  # codes for forward and backward; NF4 codes stay for exact scoring
        if self.settings.bits == 16:
            return 0.0
        return self.block_linear() * (self.element_bytes - 0.5)  # replaces the codes, keeps their scales

    def table_bytes(self) -> int:
        """Returns the bytes of embeddings that can be offloaded: on a GPU, neither tied nor scaled."""
        scaled = self.shape.family.startswith("gemma")
        can_offload = self.has_cuda_kernels and not self.shape.tied and not scaled
        return self.shape.vocabulary * self.shape.hidden * self.element_bytes if can_offload else 0

    def rope_bytes(self) -> int:
        """Returns the bytes of cos and sin of each kind of RoPE; LongRoPE has two for long rows."""
        longest = self.work.longest
        kinds = {layer.rope: layer for layer in self.layers}.values()
        rows = sum(layer.head * (2 if 0 < layer.switch < longest else 1) for layer in kinds)
        return 2 * rows * longest * self.element_bytes

    def fixed_bytes(self, layout: _Layout) -> dict[str, int]:
        """Returns the bytes that are always allocated, by part."""
        stored = NF4_BYTES if self.settings.bits == 4 else self.element_bytes
        state = (
            4 + 4 + self.element_bytes + OPTIMIZER_BYTES.get(self.settings.optimizer, 8.0)
        )  # master, gradient, copy, moments
        base = self.shape.linear * stored + self.shape.rest * self.element_bytes
        base -= 0 if layout.table else self.table_bytes()
        parts = {
            "base": int(base),
            "adapter": int(self.adapter * state) + self._diagonals(layout),
            # cuBLAS workspaces; on a CPU Python, libraries and malloc's reserve
            "runtime": ((192 if self.machine.device == "cuda" else 1600) << 20) + self.rope_bytes(),
        }
        for form in ("fp8", "dense"):
            if copies := int(self.forms(layout).count(form) * self.form_bytes(form)):
                parts[f"{form} copy"] = copies
        return parts

    def _diagonals(self, layout: _Layout) -> int:
        """Returns the bytes of the block-diagonal B; layers with codes build it while dequantizing."""
        s, r = self.shape, self.settings.rank
        wide = (self.queries + 2 * self.keys) * 3 * r + 2 * s.intermediate * 2 * r
        layers = layout.converted if self.settings.bits == 4 else s.layers
        return layers * wide * self.element_bytes if self.adapter and self.has_cuda_kernels else 0

    def saved_bytes(self, keep: Keep) -> int:
        """Returns the bytes that one block saves per token."""
        s, n = self.shape, self.element_bytes
        if keep in ("input", "host"):
            return s.hidden * n if keep == "input" else 0
        heads = s.queries // max(1, s.head)
        small = sum(self.ranks) * n + 4 * heads
        hidden = (4 if s.family in LATER_GEMMAS else 2) * s.hidden  # with the inputs of the norms after both parts
        size = (hidden + 2 * self.queries + 2 * self.keys) * n + small
        if not self.has_cuda_kernels:  # attention weights are saved (kernels/attention.py)
            size += heads * self.columns * n
        return size + (2 * s.intermediate * n if keep == "all" else 0)

    def _columns(self) -> int:
        """Returns the mean number of keys per query whose attention weights are saved (kernels/attention.py)."""
        longest = self.work.longest
        columns = [
            min(longest, layer.window + STRIPE) if 0 < layer.window <= SHORT else min(longest, SHORT)
            for layer in self.layers
        ]
        return sum(columns) // len(columns)

    def working_bytes(self, keep: Keep, form: BaseForm, tokens: int) -> int:
        """Returns the peak bytes of one block's backward besides saved activations."""
        s, n = self.shape, self.element_bytes
        rank = self.settings.rank
        gate = (s.hidden + 2 * s.intermediate + rank) * n  # the gate's gradient overwrites the gate
        up = (3 * s.hidden + 2 * rank) * n
        queries, keys = max(layer.queries for layer in self.layers), max(layer.keys for layer in self.layers)
        normed = queries + 2 * keys if s.family in QK_NORM_FAMILIES else 0  # normalized and rotated again
        attention = (s.hidden + queries + 2 * (queries + 2 * keys) + normed) * n + 4 * queries - 2 * s.intermediate * n
        eight = 2 * s.intermediate if form == "fp8" else 0
        weight = 2 * s.intermediate * (s.hidden + 2 * rank) * n if form == "stored" and self.settings.bits == 4 else 0
        recomputed: dict[Keep, int] = {
            "all": 0,
            "attention": 2 * s.intermediate * n,
            "input": self.saved_bytes("all") - s.hidden * n,
        }
        recomputed["host"] = self.saved_bytes("all") + s.hidden * n  # two inputs are copied at a time
        copies = 1 if self.has_cuda_kernels else 3  # the plain functions hold a few of these in float32
        largest = max(
            copies * tokens * (gate + eight), copies * tokens * (up + eight) + weight, copies * tokens * attention
        )
        return tokens * recomputed[keep] + largest

    def head_bytes(self, tokens: int) -> int:
        """Returns the bytes of the head: hidden states, their gradients, the logits of a chunk."""
        s, n = self.shape, self.element_bytes
        loss_tokens = int(tokens * self.work.loss_share) + 1
        chunk = min(CHUNK, loss_tokens)
        logits = chunk * s.vocabulary * (n if self.has_cuda_kernels else 8)
        return (2 * tokens + 3 * loss_tokens) * s.hidden * n + logits

    def saved_per_block(self, layout: _Layout) -> list[Keep]:
        """Returns what each block saves; later blocks save more, because their backward comes first."""
        recomputed = self.shape.layers - layout.whole - layout.no_gate
        on_device = min(layout.inputs, recomputed) if self.has_cuda_kernels else recomputed
        counts: list[tuple[Keep, int]] = [("host", recomputed - on_device), ("input", on_device)]
        counts += [("attention", layout.no_gate), ("all", layout.whole)]
        return [keep for keep, count in counts for _ in range(count)]

    def forms(self, layout: _Layout) -> list[BaseForm]:
        """Returns the form of each block's base. The first and last block are never FP8 (dev/LOG.md says why)."""
        block_forms: list[BaseForm] = ["stored"] * self.shape.layers
        inner = list(range(1, self.shape.layers - 1))
        order = [*inner, 0, self.shape.layers - 1] if self.other_form == "fp8" else range(self.shape.layers)
        for index in list(order)[: layout.converted]:
            block_forms[index] = self.other_form if self.other_form == "dense" or index in inner else "dense"
        return block_forms

    def activation_bytes(self, layout: _Layout) -> int:
        """Returns the peak bytes of forward and backward."""
        keeps, forms = self.saved_per_block(layout), self.forms(layout)
        saved, peak = 0, 0
        for keep, form in zip(keeps, forms, strict=True):
            saved += self.saved_bytes(keep) * layout.tokens
            peak = max(peak, saved + self.working_bytes(keep, form, layout.tokens))
        return max(peak, saved + self.head_bytes(layout.tokens))

    def peak(self, layout: _Layout) -> int:
        """Returns the peak bytes of a layout."""
        return sum(self.parts(layout).values())

    def parts(self, layout: _Layout) -> dict[str, int]:
        """Returns the peak bytes by part."""
        return {**self.fixed_bytes(layout), "activations": self.activation_bytes(layout)}

    def smallest_peak(self, tokens: int, count: float) -> int:
        """Returns the smallest possible peak."""
        return self.peak(_Layout(tokens, count, *self._smallest_layout()))

    def _smallest_layout(self) -> tuple[int, int, int, int, bool]:
        whole = self.shape.layers if self.settings.recompute == "no" else 0
        dense = self.shape.layers if self.settings.bits == 16 and not self.settings.fast else 0
        return whole, 0, dense, whole, not self.table_bytes()

    def best(self, tokens: int, count: float, budget: int) -> _Layout | None:
        """Returns the fastest layout for micro-batches of `tokens`, chosen greedily, or None if none fits."""
        layout = _Layout(tokens, count, *self._smallest_layout())
        if self.peak(layout) > budget:
            return None
        layers = self.shape.layers
        for spend in self._ways_to_spend(tokens):
            low, high = 0, layers  # binary search for the most blocks that fit
            while low < high:
                middle = (low + high + 1) // 2
                if self.peak(spend(layout, middle)) <= budget:
                    low = middle
                else:
                    high = middle - 1
            layout = spend(layout, low)
        return layout

    def _ways_to_spend(self, tokens: int) -> list[Callable[[_Layout, int], _Layout]]:
        """Returns the ways to spend memory, sorted by seconds saved per byte."""
        layers = self.shape.layers
        options: list[tuple[float, float, Callable[[_Layout, int, int], _Layout]]] = []
        if self.settings.recompute == "auto":
            if self.has_cuda_kernels:
                copied = 2 * self.saved_bytes("input") * tokens
                options.append((HOST_COPY_COST * copied / self.speed.bandwidth, copied / 2, _keep_inputs))
            attention_bytes = (
                self.saved_bytes("attention") - self.saved_bytes("host" if self.has_cuda_kernels else "input")
            ) * tokens
            options.append(
                (
                    self.recompute_seconds("input", tokens) - self.recompute_seconds("attention", tokens),
                    attention_bytes,
                    _keep_attention,
                )
            )
            gate = (self.saved_bytes("all") - self.saved_bytes("attention")) * tokens
            options.append((self.recompute_seconds("attention", tokens), gate, _keep_all))
        if self.table_bytes():
            options.append((self.table_seconds(tokens), self.table_bytes(), _table_on_device))
        if self.settings.bits == 4 or self.settings.fast:
            gain = self.product_seconds("stored", tokens) - self.product_seconds(self.other_form, tokens)
            options.append((gain, self.form_bytes(self.other_form), _use_other_form))
        options.sort(key=lambda option: -option[0] / max(1.0, option[1]))
        return [partial(_apply, spend, layers) for _, _, spend in options]

    # --- seconds ---------------------------------------------------------------------------------------------

    def product_seconds(self, form: BaseForm, tokens: int) -> float:
        """Returns the seconds of one block's frozen products, forward and backward, with dequantization."""
        flops = 4.0 * self.block_linear() * tokens
        if form == "fp8":
            return flops / self.speed.eight
        unpacked = (
            self.block_linear() * (NF4_BYTES + self.element_bytes) / (self.speed.bandwidth * DEQUANTIZE_EFFICIENCY)
        )
        return flops / self.speed.products + (2 * unpacked if form == "stored" and self.settings.bits == 4 else 0.0)

    def recompute_seconds(self, keep: Keep, tokens: int) -> float:
        """Returns the seconds of recomputation in one block's backward."""
        if keep == "all":
            return 0.0
        s = self.shape
        gate = s.hidden * 2 * s.intermediate
        linear = gate if keep == "attention" else self.block_linear() - s.hidden * s.intermediate
        rate = self.speed.eight if self.settings.fast else self.speed.products
        moved = (
            MEMORY_PASSES / 4 * self.saved_bytes("all") * (gate / self.block_linear() if keep == "attention" else 1.0)
        )
        attention = 0.0 if keep == "attention" else self.attention_seconds(tokens) / 4.5
        unpacked = (
            0.0
            if self.settings.fast
            else linear * (NF4_BYTES + self.element_bytes) / (self.speed.bandwidth * DEQUANTIZE_EFFICIENCY)
        )
        return 2.0 * linear * tokens / rate + tokens * moved / self.speed.bandwidth + attention + unpacked

    def table_seconds(self, tokens: int) -> float:
        """Returns the seconds to read the embeddings of `tokens` from the host."""
        return tokens * self.shape.hidden * self.element_bytes / PCIE_BYTES_PER_SECOND

    def attention_seconds(self, tokens: int) -> float:
        """Returns a mean block's seconds for attention: 2 causal products forward, 5 backward."""
        return tokens * 7.0 * self.scores / (self.speed.products * ATTENTION_EFFICIENCY)

    def _scores(self) -> float:
        """Returns the keys that a query sees, times 2 and the queries' width, as the mean over layers.

        In a row of length L a query sees L / 2 keys on average, with a window w it sees w - w^2 / 2L.
        """
        longest, scores = self.work.longest, 0.0
        for layer in self.layers:
            window = min(layer.window or longest, longest)
            scores += window * (2 - window / longest) * layer.queries
        return scores / len(self.layers)

    def micro_seconds(self, layout: _Layout, tokens: float) -> float:
        """Returns the seconds of one micro-batch."""
        whole = int(tokens)
        blocks = 0.0
        for keep, form in zip(self.saved_per_block(layout), self.forms(layout), strict=True):
            blocks += (
                self.product_seconds(form, whole) + self.recompute_seconds(keep, whole) + self.attention_seconds(whole)
            )
            blocks += (
                whole * MEMORY_PASSES * self.saved_bytes("all") / self.speed.bandwidth
                + KERNELS_PER_BLOCK[form] * self.speed.launch
            )
        head = 4.0 * self.shape.vocabulary * self.shape.hidden * whole * self.work.loss_share / self.speed.products
        return blocks + head + (0.0 if layout.table else self.table_seconds(whole))

    def step_seconds(self, layout: _Layout) -> float:
        """Returns the seconds of one optimizer step."""
        count = layout.micro_batches
        update = self.adapter * 44 / self.speed.bandwidth  # gradients cleared, clipped, read; moments and copies
        return count * self.micro_seconds(layout, self.work.mean_step / count) + update


def _apply(spend: Callable[[_Layout, int, int], _Layout], layers: int, layout: _Layout, count: int) -> _Layout:
    return spend(layout, count, layers)


def _table_on_device(layout: _Layout, count: int, layers: int) -> _Layout:
    return replace(layout, table=count == layers)


def _keep_inputs(layout: _Layout, count: int, layers: int) -> _Layout:
    return replace(layout, inputs=count)


def _keep_attention(layout: _Layout, count: int, layers: int) -> _Layout:
    return replace(layout, no_gate=min(count, layers - layout.whole))


def _keep_all(layout: _Layout, count: int, layers: int) -> _Layout:
    return replace(layout, whole=count, no_gate=min(layout.no_gate, layers - count))


def _use_other_form(layout: _Layout, count: int, layers: int) -> _Layout:
    return replace(layout, converted=count)


def _micro_batch_sizes(work: StepWork) -> Sequence[tuple[int, float]]:
    """Returns candidate micro-batches (largest tokens, number per step) for the largest step in 1 to 32 parts."""
    largest = max(map(sum, work.sample))
    capacities = {max(work.longest, -(-largest // parts)) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)}
    return sorted({work.micro_batches(capacity) for capacity in capacities})


def _plan(estimate: _CostModel, layout: _Layout, budget: int) -> Plan:
    seconds = estimate.step_seconds(layout)
    return Plan(
        budget=budget,
        parts=estimate.parts(layout),
        micro_tokens=layout.tokens,
        recompute=layout.whole < estimate.shape.layers,
        dense=False,
        why=_why(estimate, layout),
        forms=tuple(estimate.forms(layout)),
        keeps=tuple(estimate.saved_per_block(layout)),
        chunk=CHUNK,
        table=layout.table,
        step_seconds=seconds,
        total_seconds=seconds * estimate.work.steps,
        better=_faster_with_more(estimate, layout, budget),
    )


def _why(estimate: _CostModel, layout: _Layout) -> str:
    layers = estimate.shape.layers
    recomputed = layers - layout.whole - layout.no_gate
    reasons = []
    if layout.converted:
        eight, dense = (estimate.forms(layout).count(form) for form in ("fp8", "dense"))
        reasons += [f"{_of_blocks(eight, layers)} 8-bit products"] if eight else []
        reasons += [f"{_of_blocks(dense, layers)} dequantized once"] if dense else []
    elif estimate.settings.bits == 4:
        reasons.append("the base is dequantized at each use")
    if layout.no_gate:
        reasons.append(f"{layout.no_gate} of {layers} blocks recompute their gate")
    if recomputed:
        reasons.append(f"{recomputed} of {layers} blocks are recomputed in the backward")
    if offloaded := estimate.saved_per_block(layout).count("host"):
        reasons.append(f"{offloaded} inputs are offloaded to host memory")
    if not layout.table:
        reasons.append("the embeddings are offloaded to host memory")
    return "; ".join(reasons) or "all activations are saved"


def _of_blocks(count: int, layers: int) -> str:
    return "all blocks" if count == layers else f"{count} of {layers} blocks"


def _faster_with_more(estimate: _CostModel, layout: _Layout, budget: int) -> str:
    """Returns a sentence on the next faster layout and its memory, or '' if there is none."""
    peak, seconds, sizes = estimate.peak(layout), estimate.step_seconds(layout), _micro_batch_sizes(estimate.work)
    for factor in (1.25, 1.5, 2.0, 3.0, 5.0, 10.0):
        options = [candidate for size in sizes if (candidate := estimate.best(*size, int(budget * factor))) is not None]
        best = min(options, key=estimate.step_seconds)
        if estimate.step_seconds(best) < 0.95 * seconds and estimate.peak(best) > peak:
            gain = seconds / estimate.step_seconds(best)
            return f"with {show_bytes(estimate.peak(best))} a step would be {gain:.2f} times as fast"
    return ""
