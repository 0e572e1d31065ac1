"""The rules of docs/internals/architecture.md, as tests."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunesmith
from tunesmith.config.recipe import CHECKS, Recipe, read_recipe
from tunesmith.config.registry import entries

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tunesmith"
FILES = sorted(SOURCE.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix()


def test_import_contracts() -> None:
    """The contracts in pyproject.toml hold: the order of packages, and where heavy dependencies may be imported."""
    lint_imports = Path(sys.executable).with_name("lint-imports")  # a process: it reconfigures logging
    done = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_names_are_resolved_downwards() -> None:
    """A dotted name of ours in a string names a module that exists, at or below the package that resolves it.

    The recipe's schema alone names catalogs above it: it checks the names that a recipe gives.
    """
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    for path in FILES:
        package = place(path).split("/")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            if re.fullmatch(r"tunesmith(\.[a-z_0-9]+)+", node.value):
                assert find_spec(node.value), f"{place(path)} names {node.value}"
                target = node.value.split(".")[1]
                if package not in ("config", "__init__"):
                    assert layers.index(target) >= layers.index(package), f"{place(path)} names {node.value}"


@pytest.mark.parametrize("path", [f for f in FILES if f.name != "cli.py"], ids=place)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [
        n.func.id
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    assert "print" not in calls


@pytest.mark.parametrize("path", FILES, ids=place)
def test_nothing_is_unpickled_and_no_foreign_code_is_run(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"torch\.load\(|pickle\.load|trust_remote_code=True|shell=True|share=True", text)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_the_command_line_starts_fast() -> None:
    code = (
        "import sys, os; old = dict(os.environ); import tunesmith; assert dict(os.environ) == old; print(*sys.modules)"
    )
    loaded = set(run_python(code).stdout.split())
    assert not loaded & {"torch", "transformers", "numpy", "pydantic", "matplotlib", "requests", "huggingface_hub"}


def test_help_answers_at_once() -> None:
    command = [str(Path(sys.executable).with_name("tunesmith")), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    commands = done.stdout.partition("Commands:")[2]
    assert "evaluate" in commands and "..." not in commands  # each command's line is whole
    code = "import sys\nsys.argv = ['tunesmith', '--help']\nfrom tunesmith.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    loaded = run_python(code).stdout.split()
    assert not {"torch", "numpy", "pydantic", "transformers"} & set(loaded)
    assert len(loaded) < 600  # the help's words and the modules, most of which typer needs


def test_public_names() -> None:
    assert set(tunesmith.__all__) == {
        "Conversation", "Plan", "Recipe", "Reply", "Run", "TextModel", "TunesmithError", "__version__",
        "audit", "card", "chat", "chat_file", "check", "compare_runs", "curve", "doctor", "evaluate", "export",
        "import_settings", "list_runs", "new", "open_run", "pack", "plan", "prepare", "push", "read_recipe", "report",
        "review", "run", "serve_models", "synthesize", "train", "undo", "unpack",
    }  # fmt: skip
    for name in tunesmith.__all__:
        assert getattr(tunesmith, name).__doc__
        assert not (SOURCE / name).exists() and not (SOURCE / f"{name}.py").exists()  # an import would replace it
    with pytest.raises(AttributeError):
        _ = tunesmith.nonsense


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes(path: Path, small: bool) -> None:
    recipe = read_recipe(path.stem, small=small)
    assert isinstance(recipe, Recipe)
    assert recipe.name == (f"{path.stem}-small" if small else path.stem)
    assert len(path.read_text().splitlines()) <= 50
    sources = [recipe.data.source] if isinstance(recipe.data.source, str) else recipe.data.source
    if small:
        assert all(recipe.path(source).is_file() for source in sources)
    assert (ROOT / "docs" / "tutorials" / f"{path.stem}.md").is_file()


def test_the_architecture_page_lists_every_package() -> None:
    text = (ROOT / "docs" / "internals" / "architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"```\nsrc/tunesmith/\n(.*?)```", text, re.DOTALL)
    assert tree
    named = [line.split()[0].rstrip("/") for line in tree[1].splitlines() if line.startswith("  ") and line[2] != " "]
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [name.removesuffix(".py") for name in named] == layers[::-1]
    assert all((SOURCE / name).exists() for name in named)


def test_readme_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    from typer.main import get_command

    from tunesmith.cli import app

    group: Any = get_command(app)
    commands = set(group.commands)
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    used = set(re.findall(r"^(?:\.venv/bin/)?tunesmith ([a-z]+)", blocks, re.MULTILINE))
    assert used
    assert used <= commands
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_recipe_reference_is_written_from_the_code() -> None:
    from tools.reference import recipe_reference

    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == recipe_reference(), "run: make docs"


def test_library_reference_is_written_from_the_code() -> None:
    from tools.reference import library_reference

    assert (ROOT / "docs" / "library.md").read_text(encoding="utf-8") == library_reference(), "run: make docs"


def test_check_pages_are_written_from_the_code() -> None:
    from tools.reference import check_pages

    pages = check_pages()
    assert {f"{name}.md" for name in entries(CHECKS)} | {"README.md"} == set(pages)
    for text in pages.values():
        assert max(map(len, text.split("\n"))) <= 120 or "|" in text
    written = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "checks").iterdir()}
    assert written == pages, "run: make docs"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_project_speaks_of_itself_alone() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        path = ROOT / name
        if path.suffix in {".png", ".svg"} or not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        assert str(Path.home()) + os.sep not in text.replace("~/", ""), name


def test_every_recipe_setting_appears_once() -> None:
    names = yaml.safe_load((ROOT / "recipes" / "shopsphere.yaml").read_text())
    assert set(names) <= set(Recipe.model_fields)


def test_local_names_say_what_a_thing_is() -> None:
    """No local name is a vague word of tools/structure.py, but `left` beside `right` and `what`, a field of errors."""
    from tools.structure import SOURCE as PACKAGE
    from tools.structure import VAGUE, local_names, parse_package

    vague = [
        f"{module}:{line} {function}: {name}"
        for module, tree in parse_package(PACKAGE).items()
        for function, line, name in local_names(tree)
        if name in VAGUE - {"left", "what"}
    ]
    assert vague == []
