"""Escapes text for Go's text/template and renders the few constructs that a chat layout needs, as Ollama does.

Constructs: https://pkg.go.dev/text/template. Values and merged messages follow Ollama's `template.Execute`: `.System`
holds all system messages, `.Messages` all messages, with neighbors of the same role joined. Any other construct is
refused, so a template that renders here has no untested parts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.conversation import Turn

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
