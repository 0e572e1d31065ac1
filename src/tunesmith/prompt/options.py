"""Which variables a chat template reads besides what it is always given, and of what kind they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.config.registry import nearest
from tunesmith.errors import RecipeError

# What transformers gives to every template.
GIVEN = ("messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token", "starts_with_bos")
WHERE = "prompt.template_options"
Parents = tuple[nodes.Node, ...]


class _Generation(Extension):
    """The blocks `generation` of transformers: what is in them."""

    tags = {"generation"}  # noqa: RUF012  (as Extension declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def wrong_options(text: str, options: Mapping[str, Any]) -> list[RecipeError]:
    """Returns what is wrong with variables for the template `text`: names that it never reads, values of another kind.

    A template that cannot be parsed says so itself, where it is rendered.
    """
    environment = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
    environment.globals |= dict.fromkeys(("raise_exception", "strftime_now"))
    try:
        names = list(_names(environment.parse(text), ()))
        free = meta.find_undeclared_variables(environment.parse(text)) - set(GIVEN)  # it changes the tree that it reads
    except TemplateSyntaxError:
        return []
    own = {node.name for _, node in names if node.ctx != "load"}  # set by the template, if only under a condition
    defaulted = {node.name for parents, node in names if _has_default(parents, node)}
    known, wrong = free - (own - defaulted), list[RecipeError]()
    for name, value in options.items():
        if name not in known:
            advice = nearest(name, known) if known else "Remove it: this template has no options"
            wrong.append(RecipeError(f"the chat template has no option '{name}'", where=WHERE, next=advice))
            continue
        uses, words = _uses(names, name)
        if uses == {"truth"} and not isinstance(value, bool):
            what = f"the chat template asks whether '{name}' is true or false, and it is {_shown(value)}"
            advice = f"Write {name}: true or {name}: false, without quotes"
            wrong.append(RecipeError(what, where=WHERE, next=advice))
        elif uses == {"word"} and not isinstance(value, str):
            what = f"the chat template compares '{name}' with texts, and it is {_shown(value)}"
            wrong.append(RecipeError(what, where=WHERE, next=f"It knows: {', '.join(sorted(words))}"))
    return wrong


def _shown(value: Any) -> str:
    return f"the text '{value}'" if isinstance(value, str) else repr(value)


def _has_default(parents: Parents, node: nodes.Name) -> bool:
    """Whether the template asks for the variable as one that a caller may give.

    It asks if it is defined, gives it a default, or sets it from itself or else another value.
    """
    parent = parents[-1]
    if isinstance(parent, nodes.Test):
        return parent.name in ("defined", "undefined")
    if isinstance(parent, nodes.Filter):
        return parent.name in ("default", "d")
    targets = [each.target for each in parents if isinstance(each, nodes.Assign) and isinstance(parent, nodes.Or)]
    return any(isinstance(target, nodes.Name) and target.name == node.name for target in targets)


def _uses(names: Iterable[tuple[Parents, nodes.Name]], name: str) -> tuple[set[str], set[str]]:
    """How the template uses the variable (as a truth, a word, or otherwise), and the words that it compares it with."""
    found = [_use(parents, node) for parents, node in names if node.name == name and node.ctx == "load"]
    return {use for use, _ in found if use}, {word for _, words in found for word in words}


def _use(parents: Parents, node: nodes.Node) -> tuple[str, set[str]]:
    """The use of a value: '' where only whether there is one matters, or where it is stored under its own name."""
    parent = parents[-1]
    other: nodes.Node | None = None  # what stands in the value's place where it is not given
    if isinstance(parent, nodes.Filter) and parent.name in ("default", "d") and parent.node is node and parent.args:
        other = parent.args[0]
    elif isinstance(parent, nodes.CondExpr) and parent.expr1 is node:
        other = parent.expr2
    if other is not None:
        if isinstance(other, nodes.Const) and isinstance(other.value, bool):
            return "truth", set()
        return _use(parents[:-1], parent)
    if isinstance(parent, nodes.Assign) and isinstance(parent.target, nodes.Name):
        same = any(isinstance(each, nodes.Name) and each.name == parent.target.name for each in (node, *_inside(node)))
        return ("" if same else "other"), set()
    if isinstance(parent, nodes.Test) and parent.node is node:
        return {"defined": "", "undefined": "", "none": ""}.get(parent.name, _tested(parent.name)), set()
    if isinstance(parent, nodes.Not | nodes.And | nodes.Or):
        return "truth", set()
    if isinstance(parent, nodes.If | nodes.CondExpr) and parent.test is node:
        return "truth", set()
    if isinstance(parent, nodes.Operand):
        return _use(parents[:-1], node)
    if isinstance(parent, nodes.Compare):
        sides = [parent.expr, *(operand.expr for operand in parent.ops)]
        values = [
            side for each in sides for side in (each.items if isinstance(each, nodes.List | nodes.Tuple) else [each])
        ]
        constants = [side.value for side in values if isinstance(side, nodes.Const)]
        if constants and all(isinstance(value, bool) for value in constants):
            return "truth", set()
        if constants and all(isinstance(value, str) for value in constants):
            return "word", set(constants)
    return "other", set()


def _inside(node: nodes.Node) -> Iterator[nodes.Node]:
    for child in node.iter_child_nodes():
        yield child
        yield from _inside(child)


def _tested(test: str) -> str:
    return "truth" if test in ("true", "false", "boolean") else "word" if test == "string" else "other"


def _names(node: nodes.Node, parents: Parents) -> Iterator[tuple[Parents, nodes.Name]]:
    """Every name in the tree but a macro's own, with the nodes around it, the innermost last."""
    macros = (each for each in parents if isinstance(each, nodes.Macro | nodes.CallBlock))
    if isinstance(node, nodes.Name) and not any(node.name == arg.name for macro in macros for arg in macro.args):
        yield parents, node
    for child in node.iter_child_nodes():
        yield from _names(child, (*parents, node))
