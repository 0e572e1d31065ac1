"""The house's laws, as tests."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import tunesmith
from tunesmith.find import entries
from tunesmith.recipe import CHECKS, Recipe, read_recipe

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tunesmith"
ROOMS = [  # in the data's order; a room imports from itself and from the rooms above it
    "errors",
    "find",
    "recipe",
    "hardware",
    "run",
    "claims",
    "data",
    "prompt",
    "kernels",
    "model",
    "memory",
    "fit",
    "draft",
    "train",
    "generate",
    "evaluate",
    "export",
    "report",
    "write",
    "serve",
    "verbs",
    "ui",
    "cli",
    "__main__",
]
HEAVY = {  # package -> the only places that may import it
    "bitsandbytes": {"kernels/nf4", "model", "train/optimizers", "export/merge"},
    "triton": {"kernels/triton_parts", "kernels/triton_cache"},
    "libgguf": {"export"},
    "xllamacpp": {"generate/llama_child", "export/targets/_space_app"},
    "gradio": {"export/targets/_space_app", "ui"},
    "prometheus_client": {"serve"},
    "docx": {"write"},
    "fpdf": {"write"},
    "trl": {"train/engines/trl"},
    "datasets": {"train/engines/trl", "data/hub"},
    "peft": {"model", "train/engines/trl", "generate/folder_child"},
    "transformers": {"model", "prompt", "train/engines/trl", "generate/folder_child", "export/merge"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "rich": {"cli"},
    "typer": {"cli"},
    "rouge_score": {"evaluate"},
    "pyarrow": {"data"},
    "scipy": {"evaluate"},
    "ftfy": {"data"},
    "spacy": {"data/ner"},
    "rapidfuzz": {"claims"},
    "charset_normalizer": {"data"},
    "openai": {"generate/from_server"},
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "huggingface_hub": {"model", "data/hub", "export/targets/hub", "export/targets/_space_app"},
    "tensorboard": set(),
}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Every module that a file imports, in functions too, type checking apart."""
    found: list[str] = []

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                found.extend(name.name for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.append(child.module or "")
                found.extend(f"{child.module}.{name.name}" for name in child.names)
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


def place(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix()


@pytest.mark.parametrize("path", [f for f in FILES if f != SOURCE / "__init__.py"], ids=place)
def test_imports_go_down_only(path: Path) -> None:
    room = place(path).split("/")[0]
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "tunesmith" or len(parts) < 2 or parts[1] not in ROOMS:
            continue
        assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{place(path)} imports {module}, which lies below it"


def test_every_file_lies_in_a_known_room() -> None:
    assert {place(path).split("/")[0] for path in FILES} == {*ROOMS, "__init__"}


@pytest.mark.parametrize("path", FILES, ids=place)
def test_heavy_packages_have_their_rooms(path: Path) -> None:
    for module in imports(path):
        package = module.split(".")[0]
        if package in HEAVY:
            allowed = HEAVY[package]
            assert any(place(path).startswith(home) for home in allowed), f"{place(path)} imports {package}"


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


def test_the_door_is_cheap() -> None:
    code = (
        "import sys, os; old = dict(os.environ); import tunesmith; assert dict(os.environ) == old; print(*sys.modules)"
    )
    loaded = set(run_python(code).stdout.split())
    assert not loaded & {"torch", "transformers", "numpy", "pydantic", "matplotlib", "requests", "huggingface_hub"}


def test_help_answers_at_once() -> None:
    command = [str(Path(sys.executable).with_name("tunesmith")), "--help"]
    subprocess.run(command, capture_output=True, check=True)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - began)
    assert "evaluate" in done.stdout
    assert min(times) < 0.5
    code = "import sys\nsys.argv = ['tunesmith', '--help']\nfrom tunesmith.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    assert not {"torch", "numpy", "pydantic", "transformers"} & set(run_python(code).stdout.split())


def test_public_names() -> None:
    assert set(tunesmith.__all__) == {
        "Conversation", "Plan", "Recipe", "Reply", "Run", "TextModel", "TunesmithError",
        "chat", "check", "evaluate", "open_run", "plan", "prepare", "read_recipe", "report", "train",
    }  # fmt: skip
    for name in tunesmith.__all__:
        assert getattr(tunesmith, name).__doc__
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


def test_readme_tree_and_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```\nsrc/tunesmith/\n(.*?)```", text, re.DOTALL)
    assert tree
    named = [line.split()[0].rstrip("/") for line in tree[1].splitlines() if line.startswith("  ") and line[2] != " "]
    here = [line.split("/")[0] for line in {place(path).replace("__init__", "") for path in FILES} if line]
    assert set(named) == {name if (SOURCE / name).is_dir() else f"{name}.py" for name in here}
    order = [name.removesuffix(".py") for name in named]
    assert order == ROOMS
    from typer.main import get_command

    from tunesmith.cli import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
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


def test_check_pages_are_written_from_the_code() -> None:
    from tools.reference import check_pages

    pages = check_pages()
    assert {f"{name}.md" for name in entries(CHECKS)} | {"README.md"} == set(pages)
    for text in pages.values():
        assert max(map(len, text.split("\n"))) <= 120 or "|" in text
    written = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "checks").iterdir()}
    assert written == pages, "run: make docs"


def test_design_names_every_room() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for room in ROOMS:
        assert re.search(rf"\b{room}(/|\.py)", text), room


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
