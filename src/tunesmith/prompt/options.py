"""Checks `prompt.template_options` against the variables that a chat template reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.config.registry import nearest
from tunesmith.errors import RecipeError

# Variables that transformers passes to every template.
STANDARD_VARIABLES = (
    "messages",
    "add_generation_prompt",
    "tools",
    "documents",
    "bos_token",
    "eos_token",
    "starts_with_bos",
)
SETTING = "prompt.template_options"
Parents = tuple[nodes.Node, ...]


class _Generation(Extension):
    """Parses transformers' `{% generation %}` blocks as if their content stood alone."""

    tags = {"generation"}  # noqa: RUF012  (as Extension declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_template_options(text: str, options: Mapping[str, Any]) -> list[RecipeError]:
    """Returns an error for each option that the template `text` never reads or whose value has the wrong type.

    A template that cannot be parsed gives no errors here: it fails where it is rendered.
    """
    environment = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
    environment.globals |= dict.fromkeys(("raise_exception", "strftime_now"))
    try:
        names = list(_names(environment.parse(text), ()))
        undeclared = meta.find_undeclared_variables(environment.parse(text)) - set(
            STANDARD_VARIABLES
        )  # changes the tree it reads
    except TemplateSyntaxError:
        return []
    assigned = {node.name for _, node in names if node.ctx != "load"}  # by the template, perhaps only under a condition
    defaulted = {node.name for parents, node in names if _has_default(parents, node)}
    options_read, errors = undeclared - (assigned - defaulted), list[RecipeError]()
    for name, value in options.items():
        if name not in options_read:
            advice = nearest(name, options_read) if options_read else "Remove it: this template has no options"
            errors.append(RecipeError(f"the chat template has no option '{name}'", where=SETTING, next=advice))
            continue
        uses, strings = _uses(names, name)
        if uses == {"boolean"} and not isinstance(value, bool):
            message = f"the chat template reads '{name}' as true or false, but it is {_describe(value)}"
            advice = f"Write {name}: true or {name}: false, without quotes"
            errors.append(RecipeError(message, where=SETTING, next=advice))
        elif uses == {"string"} and not isinstance(value, str):
            message = f"the chat template compares '{name}' with strings, but it is {_describe(value)}"
            errors.append(RecipeError(message, where=SETTING, next=f"Choose from: {', '.join(sorted(strings))}"))
    return errors


def _describe(value: Any) -> str:
    return f"the string '{value}'" if isinstance(value, str) else repr(value)


def _has_default(parents: Parents, node: nodes.Name) -> bool:
    """Whether the template treats the variable as optional: tests if it is defined, or gives it a default."""
    parent = parents[-1]
    if isinstance(parent, nodes.Test):
        return parent.name in ("defined", "undefined")
    if isinstance(parent, nodes.Filter):
        return parent.name in ("default", "d")
    targets = [
        ancestor.target for ancestor in parents if isinstance(ancestor, nodes.Assign) and isinstance(parent, nodes.Or)
    ]
    return any(isinstance(target, nodes.Name) and target.name == node.name for target in targets)


def _uses(names: Iterable[tuple[Parents, nodes.Name]], name: str) -> tuple[set[str], set[str]]:
    """Returns how the template uses the variable (boolean, string, other), and the strings it compares it with."""
    uses = [_use(parents, node) for parents, node in names if node.name == name and node.ctx == "load"]
    return {use for use, _ in uses if use}, {string for _, strings in uses for string in strings}


def _use(parents: Parents, node: nodes.Node) -> tuple[str, set[str]]:
    """Returns the use of one value; '' for a test of whether it is defined, or an assignment to its own name."""
    parent = parents[-1]
    fallback: nodes.Node | None = None  # the value used if the variable is not passed
    if isinstance(parent, nodes.Filter) and parent.name in ("default", "d") and parent.node is node and parent.args:
        fallback = parent.args[0]
    elif isinstance(parent, nodes.CondExpr) and parent.expr1 is node:
        fallback = parent.expr2
    if fallback is not None:
        if isinstance(fallback, nodes.Const) and isinstance(fallback.value, bool):
            return "boolean", set()
        return _use(parents[:-1], parent)
    if isinstance(parent, nodes.Assign) and isinstance(parent.target, nodes.Name):
        self_assigned = any(
            isinstance(child, nodes.Name) and child.name == parent.target.name for child in (node, *_descendants(node))
        )
        return ("" if self_assigned else "other"), set()
    if isinstance(parent, nodes.Test) and parent.node is node:
        return {"defined": "", "undefined": "", "none": ""}.get(parent.name, _use_of_test(parent.name)), set()
    if isinstance(parent, nodes.Not | nodes.And | nodes.Or):
        return "boolean", set()
    if isinstance(parent, nodes.If | nodes.CondExpr) and parent.test is node:
        return "boolean", set()
    if isinstance(parent, nodes.Operand):
        return _use(parents[:-1], node)
    if isinstance(parent, nodes.Compare):
        sides = [parent.expr, *(operand.expr for operand in parent.ops)]
        values = [
            item for side in sides for item in (side.items if isinstance(side, nodes.List | nodes.Tuple) else [side])
        ]
        constants = [item.value for item in values if isinstance(item, nodes.Const)]
        if constants and all(isinstance(value, bool) for value in constants):
            return "boolean", set()
        if constants and all(isinstance(value, str) for value in constants):
            return "string", set(constants)
    return "other", set()


def _descendants(node: nodes.Node) -> Iterator[nodes.Node]:
    for child in node.iter_child_nodes():
        yield child
        yield from _descendants(child)


def _use_of_test(test: str) -> str:
    return "boolean" if test in ("true", "false", "boolean") else "string" if test == "string" else "other"


def _names(node: nodes.Node, parents: Parents) -> Iterator[tuple[Parents, nodes.Name]]:
    """Yields each name in the tree except macro parameters, with its ancestors, the innermost last."""
    macros = (ancestor for ancestor in parents if isinstance(ancestor, nodes.Macro | nodes.CallBlock))
    if isinstance(node, nodes.Name) and not any(node.name == arg.name for macro in macros for arg in macro.args):
        yield parents, node
    for child in node.iter_child_nodes():
        yield from _names(child, (*parents, node))
