"""What the planner of the fused decoder chooses: never above the budget, never slower with more of it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ResourceError
from tunesmith.hardware import Machine, Speed
from tunesmith.models.count_parameters import read_shape
from tunesmith.models.fused_config import LayerAttention, fused_layers
from tunesmith.models.shape import ModelShape
from tunesmith.planning.autograd import Plan
from tunesmith.planning.fused import PlanSettings, StepWork, plan_fused

GIB = 1 << 30
CARD = Machine("cuda", "a card", 8, 150 * GIB, 140 * GIB, "bfloat16", "for the test", eight=True)
CPU = Machine("cpu", "a processor", 2, 64 * GIB, 32 * GIB, "bfloat16", "for the test")
H200 = Speed(720e12, 1450e12, 4.2e12, 2.5e-6)  # as measured there
SLOW = Speed(3e11, 3e11, 1e10, 5e-6)
SEVEN_B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    folder = tmp_path_factory.mktemp("seven")
    (Path(folder) / "config.json").write_text(json.dumps(SEVEN_B))
    return read_shape(folder, "a shape")


def planned(
    shape: ModelShape, gib: float | None, *, rows: int = 16, length: int = 512, machine: Machine = CARD, **wish: Any
) -> Plan:
    settings = {"bits": 4, "rank": 16, "layers": "all", "optimizer": "adamw", **wish}
    work = StepWork(((length,) * rows,), length, 100)
    memory = "auto" if gib is None else f"{gib * GIB / 1e6:.0f}MB"
    return plan_fused(shape, machine, H200 if machine is CARD else SLOW, work, PlanSettings(**settings), memory)


# rows x tokens, budget, fast -> tokens/s and GiB as measured on an H200 (benchmarks/results/training.csv)
MEASURED = [
    (16, 5, False, 13_116, 5.18), (16, 6, False, 14_283, 6.19), (16, 8, False, 15_618, 8.00),
    (16, 12, False, 17_574, 12.03), (16, 16, False, 18_492, 16.32), (16, 24, False, 19_465, 24.36),
    (16, None, False, 19_654, 37.10), (1, 5, False, 9_515, 5.03), (1, None, False, 15_663, 15.14),
    (1, None, True, 20_841, 18.02), (16, None, True, 28_730, 39.80),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "gib", "fast", "rate", "peak"), MEASURED)
def test_the_forecast_is_near_what_was_measured(
    shape: ModelShape, rows: int, gib: float | None, fast: bool, rate: int, peak: float
) -> None:
    plan = planned(shape, gib, rows=rows, fast=fast)
    assert plan.step_seconds is not None
    assert rows * 512 / plan.step_seconds == pytest.approx(rate, rel=0.12)
    if gib is None:
        assert plan.peak / GIB == pytest.approx(peak, rel=0.05)
    else:
        assert 0.85 * gib < plan.peak / GIB <= 0.97 * gib + 0.01  # the rest is what the allocator loses


def test_more_memory_is_never_slower_and_never_exceeded(shape: ModelShape) -> None:
    times = []
    for gib in (5, 5.5, 6, 7, 8, 10, 12, 16, 24, 40, 80, 140):
        plan = planned(shape, gib)
        assert plan.peak <= plan.budget == pytest.approx(gib * GIB, rel=1e-3)
        assert len(plan.forms) == len(plan.keeps) == 32
        assert plan.step_seconds is not None
        times.append(plan.step_seconds)
    assert all(after <= 1.02 * before for before, after in pairwise(times))
    assert times[-1] < 0.7 * times[0]


def test_what_a_plan_says(shape: ModelShape) -> None:
    tight, wide = planned(shape, 5), planned(shape, 140)
    assert "dequantized at each use" in tight.why and "offloaded to host memory" in tight.why
    assert "a step would be" in tight.better
    assert wide.why == "all blocks dequantized once" and wide.better == ""
    assert set(wide.keeps) == {"all"} and set(tight.keeps) >= {"host"}
    assert tight.step_seconds is not None and tight.total_seconds == pytest.approx(100 * tight.step_seconds)


def test_too_little_is_refused_with_numbers(shape: ModelShape) -> None:
    with pytest.raises(ResourceError, match=r"training needs about 4\.\d GiB but the memory budget is 2\.0 GiB"):
        planned(shape, 2)


def test_fast_means_8_bits_where_there_is_room(shape: ModelShape) -> None:
    forms = planned(shape, 80, fast=True).forms
    assert forms == ("dense", *["fp8"] * 30, "dense")  # the ends stay exact
    assert set(planned(shape, 80).forms) == {"dense"}
    assert "fp8" in planned(shape, 12, fast=True).forms and "stored" in planned(shape, 12, fast=True).forms


def test_wishes_about_recomputation(shape: ModelShape) -> None:
    assert set(planned(shape, 80, recompute="yes").keeps) <= {"input", "host"}
    assert set(planned(shape, 80, recompute="no").keeps) == {"all"}
    with pytest.raises(ResourceError):
        planned(shape, 6, recompute="no")


def test_an_adapter_on_some_layers_needs_less(shape: ModelShape) -> None:
    few, every = (planned(shape, 80, layers=layers) for layers in (("q_proj", "v_proj"), "all"))
    assert few.parts["adapter"] < 0.4 * every.parts["adapter"]


def test_embeddings_wait_on_the_host_only_where_memory_is_short(shape: ModelShape) -> None:
    tight, wide = planned(shape, 4.7, rows=4), planned(shape, 80, rows=4)
    assert wide.table and not tight.table and "the embeddings are offloaded to host memory" in tight.why
    assert wide.parts["base"] - tight.parts["base"] == 32000 * 4096 * 2
    head_as_well = replace(shape, tied=True)
    assert planned(head_as_well, 5, rows=4).table
    assert planned(shape, None, rows=4, machine=CPU).table


def test_a_processor_has_no_second_memory(shape: ModelShape) -> None:
    plan = planned(shape, None, machine=CPU, rows=2)
    assert "host" not in plan.keeps
    assert plan.peak <= plan.budget


@pytest.mark.parametrize("lengths", [(100, 100, 100), (300, 20, 20, 200), (512,)])
def test_micro_batches_are_those_that_packing_makes(lengths: tuple[int, ...]) -> None:
    work = StepWork((lengths, lengths), max(lengths), 10)
    assert work.micro_batches(10_000) == (sum(lengths), 1.0)
    tokens, batches = work.micro_batches(max(lengths))
    assert tokens == max(lengths)
    assert batches >= sum(lengths) / max(lengths)


GEMMA_270M = {  # google/gemma-3-270m
    "model_type": "gemma3_text", "num_hidden_layers": 18, "hidden_size": 640, "intermediate_size": 2048,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
    "max_position_embeddings": 32768, "tie_word_embeddings": True,
}  # fmt: skip


def read_shape_of(folder: Path, config: dict[str, Any]) -> ModelShape:
    (folder / "config.json").write_text(json.dumps(config))
    return read_shape(folder, "gemma")


def windowed(tmp_path: Path, length: int, machine: Machine) -> tuple[Plan, Plan]:
    """Plans of Gemma 3 270M with its windows and as if it had none."""
    shape, layers = read_shape_of(tmp_path, GEMMA_270M), fused_layers(GEMMA_270M)
    work, wish = StepWork(((length,) * 8,), length, 100), PlanSettings(4, 16, "all", "adamw", recompute="no")
    speed = H200 if machine is CARD else SLOW
    full = [replace(layer, window=0) for layer in layers]
    with_windows, without = (
        plan_fused(shape, machine, speed, work, wish, "auto", layer_choice) for layer_choice in (layers, full)
    )
    return with_windows, without


@pytest.mark.parametrize("machine", [CARD, CPU])
def test_windows_spare_time_only_where_rows_are_longer(tmp_path: Path, machine: Machine) -> None:
    short, as_short = windowed(tmp_path, 400, machine)
    assert short.step_seconds == as_short.step_seconds is not None
    long, as_long = windowed(tmp_path, 8192, machine)
    assert long.step_seconds is not None and as_long.step_seconds is not None
    assert long.step_seconds < 0.8 * as_long.step_seconds


def test_every_kind_of_rope_has_its_tables(tmp_path: Path) -> None:
    layers = fused_layers(GEMMA_270M)
    assert [layer.window for layer in layers] == [512, 512, 512, 512, 512, 0] * 3
    assert {layer.rope for layer in layers} == {"sliding_attention", "full_attention"}
    two, _ = windowed(tmp_path, 4096, CARD)
    base = 192 << 20
    assert two.parts["runtime"] - base == 2 * 2 * 4096 * 256 * 2  # kinds, cos and sin, positions, width, bytes
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    phi4 = fused_layers(
        {
            "model_type": "phi3", "num_hidden_layers": 2, "hidden_size": 3072, "num_attention_heads": 24,
            "partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096, "max_position_embeddings": 131072,
            "rope_scaling": factors,
        }
    )  # fmt: skip
    assert phi4 == [LayerAttention(3072, 3072, 128, 0, "", 4096)] * 2


def test_plain_kernels_on_a_gpu_keep_everything_there(tmp_path: Path) -> None:
    """Heads of 512 have no flash attention: nothing waits on the host, and the weights of attention are kept."""
    config = {**GEMMA_270M, "head_dim": 512}
    shape, layers = read_shape_of(tmp_path, config), fused_layers(config)
    work, wish = StepWork(((512,) * 8,), 512, 100), PlanSettings(4, 16, "all", "adamw")
    tight = plan_fused(shape, CARD, H200, work, wish, "3GB", layers)
    assert "host" not in tight.keeps
    plan = plan_fused(read_shape_of(tmp_path, GEMMA_270M), CARD, H200, work, wish, "auto", fused_layers(GEMMA_270M))
    assert plan.parts["activations"] < plan_fused(shape, CARD, H200, work, wish, "auto", layers).parts["activations"]
