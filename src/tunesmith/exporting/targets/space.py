"""Writes a Gradio Space for one GGUF file: app.py, its pinned packages and the Space's README.md."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.extras import missing_extra
from tunesmith.config.registry import raise_first
from tunesmith.data.conversation import Turn
from tunesmith.errors import MissingExtra, RecipeError, TunesmithError
from tunesmith.exporting.job import File, Job, Request
from tunesmith.exporting.targets._shipped import (
    find_gguf,
    front_matter,
    link,
    missing_gguf_errors,
    repo_error,
    type_error,
)
from tunesmith.exporting.targets._space_run import Page
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.runs.run import atomic_folder, write_atomic

APP = Path(__file__).with_name("_space_app.py")
ALLOWED = {"gradio", "xllamacpp", "huggingface_hub"}
QUESTION = "What can you help me with?"


def wrong_options(repo: Any = "", quantization: Any = "q4_k_m") -> Iterator[tuple[str, str, str]]:
    """Yields problems of the options that do not depend on the model."""
    if repo and (problem := repo_error(repo)):
        yield "repo", *problem
    if problem := type_error(quantization):
        yield "quantization", *problem


def needs(**_: Any) -> str:
    """Returns the target whose files this one uses."""
    return "gguf"


def validate(request: Request, *, repo: str = "", quantization: str = "q4_k_m") -> Iterator[TunesmithError]:
    """Yields why the Space cannot be written: no GGUF file is written before it, or a package is not installed."""
    yield from missing_gguf_errors(request, quantization, target="space")
    for name in _packages(repo):
        try:
            _installed_version(name)
        except MissingExtra as error:
            yield error


def write(job: Job, *, repo: str = "", quantization: str = "q4_k_m") -> list[File]:
    """Writes the Space for the GGUF file of type `quantization`, in the repository `repo` or beside app.py.

    Raises RecipeError for an invalid name, ModelError if gguf has not written the file, MissingExtra without Gradio.
    """
    raise_first(wrong_options(repo, quantization), "export.files: space")
    model = find_gguf(job, quantization, target="space", option="quantization")
    folder = job.out("space")
    if not job.standing:
        with atomic_folder(folder) as new:
            pins = {name: _installed_version(name) for name in _packages(repo)}
            write_atomic(new / "app.py", _app(job, model.name, repo))
            write_atomic(new / "requirements.txt", "".join(f"{name}=={pin}\n" for name, pin in pins.items()))
            write_atomic(new / "README.md", _card(job, repo, model.name, pins["gradio"]))
            if not repo:
                link(model, new / model.name)
    start = f"cd {shlex.quote(str(folder))} && pip install -r requirements.txt && python app.py"
    return [File("space", folder, commands={"Gradio": start}, notes={"repo": repo, "model": str(model)})]


def _packages(repo: str) -> tuple[str, ...]:
    return ("gradio", "xllamacpp", *(["huggingface_hub"] if repo else []))


def check(job: Job, file: File) -> list[str]:
    """Returns problems of README.md, pinned packages, imports, and of a reply that differs from the file's own.

    The page runs as a process on a loopback port, from a copy with the GGUF file beside it, without access to the Hub.
    """
    problems = [*_card_problems(file.path), *_pin_problems(file.path), *_import_problems(file.path / "app.py")]
    if problems:
        return problems
    model = Path(file.notes["model"])
    with tempfile.TemporaryDirectory(prefix="tunesmith-space-") as name:
        shutil.copyfile(file.path / "app.py", Path(name) / "app.py")
        link(model, Path(name) / model.name)
        try:
            with Page(Path(name)) as page:
                answer = page.ask(QUESTION)
            with GgufModel(model, stop=job.stop, slots=1, context=job.context) as runtime:
                prompts = [[*([Turn("system", job.system)] if job.system else []), Turn("user", QUESTION)]]
                expected = next(iter(runtime.replies(prompts, max_new_tokens=job.limit, batch=1)))[1].text
        except TunesmithError as error:
            return [str(error)]
    return (
        []
        if answer.strip() == expected
        else [f"the page replies {answer[:80]!r}, but its file replies {expected[:80]!r}"]
    )


def _app(job: Job, model: str, repo: str) -> str:
    """Returns app.py with this model's settings."""
    settings: Mapping[str, Any] = {
        "NAME": job.name, "FILE": model, "REPO": repo, "LIMIT": job.limit, "CONTEXT": job.context,
        "STOP": list(job.stop), "SYSTEM": job.system or "",
    }  # fmt: skip
    lines = APP.read_text(encoding="utf-8").split("\n")
    for name, value in settings.items():
        [index] = [number for number, line in enumerate(lines) if re.match(rf"{name}\b.* = ", line)]
        kind, comment = lines[index].partition(" = ")[0], lines[index].partition("  #")
        lines[index] = f"{kind} = {value!r}{comment[1]}{comment[2]}"
    return "\n".join(lines)


def _card(job: Job, repo: str, model: str, gradio: str) -> str:
    front = {
        "title": job.name,
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "license": front_matter(job.card()).get("license"),
        "models": [repo] if repo else None,
        "preload_from_hub": [f"{repo} {model}"] if repo else None,
        "short_description": "A tuned model on a CPU",
    }
    plain = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False, allow_unicode=True)
    location = f"in [{repo}](https://huggingface.co/{repo})" if repo else "beside app.py"
    return (
        f"---\n{plain}---\n\n# {job.name}\n\nThis page chats with `{model}`, which is {location}. llama.cpp runs on the"
        f" CPU with greedy decoding, up to {job.limit:,} tokens per reply, one request at a time. Nothing is tracked or"
        " stored.\n"
    )


def _card_problems(folder: Path) -> list[str]:
    try:
        front = front_matter((folder / "README.md").read_text(encoding="utf-8"))
    except (OSError, RecipeError, UnicodeDecodeError) as error:
        return [f"README.md cannot be read: {error}"]
    pins = _pins(folder)
    problems = [] if front.get("sdk") == "gradio" else ["README.md does not say sdk: gradio"]
    if front.get("sdk_version") != pins.get("gradio"):
        problems.append(f"README.md says Gradio {front.get('sdk_version')}, requirements.txt {pins.get('gradio')}")
    if not (folder / str(front.get("app_file"))).is_file():
        problems.append(f"there is no app_file '{front.get('app_file')}'")
    return problems


def _pins(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    except OSError:
        return {}
    return {name: pin for name, _, pin in (line.partition("==") for line in lines)}


def _pin_problems(folder: Path) -> Iterator[str]:
    for name, pin in _pins(folder).items():
        if name not in ALLOWED:
            yield f"requirements.txt lists {name}, which app.py does not use"
        elif pin != _installed_version(name):
            yield f"requirements.txt lists {name} {pin or 'in any version'}; tested with {_installed_version(name)}"


def _import_problems(path: Path) -> Iterator[str]:
    try:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    except (OSError, SyntaxError) as error:
        yield f"app.py cannot be parsed: {error}"
        return
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    packages = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    for name in sorted(packages - ALLOWED | (packages - {*_pins(path.parent)} - {"huggingface_hub"})):
        yield f"app.py imports {name}, which requirements.txt does not list"


def _installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise missing_extra(name, "space", where="export.files: space") from None
