"""Mixtures of experts against transformers and PEFT: quantization, products and adapters, in every stored layout."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tunesmith.models.expert_packing as packing
from adapters import BASIC, IDS, grad_of, logits, shaken
from moe import FAMILIES, make_moe, make_mxfp4
from tunesmith.config.recipe import Adapter
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.models.adapter import adapter_state, load_adapter, write_adapter
from tunesmith.models.architecture import read_architecture
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.experts import FrozenExperts, check_experts, expert_shapes
from tunesmith.models.qlora import FrozenLinear
from tunesmith.models.weights import fetch_weights
from tunesmith.planning.autograd import NF4_BYTES


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """moe(family) -> the folder of a tiny random mixture of experts, made once."""
    return functools.cache(lambda family: make_moe(tmp_path_factory.mktemp(family), family))


def model_of(folder: Path, bits: int = 4, precision: str = "float32") -> Model:
    return load_model(fetch_weights(str(folder)), bits=bits, device="cpu", precision=precision)


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def dequantized(model: Model, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own model with the weights that `model` multiplies by."""
    network = reference(model.weights.folder, dtype)
    state = network.state_dict()
    for name, module in model.network.named_modules():
        if isinstance(module, FrozenLinear):
            state[name.removesuffix(".base") + ".weight"].copy_(module.matrix())
        if isinstance(module, FrozenExperts):
            for part, weights in module.weights.items():
                state[f"{name}.{part}"].copy_(weights.matrices(range(weights.experts)))
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_and_packed_experts_compute_what_transformers_computes(moe: Callable[[str], Path], family: str) -> None:
    expected = logits(reference(moe(family)))
    torch.testing.assert_close(logits(model_of(moe(family), 16).network), expected, rtol=0, atol=1e-5)
    packed = model_of(moe(family))
    assert expert_shapes(packed.network) and all(w.weight is None for w in all_weights(packed))
    torch.testing.assert_close(logits(packed.network), logits(dequantized(packed)), rtol=0, atol=1e-5)
    assert (logits(packed.network) - expected).abs().max() > 1e-2  # 4 bits are not 32


def all_weights(model: Model) -> list[Any]:
    return [weights for module in model.experts().values() for weights in module.weights.values()]


def test_each_expert_is_packed_as_bitsandbytes_packs_a_linear_layer() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for shape in ((3, 64, 128), (2, 7, 10)):  # blocks of 64 within one expert, and an expert that ends inside of one
        weight = torch.randn(*shape, dtype=torch.bfloat16)
        unpacked = packing.unpack_experts(packing.pack_experts(weight), shape)
        for matrix, back in zip(weight, unpacked, strict=True):
            alone = dequantize_4bit(*quantize_4bit(matrix.clone(), quant_type="nf4", compress_statistics=True))
            assert torch.equal(alone, back)


def test_experts_stored_in_mxfp4_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Mxfp4Config

    folder = make_mxfp4(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    plain = plain.float().eval()
    torch.testing.assert_close(logits(model_of(folder, 16).network), logits(plain), rtol=0, atol=1e-5)
    model = model_of(folder)
    for name, module in model.experts().items():
        for part, weights in module.weights.items():
            stored = plain.get_parameter(f"{name}.{part}").detach()
            assert weights.weight is None
            assert torch.equal(
                weights.matrices(range(8)), packing.unpack_experts(packing.pack_experts(stored), stored.shape)
            )


def test_an_nf4_checkpoint_is_packed_after_loading_or_refused(moe: Callable[[str], Path], tmp_path: Path) -> None:
    from bitsandbytes.functional import quantize_4bit
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    stored = AutoModelForCausalLM.from_pretrained(moe("qwen3_moe"), dtype=torch.float32, quantization_config=options)
    stored.save_pretrained(tmp_path)  # its experts in 32 bits
    model = model_of(tmp_path)
    assert all(weights.weight is None for weights in all_weights(model))
    torch.testing.assert_close(logits(model.network), logits(model_of(moe("qwen3_moe")).network), rtol=0, atol=1e-5)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if ".experts." in name]:
        codes, state = quantize_4bit(tensors[name], quant_type="nf4", compress_statistics=True)
        tensors |= {name: codes, **{f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="hold each expert separately in 4 bits"):
        model_of(tmp_path)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4_text", "granitemoe"])
def test_gradients_are_those_of_autograd_over_the_whole_matrices(moe: Callable[[str], Path], family: str) -> None:
    """Compares float32 gradients with float64 ones of the family's module with parameters W + s B A."""
    model = model_of(moe(family))
    add_adapter(model, **BASIC)
    shaken(model)
    network = dequantized(model, torch.float64)
    if family != "llama4_text":
        network.set_experts_implementation("eager")  # the grouped one has no float64
    name, module = next(iter(model.experts().items()))
    family_module = network.get_submodule(name)
    factors = {
        part: [p.detach().double().requires_grad_() for p in (w.lora_A, w.lora_B) if p is not None]
        for part, w in module.weights.items()
    }
    whole = {}
    for part, w in module.weights.items():
        a, b = factors[part]
        delta = torch.einsum("ore,eri->eoi", b.view(len(b), w.rank, w.experts), a.view(w.experts, w.rank, -1)) * w.scale
        whole[part] = getattr(family_module, part) + (delta.transpose(1, 2) if w.multiplies_rows else delta)
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    top_k_index = torch.stack([torch.tensor([t % 5, 7 - t % 2]) for t in range(16)])
    shares = torch.rand(16, 2, generator=torch.Generator().manual_seed(2))
    inputs = (x,) if family == "llama4_text" else (x, top_k_index, shares)
    ours = [value.clone().requires_grad_(value.is_floating_point()) for value in inputs]
    theirs = [v.double().requires_grad_() if v.is_floating_point() else v for v in inputs]
    y = module(*ours)
    exact = torch.func.functional_call(family_module, whole, tuple(theirs))
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    exact.square().sum().backward()
    pairs = [(grad_of(o), grad_of(t)) for o, t in zip(ours, theirs, strict=True) if o.is_floating_point()]
    for part, w in module.weights.items():
        pairs += zip(map(grad_of, (w.lora_A, w.lora_B)), map(grad_of, factors[part]), strict=True)
    for mine, right in pairs:
        assert right.abs().max() > 1e-3
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4_text", "gemma4_text"])
def test_recomputed_activations_give_the_same_gradients_in_16_bits(moe: Callable[[str], Path], family: str) -> None:
    model = model_of(moe(family), precision="bfloat16")
    add_adapter(model, **BASIC)
    shaken(model)
    gradients = []
    for _ in range(2):
        model.network.train()
        model.network(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({name: grad_of(p).clone() for name, p in model.trainable().items()})
        for parameter in model.trainable().values():
            parameter.grad = None
        model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.network.enable_input_require_grads()
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0 and torch.equal(gradient, gradients[1][name]), name


def test_no_dequantized_expert_is_saved_for_the_backward(moe: Callable[[str], Path]) -> None:
    model = model_of(moe("qwen3_moe"))
    add_adapter(model, **BASIC)
    matrix, saved = 48 * 64, []

    def pack_hook(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    trained = {tuple(p.shape) for p in model.trainable().values()}
    module = next(iter(model.experts().values()))
    x = torch.randn(6, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        module(x, torch.tensor([[0, 1]] * 6), torch.ones(6, 2))
    assert saved and not [s for s in saved if s not in trained and torch.Size(s).numel() >= matrix]


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_attach_load_the_adapter(moe: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    from peft import PeftModel, get_peft_model_state_dict

    model = model_of(moe(family), 16)
    add_adapter(model, **BASIC)
    shaken(model)
    write_adapter(tmp_path, *adapter_state(model))
    expected = logits(model.network)
    again = model_of(moe(family), 16)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again.network), expected)
    peft = PeftModel.from_pretrained(reference(moe(family)), tmp_path).eval()
    names = {name.removeprefix("base_model.model.") for name in get_peft_model_state_dict(peft)}
    assert names == {f"{name}.weight" for name in model.trainable()}
    torch.testing.assert_close(logits(peft), expected, rtol=0, atol=1e-4)
    with model.base():
        assert (logits(model.network) - expected).abs().max() > 0.1
        torch.testing.assert_close(logits(model.network), logits(reference(moe(family))), rtol=0, atol=1e-5)
    parameters = json.loads((tmp_path / "adapter_config.json").read_text())["target_parameters"]
    assert len([name for name in parameters if name.startswith("experts.") or "linear.weight" in name]) == 2


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_three_steps_have_pefts_losses(moe: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    from peft import PeftModel

    model = model_of(moe(family), 16)
    add_adapter(model, **BASIC)
    write_adapter(tmp_path, *adapter_state(model))
    peft = PeftModel.from_pretrained(reference(moe(family)), tmp_path, is_trainable=True)

    def losses(network: Any, parameters: list[Any]) -> list[float]:
        optimizer = torch.optim.AdamW(parameters, lr=0.02)
        values = []
        for _ in range(3):
            loss = network(input_ids=IDS, labels=IDS).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    ours = losses(model.network, list(model.trainable().values()))
    theirs = losses(peft, [p for p in peft.parameters() if p.requires_grad])
    assert ours == pytest.approx(theirs, abs=1e-4) and ours[2] < ours[0] - 0.1


def test_16_bit_experts_are_never_all_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_moe(tmp_path / "moe", "qwen3_moe", num_hidden_layers=6, num_experts=32)
    real, peak = packing.pack_experts, [0]

    def watching(weight: Tensor) -> Any:
        alive = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors() if experts(t)}
        peak[0] = max(peak[0], sum(alive.values()))
        return real(weight)

    def tensors() -> list[Tensor]:
        return [item for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter)]

    def experts(tensor: Tensor) -> bool:
        return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 and tensor.numel() % (48 * 64) == 0

    monkeypatch.setattr(packing, "pack_experts", watching)
    model = model_of(folder, precision="bfloat16")
    shapes = expert_shapes(model.network)
    assert len(shapes) == 12
    largest = 2 * max(shape.parameters for shape in shapes.values())
    whole = 2 * sum(shape.parameters for shape in shapes.values())
    assert largest <= peak[0] <= 3 * largest < whole / 2


def test_bytes_and_parameters_are_counted_without_loading(moe: Callable[[str], Path]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for family in ("qwen3_moe", "gpt_oss"):
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(moe(family)))
        shapes = expert_shapes(network)
        model = model_of(moe(family))
        assert shapes == expert_shapes(model.network)
        loaded = sum(b.nbytes for w in all_weights(model) for n, b in w.named_buffers() if "book" not in n)
        count = sum(shape.parameters for shape in shapes.values())
        assert loaded == pytest.approx(count * NF4_BYTES, rel=0.01)
        add_adapter(model, **BASIC)
        trained = sum(p.numel() for n, p in model.trainable().items() if "experts" in n)
        assert trained == sum(shape.adapter_parameters(BASIC["rank"]) for shape in shapes.values())


def test_experts_can_be_left_out_or_named(moe: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import PeftModel

    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"layers": ["q_proj", "gate_up_proj"]}, {"q_proj", "experts"}),
        ({"layers": ["down_proj"]}, {"experts", "down_proj"}),
        ({"layers": ["down_proj"], "experts": "none"}, {"down_proj"}),
        ({"layers": ["q_proj", "v_proj"]}, {"q_proj", "v_proj"}),
    ]
    for index, (changes, owners) in enumerate(cases):
        model = model_of(moe("qwen2_moe"), 16)
        add_adapter(model, **{**BASIC, **changes})
        shaken(model)
        assert {name.rsplit(".", 2)[-2] for name in model.trainable()} == owners
        folder = tmp_path / str(index)
        folder.mkdir()
        write_adapter(folder, *adapter_state(model))
        peft = PeftModel.from_pretrained(reference(moe("qwen2_moe")), folder).eval()
        torch.testing.assert_close(logits(peft), logits(model.network), rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match="gate_up_proj"):
        add_adapter(model_of(moe("qwen2_moe")), **{**BASIC, "layers": ["gate_up_proj"], "experts": "none"})


def adapter(**changes: Any) -> Adapter:
    return Adapter.model_validate(changes)


def refusals(adapter: Adapter, folder: Path, **more: Any) -> list[TunesmithError]:
    base = read_architecture(folder, "")
    layers, parts = base.covered(adapter.layers, adapter.experts)
    return check_experts(adapter, base.network, list(layers), list(parts), **more)


@pytest.mark.parametrize(
    ("family", "changes", "more", "where"),
    [
        ("qwen3_moe", {"dora": True}, {}, "adapter.dora"),
        ("qwen3_moe", {"dropout": 0.1}, {}, "adapter.dropout"),
        ("qwen3_moe", {"start": "pissa"}, {}, "adapter.start"),
        ("qwen3_moe", {"start": "loftq"}, {}, "adapter.start"),
        ("gpt_oss", {"bias": "all"}, {}, "adapter.bias"),
        ("qwen2_moe", {"dora": True, "experts": "none"}, {}, "adapter.dora"),
        ("qwen3_moe", {}, {"engine": "trl"}, "train.engine"),
        ("qwen3_moe", {}, {"parallel": "fsdp"}, "train.parallel"),
        ("qwen3_moe", {}, {"targets": ["gguf", "gguf_lora"]}, "export.files: gguf_lora"),
    ],
)
def test_unsupported_settings_are_refused_before_training(
    moe: Callable[[str], Path], family: str, changes: dict[str, Any], more: dict[str, Any], where: str
) -> None:
    errors = refusals(adapter(**changes), moe(family), **more)
    assert [error.where for error in errors] == [where] and all(error.next for error in errors)
    if where.startswith("adapter."):
        settings = {**BASIC, **{k: getattr(adapter(**changes), k) for k in changes}}
        with pytest.raises(TunesmithError, match=errors[0].what):
            add_adapter(model_of(moe(family)), **settings)


def test_supported_settings_pass(moe: Callable[[str], Path], tiny: Callable[..., Path]) -> None:
    for family, changes in (
        ("qwen3_moe", {}),
        ("qwen3_moe", {"dora": True, "dropout": 0.1, "start": "pissa", "experts": "none"}),
        ("qwen3_moe", {"dora": True, "layers": ["q_proj"]}),
        ("gpt_oss", {"bias": "all", "experts": "none"}),
    ):
        assert refusals(adapter(**changes), moe(family)) == []
    assert refusals(adapter(dora=True), tiny("llama"), engine="trl") == []


def test_experts_in_another_layout_are_refused(tmp_path: Path) -> None:
    from transformers import DbrxConfig, DbrxForCausalLM

    attention = {"kv_n_heads": 1, "clip_qkv": 8, "rope_theta": 10000.0}
    experts = {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}
    sizes = {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64, "vocab_size": 64}
    config = DbrxConfig(**sizes, attn_config=attention, ffn_config=experts)
    DbrxForCausalLM(config).save_pretrained(tmp_path)
    assert [error.where for error in refusals(adapter(), tmp_path)] == ["base.model"]
    with pytest.raises(ModelError, match="have a layout that is not supported"):
        model_of(tmp_path)
