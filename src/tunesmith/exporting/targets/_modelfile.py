"""Ollama's Modelfile, written and read again by the rules of its own reader.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx; the reader is parser/parser.go there. A value
goes to the end of its line; in quotes, to the first line that ends with the same quotes. There is no escape within.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

PARAMETERS: Mapping[str, tuple[type, ...]] = {  # api/types.go: Options and Runner
    "num_keep": (int,), "seed": (int,), "num_predict": (int,), "top_k": (int,), "top_p": (float, int),
    "min_p": (float, int), "typical_p": (float, int), "repeat_last_n": (int,), "temperature": (float, int),
    "repeat_penalty": (float, int), "presence_penalty": (float, int), "frequency_penalty": (float, int),
    "stop": (str,), "num_ctx": (int,), "num_batch": (int,), "num_gpu": (int,), "main_gpu": (int,),
    "use_mmap": (bool,), "num_thread": (int,), "draft_num_predict": (int,),
}  # fmt: skip
COMMANDS = {
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
}  # fmt: skip
_WIDE = '"""'


def fits(name: str, value: Any) -> bool:
    """Whether `value` is of a type that the parameter `name`, one of PARAMETERS, takes."""
    kinds = PARAMETERS[name]
    return isinstance(value, kinds) and (isinstance(value, bool) == (bool in kinds))


def quoted(text: str) -> str:
    """`text` as a value. Raises ValueError where Ollama's reader would not give it back."""
    value = f"{_WIDE}{text}{_WIDE}" if {*'"\n'} & {*text} else f'"{text}"'
    try:
        same = list(read(f"TEMPLATE {value}\n")) == [("template", text)]
    except ValueError:
        same = False
    if not same:
        raise ValueError("holds what a Modelfile cannot: three quotes at a line's end, or a character without a shape")
    return value


def read(text: str) -> Iterator[tuple[str, str]]:
    """(command in small letters, value) in order; a parameter is `parameter NAME`.

    Raises ValueError for what Ollama's reader refuses, with the line.
    """
    lines = iter(enumerate(text.split("\n"), 1))
    for number, line in lines:
        begun = line.lstrip(" \t")
        if not begun or begun.startswith("#"):
            continue
        name, value = _word(begun)
        name = name.lower()
        if name not in COMMANDS:
            raise ValueError(f"line {number}: unknown command '{name}'")
        if name == "parameter":
            key, value = _word(value.lstrip(" \t"))
            name = f"parameter {key}"
        given = _unquoted(value := _printable(value))
        while given is None:
            _, more = next(lines, (0, None))
            if more is None:
                raise ValueError(f"line {number}: its quotes are not closed")
            value += "\n" + _printable(more)
            given = _unquoted(value)
        if not given:
            raise ValueError(f"line {number}: '{name}' has no value")
        yield name, given


def _word(text: str) -> tuple[str, str]:
    """The first word, and what stands behind the blank after it."""
    word, *rest = re.split(r"[ \t]", text, maxsplit=1)
    return word, "".join(rest)


def _printable(text: str) -> str:
    return "".join(each for each in text if each.isprintable() or each == "\t")


def _unquoted(value: str) -> str | None:
    """The value without its quotes; None while they are open."""
    text = value.strip(" \t\n")
    for quotes in (_WIDE, '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text
