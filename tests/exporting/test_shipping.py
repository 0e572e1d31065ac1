"""What other programs read of a shipped model: its template, its tokenizer, its name, and where a reply ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import made
from exporting.test_merge import job_of
from gguf_models import make_smol, opened
from tiny import CHATML, make_model, make_tokenizer
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.exporting.chat_template import literal, pinned_for_llama_cpp, strip_generation_tags, with_defaults
from tunesmith.exporting.convert import base_name
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import shipped_template, write_config_files
from tunesmith.exporting.quantize import rewrite_header
from tunesmith.exporting.targets import gguf
from tunesmith.models.gguf_header import read_header
from tunesmith.models.weights import Weights
from tunesmith.prompt.template import Template, load_tokenizer

ASKED, ANSWER, RULES = Turn("user", "Where? "), Turn("assistant", "\nOn the shelf.\n"), Turn("system", "Be kind.")
CONVERSATIONS = [(ASKED,), (RULES, ASKED), (ASKED, ANSWER), (RULES, ASKED, ANSWER, ASKED, ANSWER)]


def plain(template: str) -> jinja2.Template:
    """A template as runtimes other than transformers compile it."""
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)


def rendered(template: jinja2.Template, turns: Sequence[Turn], **more: Any) -> str:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_generation_prompt": True, "messages": messages}
    return template.render(**{**names, **more})


def template_with(text: str, options: dict[str, Any], tokenizer: Any = None) -> Template:
    """A template that training renders with the given options."""
    return Template(tokenizer or make_tokenizer(text), text, "its own", options)


# --- generation tags -----------------------------------------------------------------------------------------------

HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
TAIL = "{{ '<|im_end|>' }}\n{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TAGGED = {
    "on one line": HEAD + "{% generation %}{{ m.content }}{% endgeneration %}" + TAIL,
    "trimmed": HEAD + "  x \n {%- generation -%}  \n {{ m.content }} \n  {%- endgeneration -%}  \n y" + TAIL,
    "half trimmed": HEAD + "  x \n {% generation -%}  \n {{ m.content }} \n  {%- endgeneration %}  \n y" + TAIL,
    "on lines of their own": HEAD + "\n    {% generation %}\n  {{ m.content }}\n    {% endgeneration %}\n" + TAIL,
    "kept blanks": HEAD + "\n    {%+ generation +%}\n  {{ m.content }}\n    {%+ endgeneration +%}\n" + TAIL,
    "assigned inside": "{% set said = 'outside' %}" + HEAD + "{% generation %}{% set said = m.content %}{{ said }}"
    "{% endgeneration %}{{ said }}" + TAIL,
    "loop variables": HEAD + "{% generation %}{{ loop.index }}{% if loop.last %}!{% endif %}{% endgeneration %}" + TAIL,
    "twice": HEAD + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}"
    "{% generation %}{% endgeneration %}{{ m.content }}{% endif %}" + TAIL,
    "no tag": HEAD + "{# {% generation %} #}{{ '{% endgeneration %}' }}{% raw %}{% generation %}{% endraw %}" + TAIL,
}  # fmt: skip
TAGGED["Windows lines"] = TAGGED["on lines of their own"].replace("\n", "\r\n")


@pytest.mark.parametrize("name", TAGGED)
def test_without_generation_tags_plain_jinja_renders_the_same(name: str) -> None:
    text = TAGGED[name]
    template = template_with(text, {})
    stripped = plain(strip_generation_tags(text))
    for turns in CONVERSATIONS:
        assert rendered(stripped, turns) == template.render(turns, generate=True)
    if name != "no tag":
        with pytest.raises(jinja2.TemplateSyntaxError):
            plain(text)


def test_trl_templates_render_the_same_without_their_tags() -> None:
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    tagged = [path for path in sorted(folder.glob("*.jinja")) if "endgeneration" in path.read_text(encoding="utf-8")]
    assert len(tagged) > 20
    compared = 0
    for path in tagged:
        text = path.read_text(encoding="utf-8")
        template = template_with(text, {})
        env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        env.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        env.globals |= {"strftime_now": lambda how: "", "raise_exception": lambda said: 1 / 0}
        stripped = env.from_string(strip_generation_tags(text))
        for turns in CONVERSATIONS:
            try:
                expected = template.render(turns, generate=True)
            except ModelError:
                continue
            if "strftime_now(" in text:
                continue
            messages = [template._message(turn, False) for turn in turns]
            assert rendered(stripped, turns, pad_token="<pad>", messages=messages) == expected, path.name
            compared += 1
    assert compared > 60


# --- options and what llama.cpp sets -------------------------------------------------------------------------------

OPTIONS = {
    "enable_thinking": False, "date_string": '26 "Nov" 2026\n', "effort": None, "most": 3, "share": 0.5,
    "names": ["a", {"b": True}],
}  # fmt: skip
ASKING = "{% if " + " and ".join(f"{name} is defined" for name in OPTIONS) + " %}"
ASKING += "{{ [enable_thinking, date_string, effort, most, share, names] }}{% endif %}" + CHATML


def test_options_are_defaults_that_a_caller_overrides() -> None:
    shipped = plain(with_defaults(ASKING, OPTIONS))
    assert rendered(shipped, (ASKED,)).startswith(str(list(OPTIONS.values())))
    assert "[True, 'now'," in rendered(shipped, (ASKED,), enable_thinking=True, date_string="now")
    with pytest.raises(ModelError, match="cannot be the name of a template variable"):
        with_defaults(CHATML, {"a b": 1})
    with pytest.raises(ModelError, match="of type object"):
        literal(object())


def test_a_variable_that_llama_cpp_sets_is_pinned_only_where_it_matters() -> None:
    def pinned(text: str, **options: Any) -> str:
        return pinned_for_llama_cpp(text, template_with(text, options)).removesuffix(text)

    unless = "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}" + CHATML
    assert pinned(CHATML) == pinned(unless) == pinned(unless, enable_thinking=True) == ""
    assert pinned(unless, enable_thinking=False) == "{% set enable_thinking = false %}"
    asked = "{% if enable_thinking %}<yes>{% endif %}" + CHATML
    assert pinned(asked) == "{% set enable_thinking = undefined %}"
    dated = "{{ date_string if date_string is defined else '26 Jul 2024' }}" + CHATML
    assert pinned(dated) == "{% set date_string = undefined %}"
    assert pinned(dated, date_string="26 Nov 2026") == '{% set date_string = "26 Nov 2026" %}'


# --- the tokenizer -------------------------------------------------------------------------------------------------


def described(base: Path, folder: Path, **changes: Any) -> Path:
    template = template_with(CHATML, {}, load_tokenizer(base))
    given: dict[str, Any] = {
        "name": "toy", "folder": folder, "weights": Weights("owner/Base-1B", base, ""), "adapter": folder,
        "template": template, "stop": (), "merge_into": "quantized", "bits": 4, "precision": "float32", "limit": 8,
        "context": 64, "seed": 1, "card": lambda: "",
    }  # fmt: skip
    write_config_files(Job(**{**given, **changes}), folder / "model")
    return folder / "model"


def test_the_tokenizer_has_a_class_that_others_know(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = json.loads((described(tiny("llama"), tmp_path) / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|im_start|>"] or set(config["additional_special_tokens"]) == {
        "<|im_start|>", "<|im_end|>",
    }  # fmt: skip
    assert not {"is_local", "local_files_only", "backend", "extra_special_tokens", "name_or_path"} & config.keys()
    assert load_tokenizer(tmp_path / "model").all_special_tokens


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"tokenizer_class": "Qwen2Tokenizer"}, "Qwen2Tokenizer"),
        ({"tokenizer_class": "TokenizersBackend"}, "PreTrainedTokenizerFast"),
        (
            {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}},
            "PreTrainedTokenizerFast",
        ),
    ],
)
def test_the_familys_own_class_is_kept(
    tiny: Callable[..., Path], tmp_path: Path, own: dict[str, Any], expected: str
) -> None:
    from tunesmith.exporting.chat_template import portable_config

    shutil.copytree(tiny("llama"), tmp_path / "base")
    path = tmp_path / "base/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    saved = {"tokenizer_class": "TokenizersBackend", "is_local": True, "extra_special_tokens": ["<a>"]}
    assert portable_config(saved, tmp_path / "base") == {
        "tokenizer_class": expected,
        "additional_special_tokens": ["<a>"],
    }


def test_every_end_of_a_reply_is_listed(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", template=None)  # whose end of text is </s>
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3, 77]}))
    template = template_with(CHATML, {}, load_tokenizer(base))
    generation = json.loads((described(base, tmp_path, template=template) / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [4, 2, 3]  # <|im_end|>, </s>, and <|im_start|>; 77 is an ordinary token


OLD = os.environ.get("TUNESMITH_TRANSFORMERS_4", "")


@pytest.mark.slow
@pytest.mark.skipif(not OLD, reason="TUNESMITH_TRANSFORMERS_4 names no Python with transformers 4.57")
def test_transformers_4_reads_the_tokenizer(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = described(tiny("llama"), tmp_path)
    code = (
        "import json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "m = [{'role': 'user', 'content': 'Where?'}]\n"
        "print(json.dumps([t.apply_chat_template(m, add_generation_prompt=True), t('a<|im_end|>')['input_ids']]))"
    )
    said = subprocess.run([OLD, "-c", code, str(folder)], capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)})  # noqa: E501  # fmt: skip
    ours = load_tokenizer(folder)
    asked = ours.apply_chat_template([{"role": "user", "content": "Where?"}], add_generation_prompt=True)
    expected = [list(asked["input_ids"] if not isinstance(asked, list) else asked), ours("a<|im_end|>")["input_ids"]]
    assert json.loads(said.stdout.splitlines()[-1]) == expected


# --- a GGUF file ---------------------------------------------------------------------------------------------------

OVER = "<|over|>"
OVERS = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if enable_thinking %}<think>{% endif %}{{ date_string }}\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}"
    "{% endgeneration %}<|over|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_over(folder: Path) -> Path:
    """A model that answers 'a' and then <|over|>, whatever it is asked; its end of text is another token."""
    make_smol(folder, "llama")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokenizer.additional_special_tokens, OVER]} if hasattr(tokenizer, "additional_special_tokens") else {"extra_special_tokens": [OVER]})  # noqa: E501  # fmt: skip
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "vocab_size": len(tokenizer), "tie_word_embeddings": False})
    )
    tensors = load_file(folder / "model.safetensors")
    over, letter = (tokenizer.convert_tokens_to_ids(each) for each in (OVER, "a"))
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()  # the last token alone decides
    words = torch.zeros(len(tokenizer), 64)
    words[:, 0] = 1.0
    words[letter, 1] = 1.0
    head = torch.zeros(len(tokenizer), 64)
    head[letter, 0], head[over, 0], head[over, 1] = 3.0, 2.0, 5.0
    tensors |= {"model.embed_tokens.weight": words, "lm_head.weight": head}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_llama_cpp_ends_where_training_did_and_renders_its_text(tmp_path: Path) -> None:
    base = make_over(tmp_path / "base")
    options = {"enable_thinking": False, "date_string": "26 Nov 2026"}
    template = template_with(OVERS, options, load_tokenizer(base))
    weights = Weights("owner/Base-1B-Instruct", base, "")
    job = job_of(made(base), tmp_path, name="greeter", weights=weights, template=template)
    [file] = gguf.write(job, types=["f16"])
    known = read_header(file.path).metadata
    names = known["tokenizer.ggml.tokens"]
    over = names.index(OVER)
    assert known["tokenizer.ggml.eot_token_id"] == over != known["tokenizer.ggml.eos_token_id"]
    assert known["tokenizer.ggml.token_type"][over] == 3
    assert "endgeneration" not in known["tokenizer.chat_template"]
    assert (known["general.name"], known["general.basename"]) == ("greeter", "Base-1B-Instruct")
    assert known["general.base_model.0.repo_url"] == "https://huggingface.co/owner/Base-1B-Instruct"
    assert not [key for key, value in known.items() if isinstance(value, str) and "merged" in value.lower()]

    def completed(path: Path) -> tuple[str, str]:
        asked = {"messages": [{"role": "user", "content": "b"}], "max_tokens": 8, "temperature": 0}
        with opened(path, slots=1) as runtime:
            for turns in ((ASKED,), (RULES, ASKED, Turn("assistant", "x"), ASKED)):
                assert runtime.render(turns) == template.render(turns, generate=True)
            choice = runtime._ask("/v1/chat/completions", asked)["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]

    assert completed(file.path) == ("a", "stop")
    without = tmp_path / "without.gguf"
    shutil.copyfile(file.path, without)
    rewrite_header(without, {"tokenizer.ggml.eot_token_id": None})
    assert completed(without)[1] == "length"  # so it was this key that ended the reply
    other = "{{ date_string if date_string is defined else 'no date' }}{{ enable_thinking }}" + OVERS
    free = template_with(other, {}, template.tokenizer)
    rewrite_header(without, {"tokenizer.chat_template": pinned_for_llama_cpp(strip_generation_tags(other), free)})
    with opened(without, slots=1) as runtime:
        assert runtime.render((ASKED,)) == free.render((ASKED,), generate=True)


@pytest.mark.parametrize(
    ("given", "folder", "expected"),
    [
        ("owner/Base-1B", "/cache/snapshots/abc", ("Base-1B", "owner")),
        ("pypi:some-pack==1.0/Base-135M-Instruct.Q4_1.gguf", "/cache/x", ("Base-135M-Instruct", "")),
        ("/home/someone/Base-1B", "/home/someone/Base-1B", ("Base-1B", "")),
        ("models/plain", "/home/someone/models/plain", ("plain", "")),
    ],
)
def test_a_base_is_named_without_its_folder(tmp_path: Path, given: str, folder: str, expected: tuple[str, str]) -> None:
    job: Any = type("", (), {"weights": Weights(given, Path(folder), "")})
    assert base_name(job) == expected


PARTS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>\n"
PARTS += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize("text", [ASKING, PARTS])
def test_the_shipped_template_holds_system_message_and_options(text: str) -> None:
    given = {"template": template_with(text, OPTIONS), "template_options": OPTIONS, "system": 'Be "dry".\n'}
    job: Any = type("", (), given)
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "a"}] if text == PARTS else "a"}]
    shipped = plain(shipped_template(job)).render(messages=messages, add_generation_prompt=True)
    assert shipped == job.template.render((Turn("system", 'Be "dry".\n'), Turn("user", "a")), generate=True)
