"""Where an answer lies in a rendered conversation, found with markers, for templates of every kind.

A template may write a header before an answer, an empty thought, a trimmed text, an end-of-turn token only when the
conversation goes on, or a generation prompt that leaves a thought open. Markers in place of the text and the reasoning
show which part of the rendered text is whose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.data.conversation import Turn
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.template import (
    ANSWER,
    EMPTY_THOUGHT,
    OPEN_THOUGHT,
    THOUGHT,
    Answer,
    Template,
)

DROP = "Set prompt.reasoning to drop, or give a prompt.template that writes reasoning"


@dataclass(frozen=True)
class _Parts:
    """A rendered conversation around its last answer: before the thought, thought, text, and what follows."""

    head: str
    thought: str
    text: str
    tail: str


def locate(template: Template, turns: Sequence[Turn]) -> Answer:
    """See Template.answer."""
    turn = turns[-1]
    if template.reasoning == "drop" and turn.reasoning:
        turn = replace(turn, reasoning="")
        turns = (*turns[:-1], turn)
    rendered = template.render(turns)
    prompt = template.render(turns[:-1], generate=True)
    parts = _quickly(template, turn, rendered, prompt) or _parts(template, turns, rendered)
    parts = _behind(parts, prompt, turn, template)
    ending, rest = _end(parts.tail, template)
    opening = parts.head[len(prompt) :]
    return Answer(prompt, opening, parts.thought, parts.text, ending, rest)


def _quickly(template: Template, turn: Turn, rendered: str, prompt: str) -> _Parts | None:
    """The parts of an answer without reasoning that is written as such answers usually are; else None."""
    if turn.reasoning or turn.text == ANSWER:  # the latter asks how they usually are
        return None
    head = prompt + template.plain_answer.opening
    if not rendered.startswith(head):
        return None
    for text in (turn.text, turn.text.strip()):
        if rendered.startswith(text, len(head)):
            return _Parts(head, "", text, rendered[len(head) + len(text) :])
    return None


def _parts(template: Template, turns: Sequence[Turn], rendered: str) -> _Parts:
    """The parts of any answer, found with markers. Raises DataError for one that the template changes or leaves out."""
    turn = turns[-1]
    own = turn.reasoning and template.render((*turns[:-1], replace(turn, text=ANSWER, reasoning=THOUGHT)))
    if turn.reasoning and THOUGHT not in own:
        return _with_thought(template, turns)
    marked = own or template.render((*turns[:-1], replace(turn, text=ANSWER)))
    before, found, tail = marked.partition(ANSWER)
    if not found:
        raise DataError("the chat template leaves the answer out", next="Give a prompt.template that writes answers")
    head, _, between = before.partition(THOUGHT) if turn.reasoning else (before, "", "")
    inner = rendered[len(head) : len(rendered) - len(tail)]
    whole = rendered.startswith(head) and rendered.endswith(tail) and len(rendered) >= len(head) + len(tail)
    thought, text = _split(inner, turn, between) if whole else (None, "")
    if thought is None:
        raise DataError(
            "the chat template changes the answer's text",
            next="Remove what the template reads as its own marks, such as <think> inside an answer",
        )
    return _Parts(head, thought, text, tail)


def _split(inner: str, turn: Turn, between: str) -> tuple[str | None, str]:
    """Thought and text as rendered, blanks around either possibly taken off; None where they are not the turn's."""
    own, text = turn.reasoning.strip(), turn.text.strip()
    if not own:
        return ("", inner) if inner.strip() == text else (None, "")
    at = len(inner) - len(inner.lstrip())
    if not inner.startswith(own, at):
        return None, ""
    end = at + len(own)
    gap = between.strip()
    start = inner.find(gap, end) + len(gap)
    if inner[end : start - len(gap)].strip() or inner[start:].strip() != text:
        return None, ""
    start += len(inner[start:]) - len(inner[start:].lstrip())
    return inner[:start], inner[start:]


def _with_thought(template: Template, turns: Sequence[Turn]) -> _Parts:
    """The parts where the template has no place for reasoning: in its empty thought, or as a thought of its own.

    Raises DataError where neither can be.
    """
    turn = turns[-1]
    plain = (*turns[:-1], replace(turn, reasoning=""))
    parts = _parts(template, plain, template.render(plain))
    prompt = template.render(turns[:-1], generate=True)
    if OPEN_THOUGHT.search(prompt):
        return replace(parts, thought=turn.reasoning)  # `_behind` closes it
    shared = next((n for n, (a, b) in enumerate(zip(prompt, parts.head, strict=False)) if a != b), len(prompt))
    opening = parts.head[shared:]
    if match := EMPTY_THOUGHT.search(opening):
        blank = match[3][: len(match[3]) // 2]
        start = len(parts.head) - len(opening) + match.end(1)
        rest = parts.head[start + len(match[3]) :]
        thought = f"{blank}{turn.reasoning}{blank}{rest}"
        return replace(parts, head=parts.head[:start], thought=thought)
    if EMPTY_THOUGHT.search(prompt):
        raise DataError("the generation prompt ends with an empty thought, and the row has reasoning", next=DROP)
    return replace(parts, thought=f"<think>\n{turn.reasoning}\n</think>\n\n")


def _behind(parts: _Parts, prompt: str, turn: Turn, template: Template) -> _Parts:
    """The parts behind the generation prompt, which is what the model reads in use.

    Raises ModelError, or DataError where the row's reasoning is the cause, for a template that writes something else
    before the answer than its generation prompt.
    """
    if parts.head.startswith(prompt):
        open_thought = OPEN_THOUGHT.search(prompt)
        if not (open_thought and parts.head == prompt and f"</{open_thought[1]}>" not in parts.thought):
            return parts
    if match := OPEN_THOUGHT.search(prompt):
        closing = _closing(match, template)
        if turn.reasoning:
            return replace(parts, head=prompt, thought=turn.reasoning + closing)
        return replace(parts, head=prompt + closing)
    bare = prompt.rstrip()
    if parts.head.startswith(bare):
        return replace(parts, head=prompt + parts.head[len(bare) :].lstrip())
    if turn.reasoning:
        raise DataError("the generation prompt leaves no place for the row's reasoning", next=DROP)
    raise ModelError(
        "the template's text before the answer differs between training and use",
        where=template.source,
        next="Give a prompt.template whose generation prompt is the beginning of an answer",
    )


def _closing(open_thought: re.Match[str], template: Template) -> str:
    """What ends an open thought: as the template does it where it writes reasoning, else its tag and a blank line."""
    tag = f"</{open_thought[1]}>"
    return template.after_thought if tag in template.after_thought else f"\n{tag}\n\n"


def _end(tail: str, template: Template) -> tuple[str, str]:
    """What follows a text, up to the end of the end-of-turn token, and the rest. Raises ModelError without one."""
    if match := template.specials.search(tail):
        return tail[: match.end()], tail[match.end() :]
    if template.next_end:
        return template.next_end, ""
    raise ModelError(
        "no stop token follows the answer, so the model would never learn to stop",
        where=template.source,
        next="End each answer with {{ eos_token }} in prompt.template",
    )
