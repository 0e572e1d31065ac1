"""Locates an answer in a rendered conversation, under any chat template.

A template may write a header or an empty thought before an answer, trim the text, write the end-of-turn token only if
another turn follows, or leave a thought open at the end of the generation prompt. Rendering the conversation again with
markers in place of the answer's text and reasoning shows which part of the rendered text is which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.data.conversation import Turn
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.template import (
    ANSWER_MARKER,
    EMPTY_THOUGHT,
    OPEN_THOUGHT,
    THOUGHT_MARKER,
    RenderedAnswer,
    Template,
)

DROP = "Set prompt.reasoning to drop, or use a prompt.template that writes reasoning"


@dataclass(frozen=True)
class _Parts:
    """A rendered conversation, split at its last answer: before the thought, thought, text, and what follows."""

    head: str
    thought: str
    text: str
    tail: str


def locate_answer(template: Template, turns: Sequence[Turn]) -> RenderedAnswer:
    """Returns the last turn of `turns` as an Answer; see Template.answer."""
    turn = turns[-1]
    if template.reasoning == "drop" and turn.reasoning:
        turn = replace(turn, reasoning="")
        turns = (*turns[:-1], turn)
    rendered = template.render(turns)
    prompt = template.render(turns[:-1], generate=True)
    parts = _locate_plain(template, turn, rendered, prompt) or _locate_by_markers(template, turns, rendered)
    parts = _after_prompt(parts, prompt, turn, template)
    ending, trailing = _split_tail(parts.tail, template)
    opening = parts.head[len(prompt) :]
    return RenderedAnswer(prompt, opening, parts.thought, parts.text, ending, trailing)


def _locate_plain(template: Template, turn: Turn, rendered: str, prompt: str) -> _Parts | None:
    """Returns the parts of an answer without reasoning, if it is written as `plain_answer` is; else None."""
    if turn.reasoning or turn.text == ANSWER_MARKER:  # the latter is how `plain_answer` itself is found
        return None
    head = prompt + template.plain_answer.opening
    if not rendered.startswith(head):
        return None
    for text in (turn.text, turn.text.strip()):
        if rendered.startswith(text, len(head)):
            return _Parts(head, "", text, rendered[len(head) + len(text) :])
    return None


def _locate_by_markers(template: Template, turns: Sequence[Turn], rendered: str) -> _Parts:
    """Returns the parts of any answer. Raises DataError if the template changes the answer or leaves it out."""
    turn = turns[-1]
    with_reasoning = turn.reasoning and template.render(
        (*turns[:-1], replace(turn, text=ANSWER_MARKER, reasoning=THOUGHT_MARKER))
    )
    if turn.reasoning and THOUGHT_MARKER not in with_reasoning:
        return _insert_thought(template, turns)
    marked = with_reasoning or template.render((*turns[:-1], replace(turn, text=ANSWER_MARKER)))
    before, marker, tail = marked.partition(ANSWER_MARKER)
    if not marker:
        raise DataError("the chat template leaves out the answer", next="Use a prompt.template that writes answers")
    head, _, between = before.partition(THOUGHT_MARKER) if turn.reasoning else (before, "", "")
    inner = rendered[len(head) : len(rendered) - len(tail)]
    whole = rendered.startswith(head) and rendered.endswith(tail) and len(rendered) >= len(head) + len(tail)
    thought, text = _split_thought(inner, turn, between) if whole else (None, "")
    if thought is None:
        raise DataError(
            "the chat template changes the answer's text",
            next="Remove the template's own markup, such as <think>, from the answer",
        )
    return _Parts(head, thought, text, tail)


def _split_thought(inner: str, turn: Turn, between: str) -> tuple[str | None, str]:
    """Splits `inner` into thought and text, either possibly trimmed; the thought is None if they are not the turn's."""
    thought, text = turn.reasoning.strip(), turn.text.strip()
    if not thought:
        return ("", inner) if inner.strip() == text else (None, "")
    offset = len(inner) - len(inner.lstrip())
    if not inner.startswith(thought, offset):
        return None, ""
    end = offset + len(thought)
    gap = between.strip()
    start = inner.find(gap, end) + len(gap)
    if inner[end : start - len(gap)].strip() or inner[start:].strip() != text:
        return None, ""
    start += len(inner[start:]) - len(inner[start:].lstrip())
    return inner[:start], inner[start:]


def _insert_thought(template: Template, turns: Sequence[Turn]) -> _Parts:
    """Returns the parts under a template that does not write reasoning: it goes into an empty thought or a new one.

    Raises DataError if neither is possible.
    """
    turn = turns[-1]
    plain = (*turns[:-1], replace(turn, reasoning=""))
    parts = _locate_by_markers(template, plain, template.render(plain))
    prompt = template.render(turns[:-1], generate=True)
    if OPEN_THOUGHT.search(prompt):
        return replace(parts, thought=turn.reasoning)  # `_after_prompt` closes it
    shared = next((n for n, (a, b) in enumerate(zip(prompt, parts.head, strict=False)) if a != b), len(prompt))
    opening = parts.head[shared:]
    if match := EMPTY_THOUGHT.search(opening):
        blank = match[3][: len(match[3]) // 2]
        start = len(parts.head) - len(opening) + match.end(1)
        after = parts.head[start + len(match[3]) :]
        thought = f"{blank}{turn.reasoning}{blank}{after}"
        return replace(parts, head=parts.head[:start], thought=thought)
    if EMPTY_THOUGHT.search(prompt):
        raise DataError("the generation prompt ends with an empty thought, and the row has reasoning", next=DROP)
    return replace(parts, thought=f"<think>\n{turn.reasoning}\n</think>\n\n")


def _after_prompt(parts: _Parts, prompt: str, turn: Turn, template: Template) -> _Parts:
    """Makes `head` begin with the generation prompt, which is what the model reads when it generates.

    Raises ModelError if the template writes something other than its generation prompt before the answer, DataError if
    the row's reasoning is the cause.
    """
    if parts.head.startswith(prompt):
        open_thought = OPEN_THOUGHT.search(prompt)
        if not (open_thought and parts.head == prompt and f"</{open_thought[1]}>" not in parts.thought):
            return parts
    if match := OPEN_THOUGHT.search(prompt):
        closing = _closing_tag(match, template)
        if turn.reasoning:
            return replace(parts, head=prompt, thought=turn.reasoning + closing)
        return replace(parts, head=prompt + closing)
    bare = prompt.rstrip()
    if parts.head.startswith(bare):
        return replace(parts, head=prompt + parts.head[len(bare) :].lstrip())
    if turn.reasoning:
        raise DataError("the generation prompt has no place for the row's reasoning", next=DROP)
    raise ModelError(
        "the template's text before an answer differs from its generation prompt",
        where=template.source,
        next="Use a prompt.template whose generation prompt is the beginning of an answer",
    )


def _closing_tag(open_thought: re.Match[str], template: Template) -> str:
    """Returns what ends an open thought: what the template writes after reasoning, else the tag and a blank line."""
    tag = f"</{open_thought[1]}>"
    return template.after_thought if tag in template.after_thought else f"\n{tag}\n\n"


def _split_tail(tail: str, template: Template) -> tuple[str, str]:
    """Splits what follows an answer after its end-of-turn token. Raises ModelError if there is no such token."""
    if match := template.specials.search(tail):
        return tail[: match.end()], tail[match.end() :]
    if template.end_before_next_turn:
        return template.end_before_next_turn, ""
    raise ModelError(
        "no stop token follows the answer, so the model would never learn to stop",
        where=template.source,
        next="End each answer with {{ eos_token }} in prompt.template",
    )
