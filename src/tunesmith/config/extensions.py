"""Entries of catalogs that other packages bring: installed entry points, and `module:function`.

An entry point belongs to a group: tunesmith.metrics, .formats and .optimizers name functions, tunesmith.checks and
.targets modules. An entry has the form of tunesmith's own entries: the same number of positional parameters, and
keyword-only parameters as options.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

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
