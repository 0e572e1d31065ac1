"""Which type a tensor gets, held against the table that llama.cpp's own quantizer gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ModelError, RecipeError
from tunesmith.exporting.quantization_types import (
    QUANTIZATION_TYPES,
    ModelFacts,
    read_facts,
    sort_tensors,
    tensor_types,
)
from tunesmith.models.gguf_header import TensorInfo

MODELS = json.loads(Path(__file__).with_name("types.json").read_text())["models"]
DENSE = ModelFacts("llama", 32, 32, 8)


def tensor(name: str, *shape: int, kind: str = "F16") -> TensorInfo:
    return TensorInfo(name, shape, kind if len(shape) > 1 else "F32", 0, 0)


def unrolled(model: dict[str, Any], mix: str) -> tuple[list[TensorInfo], dict[str, str]]:
    """The table's runs (per tensor of a block: type*blocks) as tensors and their types."""
    shapes, kinds = model["shapes"], model[mix]
    tensors = [tensor(name, *shape) for name, shape in shapes["outside"].items()]
    expected = {name: kinds[name] for name in shapes["outside"]}
    for part, shape in shapes["block"].items():
        row = [kind for run in kinds[part].split() for kind, many in [run.split("*")] for _ in range(int(many))]
        assert len(row) == shapes["blocks"]
        tensors += [tensor(f"blk.{at}.{part}", *shape) for at in range(len(row))]
        expected.update({f"blk.{at}.{part}": kind for at, kind in enumerate(row)})
    return tensors, expected


@pytest.mark.parametrize("mix", ["q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s"])
@pytest.mark.parametrize("name", MODELS)
def test_every_type_is_the_one_of_the_table(name: str, mix: str) -> None:
    tensors, expected = unrolled(MODELS[name], mix)
    shapes = MODELS[name]["shapes"]
    known = ModelFacts("llama", shapes["blocks"], shapes["heads"], shapes["heads_kv"])
    assert len(expected) >= 272
    assert tensor_types(tensors, known, mix) == expected
    assert tensor_types(reversed(tensors), known, mix) == expected  # whatever the order in the file


def test_the_table_tells_the_rules_apart() -> None:
    """Each mix differs from each other in the table, so that a rule mixed up with another cannot pass."""
    for name in ("smol", "llama-32L-gqa4"):
        seen = [json.dumps(unrolled(MODELS[name], mix)[1]) for mix in MODELS[name] if mix != "shapes"]
        assert len(set(seen)) == len(seen) == 6


@pytest.mark.parametrize(("mix", "kind"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16")])
def test_the_plain_types_take_every_matrix_but_what_is_kept(mix: str, kind: str) -> None:
    tensors = [
        tensor("token_embd.weight", 48, 9),
        tensor("blk.0.attn_norm.weight", 48),
        tensor("blk.0.attn_q.bias", 48),
    ]
    tensors += [tensor("position_embd.weight", 48, 9), tensor("blk.0.ffn_gate_inp.weight", 48, 4)]
    found = tensor_types(tensors, DENSE, mix)
    assert found == {
        "blk.0.attn_norm.weight": "F32", "blk.0.attn_q.bias": "F32", "token_embd.weight": kind,
        "position_embd.weight": "F16", "blk.0.ffn_gate_inp.weight": "F16",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mix", "row", "kind"),
    [
        ("q4_k_m", 512, "Q4_K"), ("q4_k_m", 96, "Q5_0"), ("q4_k_m", 72, "F16"),
        ("q5_k_m", 96, "Q5_1"), ("q5_k_s", 80, "F16"), ("q6_k", 96, "Q8_0"), ("q6_k", 33, "F16"), ("q8_0", 96, "Q8_0"),
    ],
)  # fmt: skip
def test_rows_that_no_block_fits_fall_back(mix: str, row: int, kind: str) -> None:
    tensors = [tensor("token_embd.weight", 512, 9), tensor("blk.0.attn_q.weight", row, 8)]
    assert tensor_types(tensors, DENSE, mix)["blk.0.attn_q.weight"] == kind


def test_rows_that_nothing_fits_are_an_error() -> None:
    for mix, name in (("q8_0", "blk.0.attn_q.weight"), ("q4_k_m", "output.weight")):  # the head falls to q8_0 at once
        with pytest.raises(ModelError, match=rf"'{name}' has rows of 72.*blocks of 32 do not fill.*f16 or bf16"):
            tensor_types([tensor("token_embd.weight", 512, 9), tensor(name, 72, 9)], DENSE, mix)


def test_eight_experts_sharpen_keys_and_values() -> None:
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_down_exps", "ffn_up_exps"]
    tensors = [tensor(f"blk.{at}.{name}.weight", 256, 256, 8) for at in range(16) for name in names]
    found = tensor_types(tensors, ModelFacts("llama", 16, 32, 8, experts=8), "q4_k_m")
    row = [found[f"blk.5.{name}.weight"] for name in names]
    assert row == ["Q4_K", "Q8_0", "Q8_0", "Q5_K", "Q4_K", "Q4_K"]
    assert [found[f"blk.{at}.ffn_down_exps.weight"] for at in (0, 1, 2, 4, 13, 14)] == [
        "Q6_K", "Q6_K", "Q4_K", "Q6_K", "Q6_K", "Q6_K",
    ]  # fmt: skip
    sixteen = tensor_types(tensors, ModelFacts("llama", 16, 32, 8, experts=16), "q4_k_m")
    assert [sixteen[f"blk.5.{name}.weight"] for name in names[1:4]] == ["Q4_K", "Q4_K", "Q4_K"]
    with pytest.raises(ModelError, match="belongs to no block of 4"):
        tensor_types(tensors, ModelFacts("llama", 4, 32, 8, experts=8), "q4_k_m")


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        (ModelFacts("llama", 80, 64, 8), "Q5_K"), (ModelFacts("llama", 80, 64, 64), "Q4_K"),
        (ModelFacts("llama", 64, 64, 8), "Q4_K"), (ModelFacts("qwen2", 80, 64, 64), "Q5_K"),
        (ModelFacts("qwen3", 80, 64, 8), "Q4_K"), (ModelFacts("jais2", 68, 64, 8), "Q5_K"),
    ],
)  # fmt: skip
def test_the_70b_models_give_their_shared_values_more_bits(known: ModelFacts, kind: str) -> None:
    tensors = [tensor(f"blk.{at}.attn_v.weight", 256, 64) for at in range(known.blocks)]
    assert (
        tensor_types(tensors, known, "q4_k_m")["blk.14.attn_v.weight"] == kind
    )  # 14 is no layer that gets more bits anyway


def test_joined_queries_keys_and_values_count_as_values() -> None:
    tensors = [tensor(f"blk.{at}.attn_qkv.weight", 256, 768) for at in range(12)]
    found = tensor_types(tensors, ModelFacts("gpt2", 12, 4, 4), "q4_k_m")
    assert [at for at in range(12) if found[f"blk.{at}.attn_qkv.weight"] == "Q6_K"] == [0, 3, 6, 9, 10, 11]


def test_blocks_are_counted_by_number_not_by_letter() -> None:
    names = [f"blk.{at}.x" for at in (10, 9, 100)] + ["output.weight", "token_embd.weight", "blk.9.w"]
    ordered = [item.name for item in sort_tensors(tensor(name, 4) for name in names)]
    assert ordered == ["output.weight", "token_embd.weight", "blk.9.w", "blk.9.x", "blk.10.x", "blk.100.x"]


def test_facts_come_from_the_metadata() -> None:
    plain = {"general.architecture": "qwen2", "qwen2.block_count": 3, "qwen2.attention.head_count": 14}
    assert read_facts(plain) == ModelFacts("qwen2", 3, 14, 14, 0)
    more = {"qwen2.attention.head_count_kv": (2, 4), "qwen2.expert_count": 8}
    assert read_facts({**plain, **more}) == ModelFacts("qwen2", 3, 14, 2, 8)
    for broken in (
        {},
        {"general.architecture": "qwen2"},
        {**plain, "qwen2.block_count": "3"},
        {**plain, "qwen2.block_count": 0},
    ):
        with pytest.raises(ModelError, match=r"m\.gguf: its metadata names no architecture"):
            read_facts(broken, "m.gguf")


def test_an_unknown_type_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown quantization type 'q4_km'.*Did you mean 'q4_k_m'"):
        tensor_types([], DENSE, "q4_km")
    assert list(QUANTIZATION_TYPES) == ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s"]
