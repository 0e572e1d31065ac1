"""A GGUF file as a base: llama.cpp's converter writes a tiny model, and the same model is read back from its file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_models import SAID, finish, make_convertible, make_smol, opened, renamed, reordered, write_model
from tiny import FAMILIES, make_model
from tunesmith.errors import ModelError
from tunesmith.exporting.convert import _converter_folder
from tunesmith.generation.gguf_check import TEXTS, compare_likelihood, compare_tokens, compare_with_llama_cpp
from tunesmith.models.gguf_config import llama3_factors
from tunesmith.models.gguf_header import read_header
from tunesmith.models.gguf_weights import _bfloat16, convert_gguf, parts_of
from tunesmith.models.weights import Weights
from tunesmith.prompt.template import load_tokenizer

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
    "short_factor": [1.0] * 8, "long_factor": [1.5] * 8,
}  # fmt: skip
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama 3.2": ("llama", {"rope_parameters": LLAMA3}),
    "llama with biases": ("llama", {"attention_bias": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3 with yarn": ("qwen3", {"rope_parameters": YARN}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "gemma3 from 4B on": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }
        },
    ),
    "phi3": ("phi3", {}),
    "phi3 with long factors": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 256}),
    "gpt2": ("gpt2", {}),
    "granite": ("granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "olmo2": ("olmo2", {"tie_word_embeddings": False}),
    "smollm3": ("smollm3", {}),
}
SMOL = ("qwen3", "gpt2", "olmo2", "granite", "smollm3")  # with SmolLM2's tokenizer; the others with SentencePiece
OWN = {
    "gemma3_text": {**FAMILIES["gemma2"], "sliding_window": 32, "num_hidden_layers": 7},
    **{family: {k: v for k, v in FAMILIES["llama"].items() if k != "head_dim"} for family in ("granite", "olmo2")},
    "smollm3": {**{k: v for k, v in FAMILIES["llama"].items() if k != "head_dim"}, "num_hidden_layers": 4},
}
QUICK = ("llama 3.2", "gemma3", "qwen3", "phi3")


@pytest.fixture(autouse=True)
def more_families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, settings in OWN.items():
        monkeypatch.setitem(FAMILIES, family, settings)


def written(folder: Path, target: Path, kind: str = "f32", *more: str) -> Path:
    """The folder as llama.cpp's own converter writes it."""
    words = [
        str(_converter_folder() / "convert_hf_to_gguf.py"),
        str(folder),
        "--outtype",
        kind,
        "--outfile",
        str(target),
        *more,
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def made(folder: Path, which: str) -> Path:
    family, changes = MADE[which]
    if family in SMOL:
        make_smol(folder, family, pad_token_id=0, **changes)
        config = json.loads((folder / "config.json").read_text())  # of GPT-2 the converter asks for an older name
        (folder / "config.json").write_text(json.dumps({"n_ctx": config.get("n_positions"), **config}))
        return folder
    return make_convertible(folder, family, **changes)


def converted(path: Path, folder: Path) -> Path:
    folder.mkdir()
    convert_gguf(path, folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(7, 107)[None]  # longer than the window of the local layers
    with torch.inference_mode():
        found: torch.Tensor = network(input_ids=ids, use_cache=False).logits
    return found


@pytest.mark.parametrize(
    "which",
    [name if name in QUICK else pytest.param(name, marks=(pytest.mark.slow, pytest.mark.long)) for name in MADE],
)
def test_a_model_comes_back_from_its_file(tmp_path: Path, which: str) -> None:
    base = made(tmp_path / "base", which)
    path = written(base, tmp_path / "model.gguf")
    back = converted(path, tmp_path / "back")
    before, after = load_file(base / "model.safetensors"), load_file(back / "model.safetensors")
    before = {name: value for name, value in before.items() if not (name == "lm_head.weight" and name not in after)}
    assert set(after) == set(before)
    for name, value in before.items():
        shown = after[name] if after[name].shape == value.shape else after[name][: len(value)]
        torch.testing.assert_close(shown, value[: len(shown)].float(), rtol=0, atol=1e-6)
    vocabulary = len(after[next(name for name in after if "embed" in name or "wte" in name)])
    torch.testing.assert_close(logits(back)[..., :vocabulary], logits(base)[..., :vocabulary], rtol=1e-4, atol=1e-4)
    if which == "qwen2":  # whose tokenizer is never of this kind
        with opened(path, slots=1) as runtime:
            compare_likelihood(path, runtime, load_tokenizer(back), AutoModelForCausalLM.from_pretrained(back))
        return
    said: list[str] = []
    compare_with_llama_cpp(path, back, said.append)  # and llama.cpp takes it for the same
    assert "llama.cpp's" in said[-1]


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "tq2_0"])
def test_types_of_tensors(tmp_path: Path, kind: str) -> None:
    base = make_convertible(tmp_path / "base", hidden_size=256, intermediate_size=256, head_dim=64)
    path = written(base, tmp_path / "model.gguf", kind)
    back = load_file(converted(path, tmp_path / "back") / "model.safetensors")
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        if tensor.name == "blk.0.ffn_up.weight":
            told = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
    found = back["model.layers.0.mlp.up_proj.weight"]
    assert found.dtype == (torch.float16 if kind == "f16" else torch.bfloat16)
    assert torch.equal(found, told.to(found.dtype))
    assert back["model.norm.weight"].dtype == torch.float32


def test_bfloat16_is_rounded_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) * 3
    values[:6] = [0.0, -0.0, 1e-40, 65504.0, 3e38, 1.00390625]
    ours = torch.from_numpy(_bfloat16(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours, torch.from_numpy(values).bfloat16())


def test_llama3_factors_are_transformers_own() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(head_dim=64, rope_parameters=LLAMA3, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / (500000.0 ** (torch.arange(0, 64, 2) / 64))
    assert llama3_factors(LLAMA3, 500000.0, 64) == pytest.approx((plain / scaled).tolist(), rel=1e-4)


def test_a_model_in_parts(tmp_path: Path) -> None:
    base = make_convertible(tmp_path / "base")
    whole = written(base, tmp_path / "whole.gguf")
    written(base, tmp_path / "model.gguf", "f32", "--split-max-tensors", "8")
    first, *later = sorted(tmp_path.glob("model-*.gguf"))
    assert later
    one, several = converted(whole, tmp_path / "one"), converted(first, tmp_path / "several")
    before, after = load_file(one / "model.safetensors"), load_file(several / "model.safetensors")
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ModelError, match=rf"is part 2 of a model in \d parts.*Use the first part, {first.name}"):
        convert_gguf(later[0], tmp_path)
    later[-1].unlink()
    with pytest.raises(ModelError, match=rf"{later[-1].name} is missing"):
        parts_of(first)


# --- tokenizers ------------------------------------------------------------------------------------------------

STRANGE = [
    "½", " ½ kg", "x² + y³", "12½", "  \n \t x", "a\u0301e\u0308", "ⅷ 𝟘𝟙", "Ǆ ǅ ǆ", "İstanbul", "ßẞ", "word" * 40,
    "\u2028line\u2029", "a\r\nb\r\n\r\n", "'S 'LL 'Ve 'x", "–—−‐", "٣٤٥", "१२३", "🏴\U000e0067\U000e0062", "\x07bell",
]  # fmt: skip


@pytest.mark.parametrize("which", ["bytes", "pieces"])
def test_texts_are_cut_as_llama_cpp_cuts_them(tmp_path: Path, which: str) -> None:
    if which == "bytes":
        path = written(make_smol(tmp_path / "base", "llama"), tmp_path / "model.gguf")
    else:
        path = written(make_convertible(tmp_path / "base"), tmp_path / "model.gguf")
    tokenizer = load_tokenizer(converted(path, tmp_path / "back"))
    with opened(path, slots=1) as runtime:
        compare_tokens(path, runtime, tokenizer)
        for text in (*STRANGE, *SAID, *(first + second for first in TEXTS[:6] for second in STRANGE)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert ids == runtime.cut(text), text
            assert tokenizer.decode(ids) == text
        assert tokenizer("a")["input_ids"] == runtime.tokens("a")  # the start token, or none


@pytest.mark.parametrize(("rule", "text"), [("llama-bpe", "1234567"), ("qwen2", "1234567"), ("gpt-2", "don'T 12")])
def test_rules_of_splitting(tmp_path: Path, network: Any, rule: str, text: str) -> None:
    """One vocabulary with merges of digits, cut by the rules of several models."""
    path = byte_file(tmp_path / "model.gguf", network, rule=rule)
    tokenizer = load_tokenizer(converted(path, tmp_path / "back"))
    with opened(path, slots=1) as runtime:
        for each in (text, *TEXTS, *STRANGE):
            assert tokenizer(each, add_special_tokens=False)["input_ids"] == runtime.cut(each), each


def test_qwen2(tmp_path: Path, network: Any) -> None:
    """Its folder is read with a class of its own."""
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "base", "qwen2"), dtype=torch.float32)
    path = byte_file(tmp_path / "model.gguf", model, rule="qwen2", family="qwen2", like=network)
    folder = converted(path, tmp_path / "back")
    said: list[str] = []
    compare_with_llama_cpp(path, folder, said.append)
    assert "likelihoods" in said[-1]


def test_another_tokenizer_is_noticed(tmp_path: Path, network: Any) -> None:
    path = byte_file(tmp_path / "model.gguf", network, rule="qwen2")
    tokenizer = load_tokenizer(converted(path, tmp_path / "back"))
    other = byte_file(tmp_path / "other.gguf", network, rule="llama-bpe")
    with opened(other, slots=1) as runtime, pytest.raises(ModelError, match="its tokenizer cannot be rebuilt: in "):
        compare_tokens(other, runtime, tokenizer)


def test_other_weights_are_noticed(tmp_path: Path, network: Any) -> None:
    path = byte_file(tmp_path / "model.gguf", network)
    folder = converted(path, tmp_path / "back")
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        weight = other.model.layers[0].self_attn.q_proj.weight
        weight.copy_(weight.roll(7, 0) * 3)
        other.model.layers[1].mlp.down_proj.weight.mul_(-1)
    with opened(path, slots=1) as runtime:
        compare_likelihood(path, runtime, load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder))
        with pytest.raises(ModelError, match=r"the converted model differs from the file: \d"):
            compare_likelihood(path, runtime, load_tokenizer(folder), other)


def byte_file(
    path: Path, network: Any, *, rule: str = "gpt-2", like: Any = None, family: str = "llama", **more: Any
) -> Path:
    """A model of `family` whose byte-level vocabulary joins digits, and some letters behind a space.

    `like` is a llama of the same sizes, where the model is none.
    """
    first = path.with_suffix(".plain")
    write_model(first, like or network)
    reader, writer = gguf.GGUFReader(first), gguf.GGUFWriter(path, family)
    tokens = [reader.fields["tokenizer.ggml.tokens"].contents(at) for at in range(261)]
    digits = [f"{a}{b}" for a in "0123456789" for b in "0123456789"][: 400 - 261 - 2]
    tokens, merges = [*tokens, *digits, "Ġd", "<|endoftext|>"], [*(" ".join(each) for each in digits), "Ġ d"]
    for field in reader.fields.values():
        if field.name.startswith("llama.") and "vocab_size" not in field.name:
            kind = field.types[0]
            writer.add_key_value(field.name.replace("llama.", f"{family}."), field.contents(), kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 5 + [1] * (len(tokens) - 6) + [3])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(4)
    writer.add_add_bos_token(False)
    for key, value in more.items():
        writer.add_uint32(key, value)
    for name, value in network.state_dict().items():
        array = value.float().numpy()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            array = np.concatenate([array, array[: len(tokens) - len(array)]])
        if name != "lm_head.weight":
            kept = array if family != "llama" else reordered(name, array)
            target = renamed(name.replace(".bias", ".weight")).replace("weight", name.rpartition(".")[2])
            writer.add_tensor(target, kept)
    return finish(writer, path)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("llama")), dtype=torch.float32)


# --- what is refused -------------------------------------------------------------------------------------------


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(64)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"architecture 'mamba' cannot be a base; supported: llama, .*\.safetensors"):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("llama.expert_count", "llama.expert_count = 7 cannot be expressed"),
        ("llama.rope.scaling.original_context_length", ""),
        ("llama.attention.sliding_window", "llama.attention.sliding_window = 7 cannot be expressed"),
        ("llama.attention.value_length", "llama.attention.value_length = 7 cannot be expressed"),
        ("general.quantized_by_number", ""),
    ],
)
def test_what_a_file_states_about_its_model_is_used_or_refused(
    tmp_path: Path, network: Any, key: str, said: str
) -> None:
    stated: dict[str, Any] = {key: 7}
    path = byte_file(tmp_path / "model.gguf", network, **stated)
    if said:
        with pytest.raises(ModelError, match=said):
            convert_gguf(path, tmp_path)
        assert not (tmp_path / "model.safetensors").exists()
    else:
        convert_gguf(path, tmp_path)


def test_unknown_scaling_factors_are_refused(tmp_path: Path) -> None:
    base = make_convertible(tmp_path / "base", rope_parameters={**LLAMA3, "high_freq_factor": 3.0})
    path = written(base, tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        convert_gguf(path, tmp_path)


def test_missing_and_unknown_tensors_are_named(tmp_path: Path, network: Any) -> None:
    path = write_model(tmp_path / "model.gguf", network, leave_out="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has the shape nothing"):
        convert_gguf(path, tmp_path)
    assert read_header(path).tensors


def test_an_unknown_rule_is_named(tmp_path: Path, network: Any) -> None:
    path = byte_file(tmp_path / "model.gguf", network, rule="no-such-rule")
    with pytest.raises(ModelError, match="pre-tokenizer 'no-such-rule', which is not supported"):
        convert_gguf(path, tmp_path)


def test_the_files_template_becomes_the_tokenizers(tmp_path: Path, network: Any) -> None:
    path = write_model(tmp_path / "model.gguf", network, chat="{{ messages[0]['content'] }} it is")
    folder = converted(path, tmp_path / "back")
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages[0]['content'] }} it is"
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == 4 and config["bos_token_id"] == 1
    assert Weights("x", folder, "").folder == folder
