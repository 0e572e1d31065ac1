"""Adapter variants against PEFT, float64 and the papers' formulas: training, saving and loading."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import BASIC, IDS, LOFTQ, PISSA, VARIANTS, WHOLE, WITH_BIAS, logits, made, shaken
from tiny import FAMILIES
from tunesmith.config.recipe import NamedSetting, read_recipe
from tunesmith.config.registry import resolve
from tunesmith.errors import ModelError, MultipleErrors, RecipeError, RunError
from tunesmith.models.adapter import adapter_state, load_adapter, load_adapter_tensors, read_adapter, write_adapter
from tunesmith.models.architecture import read_architecture
from tunesmith.models.build import Model, add_adapter, default_lora_a, load_model
from tunesmith.models.original_weights import OriginalWeights
from tunesmith.models.qlora import LoraLinear
from tunesmith.models.weights import fetch_weights
from tunesmith.training.optimizers import parameter_groups


def base_of(model: Model) -> Any:
    """Returns the transformers model with the same weights."""
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    plain = AutoModelForCausalLM.from_pretrained(model.weights.folder, dtype=torch.float32)
    for name, layer in model.frozen().items():
        plain_layer = plain.get_submodule(name.removesuffix(".base"))
        plain_layer.weight.data = (
            layer.matrix().T.contiguous() if isinstance(plain_layer, Conv1D) else layer.matrix().clone()
        )
    return plain


def loss(network: Any) -> Tensor:
    value: Tensor = network(input_ids=IDS, labels=IDS).loss
    return value


def train_steps(model: Model, count: int = 3) -> list[float]:
    parameters = model.trainable()
    optimizer = torch.optim.AdamW(parameter_groups(parameters, 1e-2, 1.0))
    losses = []
    torch.manual_seed(1)
    model.network.train()
    for _ in range(count):
        value = loss(model.network)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


# --- every family, every variant -------------------------------------------------------------------------------


QUICK = ("llama", "gpt2")  # the other families by name: pytest -m slow


@pytest.mark.parametrize(
    "family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_trains_with_every_variant(tiny: Callable[..., Path], family: str, variant: str) -> None:
    changes = dict(VARIANTS[variant])
    if changes.get("bias", "none") != "none" and family not in WITH_BIAS:
        with pytest.raises(ModelError, match=r"adapter\.bias: .* bias.* to train\. Set it to none"):
            made(tiny(family), **changes)
        changes["bias"] = "none"
    if "layers" in changes and family in ("phi3", "gpt2"):
        changes["layers"] = ["qkv_proj", "c_attn"]
    model = made(tiny(family), **changes)
    before = {name: value.detach().clone() for name, value in model.trainable().items()}
    losses = train_steps(model)
    assert losses[-1] < losses[0] - 0.01
    unchanged = [name for name, value in model.trainable().items() if torch.equal(value, before[name])]
    assert not unchanged
    expected = {id(value) for value in model.trainable().values()}
    assert {id(p) for p in model.network.parameters() if p.requires_grad} == expected  # nothing else is trained


# --- what is saved ---------------------------------------------------------------------------------------------


CASES = [("llama", variant) for variant in VARIANTS if "bias" not in VARIANTS[variant]]
CASES += [("gpt2", variant) for variant in VARIANTS]
CASES += [
    ("qwen2", "bias"),
    ("qwen2", "bias-of-updates"),
    ("qwen2", "bias-and-few-updates"),
    ("untied", "whole"),
    ("untied", "head"),
    ("phi3", "pissa"),
]


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_peft_reads_each_variant_on_the_untouched_base(
    tiny: Callable[..., Path], tmp_path: Path, family: str, variant: str
) -> None:
    """Compares the trained model, one loaded with `attach`, and PEFT on transformers' layers."""
    from peft import PeftModel

    folder = tiny("llama", tie_word_embeddings=False) if family == "untied" else tiny(family)
    model = shaken(made(folder, **(VARIANTS[variant] if variant != "head" else {"train_also": ["head"]})))
    trained = logits(model.network)
    with model.base():
        base = logits(model.network)
    config, tensors = adapter_state(model)
    write_adapter(tmp_path, config, tensors)

    plain = base_of(model)
    assert torch.allclose(base, logits(plain), atol=1e-4)  # with the adapter off it is the base
    theirs = logits(PeftModel.from_pretrained(plain, str(tmp_path)))
    assert torch.allclose(trained, theirs, atol=1e-3, rtol=1e-4)
    assert (trained - base).abs().max() > 0.05

    again = load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision="float32")
    load_adapter(again, tmp_path)
    assert torch.allclose(trained, logits(again.network), atol=2e-5)
    with again.base():
        assert torch.equal(base, logits(again.network))
    assert read_adapter(tmp_path)[0] == config
    config_again, tensors_again = adapter_state(again)
    assert config_again == config
    assert tensors_again.keys() == tensors.keys()
    assert all(torch.equal(tensors_again[name], tensors[name]) for name in tensors)


def test_the_files_are_named_as_peft_names_them(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Compares names and settings with an adapter that PEFT saved."""
    from peft import LoraConfig, get_peft_model
    from safetensors import safe_open

    model = made(tiny("gpt2"), dora=True, scaling="rs", train_also=WHOLE, bias="all", dropout=0.1)
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", *adapter_state(model))
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn", "c_proj", "c_fc"], use_dora=True,
        use_rslora=True, bias="all", modules_to_save=["wte", "lm_head"], ensure_weight_tying=True,
        task_type="CAUSAL_LM", fan_in_fan_out=True,
    )  # fmt: skip
    get_peft_model(base_of(model), config).save_pretrained(tmp_path / "theirs")

    def shapes(folder: str) -> dict[str, list[int]]:
        with safe_open(tmp_path / folder / "adapter_model.safetensors", "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  (no mapping)

    assert shapes("ours") == shapes("theirs")
    ours, theirs = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "theirs"))
    same = ("r", "lora_alpha", "use_dora", "use_rslora", "bias", "ensure_weight_tying", "fan_in_fan_out", "peft_type")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_an_adapter_of_another_type_or_base_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = made(tiny("llama"), dora=True)
    config, tensors = adapter_state(model)

    def fresh() -> Model:
        return load_model(fetch_weights(str(tiny("llama"))), bits=4, device="cpu", precision="float32")

    for key, value in (("rank_pattern", {"q_proj": 8}), ("peft_type", "IA3"), ("init_lora_weights", "pissa")):
        write_adapter(tmp_path, {**config, key: value}, tensors)
        with pytest.raises(RunError, match=f"type are not supported.*{value if key != 'rank_pattern' else key}"):
            load_adapter(fresh(), tmp_path)
    write_adapter(tmp_path, {key: value for key, value in config.items() if key != "r"}, tensors)
    with pytest.raises(RunError, match=r"configuration is damaged: 'r'"):
        load_adapter(fresh(), tmp_path)
    write_adapter(tmp_path, {**config, "use_dora": False}, tensors)
    with pytest.raises(RunError, match=r"differ at .*lora_magnitude_vector"):
        load_adapter(fresh(), tmp_path)
    with pytest.raises(RunError, match=r"\(8, 64\)|\(64, 8\)"):
        load_adapter_tensors(made(tiny("llama")), adapter_state(made(tiny("llama"), rank=8))[1])


# --- biases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
def test_the_gradients_of_trained_biases_are_autograds(tiny: Callable[..., Path], layers: list[str]) -> None:
    """Compares layers with and without an update, in NF4, with autograd through transformers' layers."""
    model = made(tiny("gpt2"), layers=layers, bias="all")
    model.network.eval()
    loss(model.network).backward()
    plain = base_of(model).eval()
    loss(plain).backward()
    biases = {name.replace(".base_layer", ""): p.grad for name, p in model.trainable().items() if "bias" in name}
    expected = {name: p.grad for name, p in plain.named_parameters() if name.endswith("bias")}
    assert biases.keys() == expected.keys()
    for name, gradient in expected.items():
        got = biases[name]
        assert got is not None
        # c_attn's middle third, the keys' bias, shifts every score alike: its gradient is zero but for rounding
        assert (got - gradient).norm() < 1e-4 * gradient.norm(), name


# --- DoRA ------------------------------------------------------------------------------------------------------


def peft_twin(model: Model, **changes: Any) -> Any:
    """Returns PEFT's LoRA on the same base, with the same A, B and magnitudes."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(model.lora), **changes}
    network = get_peft_model(base_of(model), LoraConfig(**settings))
    with torch.no_grad():
        for name, layer in model.lora.items():
            theirs = network.base_model.model.get_submodule(name)
            theirs.lora_A["default"].weight.copy_(layer.lora_A)
            theirs.lora_B["default"].weight.copy_(layer.lora_B)
            if layer.lora_magnitude_vector is not None:
                theirs.lora_magnitude_vector["default"].weight.copy_(layer.lora_magnitude_vector)
    return network


@pytest.mark.parametrize(("bits", "dropout"), [(16, 0.0), (4, 0.0), (16, 0.2)])
def test_doras_loss_and_gradients_are_pefts(tiny: Callable[..., Path], bits: int, dropout: float) -> None:
    model = shaken(made(tiny("llama"), bits=bits, dora=True, dropout=dropout))
    twin = peft_twin(model, use_dora=True, lora_dropout=dropout)
    losses = []
    for network in (model.network, twin):
        network.train()
        torch.manual_seed(7)  # the same numbers are dropped
        value = loss(network)
        value.backward()
        losses.append(value.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    plain = loss(made(tiny("llama"), bits=bits).network).item()
    assert abs(losses[0] - plain) > 1e-2
    for name, layer in model.lora.items():
        theirs = twin.base_model.model.get_submodule(name)
        pairs = [(layer.lora_A, theirs.lora_A), (layer.lora_B, theirs.lora_B)]
        for ours, peft_parameter in [*pairs, (layer.lora_magnitude_vector, theirs.lora_magnitude_vector)]:
            assert ours is not None
            error = (ours.grad - peft_parameter["default"].weight.grad).norm() / peft_parameter[
                "default"
            ].weight.grad.norm()
            assert error < 1e-5, name


def test_doras_start_is_the_base_and_its_norms_follow_the_update(tiny: Callable[..., Path]) -> None:
    model = made(tiny("llama"), dora=True)
    with model.base():
        base = logits(model.network)
    assert torch.allclose(base, logits(model.network), atol=1e-5)
    layer = next(iter(model.lora.values()))
    first = layer.norms()
    assert layer.norms() is first  # kept in evaluation
    with torch.no_grad():
        layer.lora_B.fill_(0.1)
    exact = layer.base.matrix().double() + layer.scale * layer.lora_B.double() @ layer.lora_A.double()
    assert torch.allclose(layer.norms().double(), exact.norm(dim=1), rtol=1e-6)
    layer.train()
    assert layer.norms() is not layer.norms()


def update_of(layer: LoraLinear) -> Tensor:
    """Returns s B A in float64."""
    return layer.scale * layer.lora_B.detach().double() @ layer.lora_A.detach().double()


# --- starts ----------------------------------------------------------------------------------------------------


def test_the_default_start_does_not_change_between_versions(tiny: Callable[..., Path]) -> None:
    model = made(tiny("llama"))
    for name, layer in model.lora.items():
        assert torch.equal(layer.lora_A, default_lora_a(name, 4, layer.base.in_features, 3))
        assert not layer.lora_B.any()


@pytest.mark.parametrize("bits", [4, 16])
def test_pissa_trains_the_principal_part_and_starts_as_the_base(tiny: Callable[..., Path], bits: int) -> None:
    model = made(tiny("llama"), bits=bits, start=NamedSetting("pissa", {"iterations": None}))
    for layer in model.lora.values():
        u, values, vt = torch.linalg.svd(layer.base.matrix().double(), full_matrices=False)
        best = u[:, :4] * values[:4] @ vt[:4]
        assert (update_of(layer) - best).norm() < 1e-4 * best.norm()
        assert torch.allclose(layer.lora_A.norm(dim=1), layer.lora_B.norm(dim=0), rtol=1e-4)
    with model.base():
        base = logits(model.network)
    assert torch.allclose(base, logits(model.network), atol=1e-5)


def test_pissa_has_pefts_loss_curve(tiny: Callable[..., Path]) -> None:
    """PEFT stores the residual in the base; ours subtracts A₀ and B₀. SGD is invariant to singular vectors' signs."""
    from peft import LoraConfig, get_peft_model

    model = made(tiny("llama"), bits=16, start=NamedSetting("pissa", {"iterations": None}))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(model.lora), init_lora_weights="pissa")
    twin = get_peft_model(base_of(model), config)
    curves = []
    for network in (model.network, twin):
        network.train()
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05)
        curve = []
        for _ in range(6):
            value = loss(network)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(value.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert curves[0][-1] < curves[0][0] - 0.1


def test_the_randomized_svd_is_near_the_exact_one_and_the_same_each_time(tiny: Callable[..., Path]) -> None:
    """The error on random matrices, the hardest case, relative to the minimum (Eckart & Young 1936)."""

    def started(options: dict[str, Any]) -> list[LoraLinear]:
        torch.manual_seed(len(options))  # whatever the state outside is
        return list(made(tiny("llama"), start=NamedSetting("pissa", options)).lora.values())

    def excess(layers: list[LoraLinear]) -> float:
        excesses = []
        for layer in layers:
            whole = layer.base.matrix().double()
            least = torch.linalg.svdvals(whole)[4:].norm()
            excesses.append(float((whole - update_of(layer)).norm() / least) - 1)
        return max(excesses)

    first, second = started({}), started({"iterations": 8})
    assert all(torch.equal(x.lora_A, y.lora_A) for x, y in zip(first, second, strict=True))
    assert -1e-6 < excess(started({"iterations": None})) < 1e-6
    assert excess(first) < 1e-3
    assert excess(started({"iterations": 0})) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loftq_starts_nearer_to_the_unquantized_weight(tiny: Callable[..., Path], family: str) -> None:
    """As PEFT's LoftQ for bitsandbytes models: the truncated SVD of W - Q, the best of its rank."""
    from peft.utils.loftq_utils import _low_rank_decomposition

    for rank, options in ((4, {"iterations": None}), (16, {})):
        model = made(tiny(family), rank=rank, start=NamedSetting("loftq", options))
        original = OriginalWeights(model.weights, model.architecture)
        for name, layer in model.lora.items():
            shape = (layer.base.out_features, layer.base.in_features)
            error = original.matrix(name, shape, transposed=model.transposed) - layer.base.matrix()
            remaining = (error - update_of(layer)).norm() / error.norm()
            least = torch.linalg.svdvals(error.double())[rank:].norm() / error.norm()
            assert remaining == pytest.approx(least.item(), rel=1e-3)
            assert remaining < {4: 0.95, 16: 0.8}[rank]
            if not options:
                continue
            theirs = _low_rank_decomposition(error, rank)
            assert torch.allclose(update_of(layer).float(), theirs["L"] @ theirs["R"], atol=1e-5)


def test_weights_in_several_files_without_the_decoders_name(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny("llama") / "model.safetensors")
    for number, (name, tensor) in enumerate(tensors.items()):
        save_file({name.removeprefix("model."): tensor}, tmp_path / f"model-{number}.safetensors")
    (tmp_path / "config.json").write_text((tiny("llama") / "config.json").read_text())
    original = OriginalWeights(fetch_weights(str(tmp_path)), read_architecture(tmp_path, "llama"))
    expected = tensors["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(original.matrix("model.layers.1.mlp.up_proj", (128, 64), transposed=False), expected)
    for name, shape in (("model.layers.1.mlp.up_proj", (64, 128)), ("model.layers.1.mlp.gone", (1, 1))):
        with pytest.raises(ModelError, match=rf"no separate weight for '{re.escape(name)}'.*adapter\.start"):
            original.matrix(name, shape, transposed=False)


# --- a whole loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["rs", "loftq", "whole", "bias", "bias-of-updates"])
def test_the_loss_curve_is_a_plain_peft_loops(tiny: Callable[..., Path], variant: str) -> None:
    """Compares each step's loss with PEFT on transformers' layers, from the same start, with torch's AdamW."""
    changes = VARIANTS[variant]
    model = made(tiny("gpt2"), **changes)
    options = {"use_rslora": "scaling" in changes, "bias": changes.get("bias", "none"), "fan_in_fan_out": True}
    if "train_also" in changes:
        options |= {"modules_to_save": ["wte", "lm_head"], "ensure_weight_tying": True}
    twin = peft_twin(model, **options)
    trained = [p for p in twin.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in model.trainable().values())
    ours = train_steps(model, 5)
    twin.train()
    torch.manual_seed(1)  # GPT-2 itself has dropout
    optimizer, theirs = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in ours:
        value = loss(twin)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(value.item())
    assert ours == pytest.approx(theirs, abs=1e-4)


# --- rates -----------------------------------------------------------------------------------------------------


def test_lora_plus_rates_are_pefts(tiny: Callable[..., Path]) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    model = made(tiny("gpt2"), dora=True, bias="lora_only", train_also=WHOLE)
    names = {id(p): name for name, p in model.trainable().items()}
    ours = parameter_groups(model.trainable(), 1e-3, 16.0)
    rates = {names[id(p)]: (g["peak"], g.get("weight_decay", 0.1)) for g in ours for p in g["params"]}
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(model.lora), use_dora=True, bias="lora_only",
        modules_to_save=["wte", "lm_head"], ensure_weight_tying=True, fan_in_fan_out=True,
    )  # fmt: skip
    twin = get_peft_model(base_of(model), config)
    theirs = create_loraplus_optimizer(
        twin, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    peft_names = {id(p): name for name, p in twin.named_parameters()}
    expected = {}
    for group in theirs.param_groups:
        for parameter in group["params"]:
            name = peft_names[id(parameter)].removeprefix("base_model.model.")
            name = re.sub(r"\.(modules_to_save\.)?default", "", name)
            expected[name.removesuffix(".weight")] = group["lr"], group["weight_decay"]
    assert rates == expected
    assert {rate for rate, _ in rates.values()} == {1e-3, 16e-3}


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("ratio", [1.0, 8.0])
def test_each_optimizer_takes_groups(tiny: Callable[..., Path], name: str, ratio: float) -> None:
    make = resolve("tunesmith.training.optimizers", name)
    model = shaken(made(tiny("llama")))
    before = {key: value.detach().clone() for key, value in model.trainable().items()}
    optimizer = make(parameter_groups(model.trainable(), 1e-3, ratio), 1e-3, 0.0)
    assert [group["peak"] for group in optimizer.param_groups] == ([1e-3] if ratio == 1 else [1e-3, 8e-3])
    loss(model.network).backward()
    optimizer.step()
    moved = {key: (value - before[key]).abs().max().item() for key, value in model.trainable().items()}
    for key, step in moved.items():  # Adam's first step is the rate, whatever the gradient
        assert step == pytest.approx(1e-3 * (ratio if key.endswith("lora_B") else 1), rel=0.05)


def test_groups_of_plain_lora_are_one_in_the_old_order(tiny: Callable[..., Path]) -> None:
    model = made(tiny("llama"))
    (group,) = parameter_groups(model.trainable(), 2e-4, 1.0)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.trainable().values()]
    assert group["lr"] == group["peak"] == 2e-4
    assert "weight_decay" not in group
    make = resolve("tunesmith.training.optimizers", "paged_adamw_8bit")
    with pytest.raises(RecipeError, match="needs a CUDA device"):
        make([group], 2e-4, 0.0)


# --- what is said ----------------------------------------------------------------------------------------------


def test_the_scale_of_rank_stabilized_lora(tiny: Callable[..., Path]) -> None:
    scales = {layer.scale for layer in made(tiny("llama"), rank=16, scaling="rs").lora.values()}
    assert scales == {8 / math.sqrt(16)}


def test_settings_that_prevent_the_fused_decoder_are_listed(tiny: Callable[..., Path]) -> None:
    reasons = {name: made(tiny("gpt2"), **changes).unfused_reasons() for name, changes in VARIANTS.items()}
    assert all(not reasons[name] for name in ("plain", "rs", "pissa", "loftq"))
    assert [text.split()[0] for text in reasons["all"]] == [
        "adapter.dropout", "adapter.dora", "adapter.train_also", "adapter.train_also", "adapter.bias"
    ]  # fmt: skip
    assert reasons["whole"] == ["adapter.train_also trains the embeddings", "adapter.train_also trains the head"]


def test_unsupported_settings_are_errors(tiny: Callable[..., Path]) -> None:
    for alone in WHOLE:
        with pytest.raises(ModelError, match=rf"one matrix, so the {alone} cannot be trained alone"):
            made(tiny("llama"), train_also=[alone])
    with pytest.raises(ModelError, match=r"rank 33 exceeds the rank of 'model\.layers\.0\.self_attn\.k_proj', 32"):
        made(tiny("llama"), rank=33, start=PISSA)
    with pytest.raises(ModelError, match=r"not quantized\. Set base\.bits to 4"):
        made(tiny("llama"), bits=16, start=LOFTQ)
    with pytest.raises(RecipeError, match="iterations must be 0 or more"):
        made(tiny("llama"), start=NamedSetting("pissa", {"iterations": -1}))
    with pytest.raises(ModelError, match="no layer with an update has a bias"):
        made(tiny("qwen2"), bias="lora_only", layers=["o_proj"])


def test_tied_embeddings_and_head_stay_one_matrix(tiny: Callable[..., Path]) -> None:
    model = made(tiny("llama"), train_also=WHOLE)
    assert [name for name in model.trainable() if "lora" not in name] == ["model.embed_tokens"]
    train_steps(model, 1)
    embeddings, head = model.network.get_input_embeddings(), model.network.get_output_embeddings()
    assert torch.equal(embeddings.weight, head.weight)
    assert model.tied
    with model.base():
        assert torch.equal(embeddings.weight, embeddings.base.weight)
        assert not torch.equal(embeddings.weight, embeddings.copies["weight"])


def test_embeddings_are_trained_in_float32_over_sixteen_bits(tiny: Callable[..., Path]) -> None:
    model = load_model(fetch_weights(str(tiny("gemma2"))), bits=4, device="cpu", precision="bfloat16")
    add_adapter(model, **BASIC, train_also=WHOLE)
    whole = model.trainable()["model.embed_tokens"]
    assert whole.dtype == torch.float32
    losses = train_steps(model)
    assert losses[-1] < losses[0]
    assert model.network(input_ids=IDS).logits.dtype == torch.bfloat16


def test_errors_of_recipes_name_the_line(recipe_file: Callable[..., Path]) -> None:
    wrong = {
        "start": {"loftq": {"iterations": -2}}, "train_also": ["head", "head"], "dora": "perhaps", "rate_ratio": 0,
    }  # fmt: skip
    with pytest.raises(MultipleErrors) as caught:
        read_recipe(str(recipe_file(adapter=wrong)))
    assert "adapter.dora" in str(caught.value)
    assert "adapter.rate_ratio" in str(caught.value)
    path = recipe_file(adapter={**wrong, "dora": True, "rate_ratio": 4.0}, base__bits=16)
    with pytest.raises(MultipleErrors) as caught:
        read_recipe(str(path))
    text = str(caught.value)
    assert re.search(r"line \d+, adapter\.start: loftq needs base\.bits: 4", text)
    assert re.search(r"line \d+, adapter\.start\.loftq\.iterations: 'iterations' must be 0 or more", text)
    assert re.search(r"line \d+, adapter\.train_also: 'head' is listed twice", text)
    with pytest.raises(MultipleErrors, match=r"unknown name 'pisa'.*Did you mean 'pissa'"):
        read_recipe(str(recipe_file(adapter={"start": "pisa"})))
    with pytest.raises(MultipleErrors, match=r"unknown option 'niter'"):
        read_recipe(str(recipe_file(adapter={"start": {"pissa": {"niter": 4}}})))
    good = read_recipe(str(recipe_file(adapter={"start": {"pissa": {"iterations": None}}, "train_also": ["head"]})))
    assert good.adapter.start == NamedSetting("pissa", {"iterations": None})
