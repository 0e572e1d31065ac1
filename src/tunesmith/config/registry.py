"""A name in a recipe is the name of a function in that room's catalogue.

A catalogue is a module whose public functions are the entries, or a folder whose modules are the entries,
each defining the contract's function. There is no registry.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tunesmith.errors import MissingExtra, RecipeError

EXTRAS = {"trl": "trl", "spacy": "ner", "gradio": "space"}  # import name -> the extra that brings it


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest choice, or all of them."""
    known = sorted(choices)
    if not known:
        return "There is none to choose"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return (
        f"Did you mean '{close[0]}'? Choose from: {', '.join(known)}" if close else f"Choose from: {', '.join(known)}"
    )


def entries(catalogue: str) -> list[str]:
    """The names that the catalogue `catalogue` (a module's dotted name) offers."""
    module = importlib.import_module(catalogue)
    if hasattr(module, "__path__"):
        return sorted(info.name for info in pkgutil.iter_modules(module.__path__) if not info.name.startswith("_"))
    return sorted(
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == catalogue and not name.startswith("_")
    )


def find(catalogue: str, name: str, *, function: str = "", where: str = "") -> Callable[..., Any]:
    """The function called `name` in `catalogue`; in a folder, `function` of the module `name`.

    Raises RecipeError for an unknown name and MissingExtra when the entry's library is not installed.
    """
    names = entries(catalogue)
    if name not in names:
        raise RecipeError(f"unknown name '{name}'", where=where, next=nearest(name, names))
    if not function:
        found: Callable[..., Any] = getattr(importlib.import_module(catalogue), name)
        return found
    try:
        return getattr(importlib.import_module(f"{catalogue}.{name}"), function)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in EXTRAS:
            raise
        raise missing_extra(missing, name, where=where) from error


def missing_extra(package: str, name: str, *, where: str = "") -> MissingExtra:
    """The error that `package`, one of EXTRAS, is not installed, which the recipe's `name` needs."""
    return MissingExtra(
        f"'{name}' needs the package '{package}', which is not installed",
        where=where,
        next=f"pip install 'tunesmith[{EXTRAS[package]}]'",
    )


def constant(catalogue: str, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """The constant that stands beside the entry `name`, called as it in capitals: names that the entry gives."""
    found: tuple[str, ...] = getattr(importlib.import_module(catalogue), name.upper(), default)
    return found


def attribute(catalogue: str, name: str, attribute: str) -> Any:
    """A constant of the entry `name` in a catalogue that is a folder."""
    return getattr(importlib.import_module(f"{catalogue}.{name}"), attribute)


def options(entry: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The options of a catalogue's entry: its keyword-only parameters."""
    return {
        name: parameter
        for name, parameter in inspect.signature(entry).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def check_options(
    entry: Callable[..., Any], given: Mapping[str, Any], *, where: Callable[[str], str]
) -> list[RecipeError]:
    """What is wrong with the options `given` to `entry`: unknown ones, missing ones, wrong simple types.

    Then what the function `wrong_options` in the entry's own module says of their values, where there is one.
    `where(name)` is the place of the option `name`.
    """
    known, wrong = options(entry), []
    for name, value in given.items():
        if name not in known:
            wrong.append(RecipeError(f"unknown option '{name}'", where=where(name), next=nearest(name, known)))
        elif (words := _words(entry, name)) and value not in words:
            choices = ", ".join("null" if word is None else str(word) for word in words)
            wrong.append(RecipeError(f"'{name}' must be one of {choices}, not {value!r}", where=where(name)))
        elif (expected := _expected(known[name])) and not _fits(value, expected):
            kinds = " or ".join("null" if kind is type(None) else kind.__name__ for kind in expected)
            wrong.append(RecipeError(f"'{name}' must be {kinds}, not {value!r}", where=where(name)))
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            wrong.append(RecipeError(f"option '{name}' is missing", where=where(name), next=f"Add {name}: …"))
    own = getattr(sys.modules.get(entry.__module__), "wrong_options", None)
    if own is not None and not wrong:
        wrong += [RecipeError(what, where=where(name), next=advice) for name, what, advice in own(**given)]
    return wrong


def raise_first(wrong: Iterable[tuple[str, str, str]], where: str) -> None:
    """Raises RecipeError for the first of the (option, what is wrong, what to do) below `where`, if there is one."""
    for name, what, advice in wrong:
        raise RecipeError(what, where=f"{where}.{name}", next=advice)


def _words(entry: Callable[..., Any], name: str) -> tuple[Any, ...]:
    """The words that an option may be, where its type lists them (a Literal, or that and None)."""
    kind = get_type_hints(entry).get(name)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = tuple(word for each in kinds if get_origin(each) is Literal for word in get_args(each))
    return (*words, None) if words and type(None) in kinds else words


def _expected(parameter: inspect.Parameter) -> tuple[type, ...]:
    simple = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
    words = str(parameter.annotation).replace("|", " ").split()
    kinds = tuple(simple[word] for word in words if word in simple)
    if not kinds or len(kinds) + words.count("None") < len(words):
        return ()
    return (*kinds, type(None)) if "None" in words else kinds


def _fits(value: Any, expected: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in expected
    return isinstance(value, expected) or (float in expected and isinstance(value, int))
