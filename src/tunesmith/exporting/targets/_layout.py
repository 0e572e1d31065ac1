"""Extracts the text between turns from a chat template by rendering known turns, and writes it as a Go template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.exporting.targets._go_template import IS_LAST, escape
from tunesmith.prompt.template import Template

SYSTEM = Turn("system", "systemwords")
QUESTIONS = [Turn("user", f"userwords{n}") for n in range(3)]
ANSWERS = [Turn("assistant", f"assistantwords{n}") for n in range(2)]
CONVERSATION = (QUESTIONS[0], ANSWERS[0], QUESTIONS[1], ANSWERS[1], QUESTIONS[2])
_ADVICE = (
    "Use gguf, whose file contains the original template, or a prompt.template that only adds text around each turn"
)
_DATE_ADVICE = "Set a fixed date in prompt.template_options, such as {date_string: 26 Nov 2026}, or use only gguf"


@dataclass(frozen=True)
class SystemPlacement:
    """The text around the system message, which comes before the first or the last user message."""

    place: Literal["first", "last"]
    before: str
    after: str


@dataclass(frozen=True)
class Layout:
    """The text around turns: `opening` U `ends` `answers` A `turned` U … U `ends`, where the model's reply starts."""

    opening: str
    ends: str
    answers: str
    turned: str
    system: SystemPlacement | None


def find_layout(template: Template) -> Layout:
    """Returns the template's layout. Raises ModelError if it depends on more than the turns' roles and order."""
    if _depends_on_the_date(template):
        raise _layout_error("it writes the current date, which would be fixed in a Modelfile", template, _DATE_ADVICE)
    opening, ends = _split((QUESTIONS[0],), template)
    opening_again, after_user, before_user, after_user_again, before_user_again, end = _split(CONVERSATION, template)
    if (opening_again, after_user, before_user, end) != (
        opening,
        after_user_again,
        before_user_again,
        ends,
    ) or not after_user.startswith(ends):
        raise _layout_error("the text around a turn depends on other turns", template)
    plain = Layout(opening, ends, after_user.removeprefix(ends), before_user, None)
    return replace(plain, system=_system(template, plain))


def _depends_on_the_date(template: Template) -> bool:
    """Returns whether the rendered text contains today's date."""
    if "strftime_now" not in template.text:
        return False
    changed = replace(template, text="{% macro strftime_now(format) %}anotherday{% endmacro %}" + template.text)
    return any(
        _render_or_empty(changed, turns) != _render_or_empty(template, turns)
        for turns in (QUESTIONS[:1], (SYSTEM, QUESTIONS[0]))
    )


def _render_or_empty(template: Template, turns: Sequence[Turn]) -> str:
    try:
        return template.render(turns, generate=True)
    except ModelError:
        return ""


def accepts_system(template: Template) -> bool:
    """Returns whether the template accepts a system message, even if it ignores it."""
    try:
        template.render((SYSTEM, QUESTIONS[0]), generate=True)
    except ModelError:
        return False
    return True


def go_template(layout: Layout, bos: str) -> str:
    """Writes the layout in Go's syntax, without the start token `bos` that the runtime adds to each text.

    Raises ValueError if the layout does not begin with `bos`.
    """
    opening, system = layout.opening, layout.system
    first = system if system and system.place == "first" else None
    for text in [opening, *([first.before] if first else [])]:
        if not text.startswith(bos):
            raise ValueError(bos)
    heads = [opening.removeprefix(bos), layout.turned, *([first.after] if first else [])]
    user_marker = _shared_end(heads)  # precedes each user message
    begin, before_user, *after = [text_before.removesuffix(user_marker) for text_before in heads]
    head = _opening(begin, first.before.removeprefix(bos), after[0]) if first else escape(begin)
    user = f"{escape(user_marker)}{_last_system(system)}{{{{ .Content }}}}{escape(layout.ends)}"
    answer = f"{escape(layout.answers)}{{{{ .Content }}}}{escape(before_user)}"
    by_role = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}'
    turns = "{{ range $i, $_ := .Messages }}" if "$i" in user else "{{ range .Messages }}"
    return f"{head}{turns}{by_role}{{{{ end }}}}"


def _opening(without: str, before: str, after: str) -> str:
    """Writes the text before the first user message: `without` a system message, or `before` and `after` one."""
    common = next((n for n, (a, b) in enumerate(zip(without, before, strict=False)) if a != b), len(without))
    shared = without[: min(common, len(before))]
    with_system = f"{{{{ if .System }}}}{escape(before.removeprefix(shared))}{{{{ .System }}}}{escape(after)}"
    without_system = escape(without.removeprefix(shared))
    return escape(shared) + with_system + (f"{{{{ else }}}}{without_system}" if without_system else "") + "{{ end }}"


def _shared_end(texts: Sequence[str]) -> str:
    """Returns the longest common suffix that begins like a marker, so that no marker is split."""
    lengths = range(min(map(len, texts)), 0, -1)
    ends = (texts[0][-n:] for n in lengths if len({text[-n:] for text in texts}) == 1)
    return next((end for end in ends if end[0] in "<[#"), "")


def _last_system(system: SystemPlacement | None) -> str:
    if not system or system.place == "first":
        return ""
    text = f"{escape(system.before)}{{{{ $.System }}}}{escape(system.after)}"
    return f"{{{{ if and $.System ({IS_LAST}) }}}}{text}{{{{ end }}}}"


def _system(template: Template, plain: Layout) -> SystemPlacement | None:
    if not accepts_system(template):
        return None
    if template.render((SYSTEM, QUESTIONS[0]), generate=True) == template.render((QUESTIONS[0],), generate=True):
        return None  # training omits it as well
    before, after, ends = _split((SYSTEM, QUESTIONS[0]), template)
    in_front = _text_between((SYSTEM, *CONVERSATION), template)
    after_user = plain.ends + plain.answers
    around = [after_user, plain.turned, after_user, plain.turned, plain.ends]
    if ends == plain.ends and in_front == [before, after, *around]:
        return SystemPlacement("first", before, after)
    at_last = _text_between(
        (*CONVERSATION[:-1], SYSTEM, CONVERSATION[-1]), template, conversation=(SYSTEM, *CONVERSATION)
    )
    inner = before.removeprefix(plain.opening)
    if before.startswith(plain.opening) and at_last == [plain.opening, *around[:3], plain.turned + inner, after, ends]:
        return SystemPlacement("last", inner, after)
    raise _layout_error("the position of the system message, or the text around it, depends on the turns", template)


def _split(turns: Sequence[Turn], template: Template) -> list[str]:
    pieces = _text_between(turns, template)
    if pieces is None:
        raise _layout_error("it omits, repeats or moves a turn's text", template)
    return pieces


def _text_between(turns: Sequence[Turn], template: Template, conversation: Sequence[Turn] = ()) -> list[str] | None:
    """Returns the text between `turns`, listed in rendered order; `conversation` lists them in conversation order.

    None if a turn's text is missing, repeated or moved.
    """
    try:
        remaining = template.render(conversation or turns, generate=True)
    except ModelError as error:
        raise _layout_error(error.what, template) from error
    pieces = []
    for turn in turns:
        before, mark, remaining = remaining.partition(turn.text)
        if not mark or turn.text in remaining:
            return None
        pieces.append(before)
    return [*pieces, remaining]


def _layout_error(why: str, template: Template, advice: str = _ADVICE) -> ModelError:
    return ModelError(f"the chat template cannot be written for Ollama: {why}", where=template.source, next=advice)
