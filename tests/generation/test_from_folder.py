"""Replies of tiny folders and adapters from transformers and PEFT, compared with ours; and failures of the process."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from greedy import PROMPTS
from tiny import CHATML
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.generation import from_folder, transformers_child
from tunesmith.generation.from_folder import FolderModel
from tunesmith.generation.from_weights import WeightsModel
from tunesmith.generation.text_model import Reply
from tunesmith.generation.transformers_child import LoadedModel
from tunesmith.models.adapter import adapter_state, write_adapter
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt.template import Template, load_template, load_tokenizer
from tunesmith.prompt.tokens import encode_prompt

WORDS = 24
WISHES = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "top_k": 3}
STRICT = "{% if messages[-1]['content'] == 'no' %}{{ raise_exception('never no') }}{% endif %}" + CHATML
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"dora": True},
    "whole": {"train_also": ["embeddings", "head"]},
}


def speaking(tiny: Callable[..., Path]) -> Path:
    """A llama that does not repeat what it reads, as it would with one matrix for reading and writing."""
    return tiny("llama", tie_word_embeddings=False)


def made(folder: Path, bits: int, **changes: Any) -> Model:
    """A base in float32 with an adapter that changes what is said."""
    model = load_model(fetch_weights(str(folder)), bits=bits, device="cpu", precision="float32")
    add_adapter(model, **{"rank": 4, "alpha": 8, "layers": "all", "dropout": 0.0, "seed": 1, **changes})
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in model.lora.values():
            layer.lora_B.normal_(std=0.3, generator=source)
    model.network.eval()
    return model


def shipped(model: Model, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_adapter(folder, *adapter_state(model))
    return folder


def changed(source: Path, target: Path, **weights: Any) -> Path:
    """A copy of a folder, its weights replaced; None leaves one out."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors") | weights
    save_file({k: v for k, v in tensors.items() if v is not None}, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.fixture(scope="module")
def template(tiny: Callable[..., Path]) -> Template:
    folder = speaking(tiny)
    return load_template(load_tokenizer(folder), "model", folder)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> Model:
    return made(speaking(tiny), 16)


@pytest.fixture(scope="module")
def started(
    tiny: Callable[..., Path], model: Model, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[FolderModel]]]:
    """All children that are needed, side by side: each imports transformers for seconds."""
    here, folder = tmp_path_factory.mktemp("folders"), speaking(tiny)
    adapter = shipped(model, here / "adapter")
    own_folder = changed(folder, here / "own")
    config = json.loads((own_folder / "generation_config.json").read_text())
    (own_folder / "generation_config.json").write_text(
        json.dumps({**config, **WISHES, "eos_token_id": [4, first(folder)]})
    )
    (own_folder / "chat_template.jinja").write_text(STRICT)
    with ThreadPoolExecutor(2) as pool:
        settings = {
            "tuned": pool.submit(FolderModel, folder, adapter=adapter, template=template, threads=1),
            "own": pool.submit(FolderModel, own_folder, context=400, threads=1),
            "packed": pool.submit(FolderModel, folder, adapter=adapter, template=template, bits=4, threads=1),
        }
    yield settings
    for item in settings.values():
        if not item.exception():
            item.result().close()


@pytest.fixture
def tuned(started: dict[str, Future[FolderModel]]) -> Iterator[FolderModel]:
    """The adapter over its base, with our template."""
    text = started["tuned"].result()
    stops, texts = text.stops, text.texts
    yield text
    text.stops, text.texts = stops, texts


@pytest.fixture
def own(started: dict[str, Future[FolderModel]]) -> FolderModel:
    """The base alone, with all its own wishes and its own template."""
    return started["own"].result()


@pytest.fixture
def packed(started: dict[str, Future[FolderModel]]) -> FolderModel:
    """The adapter over its base in four bits."""
    return started["packed"].result()


def first(folder: Path) -> int:
    """A token that ends the base's first reply in its midst."""
    model = load_model(fetch_weights(str(folder)), bits=16, device="cpu", precision="float32")
    template = load_template(load_tokenizer(folder), "model", folder)
    return free(model, template)[1]


def free(model: Model, template: Template) -> tuple[int, int]:
    """Of the first reply, written as if nothing ended it: a place after the second, and the token there, its first."""
    ids, output = encode_prompt(PROMPTS[0], template), list[int]()
    with torch.inference_mode():
        while len(output) < WORDS:
            output.append(int(model.network(input_ids=torch.tensor([ids + output])).logits[0, -1].argmax()))
    return next((n, output[n]) for n in range(3, WORDS) if output[n] not in output[:n])


def replies(text: Any, batch: int = 16, limit: int = WORDS) -> list[Reply]:
    return [reply for _, reply in sorted(text.replies(PROMPTS, max_new_tokens=limit, batch=batch))]


def pid(text: FolderModel) -> int:
    return text._running().process.pid


# --- what it says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_replies_are_those_of_the_weights_that_were_tested(
    tuned: FolderModel, model: Model, template: Template, batch: int
) -> None:
    result = replies(tuned, batch)
    assert result == replies(WeightsModel(model, template, tuned=True))
    assert len({reply.text for reply in result}) == len(PROMPTS)  # the prompts matter
    with model.base():
        assert result != replies(WeightsModel(model, template, tuned=False))  # and so does the adapter


def test_places_are_given_with_the_shortest_prompt_first(tuned: FolderModel) -> None:
    assert [place for place, _ in tuned.replies(PROMPTS, max_new_tokens=1, batch=2)] == [4, 1, 3, 0, 2]
    assert list(tuned.replies([], max_new_tokens=1, batch=2)) == []
    assert replies(tuned, limit=0) == [Reply("", False, 0)] * len(PROMPTS)


def test_a_stop_token_ends_a_reply_and_is_not_part_of_it(tuned: FolderModel, model: Model, template: Template) -> None:
    place, token = free(model, template)
    tuned.stops, text = frozenset([token]), WeightsModel(model, template, tuned=True)
    text.stops = [token, 4]
    for batch in (1, 16):
        assert replies(tuned, batch) == replies(text)
    result = replies(tuned)
    assert (result[0].stopped, result[0].tokens) == (True, place)
    assert {reply.stopped for reply in result} == {True, False}  # some go on beside those that ended
    for limit, stopped in [(place, False), (place + 1, True)]:  # at the limit it counts as stopped
        ((_, reply),) = tuned.replies(PROMPTS[:1], max_new_tokens=limit, batch=1)
        assert (reply.stopped, reply.tokens) == (stopped, place)


def test_a_text_that_ends_replies_is_cut_off_and_kept_apart(
    tuned: FolderModel, model: Model, template: Template
) -> None:
    plain = replies(tuned)
    long = max(plain, key=lambda reply: len(reply.text))
    stop = long.text[len(long.text) // 2 :][:3]
    tuned.texts = (stop, "never said")
    result = replies(tuned)
    assert result == replies(WeightsModel(model, template, tuned=True, stop=tuned.texts)) == replies(tuned, 1)
    ended = result[plain.index(long)]
    assert ended.cut.startswith(stop) and not ended.stopped and ended.tokens < long.tokens
    assert ended.text == long.text[: long.text.index(stop)].strip()


def test_a_folder_answers_by_its_own_template_and_end_whatever_else_it_wishes(
    own: FolderModel, model: Model, template: Template
) -> None:
    text = WeightsModel(model, template, tuned=False)
    text.stops = [4, first(own.folder)]
    assert replies(own) == replies(text)
    assert replies(own)[0].stopped
    for prompt in PROMPTS:
        assert own.render(prompt) == template.render(prompt, generate=True)
        assert own.tokens(own.render(prompt)) == encode_prompt(prompt, template)
    with pytest.raises(ModelError, match=r"own: transformers refuses: TemplateError: never no\. Change"):
        own.render([Turn("user", "no")])
    with pytest.raises(ModelError, match="never no"):
        list(own.replies([PROMPTS[0], (Turn("user", "no"),)], max_new_tokens=1, batch=1))


def test_what_is_thought_of_given_tokens(tuned: FolderModel, model: Model, template: Template) -> None:
    start = len(encode_prompt(PROMPTS[0], template))
    ids = encode_prompt(PROMPTS[0], template) + template.tokenizer("Not said. 日")["input_ids"] + [4]
    result = list(tuned.scores(ids, start=start, top=5))
    table = exact(tuned)(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
    assert [item.token for item in result] == ids[start:]
    for row, item in zip(table, result, strict=True):
        assert item.nats == pytest.approx(-float(row[item.token]), abs=1e-4)
        assert [value for _, value in item.top] == pytest.approx(row.topk(5).values.tolist(), abs=1e-4)
        assert [value for _, value in item.top] == pytest.approx([float(row[n]) for n, _ in item.top], abs=1e-4)
        assert len({n for n, _ in item.top}) == 5
    (all_scores,) = tuned.scores(ids[: start + 1], start=start, top=1 << 24)
    assert len(all_scores.top) == table.shape[1]
    assert sum(torch.tensor([value for _, value in all_scores.top]).double().exp()) == pytest.approx(1.0, abs=1e-6)
    assert len(list(tuned.scores(ids, start=1, top=1))) == len(ids) - 1
    assert list(tuned.scores(ids, start=len(ids))) == []
    with pytest.raises(ModelError, match="a text of 513 tokens does not fit the context of 512"):
        list(tuned.scores([9] * 513, start=1))


def exact(text: FolderModel) -> Any:
    """The same adapter by PEFT in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(text.folder, dtype=torch.float64)
    return PeftModel.from_pretrained(base, str(text.adapter)).double().eval().requires_grad_(False)


def test_four_bits_as_peft_users_load_them_are_nearly_ours(
    packed: FolderModel, model: Model, template: Template, tiny: Callable[..., Path]
) -> None:
    """Up to bfloat16: on processors that have it bitsandbytes multiplies so, scales included."""
    ours = made(speaking(tiny), 4)
    ids = packed.tokens(packed.render(PROMPTS[2]))
    result = torch.tensor([item.nats for item in packed.scores(ids, start=1)])
    shares = []
    for item in (ours, model):
        with torch.inference_mode():
            table = item.network(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        expected = -table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        shares.append(float((result - expected).abs().max()))
    assert shares[0] < 0.06 < 0.2 < shares[1]  # far nearer than to the base in 16 bits
    reply_pairs = zip(replies(packed), replies(WeightsModel(ours, template, tuned=True)), strict=True)
    assert sum(one == expected_reply for one, expected_reply in reply_pairs) >= len(PROMPTS) - 1


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_adapter_is_read(
    tiny: Callable[..., Path], tmp_path: Path, family: str, variant: str, bits: int
) -> None:
    """DoRA in four bits is told apart from what bitsandbytes' packed weights would make of it: 0.2 nats and more."""
    ours = made(tiny(family), bits, **VARIANTS[variant])
    speaker = LoadedModel(str(tiny(family)), str(shipped(ours, tmp_path)), bits, torch.get_num_threads())
    ids, result = list(range(5, 60)), list[Any]()
    speaker.scores(ids, 1, 1, result.append)
    with torch.inference_mode():
        table = ours.network(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = [-float(row[token]) for row, token in zip(table, ids[1:], strict=True)]
    near = 1e-4 if bits == 16 or variant == "dora" else 0.06
    assert [nats for _, nats, _ in result] == pytest.approx(expected, abs=near)


def test_a_processor_computes_in_float32_while_that_is_small(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = changed(speaking(tiny), tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    tensors = {name: value.bfloat16() for name, value in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", {"format": "pt"})
    assert transformers_child._load_base(half, 16).dtype == torch.float32
    size = (half / "model.safetensors").stat().st_size
    for most, kind in [(2 * size, torch.float32), (2 * size - 1, torch.bfloat16)]:
        monkeypatch.setattr(transformers_child, "FLOAT32_LIMIT", most)
        assert transformers_child._load_base(half, 16).dtype == kind


def test_a_tokenizer_beside_the_adapter_comes_before_the_bases(
    tiny: Callable[..., Path], model: Model, tmp_path: Path
) -> None:
    adapter, folder = shipped(model, tmp_path), speaking(tiny)
    messages = [{"role": "user", "content": "hi"}]
    assert (
        LoadedModel(str(folder), str(adapter), 16, torch.get_num_threads()).render(messages).startswith("<|im_start|>")
    )
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(adapter)
    speaker = LoadedModel(str(folder), str(adapter), 16, torch.get_num_threads())
    assert speaker.render(messages) == "<s>hi"
    assert speaker.tokens("<s>hi")[:2] == [1, *speaker.tokens("h")]  # no second start token


def test_what_running_takes(tuned: FolderModel, own: FolderModel) -> None:
    replies(tuned)
    facts, read = tuned.facts, [tuned.folder, tuned.adapter]
    assert facts.file_bytes == sum(file.stat().st_size for folder in read if folder for file in folder.iterdir())
    assert facts.file_bytes > own.facts.file_bytes > 200_000
    assert facts.memory_bytes > 100 << 20 > facts.file_bytes
    assert 0 < facts.load_seconds < 120
    assert (facts.slots, facts.context, facts.threads, own.facts.context) == (1, 512, 1, 400)
    before, limit = tuned.facts, 7
    result = replies(tuned, limit=limit)
    assert tuned.facts.tokens - before.tokens == sum(reply.tokens for reply in result) > 0
    assert tuned.facts.seconds > before.seconds
    assert tuned.facts.rate > 1


def test_several_who_ask_at_once_each_get_their_own(tuned: FolderModel) -> None:
    alone = replies(tuned)

    def one(place: int) -> Reply:
        ((_, reply),) = tuned.replies([PROMPTS[place]], max_new_tokens=WORDS, batch=1)
        return reply

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(one, range(len(PROMPTS)))) == alone
    for place, reply in tuned.replies(PROMPTS, max_new_tokens=WORDS, batch=2):  # asked while it answers
        assert (tuned.tokens("ab"), reply) == (tuned.tokens("a") + tuned.tokens("b"), alone[place])


def test_what_does_not_fit_the_context(tuned: FolderModel, own: FolderModel) -> None:
    long = (Turn("user", "x" * 500),)
    with pytest.raises(ModelError, match=r"a prompt of \d+ tokens and a reply of 9 do not fit the context of 512"):
        list(tuned.replies([PROMPTS[0], long], max_new_tokens=9, batch=1))
    room = own.context - len(own.tokens(own.render(PROMPTS[1])))
    assert len(list(own.replies(PROMPTS[1:2], max_new_tokens=room, batch=1))) == 1
    with pytest.raises(ModelError, match="do not fit the context of 400"):
        list(own.replies(PROMPTS[1:2], max_new_tokens=room + 1, batch=1))
    with pytest.raises(ModelError, match=r"context is 513 tokens, but the model was trained on 512\. Set context"):
        own._checked_context(513, 512)
    assert [own._checked_context(*item) for item in [(None, 512), (9, 512), (None, 0), (9, 0)]] == [512, 9, 2048, 9]


def test_a_template_with_other_tokens_is_refused(own: FolderModel, template: Template) -> None:
    from transformers import PreTrainedTokenizerFast

    state = template.tokenizer._tokenizer.to_str()
    swapped = state.replace('"k":', '"#":', 1).replace('"w":', '"k":', 1).replace('"#":', '"w":', 1)
    other_tokenizer = PreTrainedTokenizerFast(tokenizer_object=type(template.tokenizer._tokenizer).from_str(swapped))
    other_tokenizer.add_special_tokens(dict(template.tokenizer.special_tokens_map))
    own._check_template(template)
    with pytest.raises(ModelError, match=r"the template and the folder encode '.*' differently"):
        own._check_template(Template(other_tokenizer, template.text, "other"))


# --- what is refused -----------------------------------------------------------------------------------------


def test_a_damaged_folder_is_not_read(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """How a child's refusal is told: test_a_child_that_ends_or_hangs_while_it_loads."""
    folder = changed(speaking(tiny), tmp_path / "broken")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(SafetensorError, match="incomplete"):
        LoadedModel(str(folder), "", 16, torch.get_num_threads())


def test_no_weight_is_made_up(tiny: Callable[..., Path], model: Model, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    hole = changed(speaking(tiny), tmp_path / "hole", **{name: None})
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match=rf"1 weights are missing in the files, such as '{name}'"):
        LoadedModel(str(hole), "", 16, threads)
    adapter = shipped(model, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    lost = sorted(tensors)[3]
    save_file({k: v for k, v in tensors.items() if k != lost}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"does not fit this base: '{lost}' is missing in the adapter, 1 in all"):
        LoadedModel(str(speaking(tiny)), str(adapter), 16, threads)
    shorter = tiny("llama", tie_word_embeddings=False, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"'.*layers\.1\..*' is unknown to the base, 14 in all"):
        LoadedModel(str(shorter), str(shipped(model, tmp_path / "adapter")), 16, threads)


def test_pickles_and_foreign_code_never_reach_a_child(
    tiny: Callable[..., Path], tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_folder, "_Child", None)  # nothing is started
    pickled = changed(speaking(tiny), tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds only pickled weights \(pytorch_model\.bin\)"):
        FolderModel(pickled)
    foreign = changed(speaking(tiny), tmp_path / "foreign")
    config = {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="brings its own code, which is never run"):
        FolderModel(foreign)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        FolderModel(tmp_path / "nothing")
    adapter = shipped(model, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter: the folder has no adapter_model\.safetensors"):
        FolderModel(speaking(tiny), adapter=adapter)
    with pytest.raises(ModelError, match=r"the folder has no adapter_config\.json"):
        FolderModel(speaking(tiny), adapter=tmp_path)


def test_the_child_knows_nothing_of_the_package() -> None:
    tree = ast.walk(ast.parse(Path(transformers_child.__file__).read_text()))
    modules = {item.module or "" for item in tree if isinstance(item, ast.ImportFrom)}
    tree = ast.walk(ast.parse(Path(transformers_child.__file__).read_text()))
    modules |= {name.name for item in tree if isinstance(item, ast.Import) for name in item.names}
    assert {name.split(".")[0] for name in modules} - sys.stdlib_module_names == {
        "peft", "safetensors", "torch", "transformers"
    }  # fmt: skip


# --- what goes wrong -----------------------------------------------------------------------------------------


def test_a_child_killed_in_the_middle_is_told_and_replaced(own: FolderModel) -> None:
    before, killed = replies(own), pid(own)
    with pytest.raises(ModelError, match=r"own: transformers failed: .*signal 9 \(SIGKILL\).*Try again"):
        for _ in own.replies(PROMPTS * 20, max_new_tokens=200, batch=1):
            os.kill(killed, signal.SIGKILL)
    assert replies(own) == before
    assert pid(own) != killed


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_child_that_says_nothing_is_ended(own: FolderModel) -> None:
    child = own._running()
    child.patience = 1.0
    started = time.monotonic()
    with pytest.raises(ModelError, match="transformers failed: no output for 1 s"):
        for _ in own.replies(PROMPTS * 400, max_new_tokens=200, batch=1):  # more than a pipe holds
            os.kill(child.process.pid, signal.SIGSTOP)
    assert time.monotonic() - started < 10
    assert child.process.returncode == -signal.SIGKILL
    assert not child.alive


def test_a_listener_who_leaves_ends_the_work(tuned: FolderModel) -> None:
    before = tuned.facts.tokens
    result = tuned.replies(PROMPTS * 40, max_new_tokens=300, batch=1)
    next(result)
    assert isinstance(result, Generator)
    result.close()
    assert tuned.tokens("a")  # comes after it
    assert tuned.facts.tokens - before < 30_000  # of 60 000


def test_no_port_is_opened(tuned: FolderModel) -> None:
    assert not psutil.Process(pid(tuned)).net_connections("inet")
    assert psutil.Process(pid(tuned)).environ()["HF_HUB_OFFLINE"] == "1"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """stub(code): what the child finds for transformers."""

    def write(code: str) -> None:
        (tmp_path / "transformers.py").write_text(
            f"import os, sys, time\nprint('chatter')\nos.write(1, b'chatter beneath\\n')\n{code}\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


def test_a_child_that_ends_or_hangs_while_it_loads(tiny: Callable[..., Path], stub: Callable[[str], None]) -> None:
    stub("sys.stderr.write('so it is\\n'); sys.stderr.flush(); os.abort()")
    with pytest.raises(ModelError, match=r"failed: .*SIGABRT.*last output: .*chatter beneath.*so it is"):
        FolderModel(speaking(tiny))
    stub("time.sleep(99)")
    with pytest.raises(ModelError, match=r"no output for 0\.5 s"):
        FolderModel(speaking(tiny), patience=0.5)
    stub("raise ImportError('no such thing')")
    with pytest.raises(ModelError, match="cannot load it: ImportError: no such thing"):
        FolderModel(speaking(tiny))


def test_a_child_that_still_loads_ends_with_its_parent(tiny: Callable[..., Path], stub: Callable[[str], None]) -> None:
    stub("time.sleep(99)")
    parent, children = orphaned(speaking(tiny))
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]


def orphaned(folder: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A process that asks a folder, and its child."""
    code = (
        "from pathlib import Path; from tunesmith.generation.from_folder import FolderModel\n"
        f"FolderModel(Path({str(folder)!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 20
    while not (children := psutil.Process(parent.pid).children()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return parent, children


def test_a_model_closed_in_the_middle_ends_by_itself(packed: FolderModel) -> None:
    """As the system closes the pipe of a parent that is no more."""
    child, iterator = packed._running(), packed.replies(PROMPTS * 40, max_new_tokens=400, batch=200)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, iterator)
        time.sleep(1.0)  # so that it writes
        packed.close()
        with pytest.raises(ModelError, match="failed: it was closed"):
            future.result()
    packed.close()
    assert child.process.returncode == 0
    with pytest.raises(ModelError, match="the model was closed"):
        packed.tokens("a")


def test_a_child_that_breaks_by_itself_is_told_with_its_last_words(tuned: FolderModel) -> None:
    with pytest.raises(ModelError, match=r"failed: it ended with exit code 1\. Its last output: .*IndexError: index"):
        list(tuned.scores([5, 99_999, 6], start=1))
