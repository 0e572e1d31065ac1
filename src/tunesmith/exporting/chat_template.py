"""The chat template as it is shipped: rendered by plain Jinja and by llama.cpp it gives the text of the training."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jinja2

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.prompt.template import Template

_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
_BLOCK_MACRO = "{% macro generation_block() %}{{ caller() }}{% endmacro %}"
# Variables that llama.cpp defines for every template, whatever the client sends (common/chat.cpp).
_LLAMA_CPP_SETS = ("enable_thinking", "date_string", "datetime")
_ASKED, _ANSWER, _RULES = Turn("user", "Where is it?"), Turn("assistant", "On the shelf."), Turn("system", "Be kind.")
_PROBES: Sequence[tuple[Turn, ...]] = ((_ASKED,), (_RULES, _ASKED), (_ASKED, _ANSWER, _ASKED))


def strip_generation_tags(text: str) -> str:
    """The template without transformers' `generation` blocks, which plain Jinja does not know.

    Each block becomes an `if` that always holds, with the same whitespace control, so that trimming stays the same. A
    block that assigns variables becomes a call block: in both its assignments end with it.
    """
    if not _TAG.search(text):
        return text
    text = "\n".join(re.split(r"\r\n|\r|\n", text))  # as the lexer reads it
    tokens = _tokens(text)
    changes: dict[tuple[int, int], str] = {}
    open_blocks: list[int] = []
    for at, (_, name) in enumerate(tokens):
        if name.value == "generation":
            open_blocks.append(at)
        elif name.value == "endgeneration" and open_blocks:
            begin = open_blocks.pop()
            scoped = any(each.value == "set" for _, each in tokens[begin:at])
            changes[tokens[begin][1].span] = "call generation_block()" if scoped else "if true"
            changes[name.span] = "endcall" if scoped else "endif"
    for (start, end), words in sorted(changes.items(), reverse=True):
        text = text[:start] + words + text[end:]
    return _BLOCK_MACRO * ("endcall" in changes.values()) + text


class _Token(NamedTuple):
    kind: str
    value: str
    span: tuple[int, int]


def _tokens(text: str) -> list[tuple[_Token, _Token]]:
    """Each statement's `{%` and name, in order. What looks like one in a string or a comment is none."""
    lexer = jinja2.Environment(keep_trailing_newline=True)  # noqa: S701  (it only splits text, nothing is rendered)
    found, place = list[_Token](), 0
    for _, kind, value in lexer.lex(text):  # leaves out nothing but blanks that whitespace control removes
        start = text.index(value, place)
        place = start + len(value)
        if kind != "whitespace":
            found.append(_Token(kind, value, (start, place)))
    return [
        (one, other) for one, other in itertools.pairwise(found) if one.kind == "block_begin" and other.kind == "name"
    ]


def with_defaults(text: str, options: Mapping[str, Any]) -> str:
    """The template with each option set wherever the caller does not set it."""
    defaults = (f"{{% if {name} is not defined %}}{_assigned(name, value)}{{% endif %}}" for name, value in _plain(options))  # noqa: E501  # fmt: skip
    return "".join(defaults) + text


def pinned_for_llama_cpp(text: str, template: Template) -> str:
    """`text` with the values of the training for variables that llama.cpp sets to others.

    llama.cpp defines `enable_thinking` as true and `date_string` as today for every template, so a default for a
    variable that is not defined has no effect there. A variable is pinned where that would change the prompt. One that
    training left undefined is undefined again.
    """
    today = time.strftime("%d %b %Y")
    values = {"enable_thinking": True, "date_string": today, "datetime": time.strftime("%b %d %Y")}
    for name in _LLAMA_CPP_SETS:
        if re.search(rf"\b{name}\b", template.text) and _changes(template, _assigned(name, values[name])):
            given = template.options
            own = _assigned(name, given[name]) if name in given else f"{{% set {name} = undefined %}}"
            text = own + text
    return text


def _changes(template: Template, prefix: str) -> bool:
    """Whether `prefix` before the template changes what it renders."""
    other = replace(template, text=prefix + template.text)
    return any(_rendered(template, turns) != _rendered(other, turns) for turns in _PROBES)


def _rendered(template: Template, turns: Sequence[Turn]) -> str | None:
    try:
        return template.render(turns, generate=True)
    except ModelError:
        return None


def _plain(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ModelError(
                f"'{name}' cannot be the name of a variable in a chat template", where="prompt.template_options",
                next="Use letters, digits and underscores",
            )  # fmt: skip
        yield name, value


def _assigned(name: str, value: Any) -> str:
    return f"{{% set {name} = {literal(value)} %}}"


def literal(value: Any) -> str:
    """A plain value (text, number, truth value, None, list, mapping) in Jinja's syntax."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(_escaped(letter) for letter in value) + '"'
        case Mapping():
            return "{" + ", ".join(f"{literal(key)}: {literal(each)}" for key, each in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(literal, value)) + "]"
    raise ModelError(
        f"a value of type {type(value).__name__} cannot be written into a chat template",
        where="prompt.template_options", next="Use text, numbers, true, false, lists or mappings",
    )  # fmt: skip


def _escaped(letter: str) -> str:
    known = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return known.get(letter, letter)
