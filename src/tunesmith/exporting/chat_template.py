"""Adapts chat template and tokenizer files for export, so that plain Jinja and llama.cpp render the training text."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.exporting.job import Job
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import special_ids, stop_ids

_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
_BLOCK_MACRO = "{% macro generation_block() %}{{ caller() }}{% endmacro %}"
# Variables that llama.cpp defines for every template, whatever the client sends (common/chat.cpp).
_LLAMA_CPP_VARIABLES = ("enable_thinking", "date_string", "datetime")
_QUESTION, _ANSWER, _SYSTEM = (
    Turn("user", "Where is it?"),
    Turn("assistant", "On the shelf."),
    Turn("system", "Be kind."),
)
_PROBES: Sequence[tuple[Turn, ...]] = ((_QUESTION,), (_SYSTEM, _QUESTION), (_QUESTION, _ANSWER, _QUESTION))


def strip_generation_tags(text: str) -> str:
    """Removes transformers' `generation` blocks, which plain Jinja does not support.

    Each block becomes `if true` with the same whitespace control, so trimming does not change. A block that assigns
    variables becomes a call block, which has the same scope.
    """
    if not _GENERATION_TAG.search(text):
        return text
    text = "\n".join(re.split(r"\r\n|\r|\n", text))  # as the lexer normalizes them
    statements = _statements(text)
    changes: dict[tuple[int, int], str] = {}
    open_blocks: list[int] = []
    for index, (_, name) in enumerate(statements):
        if name.value == "generation":
            open_blocks.append(index)
        elif name.value == "endgeneration" and open_blocks:
            begin = open_blocks.pop()
            scoped = any(inner.value == "set" for _, inner in statements[begin:index])
            changes[statements[begin][1].span] = "call generation_block()" if scoped else "if true"
            changes[name.span] = "endcall" if scoped else "endif"
    for (start, end), replacement in sorted(changes.items(), reverse=True):
        text = text[:start] + replacement + text[end:]
    return _BLOCK_MACRO * ("endcall" in changes.values()) + text


class _Token(NamedTuple):
    kind: str
    value: str
    span: tuple[int, int]


def _statements(text: str) -> list[tuple[_Token, _Token]]:
    """Returns each statement's `{%` and name, in order; strings and comments are skipped."""
    lexer = jinja2.Environment(keep_trailing_newline=True)  # noqa: S701  (it only splits text, nothing is rendered)
    tokens, place = list[_Token](), 0
    for _, kind, value in lexer.lex(text):  # leaves out nothing but blanks that whitespace control removes
        start = text.index(value, place)
        place = start + len(value)
        if kind != "whitespace":
            tokens.append(_Token(kind, value, (start, place)))
    return [
        (first, second)
        for first, second in itertools.pairwise(tokens)
        if first.kind == "block_begin" and second.kind == "name"
    ]


def with_defaults(text: str, options: Mapping[str, Any]) -> str:
    """Returns the template with a default for each option, which the caller can override."""
    defaults = (f"{{% if {name} is not defined %}}{_assignment(name, value)}{{% endif %}}" for name, value in _checked_options(options))  # noqa: E501  # fmt: skip
    return "".join(defaults) + text


def pinned_for_llama_cpp(text: str, template: Template) -> str:
    """Returns `text` with training's values for variables that llama.cpp defines.

    llama.cpp defines `enable_thinking` as true and `date_string` as today for every template, so defaults for undefined
    variables have no effect there. A variable is pinned if llama.cpp's value would change the prompt; one that training
    left undefined is made undefined.
    """
    today = time.strftime("%d %b %Y")
    values = {"enable_thinking": True, "date_string": today, "datetime": time.strftime("%b %d %Y")}
    for name in _LLAMA_CPP_VARIABLES:
        if re.search(rf"\b{name}\b", template.text) and _changes_prompt(template, _assignment(name, values[name])):
            trained_values = template.options
            assignment = (
                _assignment(name, trained_values[name]) if name in trained_values else f"{{% set {name} = undefined %}}"
            )
            text = assignment + text
    return text


def _changes_prompt(template: Template, prefix: str) -> bool:
    """Returns whether `prefix` before the template changes its output."""
    changed = replace(template, text=prefix + template.text)
    return any(_render_or_none(template, turns) != _render_or_none(changed, turns) for turns in _PROBES)


def _render_or_none(template: Template, turns: Sequence[Turn]) -> str | None:
    try:
        return template.render(turns, generate=True)
    except ModelError:
        return None


def _checked_options(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ModelError(
                f"'{name}' cannot be the name of a template variable", where="prompt.template_options",
                next="Use letters, digits and underscores",
            )  # fmt: skip
        yield name, value


def _assignment(name: str, value: Any) -> str:
    return f"{{% set {name} = {literal(value)} %}}"


def literal(value: Any) -> str:
    """Writes a plain value (string, number, boolean, None, list, mapping) in Jinja's syntax."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(_escape(letter) for letter in value) + '"'
        case Mapping():
            return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(literal, value)) + "]"
    raise ModelError(
        f"a value of type {type(value).__name__} cannot be written into a chat template",
        where="prompt.template_options", next="Use text, numbers, true, false, lists or mappings",
    )  # fmt: skip


def _escape(letter: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return escapes.get(letter, letter)


GENERIC_CLASS = "PreTrainedTokenizerFast"  # transformers 4 and 5, vLLM and mlx_lm load tokenizer.json with it
_NOT_SHIPPED = ("auto_map", "backend", "is_local", "local_files_only", "name_or_path", "processor_class", "_commit_hash")  # noqa: E501  # fmt: skip


def portable_config(config: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Converts a tokenizer_config.json of transformers 5 to a form that transformers 4.57 also reads.

    The class is the one in the `base` folder if transformers provides it, else the generic one: only transformers 5 has
    TokenizersBackend. A list of additional special tokens gets its old key, because the new one must be a mapping in
    transformers 4.
    """
    shipped = {key: value for key, value in config.items() if key not in _NOT_SHIPPED}
    base_config = _read_object(base / "tokenizer_config.json")
    names = [
        base_config.get("tokenizer_class") if "auto_map" not in base_config else None,
        config.get("tokenizer_class"),
    ]
    classes = (name for name in names if isinstance(name, str) and name != "TokenizersBackend")
    shipped["tokenizer_class"] = next(classes, GENERIC_CLASS)
    if isinstance(shipped.get("extra_special_tokens"), list):
        shipped["additional_special_tokens"] = shipped.pop("extra_special_tokens")
    return shipped


def eos_token_ids(job: Job) -> list[int]:
    """Returns all tokens that end a reply: those of the template and the tokenizer, then others of the base."""
    stops = stop_ids(job.template)
    base_ids = _read_object(job.weights.folder / "generation_config.json").get("eos_token_id")
    special = special_ids(job.template.tokenizer)
    additional = [token for token in (base_ids if isinstance(base_ids, list) else [base_ids]) if token in special]
    return list(dict.fromkeys([*stops, *additional]))


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
