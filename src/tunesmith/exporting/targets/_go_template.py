"""Writes a chat layout in Go's text/template, and renders the few constructs that it needs, as Ollama does.

Constructs: https://pkg.go.dev/text/template. Values and merged messages follow Ollama's `template.Execute`: `.System`
holds all system messages, `.Messages` all messages, with neighbors of the same role joined. Any other construct is
refused, so a template that renders here has no untested parts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.prompt.template import Template

IS_LAST = "eq (len (slice $.Messages $i)) 1"  # the current message of the range is the last one
_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STRING = r'"(?:[^"\\\n]|\\["\\]|\\U[0-9a-f]{8})*"'
_RANGE = {"range .Messages", "range $i, $_ := .Messages"}
_FIELDS = {".System", "$.System", ".Content"}
_TESTS = re.compile(
    r'eq \.Role "(?:user|assistant)"|\.System|' + re.escape(IS_LAST) + rf"|and \$\.System \({re.escape(IS_LAST)}\)"
)


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _Field:
    name: str


@dataclass(frozen=True)
class _Range:
    body: tuple[_Node, ...]


@dataclass(frozen=True)
class _If:
    branches: tuple[tuple[str, tuple[_Node, ...]], ...]  # the test, '' for else


_Node = _Text | _Field | _Range | _If


@dataclass(frozen=True)
class _Scope:
    """The values that an action can access: the whole conversation, and the current message of the range."""

    system: str
    messages: tuple[Turn, ...]
    index: int = -1


def escape(text: str) -> str:
    """Escapes `text` for use outside actions, in a Modelfile's triple quotes.

    Braces would start an action, three quotes would end the value, and Ollama's parser drops unprintable characters.
    """
    return re.sub(r'\{+|"{3,}|.', _escape_match, text, flags=re.DOTALL)


def _escape_match(match: re.Match[str]) -> str:
    text = match[0]
    is_literal = text in "\n\t" or (len(text) == 1 and text != "{" and text.isprintable())
    return text if is_literal else "{{ " + _quote(text) + " }}"


def _quote(text: str) -> str:
    return '"' + "".join(_escape_character(character) for character in text) + '"'


def _escape_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def execute(template: str, turns: Sequence[Turn]) -> str:
    """Renders the conversation as Ollama does. Raises ValueError for unsupported constructs."""
    system = "\n\n".join(turn.text for turn in turns if turn.role == "system")
    return _render(_parse(template), _Scope(system, _merge_turns(turns)))


def _merge_turns(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            merged[-1] = Turn(turn.role, f"{merged[-1].text}\n\n{turn.text}")
        else:
            merged.append(turn)
    return tuple(merged)


def _parse(template: str) -> tuple[_Node, ...]:
    pieces = _ACTION.split(template)  # texts at even places, actions at odd ones
    reader = _Parser(pieces)
    nodes, end = reader.nodes()
    if end:
        raise ValueError(f"'{end}' outside a block")
    return nodes


class _Parser:
    def __init__(self, pieces: list[str]) -> None:
        self.pieces, self.at = pieces, 0

    def nodes(self) -> tuple[tuple[_Node, ...], str]:
        """Returns the nodes up to an `end` or `else` action, and that action; '' at the end of the template."""
        parsed: list[_Node] = []
        while self.at < len(self.pieces):
            piece, is_action = self.pieces[self.at], self.at % 2 == 1
            self.at += 1
            if not is_action:
                parsed += [_Text(_checked_text(piece))] if piece else []
                continue
            action = piece.strip(" ")
            if action == "end" or action.startswith("else"):
                return tuple(parsed), action
            parsed.append(self.node(action))
        return tuple(parsed), ""

    def node(self, action: str) -> _Node:
        if action in _FIELDS:
            return _Field(action)
        if re.fullmatch(_STRING, action):
            return _Text(_unquote(action))
        if action in _RANGE:
            body, end = self.nodes()
            if end != "end":
                raise ValueError("a range without an end")
            return _Range(body)
        if action.startswith("if "):
            return self.condition(action.removeprefix("if "))
        raise ValueError(f"unknown action '{action}'")

    def condition(self, test: str) -> _If:
        branches: list[tuple[str, tuple[_Node, ...]]] = []
        while True:
            if test and not _TESTS.fullmatch(test):
                raise ValueError(f"unknown test '{test}'")
            body, end = self.nodes()
            branches.append((test, body))
            if end == "end":
                return _If(tuple(branches))
            if not test or not (end == "else" or end.startswith("else if ")):
                raise ValueError("an if without an end")
            test = end.removeprefix("else").removeprefix(" if ")


def _checked_text(text: str) -> str:
    if "{{" in text or text.endswith("{"):
        raise ValueError("braces that do not start an action")
    return text


def _unquote(literal: str) -> str:
    def letter(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else match[2]

    return re.sub(r'\\(?:U([0-9a-f]{8})|(["\\]))', letter, literal[1:-1])


def _render(nodes: Sequence[_Node], scope: _Scope) -> str:
    return "".join(_render_node(node, scope) for node in nodes)


def _render_node(node: _Node, scope: _Scope) -> str:
    match node:
        case _Text(text):
            return text
        case _Field(name):
            return _field(name, scope)
        case _Range(body):
            if scope.index >= 0:
                raise ValueError("a range within a range")
            return "".join(_render(body, _Scope(scope.system, scope.messages, n)) for n in range(len(scope.messages)))
        case _If(branches):
            return next((_render(body, scope) for test, body in branches if not test or _test(test, scope)), "")


def _field(name: str, scope: _Scope) -> str:
    """Returns a field's value: `.` is the conversation outside the range and a message in it, `$` the conversation."""
    if name == "$.System" or (name == ".System" and scope.index < 0):
        return scope.system
    if name == ".Content" and scope.index >= 0:
        return scope.messages[scope.index].text
    raise ValueError(f"'{name}' is not defined there")


def _test(test: str, scope: _Scope) -> bool:
    if test == ".System":
        return bool(_field(test, scope))
    if scope.index < 0:
        raise ValueError(f"'{test}' outside the range")
    is_last = scope.index == len(scope.messages) - 1
    if test.startswith("and "):
        return bool(scope.system) and is_last
    return is_last if test == IS_LAST else f'"{scope.messages[scope.index].role}"' in test


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
