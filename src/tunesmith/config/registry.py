"""Resolves names in recipes to functions of a catalog, and of installed packages.

A catalog is a module whose public functions are its entries, or a package whose modules are its entries; each of these
modules defines the same function. Other packages add entries by entry points, or are named as `module:function`.
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
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from tunesmith.config.extras import missing_extras_named
from tunesmith.errors import ExtensionError, RecipeError, TunesmithError

GROUPS = {
    "tunesmith.evaluation.metrics": "metrics",
    "tunesmith.data.checks": "checks",
    "tunesmith.data.formats": "formats",
    "tunesmith.exporting.targets": "targets",
    "tunesmith.training.optimizers": "optimizers",
}


@functools.cache
def installed(catalog: str) -> dict[str, EntryPoint]:
    """Returns the entry points for a catalog by name."""
    if catalog not in GROUPS:
        return {}
    return {point.name: point for point in entry_points(group=f"tunesmith.{GROUPS[catalog]}")}


def package_of(catalog: str, name: str) -> str:
    """Returns the package that brings an entry with its version, or its module."""
    point = installed(catalog).get(name)
    if point is not None and point.dist is not None:
        return f"{point.dist.name} {point.dist.version}"
    return name.partition(":")[0]


def import_module(catalog: str, name: str, *, where: str = "") -> Any:
    """Returns the module of a foreign entry. Raises RecipeError, naming the package, if it cannot be imported."""
    point = installed(catalog).get(name)
    path = point.module if point is not None else name.partition(":")[0]
    try:
        return importlib.import_module(path)
    except ImportError as error:
        if point is None and (error.name or "") == path.split(".")[0]:
            advice = f"Install the package that contains it, or put its folder on the path: PYTHONPATH={Path.cwd()}"
            raise RecipeError(f"there is no module '{path}' for '{name}'", where=where, next=advice) from error
        raise ExtensionError(_failure(f"'{name}' cannot be imported", error), where=where) from error
    except Exception as error:
        raise ExtensionError(_failure(f"'{name}' cannot be imported", error), where=where) from error


def import_entry(
    catalog: str, name: str, *, function: str, like: Callable[..., Any], where: str = ""
) -> Callable[..., Any]:
    """Returns a foreign entry as a function that raises ExtensionError where the entry's own code fails.

    `function` is the name of the function in the module of an entry point that is a module; `like` is one of
    tunesmith's own entries. Raises RecipeError if the entry does not exist or has another form.
    """
    module, point = import_module(catalog, name, where=where), installed(catalog).get(name)
    attribute = (point.attr if point is not None else name.partition(":")[2]) or function
    entry = getattr(module, attribute, None)
    if not inspect.isfunction(entry):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        advice = f"{module.__name__} defines: {', '.join(names)}" if names else ""
        message = f"'{name}' is not a function: {module.__name__} defines no function '{attribute}'"
        raise RecipeError(message, where=where, next=advice)
    expected, actual = _positional(like), _positional(entry)
    if len(expected) != len(actual):
        message = f"'{name}' takes ({', '.join(actual)}), but is called with ({', '.join(expected)})"
        advice = f"Change its parameters; options are keyword-only. See docs/extending.md ({package_of(catalog, name)})"
        raise RecipeError(message, where=where, next=advice)
    return _guarded(entry, name)


def _positional(entry: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in inspect.signature(entry).parameters.values() if parameter.kind in kinds]


def _guarded(entry: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Returns `entry` with its own exceptions as ExtensionError; those of tunesmith pass."""

    @functools.wraps(entry)
    def call(*values: Any, **options: Any) -> Any:
        with own_errors(name):
            result = entry(*values, **options)
        return _guarded_items(result, name) if inspect.isgenerator(result) else result

    return call


def _guarded_items(items: Iterator[Any], name: str) -> Iterator[Any]:
    with own_errors(name):
        yield from items


@contextlib.contextmanager
def own_errors(name: str) -> Iterator[None]:
    """Raises exceptions of the entry `name` as ExtensionError; tunesmith's own errors pass."""
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:
        raise ExtensionError(_failure(f"'{name}' failed", error)) from error


def _failure(what: str, error: BaseException) -> str:
    """Returns one sentence with the error and the last line of code that ran."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
    return f"{what}: {type(error).__name__}: {error}{place}"


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
    return sorted({*_own_entries(catalog), *installed(catalog)})


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

    A name that is none of tunesmith's own is an installed entry point or `module:function` (config/registry.py).
    Raises RecipeError for an unknown name, MissingExtra if the entry's library is not installed.
    """
    own_names = _own_entries(catalog)
    if name in own_names:
        with missing_extras_named(name, where=where):
            module = importlib.import_module(f"{catalog}.{name}" if function else catalog)
        return getattr(module, function or name)  # type: ignore[no-any-return]
    check_name(catalog, name, where=where)
    like = resolve(catalog, own_names[0], function=function)
    return import_entry(catalog, name, function=function, like=like, where=where)


def is_foreign(catalog: str, name: str) -> bool:
    """Whether another package brings the entry: it is installed, or written as `module:function`.

    Of an entry of tunesmith's own and an installed one with the same name, the own one is used.
    """
    return name not in _own_entries(catalog) and (":" in name or name in installed(catalog))


def packages(catalog: str, names: Iterable[str]) -> dict[str, str]:
    """Returns the package and version of each entry that another package brings, for fingerprints."""
    return {name: package_of(catalog, name) for name in names if is_foreign(catalog, name)}


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
    return import_module(catalog, name)


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
