"""The small part of Go's text/template that a chat layout needs: written, and read again as Ollama would run it.

Constructs: https://pkg.go.dev/text/template; the values and the joining of messages are those of Ollama's
`template.Execute`: `.System` holds every system message, `.Messages` all messages, neighbours of one role joined.
Anything else is refused, so that what is proven here is all that is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.conversation import Turn

LAST = "eq (len (slice $.Messages $i)) 1"  # whether the message of the range is the last one
_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STRING = r'"(?:[^"\\\n]|\\["\\]|\\U[0-9a-f]{8})*"'
_RANGE = {"range .Messages", "range $i, $_ := .Messages"}
_FIELDS = {".System", "$.System", ".Content"}
_TESTS = re.compile(
    r'eq \.Role "(?:user|assistant)"|\.System|' + re.escape(LAST) + rf"|and \$\.System \({re.escape(LAST)}\)"
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
class _Place:
    """Where rendering is: the whole conversation, and the message of the range."""

    system: str
    messages: tuple[Turn, ...]
    index: int = -1


def escaped(text: str) -> str:
    """`text` as it must stand outside actions, in a Modelfile's triple quotes.

    Braces and three quotes would end what they stand in, and Ollama's reader drops what cannot be printed.
    """
    return re.sub(r'\{+|"{3,}|.', _guarded, text, flags=re.DOTALL)


def _guarded(match: re.Match[str]) -> str:
    found = match[0]
    stays = found in "\n\t" or (len(found) == 1 and found != "{" and found.isprintable())
    return found if stays else "{{ " + _quoted(found) + " }}"


def _quoted(text: str) -> str:
    return '"' + "".join(_letter(each) for each in text) + '"'


def _letter(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"


def execute(template: str, turns: Sequence[Turn]) -> str:
    """What Ollama makes of the conversation. Raises ValueError for what is none of the constructs above."""
    system = "\n\n".join(turn.text for turn in turns if turn.role == "system")
    return _run(_parse(template), _Place(system, _joined(turns)))


def _joined(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    found: list[Turn] = []
    for turn in turns:
        if found and found[-1].role == turn.role:
            found[-1] = Turn(turn.role, f"{found[-1].text}\n\n{turn.text}")
        else:
            found.append(turn)
    return tuple(found)


def _parse(template: str) -> tuple[_Node, ...]:
    pieces = _ACTION.split(template)  # texts at even places, actions at odd ones
    reader = _Reader(pieces)
    nodes, end = reader.nodes()
    if end:
        raise ValueError(f"'{end}' without a beginning")
    return nodes


class _Reader:
    def __init__(self, pieces: list[str]) -> None:
        self.pieces, self.at = pieces, 0

    def nodes(self) -> tuple[tuple[_Node, ...], str]:
        """The nodes up to an action that ends or divides a block, and that action; '' at the template's end."""
        found: list[_Node] = []
        while self.at < len(self.pieces):
            piece, is_action = self.pieces[self.at], self.at % 2 == 1
            self.at += 1
            if not is_action:
                found += [_Text(_plain(piece))] if piece else []
                continue
            action = piece.strip(" ")
            if action == "end" or action.startswith("else"):
                return tuple(found), action
            found.append(self.node(action))
        return tuple(found), ""

    def node(self, action: str) -> _Node:
        if action in _FIELDS:
            return _Field(action)
        if re.fullmatch(_STRING, action):
            return _Text(_unquoted(action))
        if action in _RANGE:
            body, end = self.nodes()
            if end != "end":
                raise ValueError("a range without its end")
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
                raise ValueError("an if without its end")
            test = end.removeprefix("else").removeprefix(" if ")


def _plain(text: str) -> str:
    if "{{" in text or text.endswith("{"):
        raise ValueError("braces that open nothing")
    return text


def _unquoted(literal: str) -> str:
    def letter(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else match[2]

    return re.sub(r'\\(?:U([0-9a-f]{8})|(["\\]))', letter, literal[1:-1])


def _run(nodes: Sequence[_Node], place: _Place) -> str:
    return "".join(_one(node, place) for node in nodes)


def _one(node: _Node, place: _Place) -> str:
    match node:
        case _Text(text):
            return text
        case _Field(name):
            return _field(name, place)
        case _Range(body):
            if place.index >= 0:
                raise ValueError("a range within a range")
            return "".join(_run(body, _Place(place.system, place.messages, n)) for n in range(len(place.messages)))
        case _If(branches):
            return next((_run(body, place) for test, body in branches if not test or _holds(test, place)), "")


def _field(name: str, place: _Place) -> str:
    """The dot is the conversation outside the range and a message within; the dollar is always the conversation."""
    if name == "$.System" or (name == ".System" and place.index < 0):
        return place.system
    if name == ".Content" and place.index >= 0:
        return place.messages[place.index].text
    raise ValueError(f"'{name}' cannot be reached there")


def _holds(test: str, place: _Place) -> bool:
    if test == ".System":
        return bool(_field(test, place))
    if place.index < 0:
        raise ValueError(f"'{test}' outside the range")
    is_last = place.index == len(place.messages) - 1
    if test.startswith("and "):
        return bool(place.system) and is_last
    return is_last if test == LAST else f'"{place.messages[place.index].role}"' in test
