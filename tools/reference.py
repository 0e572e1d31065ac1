"""Writes docs/recipe.md, docs/library.md and docs/checks from the code: settings, functions, a page for each check."""

from __future__ import annotations

import importlib
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import tunesmith
from tunesmith.config.recipe import CHECKS, Catalog, NamedSetting, Recipe
from tunesmith.config.registry import entries, entry_constant, entry_options, resolve
from tunesmith.data.finding import Proposal

DOCS = Path(__file__).parents[1] / "docs"
FOLDERS = {  # catalogs whose entries are files, and their function
    "data.checks": "find_defects",
    "exporting.targets": "write",
    "training.engines": "train",
}

HEAD = """# The recipe

<!-- Written by `make docs` from src/tunesmith/config/recipe.py. Change it there. -->

A recipe is a YAML file. A named thing is written `name` or `{name: {its options}}`. Any key can be set from the
command line: `--set train.epochs=3`. Paths are relative to the recipe's file. `--small` applies the `small` section,
whose keys are written with dots (`train.epochs: 3`), and adds `-small` to the run's name. An unknown key is an error.
`tunesmith schema` prints the same as JSON schema, for editors.
"""


def recipe_reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_section(Recipe, ""), *_catalogs()]).rstrip() + "\n"


def _section(model: type[BaseModel], path: str) -> list[str]:
    inner = {key: field.annotation for key, field in model.model_fields.items() if _is_section(field.annotation)}
    doc = (model.__doc__ or "").strip()
    lines = [f"## {path or 'The whole'}", "", doc, "", "| key | type | default | what it is |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        if key in inner:
            lines.append(f"| `{key}` | section | | see below |")
            continue
        lines.append(f"| `{key}` | {_kind(field)} | {_default(field)} | {field.description} |")
    lines.append("")
    for key, kind in inner.items():
        lines += _section(typing.cast(type[BaseModel], kind), f"{path}.{key}" if path else key)
    return lines


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kind(field: Any) -> str:
    text = _type(field.annotation, field.metadata)
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in SIGNS.items() if hasattr(m, name)]
    pattern = [f"`{m.pattern}`".replace("|", "\\|") for m in field.metadata if getattr(m, "pattern", None)]
    return ", ".join([text, *limits, *pattern])


SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _type(kind: Any, metadata: Any = ()) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is NamedSetting:
        module = next((m.module for m in metadata if isinstance(m, Catalog)), "")
        return f"one of [{module.rsplit('.', 1)[-1]}](#{module.rsplit('.', 1)[-1]})"
    if origin is typing.Annotated:
        return _type(args[0], args[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(arg) for arg in args if arg is not type(None))
    if origin is list:
        return f"list of {_type(args[0])}"
    return {str: "text", int: "whole number", float: "number", bool: "yes or no"}.get(kind, "mapping")


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "must be given" if field.default_factory is None else ""
    value = field.default
    if isinstance(value, list):
        return "`[" + ", ".join(item.name for item in value) + "]`"
    if isinstance(value, NamedSetting):
        return f"`{value.name}`"
    return "none" if value is None else f"`{value}`" if value != "" else ""


def _catalogs() -> list[str]:
    lines: list[str] = []
    for module in (
        "data.formats",
        "data.checks",
        "models.lora_init",
        "training.engines",
        "training.schedules",
        "training.optimizers",
        "evaluation.metrics",
        "evaluation.perturbations",
        "exporting.targets",
    ):
        lines += [f"## {module.rsplit('.', 1)[-1]}", ""]
        for name in entries(f"tunesmith.{module}"):
            entry = resolve(f"tunesmith.{module}", name, function=FOLDERS.get(module, ""))
            source = importlib.import_module(f"tunesmith.{module}.{name}") if module in FOLDERS else entry
            doc = " ".join((source.__doc__ or "").split("\n\n")[0].split())
            given = ", ".join(
                f"`{key}`" if p.default is p.empty else f"`{key}` ({p.default})"
                for key, p in entry_options(entry).items()
            )
            shown = f"[{name}](checks/{name}.md)" if module == "data.checks" else name
            lines.append(f"- **{shown}**: {doc}" + (f" Options: {given}." if given else ""))
        lines.append("")
    return lines


# --- the checks' pages ---------------------------------------------------------------------------------------

WRITTEN = "<!-- Written by `make docs` from src/tunesmith/data/checks. Change it there. -->"
INDEX = f"""# The checks

{WRITTEN}

A check finds one kind of problem in rows and proposes what to do with the affected rows: **keep** (report only),
**repair**, **quarantine** (leave out, and keep in `data/quarantine.jsonl` for a person to read) or **drop**. Of several
proposals for a row, the last in this order wins. `tunesmith audit` runs all checks that apply to the data; a recipe
lists those it wants in `data.checks`, and `do` overrides what a check proposes: `checks: [empty, {{too_short: {{do:
drop}}}}]`.

| check | what it finds | proposes |
|---|---|---|
"""
SEES = {
    "row": "It checks single rows.",
    "table": "It checks all rows together.",
    "split": "It checks all rows after the split; `tunesmith audit`, which does not split, omits it.",
}
BY_FINDING = "depends on the finding, see above"


def check_pages() -> dict[str, str]:
    """The pages below docs/checks, by file name."""
    names = entries(CHECKS)
    rows = [f"| [{name}]({name}.md) | {_paragraphs(name)[0]} | {_proposes(name)} |" for name in names]
    return {"README.md": INDEX + "\n".join(rows) + "\n", **{f"{name}.md": check_page(name) for name in names}}


def check_page(name: str) -> str:
    """The page of one check: its module's docstring, and the options that its `find_defects` takes."""
    first, *others = _paragraphs(name)
    parts = [f"# {name}", WRITTEN, _wrapped(first), _wrapped(SEES[entry_constant(CHECKS, name, "SCOPE")])]
    for paragraph in others:
        title, _, text = paragraph.partition(": ")
        parts += [f"## {title}", _wrapped(text[:1].upper() + text[1:])]
    given = entry_options(resolve(CHECKS, name, function="find_defects"))
    if given:
        table = ["| option | type | default |", "|---|---|---|"]
        table += [f"| `{key}` | {_option_type(p.annotation)} | {_option_default(key, p)} |" for key, p in given.items()]
        parts += ["## Options", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def _paragraphs(name: str) -> list[str]:
    words = importlib.import_module(f"{CHECKS}.{name}").__doc__ or ""
    return ["".join(_escaped(" ".join(text.split()))) for text in words.strip().split("\n\n")]


def _escaped(text: str) -> Iterator[str]:
    """`text` as Markdown shows it letter by letter; words between backticks are left."""
    for place, piece in enumerate(text.split("`")):
        yield f"`{piece}`" if place % 2 else piece.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _proposes(name: str) -> str:
    do = entry_options(resolve(CHECKS, name, function="find_defects")).get("do")
    if do is None:
        return "drop" if name == "broken" else "keep"
    return str(do.default or "depends on the finding")


def _option_type(annotation: Any) -> str:
    kinds = {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no", "list": "list"}
    words = [word for word in str(annotation).replace("|", " ").split() if word != "None"]
    kinds["Proposal"] = ", ".join(f"`{word}`" for word in typing.get_args(Proposal))
    return " or ".join(kinds[word] for word in words)


def _option_default(key: str, parameter: Any) -> str:
    if parameter.default is None:
        return BY_FINDING if key == "do" else "none"
    return f"`{parameter.default}`"


LIBRARY_HEAD = """# The library

<!-- Written by `make docs` from src/tunesmith/library.py. Change it there. -->

`import tunesmith` gives every command as a function. Importing it loads no torch. A run from Python objects alone:

```python
import tunesmith

rows = [{"prompt": "Where is order 7?", "answer": "Order 7 is on its way."}, ...]
recipe = {
    "name": "orders",
    "base": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    "data": {
        "source": rows,
        "format": {"columns": {"prompt": "prompt", "answer": "answer"}},
    },
}
tunesmith.audit(rows)
run = tunesmith.run(recipe, log=print)
model = tunesmith.chat(run)
```

notebooks/library.ipynb is this with real rows. Errors are `tunesmith.TunesmithError`: what is wrong, where, and what to
do next.

A recipe (`RecipeInput`) is a path, a run's folder, the name of a shipped recipe, a dict with a recipe's sections, a
`Recipe` or a `Run`. A run (`RunInput`) is a `Run` or the path of its folder; without one, the run is the folder with
the recipe's name in `runs`. `log` is called with each line that the command line would print.
"""


def library_reference() -> str:
    """The page of the library: every public function with its signature and docstring."""
    parts = [LIBRARY_HEAD.rstrip()]
    for name in tunesmith.__all__:
        value = inspect.unwrap(getattr(tunesmith, name))
        if not inspect.isfunction(value):
            continue
        doc = inspect.cleandoc(value.__doc__ or "")
        parts += [f"## {name}", f"```python\n{_call(name, value)}\n```", doc]
    return "\n\n".join(parts) + "\n"


def _call(name: str, function: Any) -> str:
    """A function's signature, one parameter a line if it is long."""
    parameters: list[str] = []
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not any(word.startswith("*") for word in parameters):
            parameters.append("*")
        default = parameter.default
        text = getattr(default, "__name__", repr(default)).removeprefix("_")
        kind = parameter.kind
        stars = "*" * (kind is inspect.Parameter.VAR_POSITIONAL) + "**" * (kind is inspect.Parameter.VAR_KEYWORD)
        equals = "" if default is inspect.Parameter.empty else f" = {text}"
        parameters.append(f"{stars}{parameter.name}: {parameter.annotation}{equals}")
    line = f"{name}({', '.join(parameters)}) -> {signature.return_annotation}"
    if len(line) <= 100:
        return line
    return "\n".join(
        [f"{name}(", *(f"    {parameter}," for parameter in parameters), f") -> {signature.return_annotation}"]
    )


def write() -> None:
    """Writes everything, and removes the pages of deleted checks."""
    (DOCS / "recipe.md").write_text(recipe_reference(), encoding="utf-8")
    (DOCS / "library.md").write_text(library_reference(), encoding="utf-8")
    pages = check_pages()
    (DOCS / "checks").mkdir(exist_ok=True)
    for file in (DOCS / "checks").glob("*.md"):
        if file.name not in pages:
            file.unlink()
    for name, text in pages.items():
        (DOCS / "checks" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
