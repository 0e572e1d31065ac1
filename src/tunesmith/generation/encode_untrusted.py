"""Encodes conversations whose text cannot be mistaken for the markers between turns.

A chat template joins texts, and the tokenizer finds its special tokens in the result, so a text that contains
`<|im_end|>` would end its own turn and begin another. Such markers are replaced before the text is rendered, and
encoded as plain characters afterwards. All other tokens are those of the usual encoding.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from tunesmith.data.conversation import Turn
from tunesmith.prompt.template import Template

MIN_MARKER_LENGTH = 4  # characters of a template's line that count as a marker


class Tokenize(Protocol):
    """Encodes a text in which special tokens are recognized; `start` is true at the beginning of the prompt."""

    def __call__(self, text: str, *, start: bool) -> list[int]:
        """Return the token ids."""
        ...


def match_any(words: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the words, the longest first; it matches nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(set(words), key=len, reverse=True))) or r"(?!)")


def turn_markers(specials: re.Pattern[str], render: Callable[[Sequence[Turn]], str]) -> re.Pattern[str]:
    """Return a pattern that matches special tokens and the lines that the template writes around the messages.

    Those lines separate turns in templates without special tokens (### Response:).
    """
    contents = [secrets.token_hex(8) for _ in range(3)]
    turns = (Turn("user", contents[0]), Turn("assistant", contents[1]), Turn("user", contents[2]))
    parts = re.split("|".join(contents), render(turns))[1:]  # text before the first message may be a system message
    lines = {line.strip() for part in parts for line in part.split("\n")}
    template_lines = match_any([line for line in lines if len(line) >= MIN_MARKER_LENGTH])
    return re.compile(f"(?:{template_lines.pattern})|(?:{specials.pattern})")


def bos_ids(template: Template | None) -> list[int]:
    """Return the start token for a raw text; none without a template, because llama.cpp adds its own."""
    return [template.tokenizer.bos_token_id] if template is not None and template.starts_with_bos else []


def encode_untrusted(
    turns: Sequence[Turn], *, render: Callable[[Sequence[Turn]], str], tokenize: Tokenize, markers: re.Pattern[str]
) -> list[int]:
    """Encode a conversation up to where the assistant begins; `markers` in a message become plain characters."""
    replaced: list[str] = []
    nonce = secrets.token_hex(12)

    def hide(match: re.Match[str]) -> str:
        replaced.append(match[0])
        return f"x{nonce}n{len(replaced) - 1}x"

    masked = [Turn(turn.role, markers.sub(hide, turn.text)) for turn in turns]
    rendered = render(masked)
    if not replaced:
        return tokenize(rendered, start=True)
    ids: list[int] = []
    for index, part in enumerate(re.split(f"x{nonce}n([0-9]+)x", rendered)):
        if index % 2:
            marker = replaced[int(part)]
            halves = (marker[:1], marker[1:])  # in two halves it is not a special token
            ids += [token for half in halves for token in tokenize(half, start=False)]
        else:
            ids += tokenize(part, start=index == 0)
    return ids
