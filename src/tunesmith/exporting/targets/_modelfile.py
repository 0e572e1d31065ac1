"""Writes and parses values of Ollama's Modelfile by the rules of Ollama's own parser.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx; the parser is parser/parser.go there. A value
ends with its line; a quoted value ends with the first line that ends with the same quotes. There are no escapes.
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
_TRIPLE_QUOTES = '"""'


def has_type(name: str, value: Any) -> bool:
    """Returns whether `value` has a type of the parameter `name`, one of PARAMETERS."""
    kinds = PARAMETERS[name]
    return isinstance(value, kinds) and (isinstance(value, bool) == (bool in kinds))


def quote(text: str) -> str:
    """Quotes `text` as a value. Raises ValueError if Ollama's parser would not return the same text."""
    value = f"{_TRIPLE_QUOTES}{text}{_TRIPLE_QUOTES}" if {*'"\n'} & {*text} else f'"{text}"'
    try:
        parsed_back = list(parse(f"TEMPLATE {value}\n")) == [("template", text)]
    except ValueError:
        parsed_back = False
    if not parsed_back:
        raise ValueError("contains three quotes at the end of a line, or an unprintable character")
    return value


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Yields (command in lower case, value) in order; a parameter's command is `parameter NAME`.

    Raises ValueError, with the line number, for text that Ollama's parser refuses.
    """
    lines = iter(enumerate(text.split("\n"), 1))
    for number, line in lines:
        stripped = line.lstrip(" \t")
        if not stripped or stripped.startswith("#"):
            continue
        name, value = _split_word(stripped)
        name = name.lower()
        if name not in COMMANDS:
            raise ValueError(f"line {number}: unknown command '{name}'")
        if name == "parameter":
            key, value = _split_word(value.lstrip(" \t"))
            name = f"parameter {key}"
        content = _unquote(value := _printable(value))
        while content is None:
            _, next_line = next(lines, (0, None))
            if next_line is None:
                raise ValueError(f"line {number}: its quotes are not closed")
            value += "\n" + _printable(next_line)
            content = _unquote(value)
        if not content:
            raise ValueError(f"line {number}: '{name}' has no value")
        yield name, content


def _split_word(text: str) -> tuple[str, str]:
    """Returns the first word, and the text after the blank that follows it."""
    word, *tail = re.split(r"[ \t]", text, maxsplit=1)
    return word, "".join(tail)


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable() or character == "\t")


def _unquote(value: str) -> str | None:
    """Returns the value without its quotes; None if they are not closed."""
    text = value.strip(" \t\n")
    for quotes in (_TRIPLE_QUOTES, '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text
