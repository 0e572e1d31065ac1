"""prompt.template_options: which variables a chat template reads, and of which type."""

from __future__ import annotations

from typing import Any

import pytest
from tools.templates import template

from tunesmith.prompt.options import check_template_options

PLAIN = "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"


def said(text: str, **options: Any) -> list[str]:
    return [str(error) for error in check_template_options(text, options)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen3", {"enable_thinking"}),
        ("qwen3_8", {"add_vision_id", "enable_thinking", "preserve_thinking", "reasoning_effort"}),
        ("gptoss", {"builtin_tools", "model_identity", "reasoning_effort"}),
        ("llama3_1", {"builtin_tools", "custom_tools", "date_string", "tools_in_user_message"}),
        ("llama3", set()),
        ("gemma3", set()),
        ("gemma3_training", set()),  # uses transformers' generation blocks
    ],
)
def test_the_options_of_published_templates_are_those_that_they_read(name: str, options: set[str]) -> None:
    """Neither fields of messages, nor variables that the template sets, nor parameters of its macros."""
    (error,) = check_template_options(template(name).text, {"no_such": True})
    assert error.what == "the chat template has no option 'no_such'"
    assert error.where == "prompt.template_options"
    advice = f"Choose from: {', '.join(sorted(options))}" if options else "Remove it: this template has no options"
    assert error.next == advice
    assert said(template(name).text, **dict.fromkeys(("content", "role", "messages", "strftime_now"), "x")) != []


@pytest.mark.parametrize("name", ["qwen3", "nemotron_3_nano", "gemma4", "glm4moe"])
@pytest.mark.parametrize("value", ["false", "no", "", 0, None])
def test_a_boolean_option_must_be_a_boolean(name: str, value: Any) -> None:
    text = template(name).text
    (line,) = said(text, enable_thinking=value)
    assert "reads 'enable_thinking' as true or false, but it is" in line
    assert line.endswith("Write enable_thinking: true or enable_thinking: false, without quotes.")
    assert said(text, enable_thinking=False) == said(text, enable_thinking=True) == []


def test_all_errors_are_reported_at_once_with_a_suggested_name() -> None:
    messages = said(template("nemotron_3_nano").text, enable_thinkng=False, truncate_history_thinking="true")
    assert len(messages) == 2
    assert "no option 'enable_thinkng'. Did you mean 'enable_thinking'?" in messages[0]
    assert "it is the string 'true'" in messages[1]


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
        ("{% if x %}{{ x }}{% endif %}", ["false", 3, True], []),  # written into the text: any value is fine
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


def test_the_strings_that_a_template_compares_with_are_listed() -> None:
    (line,) = said("{% if effort in ['low', 'high'] %}a{% endif %}" + PLAIN, effort=True)
    assert line.endswith("compares 'effort' with strings, but it is True. Choose from: high, low.")


@pytest.mark.parametrize(
    "text",
    [
        "{% for x in messages %}{{ x.content }}{% endfor %}",
        "{% macro write(x) %}{{ x }}{% endmacro %}{{ write(messages[0].content) }}",
        "{% if messages %}{% set x = messages[0].content %}{% endif %}{{ x }}",
        "{{ messages[0].x }} and x in the text",
    ],
)
def test_variables_set_by_the_template_are_not_options(text: str) -> None:
    (line,) = said(text, x="a")
    assert "no option 'x'. Remove it: this template has no options" in line


def test_a_template_that_cannot_be_parsed_fails_only_when_rendered() -> None:
    assert said("{% if x %}", x=True) == []
