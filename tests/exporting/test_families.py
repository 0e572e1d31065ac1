"""Every family as llama.cpp writes it: the merged folder's tokens, one after another, and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith.exporting.convert as converting
import tunesmith.exporting.targets.gguf as gguf_target
import tunesmith.exporting.targets.gguf_lora as lora_target
from adapters import made, shaken
from exporting.test_merge import job_of
from gguf_models import make_convertible, make_smol, opened
from tiny import make_tokenizer
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.exporting.convert import check_base, convert, convert_adapter
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import merge
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.generation.llama_task import GREEDY
from tunesmith.prompt.tokens import encode_prompt
from tunesmith.runs.run import hash_path

WORDS = 24
PROMPTS = [(Turn("user", text),) for text in ("how to do t1 way 3?", "Open", "where is 日本?  two", "Tap Save. 12")]
SMOL = ("qwen3", "gpt2")  # with SmolLM2's tokenizer; the others with one of SentencePiece
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "qwen2", "qwen3", "gemma", "phi3")]
CLOSE = 0.02  # nats; the cache keeps keys and values in float16


def job_for(family: str, folder: Path, **changes: Any) -> Job:
    """An adapter over a tiny model of `family`, every one of its parameters moved."""
    base = make_convertible(folder / "base", family, **changes)
    return job_of(shaken(made(base)), folder)


def merged_model(job: Job, folder: Path) -> tuple[Path, Any]:
    merged = merge(job, folder, torch.float32)
    return merged, AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()


def written(runtime: GgufModel, ids: list[int]) -> list[int]:
    asked = {**GREEDY, "prompt": ids, "n_predict": WORDS, "return_tokens": True, "cache_prompt": False}
    return list(runtime._ask("/completion", asked)["tokens"])


def thoughts(network: Any, ids: list[int], tokens: list[int]) -> torch.Tensor:
    """ln p of every token at each place of `tokens` behind `ids` [places, vocabulary]."""
    with torch.inference_mode():
        found: torch.Tensor = network(input_ids=torch.tensor([ids + tokens]), use_cache=False).logits
    return found[0, len(ids) - 1 : -1].log_softmax(-1)


def greedy_as(network: Any, runtime: GgufModel, prompts: Sequence[list[int]], close: float = CLOSE) -> None:
    """The runtime's tokens are the network's, but where two are as good as equally likely; so are its figures."""
    same = every = 0
    for ids in prompts:
        tokens = written(runtime, ids)
        assert len(tokens) == WORDS
        table = thoughts(network, ids, tokens)
        chosen = table.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (table.max(-1).values - chosen).max() < close
        same += int((table.argmax(-1) == torch.tensor(tokens)).sum())
        every += WORDS
        told = list(runtime.scores(ids + tokens[:3], start=len(ids)))
        assert [each.nats for each in told] == pytest.approx((-chosen[:3]).tolist(), abs=close)
    assert same >= 0.97 * every
    assert len({tuple(written(runtime, ids)) for ids in prompts}) > 1  # the prompts matter


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma2", marks=pytest.mark.slow), "gpt2", *OTHERS])
def test_llama_cpp_answers_as_transformers_does(tmp_path: Path, family: str) -> None:
    if family in SMOL:
        job = job_of(shaken(made(make_smol(tmp_path / "base", family))), tmp_path)
    else:
        job = job_for(family, tmp_path)
    folder, network = merged_model(job, tmp_path / "merged")
    file = convert(job, folder, tmp_path / "model.gguf", "f32")
    prompts = [encode_prompt(prompt, job.template) for prompt in PROMPTS]
    with opened(file, slots=1) as runtime:
        greedy_as(network, runtime, prompts)
        if family not in ("qwen2", "phi3"):  # whose own tokenizers are not of these kinds
            assert [runtime.tokens(runtime.render(prompt)) for prompt in PROMPTS] == prompts


def test_sixteen_bits(tmp_path: Path) -> None:
    job = job_for("llama", tmp_path, tie_word_embeddings=False)
    folder = merge(job, tmp_path / "merged", torch.float16)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with opened(convert(job, folder, tmp_path / "model.gguf", "f16"), slots=1) as runtime:
        greedy_as(network, runtime, [encode_prompt(prompt, job.template) for prompt in PROMPTS], close=0.1)


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_an_adapter_beside_the_base_is_the_merged_model(tmp_path: Path, family: str) -> None:
    job = job_for(family, tmp_path)
    _, network = merged_model(job, tmp_path / "merged")
    base = convert(job, merge(job, tmp_path / "plain", torch.float32, adapter=False), tmp_path / "base.gguf", "f32")
    lora = convert_adapter(job, tmp_path / "lora.gguf", "f32")
    prompts = [encode_prompt(prompt, job.template) for prompt in PROMPTS]
    with opened(base, lora=lora, slots=1) as runtime:
        greedy_as(network, runtime, prompts)
    with opened(base, slots=1) as runtime, pytest.raises(AssertionError):  # without it, it is another model
        greedy_as(network, runtime, prompts)


SAID = 'Be "dry".\nThen \\ stop: {{ 7 * 7 }} {% raw %} é'


def test_the_recipes_system_message_goes_along_where_nobody_brings_one(tmp_path: Path) -> None:
    job = replace(job_for("llama", tmp_path), system=SAID)
    folder = merge(job, tmp_path / "merged", torch.float32)
    asked, own = (Turn("user", "Hi"),), (Turn("system", "Else."), Turn("user", "Hi"))
    wanted = job.template.render((Turn("system", SAID), *asked), generate=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with opened(convert(job, folder, tmp_path / "model.gguf", "f32"), slots=1) as runtime:
        for turns, rendered in ((asked, wanted), (own, job.template.render(own, generate=True))):
            messages = [{"role": turn.role, "content": turn.text} for turn in turns]
            assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == rendered
            assert runtime.render(turns).removeprefix(tokenizer.bos_token) == rendered.removeprefix(tokenizer.bos_token)


# --- what cannot be converted ------------------------------------------------------------------------------------


def unknown_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    make_tokenizer().save_pretrained(folder)


def unknown_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["UnheardOfForCausalLM"]}))


class Asked:
    """llama.cpp's converter, which refuses the same model again in the same words, asked once: it takes 4 s."""

    def __init__(self, real: Callable[..., None]) -> None:
        self.real, self.refused = real, list[tuple[str, ModelError]]()

    def __call__(self, script: str, words: list[str], job: Job) -> None:
        given = hash_path(Path(words[0]))
        for known, error in self.refused:
            if known == given:
                raise error
        try:
            self.real(script, words, job)
        except ModelError as error:
            self.refused.append((given, error))
            raise


@pytest.mark.parametrize(
    ("broken", "said", "target"),
    [
        (unknown_tokenizer, "BPE pre-tokenizer was not recognized", gguf_target),
        (unknown_family, "UnheardOfForCausalLM", lora_target),
    ],
)
def test_what_cannot_be_converted_is_said_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Path], None], said: str, target: Any
) -> None:
    job = job_for("llama", tmp_path)
    broken(job.weights.folder)
    if broken is unknown_tokenizer:
        job = replace(job, template=replace(job.template, tokenizer=make_tokenizer()))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(target, "merge", None)
    monkeypatch.setattr(converting, "_run_converter", Asked(converting._run_converter))
    with pytest.raises(ModelError, match=said) as caught:
        target.write(job)
    assert caught.value.where == job.weights.name and "another base.model" in caught.value.next
    with pytest.raises(ModelError, match=said):
        check_base(job)
    assert sorted(tmp_path.rglob("*")) == before  # not a file, not a folder
