"""What fits, by arithmetic; the counts against real models."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config.recipe import NamedSetting
from tunesmith.errors import ResourceError
from tunesmith.hardware import Machine
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.count_parameters import read_shape
from tunesmith.models.shape import ModelShape
from tunesmith.models.weights import fetch_weights
from tunesmith.planning.autograd import Plan, parse_bytes, plan_autograd, token_bytes, variant_bytes
from tunesmith.wording import show_bytes

GB, MIB = 10**9, 1 << 20
CPU = Machine("cpu", "a processor", 2, 64 * GB, 32 * GB, "float32", "for the test")
CARD = Machine("cuda", "a card", 2, 64 * GB, 32 * GB, "bfloat16", "for the test")


def shape_of(**config: Any) -> ModelShape:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return read_shape(Path(folder), str(config["model_type"]))


SEVEN_B = shape_of(  # Llama-2-7b
    model_type="llama", num_hidden_layers=32, hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
    num_key_value_heads=32, vocab_size=32000, tie_word_embeddings=False, max_position_embeddings=4096,
)  # fmt: skip
GEMMA_2B = shape_of(
    model_type="gemma", num_hidden_layers=18, hidden_size=2048, intermediate_size=16384, num_attention_heads=8,
    num_key_value_heads=1, head_dim=256, vocab_size=256000, max_position_embeddings=8192,
)  # fmt: skip
GPT2 = shape_of(model_type="gpt2", n_layer=12, n_embd=768, n_head=12, vocab_size=50257, n_positions=1024)


def planned(
    memory: str, *, shape: ModelShape = SEVEN_B, machine: Machine = CARD, recompute: str = "auto", **changes: Any
) -> Plan:
    settings = {"bits": 4, "rank": 16, "optimizer": "adamw", "longest": 512, "step_tokens": 4096, **changes}
    return plan_autograd(shape, machine, memory=memory, recompute=recompute, **settings)


def fewest(recompute: str, *, rows: float = 1, **changes: Any) -> float:
    """The budget in MB at which so many rows of 512 tokens fit, by the parts of a plan that has room."""
    plan = planned("500GB", recompute=recompute, **changes)
    token = token_bytes(SEVEN_B, 2, recompute == "yes")
    return (plan.peak - plan.parts["activations"] + rows * 512 * token) / 1e6


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("6GB", 6 * 10**9),
        ("6 GB", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        ("512MB", 512 * 10**6),
        ("512 MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("0.5GiB", 2**29),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["6", "GB", "6gb", "6KB", "6TB", "-6GB", "6,5GB", "1.GB", "6GB ", "6GBs", ""])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (3 * MIB // 1024, "3 KiB"),
        (5 * MIB, "5.0 MiB"),
        (500 * MIB, "500 MiB"),
        (2**30 - 1, "1024 MiB"),
        (2**30, "1.0 GiB"),
        (7e9, "6.5 GiB"),
    ],
)
def test_sizes_are_shown(count: float, text: str) -> None:
    assert show_bytes(count) == text


def test_the_counts_of_known_models() -> None:
    assert SEVEN_B.linear + SEVEN_B.rest == 6_738_415_616  # Llama-2-7b
    assert SEVEN_B.adapter(16) == 39_976_960  # as PEFT prints for rank 16 on all linear layers of Llama-2-7b
    assert GEMMA_2B.linear + GEMMA_2B.rest == 2_506_172_416  # gemma-2b
    assert GPT2.linear == 84_934_656  # 12 x 12 x 768 x 768


def tiny_model(tiny: Callable[..., Path], family: str) -> tuple[Model, ModelShape]:
    folder = tiny(family)
    return load_model(fetch_weights(str(folder)), bits=16, device="cpu", precision="float32"), read_shape(
        folder, family
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "phi3"])
def test_linear_weights_are_counted_as_the_model_has_them(tiny: Callable[..., Path], family: str) -> None:
    model, shape = tiny_model(tiny, family)
    assert shape.linear == sum(layer.in_features * layer.out_features for layer in model.frozen().values())
    assert (shape.family, shape.layers, shape.hidden, shape.vocabulary) == (family, 2, 64, 261)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "phi3"])
def test_an_adapter_is_counted_as_the_model_has_it(tiny: Callable[..., Path], family: str, rank: int) -> None:
    model, shape = tiny_model(tiny, family)
    add_adapter(model, rank=rank, alpha=8, layers="all", dropout=0.0, seed=1)
    assert shape.adapter(rank) == sum(parameter.numel() for parameter in model.trainable().values())


@pytest.mark.parametrize("family", ["llama", "gemma", "phi3"])
def test_other_weights_are_counted_as_the_model_has_them(tiny: Callable[..., Path], family: str) -> None:
    model, shape = tiny_model(tiny, family)
    linear = sum(layer.in_features * layer.out_features for layer in model.frozen().values())
    assert linear + shape.rest == sum(parameter.numel() for parameter in model.network.parameters())


def test_a_plan_by_hand() -> None:
    plan = planned("16GB")
    linear, everything, adapter = 6_476_005_376, 6_738_415_616, 39_976_960
    layer = 4096 * (2 * 8 + 3 * 2) + (2 * 4096 + 2 * 4096) * 2 * 2 + 11008 * 2 * 4
    fixed = {
        "runtime": 600 * MIB,
        "base": int(linear * (0.5 + 1 / 64 + 1 / 4096) + (everything - linear) * 2),
        "adapter": adapter * (4 + 4 + 8),
        "logits": 1024 * 32000 * 10,
    }
    tokens = (16 * GB - sum(fixed.values())) // (32 * layer)
    assert (plan.micro_tokens, plan.recompute, plan.dense, plan.why) == (tokens, False, False, "fits")
    assert plan.parts == {**fixed, "activations": tokens * 32 * layer}
    assert token_bytes(SEVEN_B, 2, recompute=False) == 32 * layer
    assert token_bytes(SEVEN_B, 2, recompute=True) == 32 * 4096 * 2 + 2 * layer
    assert plan.peak == sum(plan.parts.values()) <= plan.budget == 16 * GB


def test_a_plan_with_room_takes_the_whole_step() -> None:
    plan = planned("80GB")
    assert (plan.micro_tokens, plan.recompute, plan.why, plan.budget) == (4096, False, "fits", 80 * GB)
    assert plan.peak < plan.budget
    assert plan.describe()["peak"] == plan.peak


@pytest.mark.parametrize(("longest", "step_tokens", "micro"), [(512, 100, 512), (512, 512, 512), (100, 2000, 2000)])
def test_a_micro_batch_holds_the_longest_row_and_no_more_than_the_step(
    longest: int, step_tokens: int, micro: int
) -> None:
    assert planned("80GB", longest=longest, step_tokens=step_tokens).micro_tokens == micro


def test_recomputing_starts_where_one_row_no_longer_fits_without_and_not_before() -> None:
    edge = fewest("no")
    fits, tight = planned(f"{edge + 0.01:.3f}MB"), planned(f"{edge - 0.01:.3f}MB")
    assert (fits.recompute, fits.micro_tokens, fits.why) == (False, 512, "fits")
    assert (tight.recompute, tight.why) == (True, "activations are recomputed to fit")
    assert tight.peak <= tight.budget
    with pytest.raises(ResourceError):
        planned(f"{edge - 0.01:.3f}MB", recompute="no")
    assert planned(f"{edge + 0.01:.3f}MB", recompute="yes").recompute


@pytest.mark.parametrize("recompute", ["auto", "yes"])
def test_a_budget_too_small_for_one_row_is_refused_with_numbers(recompute: str) -> None:
    edge = fewest("yes")
    assert planned(f"{edge + 0.01:.3f}MB", recompute=recompute).micro_tokens == 512
    with pytest.raises(ResourceError) as caught:
        planned(f"{edge - 0.01:.3f}MB", recompute=recompute)
    assert caught.value.what == "training needs about 5.4 GiB but the memory budget is 5.4 GiB"
    assert caught.value.where == f"train.memory {edge - 0.01:.3f}MB"
    with pytest.raises(ResourceError, match=r"about 5\.4 GiB but the memory budget is 954 MiB"):
        planned("1GB", recompute=recompute)


def test_auto_uses_nine_tenths_of_the_free_memory() -> None:
    assert planned("auto").budget == int(32 * GB * 0.9)
    with pytest.raises(ResourceError, match="the memory budget is 858 MiB"):
        planned("auto", machine=replace(CARD, memory_free=GB))


@given(
    st.sampled_from([SEVEN_B, GPT2, GEMMA_2B]),
    st.sampled_from(["yes", "no"]),
    st.integers(1, 40_000),
    st.integers(0, 40_000),
    st.sampled_from([16, 512, 4096]),
)
def test_a_larger_budget_never_gives_a_smaller_micro_batch(
    shape: ModelShape, recompute: str, megabytes: int, more: int, longest: int
) -> None:
    def micro(budget: int) -> int:
        try:
            plan = planned(f"{budget}MB", shape=shape, recompute=recompute, longest=longest)
        except ResourceError:
            return 0
        assert plan.peak <= plan.budget
        assert longest <= plan.micro_tokens <= max(4096, longest)
        return plan.micro_tokens

    assert micro(megabytes) <= micro(megabytes + more)


@pytest.mark.parametrize(
    ("change", "part", "ratio"),
    [
        ({"optimizer": "adamw_8bit"}, "adapter", 10.1 / 16),
        ({"rank": 64}, "adapter", 4.0),
        ({"step_tokens": 512}, "logits", 0.5),
        ({"shape": replace(SEVEN_B, vocabulary=64000)}, "logits", 2.0),
    ],
)
def test_what_settings_do_to_a_part(change: dict[str, Any], part: str, ratio: float) -> None:
    assert planned("80GB", **change).parts[part] / planned("80GB").parts[part] == pytest.approx(ratio, rel=1e-6)


def test_16_bits_and_float32_cost_what_they_cost() -> None:
    everything = 6_738_415_616
    assert planned("80GB", bits=16).parts["base"] == 2 * everything
    assert planned("80GB", bits=16, machine=CPU).parts["base"] == 4 * everything
    assert planned("80GB", machine=CPU).parts["runtime"] == 900 * MIB


@pytest.mark.parametrize(
    ("memory", "machine", "bits", "dense"),
    [("80GB", CPU, 4, False), ("400GB", CPU, 4, True), ("400GB", CARD, 4, False), ("400GB", CPU, 16, False)],
)
def test_a_processor_with_much_room_keeps_a_dense_copy(memory: str, machine: Machine, bits: int, dense: bool) -> None:
    plan = planned(memory, machine=machine, bits=bits)
    assert plan.dense is dense
    assert plan.parts.get("dense copy", 0) == (6_476_005_376 * 4 if dense else 0)
    assert plan.peak < plan.budget / (2 if dense else 1)


# --- the adapter's variants --------------------------------------------------------------------------------------


def saved_bytes(model: Model, tokens: int) -> int:
    """Bytes that a forward keeps for the backward, each storage once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    model.network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.network(input_ids=torch.ones(1, tokens, dtype=torch.long)).logits.sum()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_what_variants_keep_of_a_forward_is_counted(tiny: Callable[..., Path], family: str) -> None:
    saved: dict[str, list[int]] = {}
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "pissa": {"start": NamedSetting("pissa", {})},
        "dora": {"dora": True},
    }
    for name, changes in variants.items():
        model, shape = tiny_model(tiny, family)
        add_adapter(model, rank=4, alpha=8, layers="all", dropout=0.0, seed=1, **changes)
        saved[name] = [saved_bytes(model, tokens) for tokens in (32, 64)]
    a_token = {name: (long - short) / 32 for name, (short, long) in saved.items()}
    outputs = shape.layers * sum(out for _, out in shape.linears)
    more = token_bytes(shape, 4, recompute=False, dora=True) - token_bytes(shape, 4, recompute=False)
    assert a_token["dora"] - a_token["plain"] == more == 4 * outputs
    assert a_token["pissa"] == a_token["plain"]
    matrix_bytes = sum(layer.nbytes for layer in model.trainable().values() if layer.dim() == 2)
    assert (
        saved["pissa"][0] - saved["plain"][0] == 2 * matrix_bytes - matrix_bytes
    )  # the joined update, twice as wide, in its place


def test_what_is_trained_whole_is_counted_as_the_model_has_it(tiny: Callable[..., Path]) -> None:
    for tied, also in ((True, ["embeddings", "head"]), (False, ["head"]), (False, ["embeddings", "head"])):
        folder = tiny("llama", tie_word_embeddings=tied)
        model, shape = (
            load_model(fetch_weights(str(folder)), bits=16, device="cpu", precision="float32"),
            read_shape(folder, "llama"),
        )
        add_adapter(model, rank=4, alpha=8, layers="all", dropout=0.0, seed=1, train_also=also, dora=True)
        sizes = [value.numel() for value in model.trainable().values()]
        whole = variant_bytes(shape, 4, 4, 16.0, train_also=also)["trained whole"]
        magnitudes = variant_bytes(shape, 4, 4, 16.0, dora=True)["dora"] - 4 * 64 * 128
        assert sum(sizes) == shape.adapter(4) + whole / (16 + 8) + magnitudes / 16


def test_variants_by_hand() -> None:
    wide, outputs = 4096 * 11008, 32 * (5 * 4096 + 2 * 11008)
    plain = planned("80GB").parts
    assert planned("80GB", pissa=True).parts == {
        **plain,
        "start": 39_976_960 * 12,
    }
    assert planned("80GB", dora=True).parts["dora"] == outputs * 16 + wide * 8
    assert planned("200GB", dora=True, machine=CPU).parts["dora"] == outputs * 16 + wide * 4
    whole = planned("80GB", train_also=["head"], optimizer="adamw_8bit").parts
    assert whole["trained whole"] == int(32000 * 4096 * (10.1 + 3 * 2))
    assert whole["logits"] == 1024 * 32000 * 18
    both = planned("80GB", train_also=["head", "embeddings"]).parts
    assert both["trained whole"] == 2 * 32000 * 4096 * (16 + 3 * 2)
    assert both["activations"] == planned("80GB").parts["activations"]
    tied = planned("80GB", shape=GEMMA_2B, train_also=["head", "embeddings"]).parts
    assert tied["trained whole"] == 256000 * 2048 * (16 + 3 * 2)


@pytest.mark.parametrize("wish", [{"pissa": True}, {"dora": True}, {"train_also": ["head"]}])
def test_a_variant_needs_a_larger_budget(wish: dict[str, Any]) -> None:
    edge = f"{fewest('yes') + 0.01:.3f}MB"
    assert planned(edge).micro_tokens == 512
    with pytest.raises(ResourceError):
        planned(edge, **wish)
