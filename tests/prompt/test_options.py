"""Variables for a chat template: what it reads, and of what kind, by the template itself."""

from __future__ import annotations

from typing import Any

import pytest
from tools.templates import template

from tunesmith.prompt.options import wrong_options

PLAIN = "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"


def said(text: str, **options: Any) -> list[str]:
    return [str(error) for error in wrong_options(text, options)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen3", {"enable_thinking"}),
        ("qwen3_8", {"add_vision_id", "enable_thinking", "preserve_thinking", "reasoning_effort"}),
        ("gptoss", {"builtin_tools", "model_identity", "reasoning_effort"}),
        ("llama3_1", {"builtin_tools", "custom_tools", "date_string", "tools_in_user_message"}),
        ("llama3", set()),
        ("gemma3", set()),
        ("gemma3_training", set()),  # with blocks of transformers' own
    ],
)
def test_the_options_of_published_templates_are_those_that_they_read(name: str, options: set[str]) -> None:
    """Not the fields of messages, what a template sets itself, nor the parameters of its macros."""
    (error,) = wrong_options(template(name).text, {"no_such": True})
    assert error.what == "the chat template has no option 'no_such'"
    assert error.where == "prompt.template_options"
    told = f"Choose from: {', '.join(sorted(options))}" if options else "Remove it: this template has no options"
    assert error.next == told
    assert said(template(name).text, **dict.fromkeys(("content", "role", "messages", "strftime_now"), "x")) != []


@pytest.mark.parametrize("name", ["qwen3", "nemotron_3_nano", "gemma4", "glm4moe"])
@pytest.mark.parametrize("value", ["false", "no", "", 0, None])
def test_what_is_asked_as_a_truth_must_be_one(name: str, value: Any) -> None:
    text = template(name).text
    (line,) = said(text, enable_thinking=value)
    assert "asks whether 'enable_thinking' is true or false, and it is" in line
    assert line.endswith("Write enable_thinking: true or enable_thinking: false, without quotes.")
    assert said(text, enable_thinking=False) == said(text, enable_thinking=True) == []


def test_everything_wrong_is_said_at_once_with_the_name_that_was_meant() -> None:
    found = said(template("nemotron_3_nano").text, enable_thinkng=False, truncate_history_thinking="true")
    assert len(found) == 2
    assert "no option 'enable_thinkng'. Did you mean 'enable_thinking'?" in found[0]
    assert "it is the text 'true'" in found[1]


@pytest.mark.parametrize(
    ("asking", "right", "wrong"),
    [
        ("{% if x %}a{% endif %}", [True, False], ["false", 1]),
        ("{% if a_flag is defined and x is true %}a{% endif %}", [True], ["true"]),
        ("{{ 'a' if not x else 'b' }}", [False], ["no"]),
        ("{% set x = x | default(true) %}{% if x == false %}a{% endif %}", [False], ["false"]),
        ("{% set x = x if x is defined else false %}{% if x %}a{% endif %}", [True], ["true"]),
        ("{% set x = x or false %}{% if x %}a{% endif %}", [True], ["true"]),
        ("{% if x == 'low' or x in ['high'] %}a{% endif %}", ["low", "other"], [True, 1]),
        ("{% if x %}{{ x }}{% endif %}", ["false", 3, True], []),  # written out: any value is meant
        ("{% for each in x %}{{ each }}{% endfor %}", [["a"], "a"], []),
        ("{% if x is defined %}a{% endif %}", [True, "a"], []),
        (
            "{% generation %}{% if x %}a{% endif %}{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}",
            [True],
            ["a"],
        ),
    ],
)
def test_kinds_by_use(asking: str, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if said(asking + PLAIN, x=value)] == []
    assert [value for value in wrong if not said(asking + PLAIN, x=value)] == []


def test_words_that_a_template_knows_are_named() -> None:
    (line,) = said("{% if effort in ['low', 'high'] %}a{% endif %}" + PLAIN, effort=True)
    assert line.endswith("compares 'effort' with texts, and it is True. It knows: high, low.")


@pytest.mark.parametrize(
    "text",
    [
        "{% for x in messages %}{{ x.content }}{% endfor %}",
        "{% macro write(x) %}{{ x }}{% endmacro %}{{ write(messages[0].content) }}",
        "{% if messages %}{% set x = messages[0].content %}{% endif %}{{ x }}",
        "{{ messages[0].x }} and x in the text",
    ],
)
def test_names_of_the_template_itself_are_no_options(text: str) -> None:
    (line,) = said(text, x="a")
    assert "no option 'x'. Remove it: this template has no options" in line


def test_a_template_that_cannot_be_parsed_is_told_by_rendering_it() -> None:
    assert said("{% if x %}", x=True) == []
