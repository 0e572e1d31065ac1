"""A recipe as a form: which fields it asks for, and the conversation that their values make, as in training."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tunesmith.claims.fields import guess_side
from tunesmith.config.recipe import Named, Recipe
from tunesmith.config.registry import nearest
from tunesmith.data import formats
from tunesmith.data.conversation import Turn
from tunesmith.data.detect_row import recognise
from tunesmith.data.messages import ROLES, message_list
from tunesmith.data.open_sources import open_sources
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, TunesmithError, raise_all

REQUEST = "request"  # the one field of recipes whose rows are questions
SHORT = 200  # characters of a field that holds a name or a title
LETTERS = 4  # characters a token has at least on average, in English and with most tokenizers
CHECKED = ("grounded", "contradicted", "ungrounded")  # metrics and checks that hold a text against its fields
_ONE_LINE = re.compile(
    r"\b(?:name|title|company|employer|organi[sz]ation|role|position|date|place|city|tone|language|school|product)\b",
    re.IGNORECASE,
)
_NEEDED = re.compile(r"\b(?:name|title|company|employer|organi[sz]ation)\b", re.IGNORECASE)
_CONTROL = re.compile(  # tokens that end a turn or a text, as today's models write them
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|mask)>|<[a-zA-Z]{1,20}_\w{1,30}>|<(?:filename|reponame|unused\d+)>"
    r"|\[/?[A-Z_]{3,20}\]|<</?SYS>>"
    r"|<｜[^<>\s]{1,40}｜>"
)

Kind = Literal["text", "lines"]


@dataclass(frozen=True)
class Field:
    """One value that is asked for: one line of `text`, or several `lines`; `longest` in characters."""

    name: str
    label: str
    help: str
    kind: Kind
    required: bool
    longest: int


@dataclass(frozen=True)
class Form:
    """What a recipe asks for. `system` is the message put in front, `example` a row's own values, if there is one.

    `max_tokens` is how long its replies were allowed to be in the comparison. `checked`: statements are held against
    `facts`, names of fields. `document`: one document is wanted, no talk. `echoes` are lines of the prompt that are no
    field's: the instruction, the system message.
    """

    name: str
    about: str
    fields: tuple[Field, ...]
    system: str | None
    example: Mapping[str, str]
    max_tokens: int
    checked: bool = False
    facts: tuple[str, ...] = ()
    document: bool = False
    echoes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Shape:
    """A format with its options, as `data/formats` knows it, and the columns that a prompt is made of."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = (REQUEST,)
    optional: frozenset[str] = frozenset()


def form_of(recipe: Recipe) -> Form:
    """The recipe's form: its columns for the format `fields`, those of its prompt for `columns` and `alpaca`, else one.

    Examples and, for the format `auto`, columns come from the first row of the data, where that lies on this machine;
    nothing is fetched.
    """
    row = _first_row(recipe)
    shape = _shape(recipe, row)
    several = shape.name == "fields"
    longest = max(1000, recipe.prompt.max_tokens * LETTERS)
    fields = tuple(
        _field(name, several=several, required=name not in shape.optional, longest=longest) for name in shape.columns
    )
    example = {name: text for name in shape.columns if (text := _example(row, shape, name)) and len(text) <= longest}
    checked = [named for named in (*recipe.evaluate.metrics, *recipe.data.checks) if named.name in CHECKED]
    named = {str(each) for one in checked for each in one.options.get("fields") or ()}
    instruction = str(shape.options.get("instruction") or "") if several else ""
    return Form(
        recipe.name,
        recipe.about,
        fields,
        recipe.prompt.system,
        example,
        recipe.evaluate.max_new_tokens,
        bool(checked),
        tuple(each.name for each in fields if not named or each.name in named) if checked else (),
        several,
        tuple(line for line in (*instruction.split("\n"), *(recipe.prompt.system or "").split("\n")) if line.strip()),
    )


def conversation(recipe: Recipe, values: Mapping[str, str], system: str | None = None) -> tuple[Turn, ...]:
    """The turns that a row with these values has in training, up to its answer.

    `system` None takes the recipe's message, '' none. Texts that a model takes for the end of a turn (`<|im_end|>`) are
    broken by a space, wherever they stand. Raises DataError, or Several, for fields that are missing, unknown or too
    long.
    """
    check(form_of(recipe), values)
    shape = _shape(recipe, _first_row(recipe))
    given = {name: harmless(values.get(name, "")) for name in shape.columns}
    turns = _turns(shape, given)
    message = recipe.prompt.system if system is None else system
    if system is not None and turns[0].role == "system":
        turns = turns[1:]
    if message and turns[0].role != "system":
        turns = (Turn("system", harmless(message)), *turns)
    return turns


def check(form: Form, values: Mapping[str, str]) -> None:
    """Raises DataError, or Several, for values that the form has no field for, that are missing or too long."""
    raise_all(list(_wrong(form, values)))


def harmless(text: str) -> str:
    """`text` with a space in each written-out control token, so that no tokenizer takes it for one."""
    return _CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _wrong(form: Form, values: Mapping[str, str]) -> Iterator[TunesmithError]:
    known = {each.name: each for each in form.fields}
    where = f"the form {form.name}"
    for name, text in values.items():
        if name not in known:
            yield DataError(f"no field is called '{str(name)[:80]}'", where=where, next=nearest(str(name), known))
        elif not isinstance(text, str):
            yield DataError(f"'{name}' holds {type(text).__name__}, not text", where=where, next="Give it as text")
        elif len(text) > known[name].longest:
            what = f"'{name}' has {len(text):,} characters, more than {known[name].longest:,}"
            yield DataError(what, where=where, next="Shorten it")
    empty = [each.label for each in form.fields if each.required and not str(values.get(each.name) or "").strip()]
    if not empty and not any(isinstance(text, str) and text.strip() for text in values.values()):
        yield DataError("no field is filled", where=where, next="Fill in one at least")
    if empty:
        yield DataError(f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} missing", where=where, next="Fill in")


def _field(name: str, *, several: bool, required: bool, longest: int) -> Field:
    plain = re.sub(r"[_\-]+|(?<=[a-z])(?=[A-Z])", " ", name).strip() or name
    label = plain[:1].upper() + plain[1:]
    if not several:
        told = "What is asked of the model." if required else "Details that go with it, if there are any."
        return Field(name, label, told, "lines", required, longest)
    kind: Kind = "text" if _ONE_LINE.search(plain) else "lines"
    needed = required and bool(_NEEDED.search(plain))
    return Field(name, label, _help(name, kind), kind, needed, SHORT if kind == "text" else longest)


def _help(name: str, kind: Kind) -> str:
    whose = {
        "writer": "What is true of the writer; the text may state only what stands in such fields.",
        "reader": "From the advert or the reader's side; what it asks for is no fact about the writer.",
        "both": "Any statement of the text may rest on it.",
    }[guess_side(name)]
    return whose if kind == "text" else f"{whose} Several lines are read as one."


# --- formats ----------------------------------------------------------------------------------------------------


def _shape(recipe: Recipe, row: Mapping[str, Any]) -> _Shape:
    named: Named = recipe.data.format
    if named.name != "auto":
        return _shaped(named.name, named.options)
    if not row:
        return _Shape("chat")
    try:
        found = recognise(row)
    except DataError:
        return _Shape("chat")
    return _shaped(found.name, found.options)


def _shaped(name: str, options: Mapping[str, Any]) -> _Shape:
    kept = {key: value for key, value in options.items() if key != "group"}
    if name == "fields":
        return _Shape(name, kept, tuple(map(str, options["fields"])))
    if name == "columns":
        asked = [str(options.get("prompt", "prompt")), *([str(options["system"])] if options.get("system") else [])]
        return _Shape(name, kept, tuple(dict.fromkeys(column for each in asked for column in _columns(each))))
    if name == "alpaca":
        question, details = str(options.get("instruction", "instruction")), str(options.get("input", "input"))
        return _Shape(name, kept, (question, details), frozenset([details]))
    if name == "lines":
        column = options.get("prompt")
        return _Shape(name, {**kept, "prompt": column or REQUEST}, (str(column or REQUEST),))
    return _Shape("chat")


def _columns(wanted: str) -> list[str]:
    """The columns that an option of the format `columns` names: itself, or those in its braces."""
    if "{" not in wanted:
        return [wanted]
    return [name for _, name, _, _ in string.Formatter().parse(wanted) if name is not None]


def _turns(shape: _Shape, given: Mapping[str, str]) -> tuple[Turn, ...]:
    """The turns without the answer, by the function that makes training rows."""
    options = dict(shape.options)
    if shape.name == "fields":
        parsed = formats.fields({**given, options["answer"]: ""}, **options)
    elif shape.name == "columns":
        parsed = formats.columns({**given, options.get("answer", "answer"): ""}, **options)
    elif shape.name == "alpaca":
        parsed = formats.alpaca({**given, options.get("output", "output"): ""}, **options)
    elif shape.name == "lines":
        parsed = formats.lines({**given, options.get("line", "line"): ""}, **options)
    else:
        said = [{"role": "user", "content": given[REQUEST]}, {"role": "assistant", "content": ""}]
        parsed = formats.chat({"messages": said})
    return parsed[0][:-1]


# --- the data's first row ---------------------------------------------------------------------------------------


def _first_row(recipe: Recipe) -> Mapping[str, Any]:
    """The values of the first row of the data on this machine, of the small sample where the data lies elsewhere.

    Of data whose names are replaced by stand-ins none: the file still holds the real ones.
    """
    if recipe.data.pseudonyms:
        return {}
    named = recipe.data.source
    wanted = [named] if isinstance(named, str) else list(named)
    sample = recipe.small.get("data.source")
    for source in [*wanted, *([sample] if isinstance(sample, str) else [])]:
        if not source.startswith("hub:") and (found := _read_first(str(recipe.path(source)))):
            return found
    return {}


@lru_cache(maxsize=32)
def _read_first(path: str) -> Mapping[str, Any]:
    try:
        for opened in open_sources(path, Path("/")):
            for row in opened.rows():
                if isinstance(row, Row):
                    return dict(row.values)
    except TunesmithError:  # a run may outlive its data; then there is no example
        pass
    return {}


def _example(row: Mapping[str, Any], shape: _Shape, name: str) -> str:
    value = row.get(name)
    if value is None and shape.name == "chat":
        value = _asked(row)
    return " ".join(value.split()) if isinstance(value, str) and shape.name == "fields" else str(value or "").strip()


def _asked(row: Mapping[str, Any]) -> str:
    """What the user says first in a row of messages."""
    for listed in row.values():
        for message in message_list(listed) or ():
            if isinstance(message, dict):
                role = message.get("role", message.get("from"))
                said = message.get("content", message.get("value"))
                if ROLES.get(str(role)) == "user" and isinstance(said, str):
                    return said
    return ""
