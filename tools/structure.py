"""Measures names, sizes and import cycles of the package: `python -m tools.structure [FOLDER]`.

One figure per line: files and lines, function lengths, the share of vague local names, public names that several
modules define, and cycles of imports between modules.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src" / "tunesmith"
VAGUE = set(
    """added asked begun brought called chosen done drawn each found fresh given gone held kept known laid lay left look
    made many meant met much named now other own put rest said same seen shown some still such taken that then there
    thing this those told tried wanted what written""".split()  # noqa: SIM905
)
MAX_HOMES = 2  # modules that may define a public name, unless it is a catalog's contract


def local_names(tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Each name that a function binds, once per function: the function, its line, the name."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        names = {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        parameters = function.args
        names |= {item.arg for item in (*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs)}
        for name in sorted(names - {"self", "cls"}):
            yield function.name, function.lineno, name


def function_lengths(tree: ast.AST) -> Iterator[int]:
    """The length of every function in lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def public_names(tree: ast.Module) -> Iterator[str]:
    """Public functions and classes of a module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def imported_modules(tree: ast.Module, modules: set[str]) -> set[str]:
    """Those of `modules` that a module imports when it is loaded or under TYPE_CHECKING."""
    names = set()
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & modules


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            start = stack.index(node)
            component = sorted(stack[start:])
            del stack[start:]
            if len(component) > 1:
                components.append(component)

    for node in graph:
        if node not in index:
            visit(node)
    return components


def parse_package(source: Path) -> dict[str, ast.Module]:
    """The syntax tree of every module below `source`, by its dotted name."""
    trees = {}
    for path in sorted(source.rglob("*.py")):
        parts = (
            "tunesmith",
            *path.relative_to(SOURCE if path.is_relative_to(SOURCE) else source).with_suffix("").parts,
        )
        trees[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def measure(source: Path) -> dict[str, Any]:
    """The figures of the package in `source`."""
    trees = parse_package(source)
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in source.rglob("*.py")]
    names = Counter(name for tree in trees.values() for _, _, name in local_names(tree))
    vague = {name: count for name, count in names.most_common() if name in VAGUE}
    lengths = sorted(length for tree in trees.values() for length in function_lengths(tree))
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in trees.items():
        for name in public_names(tree):
            homes[name].append(module)
    repeated = {name: len(modules) for name, modules in homes.items() if len(modules) > MAX_HOMES}
    graph = {module: imported_modules(tree, set(trees)) - {module} for module, tree in trees.items()}
    return {
        "files": len(trees),
        "lines": sum(lines),
        "longest file": max(lines),
        "files above 400 lines": sum(count > 400 for count in lines),
        "functions": len(lengths),
        "function length, median": statistics.median(lengths),
        "function length, 95th percentile": lengths[int(len(lengths) * 0.95)],
        "local names": names.total(),
        "vague local names": sum(vague.values()),
        "vague share": f"{sum(vague.values()) / names.total():.2%}",
        "most frequent vague names": ", ".join(f"{name} {count}" for name, count in list(vague.items())[:20]),
        "public names in more than two modules": ", ".join(
            f"{name} {count}" for name, count in sorted(repeated.items(), key=lambda item: -item[1])
        ),
        "import cycles": cycles(graph),
    }


if __name__ == "__main__":
    for key, value in measure(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else SOURCE).items():
        sys.stdout.write(f"{key}: {value}\n")
