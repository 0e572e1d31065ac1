"""Merged weights against the model that was trained: every family, every variant, stopped and gone on."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import tunesmith.exporting.merge as merging
from adapters import VARIANTS, WITH_BIAS, logits, made, shaken
from tiny import FAMILIES
from tunesmith.errors import ModelError, ResourceError
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import merge, shipped_template
from tunesmith.models.adapter import adapter_state, write_adapter
from tunesmith.models.build import Model
from tunesmith.prompt.template import Template, load_template, load_tokenizer


def job_of(model: Model, tmp_path: Path, **changes: Any) -> Job:
    """The model's adapter written down, ready to be shipped."""
    adapter = tmp_path / "adapter"
    adapter.mkdir(exist_ok=True)
    write_adapter(adapter, *adapter_state(model))
    folder = model.weights.folder
    given: dict[str, Any] = {
        "name": "tiny", "folder": tmp_path / "export", "weights": model.weights, "adapter": adapter,
        "template": load_template(load_tokenizer(folder), "model", folder), "stop": (),
        "merge_into": "quantized", "bits": 4, "precision": "float32", "limit": 20, "context": 128, "seed": 1,
        "card": lambda: "",
    }  # fmt: skip
    return Job(**{**given, **changes})


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


CASES = [(family, "plain") for family in FAMILIES]
CASES += [(family, variant) for family in ("llama", "gpt2") for variant in VARIANTS if variant != "plain"]


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_merged_is_what_was_trained(tiny: Callable[..., Path], tmp_path: Path, family: str, variant: str) -> None:
    changes = dict(VARIANTS[variant])
    if family not in WITH_BIAS:
        changes.pop("bias", None)
    model = shaken(made(tiny(family), **changes))
    wanted = logits(model.network)
    folder = merge(job_of(model, tmp_path), tmp_path / "merged", torch.float32)
    torch.testing.assert_close(logits(loaded(folder)), wanted, rtol=2e-4, atol=2e-4)
    assert not torch.allclose(logits(loaded(model.weights.folder)), wanted, atol=1e-2)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_onto_the_weights_as_they_came(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = shaken(made(tiny("llama"), bits=16))
    wanted = logits(model.network)
    job = job_of(model, tmp_path, merge_into="original", bits=4)
    torch.testing.assert_close(logits(loaded(merge(job, tmp_path / "a", torch.float32))), wanted, rtol=2e-4, atol=2e-4)
    other = merge(job_of(model, tmp_path), tmp_path / "b", torch.float32)
    assert (logits(loaded(other)) - wanted).abs().max() > 1e-2  # 4 bits have moved the base


def test_the_base_alone(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = shaken(made(tiny("llama")))
    folder = merge(job_of(model, tmp_path), tmp_path / "base", torch.float32, adapter=False)
    with model.base():
        wanted = logits(model.network)
    torch.testing.assert_close(logits(loaded(folder)), wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("kind", "word"), [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (None, "F32")])
def test_number_types(tiny: Callable[..., Path], tmp_path: Path, kind: torch.dtype | None, word: str) -> None:
    model = shaken(made(tiny("llama")))
    folder = merge(job_of(model, tmp_path), tmp_path / "merged", kind)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {word}  # noqa: SIM118
    far = (logits(loaded(folder)) - logits(model.network)).abs().max()
    assert far < {"F32": 1e-3, "F16": 0.03, "BF16": 0.3}[word]


def test_stopped_anywhere_it_goes_on(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "SHARD", 20_000)
    model = shaken(made(tiny("llama")))
    job = job_of(model, tmp_path)
    whole = merge(job, tmp_path / "whole", torch.float32)
    real, calls = merging._write_tensor, {"left": 0, "made": 0}

    def breaking(file: Any, out: Any) -> None:
        calls["left"] -= 1
        calls["made"] += 1
        if calls["left"] == 0:
            file.write(b"half")
            raise KeyboardInterrupt
        real(file, out)

    monkeypatch.setattr(merging, "_write_tensor", breaking)
    for left in (1, 3, 2, 5, 4):
        calls["left"] = left
        with pytest.raises(KeyboardInterrupt):
            merge(job, tmp_path / "stopped", torch.float32)
        assert not (tmp_path / "stopped" / "config.json").exists()
    calls["left"] = -1
    again = merge(job, tmp_path / "stopped", torch.float32)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in again.iterdir()) and len(names) > 6
    assert all((whole / name).read_bytes() == (again / name).read_bytes() for name in names)
    before = calls["made"]
    merge(job, tmp_path / "stopped", torch.float32)
    assert calls["made"] == before  # whole: nothing is made again


def test_a_full_disk_is_said(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(shaken(made(tiny("llama"))), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("tunesmith.exporting.merge.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(ResourceError, match=r"need .* GiB .* free.*--runs"):
            merge(job, tmp_path / "merged")

    def full(file: Any, out: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(merging, "_write_tensor", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            merge(job, tmp_path / "merged")
    assert merge(job, tmp_path / "merged").is_dir()


def test_what_cannot_be_merged_is_said(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = shaken(made(tiny("llama")))
    other = made(tiny("llama", num_hidden_layers=3), layers=["q_proj"])
    with pytest.raises(ModelError, match=r"no weight for the adapter's 'model\.layers\.2.*another base"):
        merge(job_of(shaken(other), tmp_path, weights=model.weights), tmp_path / "merged")
    with torch.no_grad():
        next(iter(model.lora.values())).lora_B[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"NaN.*Train again"):
        merge(job_of(model, tmp_path), tmp_path / "broken")
    with torch.no_grad():
        next(iter(model.lora.values())).lora_B[0, 0] = 1e6
    with pytest.raises(ModelError, match="more than float16 can"):
        merge(job_of(model, tmp_path), tmp_path / "large", torch.float16)


def test_who_renders_the_template_elsewhere_needs_no_more(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A template that asks whether the tokenizer puts a start token carries the answer."""
    from transformers import AutoTokenizer

    text = (
        "{{ bos_token if starts_with_bos else '-' }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    )
    model = made(tiny("llama"))
    job = job_of(model, tmp_path)
    template = type(job.template)(job.template.tokenizer, text, "test")
    folder = merge(job_of(model, tmp_path, template=template), tmp_path / "merged")
    shipped = AutoTokenizer.from_pretrained(folder)
    said = shipped.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert said == "-Hi<|im_end|>"
    assert job.template.tokenizer.chat_template != text


def test_a_template_without_a_system_message_stays_as_it_is(tiny: Callable[..., Path], tmp_path: Path) -> None:
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    text = refusal + "{{ messages[0].content }}"
    job = job_of(made(tiny("llama")), tmp_path)
    refuses = replace(job, system="Be dry.", template=Template(job.template.tokenizer, text, "test"))
    assert shipped_template(refuses) == text
