"""A chat template as pieces between its turns, found by rendering turns that are known, and written for Go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.exporting.targets._go_template import LAST, escaped
from tunesmith.prompt.template import Template

SYSTEM = Turn("system", "systemwords")
ASKED = [Turn("user", f"userwords{n}") for n in range(3)]
TOLD = [Turn("assistant", f"assistantwords{n}") for n in range(2)]
SEVERAL = (ASKED[0], TOLD[0], ASKED[1], TOLD[1], ASKED[2])
_ADVICE = "Ship gguf, whose file keeps the template itself, or give a prompt.template that only adds text, turn by turn"
_DATE_ADVICE = "Fix the date with prompt.template_options, such as {date_string: 26 Nov 2026}, or ship gguf alone"


@dataclass(frozen=True)
class System:
    """What stands around the system message: in front of the first user's text, or of the last one's."""

    place: Literal["first", "last"]
    before: str
    after: str


@dataclass(frozen=True)
class Layout:
    """`opening` U `ends` `answers` A `turned` U … U `ends`, where the model begins to write."""

    opening: str
    ends: str
    answers: str
    turned: str
    system: System | None


def layout_of(template: Template) -> Layout:
    """The pieces of the template. Raises ModelError where they change with more than the turns' roles and order."""
    if _depends_on_the_date(template):
        raise _cannot("it writes the date of the day, which stands still in a Modelfile", template, _DATE_ADVICE)
    opening, ends = _split((ASKED[0],), template)
    first, asked, turned, again, turned_again, end = _split(SEVERAL, template)
    if (first, asked, turned, end) != (opening, again, turned_again, ends) or not asked.startswith(ends):
        raise _cannot("what stands around a turn changes with the turns around it", template)
    plain = Layout(opening, ends, asked.removeprefix(ends), turned, None)
    return replace(plain, system=_system(template, plain))


def _depends_on_the_date(template: Template) -> bool:
    """Whether the rendered text has today's date, so that it is another one tomorrow."""
    if "strftime_now" not in template.text:
        return False
    other = replace(template, text="{% macro strftime_now(format) %}anotherday{% endmacro %}" + template.text)
    return any(_text(other, turns) != _text(template, turns) for turns in (ASKED[:1], (SYSTEM, ASKED[0])))


def _text(template: Template, turns: Sequence[Turn]) -> str:
    try:
        return template.render(turns, generate=True)
    except ModelError:
        return ""


def takes_system(template: Template) -> bool:
    """Whether the template accepts a system message; what it does with it is another matter."""
    try:
        template.render((SYSTEM, ASKED[0]), generate=True)
    except ModelError:
        return False
    return True


def go_template(layout: Layout, start: str) -> str:
    """The layout in Go's syntax, without the token `start` where the runtime itself puts it in front of each text.

    Raises ValueError when the layout does not begin with it.
    """
    opening, system = layout.opening, layout.system
    first = system if system and system.place == "first" else None
    for text in [opening, *([first.before] if first else [])]:
        if not text.startswith(start):
            raise ValueError(start)
    heads = [opening.removeprefix(start), layout.turned, *([first.after] if first else [])]
    shared = _shared_end(heads)  # what stands before each user's text
    begin, turned, *after = [each.removesuffix(shared) for each in heads]
    head = _opening(begin, first.before.removeprefix(start), after[0]) if first else escaped(begin)
    user = f"{escaped(shared)}{_last_system(system)}{{{{ .Content }}}}{escaped(layout.ends)}"
    answer = f"{escaped(layout.answers)}{{{{ .Content }}}}{escaped(turned)}"
    by_role = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}'
    turns = "{{ range $i, $_ := .Messages }}" if "$i" in user else "{{ range .Messages }}"
    return f"{head}{turns}{by_role}{{{{ end }}}}"


def _opening(without: str, before: str, after: str) -> str:
    """What stands before the first user's text: `without` a system message; with one, `before` and `after` it."""
    same = next((n for n, (a, b) in enumerate(zip(without, before, strict=False)) if a != b), len(without))
    shared = without[: min(same, len(before))]
    given = f"{{{{ if .System }}}}{escaped(before.removeprefix(shared))}{{{{ .System }}}}{escaped(after)}"
    other = escaped(without.removeprefix(shared))
    return escaped(shared) + given + (f"{{{{ else }}}}{other}" if other else "") + "{{ end }}"


def _shared_end(texts: Sequence[str]) -> str:
    """The longest end that all have and that begins like a marker, so that none is cut in two."""
    lengths = range(min(map(len, texts)), 0, -1)
    ends = (texts[0][-n:] for n in lengths if len({each[-n:] for each in texts}) == 1)
    return next((end for end in ends if end[0] in "<[#"), "")


def _last_system(system: System | None) -> str:
    if not system or system.place == "first":
        return ""
    text = f"{escaped(system.before)}{{{{ $.System }}}}{escaped(system.after)}"
    return f"{{{{ if and $.System ({LAST}) }}}}{text}{{{{ end }}}}"


def _system(template: Template, plain: Layout) -> System | None:
    if not takes_system(template):
        return None
    if template.render((SYSTEM, ASKED[0]), generate=True) == template.render((ASKED[0],), generate=True):
        return None  # left out in training as well
    before, after, ends = _split((SYSTEM, ASKED[0]), template)
    in_front = _found((SYSTEM, *SEVERAL), template)
    asked = plain.ends + plain.answers
    around = [asked, plain.turned, asked, plain.turned, plain.ends]
    if ends == plain.ends and in_front == [before, after, *around]:
        return System("first", before, after)
    at_last = _found((*SEVERAL[:-1], SYSTEM, SEVERAL[-1]), template, asked=(SYSTEM, *SEVERAL))
    inner = before.removeprefix(plain.opening)
    if before.startswith(plain.opening) and at_last == [plain.opening, *around[:3], plain.turned + inner, after, ends]:
        return System("last", inner, after)
    raise _cannot("where the system message stands, or what stands around it, changes with the turns", template)


def _split(turns: Sequence[Turn], template: Template) -> list[str]:
    found = _found(turns, template)
    if found is None:
        raise _cannot("it leaves out, repeats or moves what a turn says", template)
    return found


def _found(turns: Sequence[Turn], template: Template, asked: Sequence[Turn] = ()) -> list[str] | None:
    """What stands between the turns' texts, `turns` in the order of the text, `asked` in that of the conversation."""
    try:
        rest = template.render(asked or turns, generate=True)
    except ModelError as error:
        raise _cannot(error.what, template) from error
    pieces = []
    for turn in turns:
        before, mark, rest = rest.partition(turn.text)
        if not mark or turn.text in rest:
            return None
        pieces.append(before)
    return [*pieces, rest]


def _cannot(why: str, template: Template, advice: str = _ADVICE) -> ModelError:
    return ModelError(f"the chat template cannot be written for Ollama: {why}", where=template.source, next=advice)
