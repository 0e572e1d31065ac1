"""A conversation's tokens in which what is said stays what is said.

A chat template joins texts, and a tokenizer finds its special tokens in the result, so that a text with `<|im_end|>` in
it would end its own turn and begin another's. Here such words are taken out before the text is rendered, and put back
as plain characters when it is cut into tokens. All other tokens are those of the usual way.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from tunesmith.data.conversation import Turn
from tunesmith.prompt.template import Template

SHORTEST = 4  # letters of a template's own line that count as a mark


class Cut(Protocol):
    """Cuts a text into tokens, special ones among them; `start` says that it is the beginning."""

    def __call__(self, text: str, *, start: bool) -> list[int]:
        """The tokens."""
        ...


def any_of(words: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the words, the longest first; nothing where there is none."""
    return re.compile("|".join(map(re.escape, sorted(set(words), key=len, reverse=True))) or r"(?!)")


def marks_of(specials: re.Pattern[str], render: Callable[[Sequence[Turn]], str]) -> re.Pattern[str]:
    """Finds special tokens, and the lines that the template itself writes around what is said.

    The latter are what separates turns where a template has no special tokens for it (### Response:).
    """
    said = [secrets.token_hex(8) for _ in range(3)]
    turns = (Turn("user", said[0]), Turn("assistant", said[1]), Turn("user", said[2]))
    between = re.split("|".join(said), render(turns))[1:]  # what stands before the first may be a system message
    lines = {line.strip() for part in between for line in part.split("\n")}
    own = any_of([line for line in lines if len(line) >= SHORTEST])
    return re.compile(f"(?:{own.pattern})|(?:{specials.pattern})")


def bos_of(template: Template | None) -> list[int]:
    """The start token before a raw text; none without a template, for llama.cpp puts its own."""
    return [template.tokenizer.bos_token_id] if template is not None and template.starts_with_bos else []


def encode_plainly(
    turns: Sequence[Turn], *, render: Callable[[Sequence[Turn]], str], cut: Cut, marks: re.Pattern[str]
) -> list[int]:
    """The tokens up to where the assistant begins; what `marks` finds in a turn's text is cut as plain characters."""
    kept: list[str] = []
    name = secrets.token_hex(12)

    def take(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f"x{name}n{len(kept) - 1}x"

    plain = [Turn(turn.role, marks.sub(take, turn.text)) for turn in turns]
    rendered = render(plain)
    if not kept:
        return cut(rendered, start=True)
    ids: list[int] = []
    for place, part in enumerate(re.split(f"x{name}n([0-9]+)x", rendered)):
        if place % 2:
            word = kept[int(part)]
            ids += cut(word[:1], start=False) + cut(word[1:], start=False)  # in two, it is no special token
        else:
            ids += cut(part, start=place == 0)
    return ids
