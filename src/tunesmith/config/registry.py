"""Resolves names in recipes to functions of a catalog.

A catalog is a module whose public functions are its entries, or a package whose modules are its entries; each of these
modules defines the same function.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from tunesmith.config import extensions
from tunesmith.config.extras import missing_extras_named
from tunesmith.errors import RecipeError, TunesmithError


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns a hint for an unknown name: the closest choice, and all choices."""
    names = sorted(choices)
    if not names:
        return "There are no choices"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return (
        f"Did you mean '{close[0]}'? Choose from: {', '.join(names)}" if close else f"Choose from: {', '.join(names)}"
    )


def entries(catalog: str) -> list[str]:
    """Returns the names of the entries of a catalog, given as the dotted name of its module, with installed ones."""
    return sorted({*_own_entries(catalog), *extensions.installed(catalog)})


@functools.cache
def _own_entries(catalog: str) -> tuple[str, ...]:
    """Returns the entries without importing the catalog, which may need a large library.

    They are the names in its `__all__`, or else its public functions.
    """
    spec = importlib.util.find_spec(catalog)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named '{catalog}'", name=catalog)
    if spec.submodule_search_locations is not None:
        names = (info.name for info in pkgutil.iter_modules(spec.submodule_search_locations))
    else:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        functions = (statement.name for statement in tree.body if isinstance(statement, ast.FunctionDef))
        listed = next((item.value for item in tree.body if _assigns(item, "__all__")), None)
        names = iter(ast.literal_eval(listed)) if listed is not None else functions
    return tuple(sorted(name for name in names if not name.startswith("_")))


def _assigns(statement: ast.stmt, name: str) -> TypeGuard[ast.Assign]:
    return isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == [name]


def resolve(catalog: str, name: str, *, function: str = "", where: str = "") -> Callable[..., Any]:
    """Returns the function `name` of a catalog that is a module, or `function` of the module `name` in a package.

    A name that is none of tunesmith's own is an installed entry point or `module:function` (config/extensions.py).
    Raises RecipeError for an unknown name, MissingExtra if the entry's library is not installed.
    """
    own_names = _own_entries(catalog)
    if name in own_names:
        with missing_extras_named(name, where=where):
            module = importlib.import_module(f"{catalog}.{name}" if function else catalog)
        return getattr(module, function or name)  # type: ignore[no-any-return]
    check_name(catalog, name, where=where)
    like = resolve(catalog, own_names[0], function=function)
    return extensions.import_entry(catalog, name, function=function, like=like, where=where)


def is_foreign(catalog: str, name: str) -> bool:
    """Whether another package brings the entry: it is installed, or written as `module:function`.

    Of an entry of tunesmith's own and an installed one with the same name, the own one is used.
    """
    return name not in _own_entries(catalog) and (":" in name or name in extensions.installed(catalog))


def packages(catalog: str, names: Iterable[str]) -> dict[str, str]:
    """Returns the package and version of each entry that another package brings, for fingerprints."""
    return {name: extensions.package_of(catalog, name) for name in names if is_foreign(catalog, name)}


def check_name(catalog: str, name: str, *, where: str = "") -> None:
    """Raises RecipeError if a catalog has no entry `name`."""
    if name not in _own_entries(catalog) and not is_foreign(catalog, name):
        raise RecipeError(f"unknown name '{name}'", where=where, next=nearest(name, entries(catalog)))


def entry_module(catalog: str, name: str) -> Any:
    """Returns the module of an entry. Raises RecipeError if it is another package's and cannot be imported."""
    if name in _own_entries(catalog):
        package = hasattr(importlib.import_module(catalog), "__path__")
        return importlib.import_module(f"{catalog}.{name}" if package else catalog)
    check_name(catalog, name)
    return extensions.import_module(catalog, name)


def score_names(catalog: str, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the constant NAME of the entry `name`: the names of the scores it computes; `default` without one.

    The default of `module:function` is the function's name. An entry that cannot be imported has the default too.
    """
    function = name.rpartition(":")[2]
    names: tuple[str, ...] = (function,) if default == (name,) else default
    with contextlib.suppress(TunesmithError):  # said where the names are checked
        names = getattr(entry_module(catalog, name), function.upper(), names)
    return names


def entry_constant(catalog: str, name: str, attribute: str) -> Any:
    """Returns a constant of the module of the entry `name`. Raises RecipeError if another package's lacks it."""
    module = entry_module(catalog, name)
    if not hasattr(module, attribute):
        raise RecipeError(f"'{name}' lacks the constant {attribute}: see docs/extending.md", where=module.__name__)
    return getattr(module, attribute)


def entry_options(entry: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Returns the options of a catalog's entry: its keyword-only parameters."""
    return {
        name: parameter
        for name, parameter in inspect.signature(entry).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def check_options(
    entry: Callable[..., Any], values: Mapping[str, Any], *, where: Callable[[str], str]
) -> list[RecipeError]:
    """Returns errors for the options `values` of `entry`: unknown, missing, or of the wrong type.

    If there are none, also the errors that `wrong_options` in the entry's module returns, if it exists. `where(name)`
    is the place of the option `name`.
    """
    parameters, errors = entry_options(entry), []
    for name, value in values.items():
        if name not in parameters:
            errors.append(RecipeError(f"unknown option '{name}'", where=where(name), next=nearest(name, parameters)))
        elif (words := _words(entry, name)) and value not in words:
            choices = ", ".join("null" if word is None else str(word) for word in words)
            errors.append(RecipeError(f"'{name}' must be one of {choices}, not {value!r}", where=where(name)))
        elif (expected := _expected(parameters[name])) and not _fits(value, expected):
            kinds = " or ".join("null" if kind is type(None) else kind.__name__ for kind in expected)
            errors.append(RecipeError(f"'{name}' must be {kinds}, not {value!r}", where=where(name)))
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in values:
            errors.append(RecipeError(f"option '{name}' is missing", where=where(name), next=f"Add {name}: …"))
    wrong_options = getattr(sys.modules.get(entry.__module__), "wrong_options", None)
    if wrong_options is not None and not errors:
        errors += [
            RecipeError(problem, where=where(name), next=advice) for name, problem, advice in wrong_options(**values)
        ]
    return errors


def raise_first(problems: Iterable[tuple[str, str, str]], where: str) -> None:
    """Raises RecipeError for the first of (option, what is wrong, what to do), if there is one."""
    for name, problem, advice in problems:
        raise RecipeError(problem, where=f"{where}.{name}", next=advice)


def _words(entry: Callable[..., Any], name: str) -> tuple[Any, ...]:
    """Returns the values that an option's type allows, if it is a Literal, or Literal and None."""
    kind = get_type_hints(entry).get(name)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = tuple(word for member in kinds if get_origin(member) is Literal for word in get_args(member))
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
