"""A Modelfile whose Go template renders what training rendered, for the layouts in use; and what must be noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tiny import CHATML, make_tokenizer
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, RecipeError
from tunesmith.exporting.job import Job
from tunesmith.exporting.targets._go_template import escape, execute
from tunesmith.exporting.targets.ollama import SHAPES, check, parse, quote, write
from tunesmith.models.weights import Weights
from tunesmith.prompt.template import PLAIN_TEMPLATE, Template

LOOP, BEGIN = "{% for m in messages %}", "{% if add_generation_prompt %}"
ROLE = "{% if m.role == 'user' %}"
CHATML_DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    + LOOP
    + ROLE
    + "{{ bos_token + '[INST] ' + (s if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}" + LOOP + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + eos_token }}"
    "{% endfor %}" + BEGIN + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (  # the system message stands before the last question
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set s = '' %}{% endif %}{{ bos_token }}"
    + LOOP
    + ROLE
    + "{{ '[INST] ' + (s if loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + LOOP
    + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ eos_token + '\n' }}{% endfor %}" + BEGIN + "<start_of_turn>model\n{% endif %}"
)
PHI_3 = (
    LOOP
    + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    + BEGIN
    + "<|assistant|>\n{% endif %}"
)
ALPACA = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% else %}Below is a task.\n\n{% endif %}"
    + LOOP
    + ROLE
    + "{{ '### Instruction:\n' + m.content + '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ '### Response:\n' + m.content + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    + BEGIN
    + "### Response:\n{% endif %}"
)
ODD = CHATML.replace("<|im_start|>", '{{ "{{" }}"""\u00a0<|im_start|>')
RECIPES = Path(__file__).parents[2] / "recipes" / "templates"
LAYOUTS = {
    "chatml": CHATML, "chatml with a default": CHATML_DEFAULT, "llama 2": LLAMA_2, "llama 3": LLAMA_3,
    "mistral": MISTRAL, "gemma": GEMMA, "phi 3": PHI_3, "alpaca": ALPACA, "plain": PLAIN_TEMPLATE, "odd letters": ODD,
    **{path.stem + " of the recipes": path.read_text() for path in sorted(RECIPES.glob("*.jinja"))},
}  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Job]:
    """made(a template, whether the file puts a start token in front) -> a job with its GGUF file."""

    def make(text: str = CHATML, *, adds: bool | None = False, **changes: Any) -> Job:
        tokenizer = make_tokenizer(text)
        given: dict[str, Any] = {
            "name": "toy", "folder": tmp_path / "export", "weights": Weights("toy", tmp_path, ""),
            "adapter": tmp_path, "template": Template(tokenizer, text, "its own"), "stop": ("User:",),
            "merge_into": "quantized", "bits": 4, "precision": "float32", "limit": 40, "context": 256, "seed": 1,
            "card": lambda: "",
        }  # fmt: skip
        job = Job(**{**given, **changes})
        header(job.folder / "gguf" / f"{job.name}.q4_k_m.gguf", adds)
        return job

    return make


def header(path: Path, adds: bool | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if adds is not None:
        writer.add_add_bos_token(adds)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_rendered_as_in_training(made: Callable[..., Job], name: str) -> None:
    text = LAYOUTS[name]
    starts = made(text).template.render([Turn("user", "a")], generate=True).startswith("<s>")
    for adds in (False, True) if starts else (False,):
        job = made(text, adds=adds)
        [file] = write(job)
        assert check(job, file) == []
        found = dict(parse(file.path.read_text()))["template"]
        assert found.startswith("<s>") == (starts and not adds)
        for shape, turns in SHAPES.items():  # not by `check` alone: the words must be there
            if turns[0].role == "system" and name == "gemma":
                continue
            rendered = ("<s>" if adds else "") + execute(found, turns)
            assert rendered == job.template.render(turns, generate=True), shape
            assert all(turn.text in rendered for turn in turns)


def test_the_modelfile(made: Callable[..., Job]) -> None:
    job = made()
    [file] = write(job, parameters={"num_thread": 2, "num_ctx": 512, "stop": ["###", "User:"]})
    assert file.path == job.folder / "ollama" / "Modelfile"
    assert list(parse(file.path.read_text()))[:2] == [
        ("from", "../gguf/toy.q4_k_m.gguf"),
        (
            "template",
            "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
            '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
            '<|im_start|>assistant\n{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}',
        ),
    ]
    lines = dict.fromkeys(parse(file.path.read_text()))
    assert ("parameter temperature", "0") in lines
    assert [value for name, value in lines if name == "parameter num_ctx"] == ["512"]
    assert ("parameter num_predict", "40") in lines
    assert [value for name, value in lines if name == "parameter stop"] == ["<|im_end|>", "User:", "###"]
    assert file.commands["ollama"] == f"ollama create toy -f {file.path} && ollama run toy"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            CHATML.replace("{{ message['content'] }}", "{{ message['content'] | upper }}"),
            "omits, repeats or moves",
        ),
        (CHATML.replace("<|im_end|>", "{{ loop.index }}<|im_end|>"), "depends on other turns"),
        (CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}"), "depends on other turns"),
        (CHATML.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1), "current date"),
        (CHATML + "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}", "one question"),
        (
            "{% if messages[0].role == 'system' and messages | length > 2 %}And now: {% endif %}" + CHATML,
            "the position of the system message",
        ),
        (
            CHATML.replace("{{ message['content'] }}", "{{ message['content'] | replace('日本', 'x') }}"),
            "several turns: ",
        ),
    ],
)
def test_a_template_that_go_cannot_say(made: Callable[..., Job], text: str, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        write(made(text))
    assert why in caught.value.what
    assert (caught.value.where, bool(caught.value.next)) == ("its own", True)


def test_the_start_token(made: Callable[..., Job]) -> None:
    with pytest.raises(ModelError, match=r"adds .<s>. to each text.*Begin prompt.template"):
        write(made(CHATML, adds=True))
    job = made(LLAMA_3, adds=None)  # of this vocabulary llama.cpp adds none unless the file says so
    [file] = write(job)
    assert '"<s>{{ if .System }}' in file.path.read_text()
    header(job.folder / "gguf" / "toy.q4_k_m.gguf", True)
    assert check(job, file)[0].startswith("one turn: Ollama reads '<s><s>")


def test_what_cannot_be_had(made: Callable[..., Job]) -> None:
    job = made()
    with pytest.raises(ModelError, match=r"no GGUF file of type q8_0.*types: \[q8_0\]"):
        write(job, of="q8_0")
    for name, value in {"num_ctxx": 1, "num_ctx": "many", "use_mmap": 1, "stop": [""], "temperature": True}.items():
        with pytest.raises(RecipeError, match=name):
            write(job, parameters={name: value})
    with pytest.raises(RecipeError, match="unknown type 'q4'"):
        write(job, of="q4")
    with pytest.raises(ModelError, match=r"stop string.*cannot be written"):
        write(replace(job, stop=("\u200b",)))


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("<|im_end|>\n<|im_start|>assistant", "<|im_end|><|im_start|>assistant", "one turn: Ollama reads"),
        ("<|im_start|>user", "<|im_start|>usar", "one turn: Ollama reads"),
        ("{{ else if eq", "{{ else with eq", "the template cannot be read: "),
        (".Content", ".Thinking", "the template cannot be read: unknown action '.Thinking'"),
        ('PARAMETER stop "<|im_end|>"\n', "", "no PARAMETER stop '<|im_end|>'"),
        ('PARAMETER stop "User:"\n', "", "no PARAMETER stop 'User:'"),
        ("num_predict", "num_tokens", "unknown parameter num_tokens"),
        ("num_ctx 256", "num_ctx wide", "num_ctx is 'wide', which has the wrong type"),
        ("temperature 0", "temperature 0\nPARAMETER temperature 1", "temperature is '0', 2 times"),
        ("FROM ..", "FROM .", "cannot be read"),
        ("FROM", "FORM", "the Modelfile cannot be read: line 2: unknown command 'form'"),
        ('{{ end }}"""', "{{ end }}", "its quotes are not closed"),
        ("TEMPLATE", "SYSTEM", "0 lines TEMPLATE, not one"),
    ],
)
def test_a_damaged_modelfile_is_noticed(made: Callable[..., Job], old: str, new: str, wrong: str) -> None:
    job = made()
    [file] = write(job)
    text = file.path.read_text()
    assert old in text
    file.path.write_text(text.replace(old, new))
    assert any(wrong in each for each in check(job, file)), check(job, file)


def test_the_recipes_system_message_goes_along(made: Callable[..., Job]) -> None:
    job = replace(made(), system='Be "dry".\nThen stop.')
    (file,) = write(job)
    assert [value for name, value in parse(file.path.read_text()) if name == "system"] == [job.system]
    assert check(job, file) == []
    assert check(replace(job, system=None), file) == ["the system message differs from prompt.system"]


def test_what_training_did_otherwise_is_told(made: Callable[..., Job]) -> None:
    [file] = write(made(GEMMA))
    assert {*file.notes} == {"system", "blanks"}
    assert all(f"# {note}\n" in file.path.read_text() for note in file.notes.values())
    assert write(made())[0].notes == {}


def test_every_text_goes_through_both_readers() -> None:
    for text in ('"""', '""', '"', "{", "a{{b}}", "{{{", "é\u00a0\u200b\x01😀\u2028", "\t\n x \n", 'x"\ny', '"{', "\\"):
        go = escape(text)
        assert execute(go, ()) == text
        [(name, back)] = parse(f"TEMPLATE {quote(go)}\n")
        assert (name, back) == ("template", go)
    for text in ('x"""\ny', "\u00a0"):
        with pytest.raises(ValueError, match="contains three quotes"):
            quote(text)
    assert execute("{{ range .Messages }}{{ .Content }};{{ end }}", [Turn("user", "a"), Turn("user", "b")]) == "a\n\nb;"
    for wrong in (
        "{{ if .System }}",
        "{{ end }}",
        "{{ .Role }}",
        "{{- .System }}",
        "{{ .Content }}",
        "{{ .System",
        "{",
    ):
        with pytest.raises(ValueError, match=r"\w"):
            execute(wrong, [Turn("user", "a")])


DATED = (  # as Llama 3.2's: the date of the day, unless one is given
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ 'Today Date: ' + date_string + '\n\n' }}" + LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ eos_token }}{% endfor %}" + BEGIN + "<|im_start|>assistant\n{% endif %}"
)


def test_a_date_that_is_fixed_stands_in_the_modelfile(made: Callable[..., Job]) -> None:
    job = made(DATED)
    pinned = replace(job.template, text="{% set date_string = '26 Nov 2026' %}" + DATED)
    [file] = write(replace(job, template=pinned))
    assert check(replace(job, template=pinned), file) == []
    assert "Today Date: 26 Nov 2026" in dict(parse(file.path.read_text()))["template"]
    with pytest.raises(ModelError, match="the current date") as caught:
        write(job)
    assert "prompt.template_options" in caught.value.next
