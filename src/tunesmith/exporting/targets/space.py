"""A Gradio Space over one GGUF file: app.py, its pinned packages and the Space's card."""

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

from tunesmith.config.registry import raise_first
from tunesmith.data.conversation import Turn
from tunesmith.errors import MissingExtra, TunesmithError
from tunesmith.exporting.job import File, Job, Request
from tunesmith.exporting.targets._shipped import front_matter, gguf_file, lacks_gguf, link, unknown_type, wrong_repo
from tunesmith.exporting.targets._space_run import Page
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.runs.run import atomic_folder, write_atomic

APP = Path(__file__).with_name("_space_app.py")
ALLOWED = {"gradio", "xllamacpp", "huggingface_hub"}
QUESTION = "What can you help me with?"


def wrong_options(repo: Any = "", mix: Any = "q4_k_m") -> Iterator[tuple[str, str, str]]:
    """What is wrong with the options, whatever the model."""
    if repo and (wrong := wrong_repo(repo)):
        yield "repo", *wrong
    if wrong := unknown_type(mix):
        yield "mix", *wrong


def needs(**_: Any) -> str:
    """The target whose files this one is made of."""
    return "gguf"


def validate(request: Request, *, repo: str = "", mix: str = "q4_k_m") -> Iterator[TunesmithError]:
    """Why there can be no Space: no GGUF file before it, a package that is not installed."""
    yield from lacks_gguf(request, mix, of="space")
    for name in _packages(repo):
        try:
            _installed(name)
        except MissingExtra as error:
            yield error


def write(job: Job, *, repo: str = "", mix: str = "q4_k_m") -> list[File]:
    """`repo`: owner/name of the repository that holds the GGUF file; empty: it lies beside app.py. `mix`: its type.

    Raises RecipeError for a wrong name, ModelError where gguf has not written the file, MissingExtra without Gradio.
    """
    raise_first(wrong_options(repo, mix), "export.files: space")
    model = gguf_file(job, mix, of="space", option="mix")
    folder = job.out("space")
    if not job.standing:
        with atomic_folder(folder) as made:
            pins = {name: _installed(name) for name in _packages(repo)}
            write_atomic(made / "app.py", _app(job, model.name, repo))
            write_atomic(made / "requirements.txt", "".join(f"{name}=={pin}\n" for name, pin in pins.items()))
            write_atomic(made / "README.md", _card(job, repo, model.name, pins["gradio"]))
            if not repo:
                link(model, made / model.name)
    start = f"cd {shlex.quote(str(folder))} && pip install -r requirements.txt && python app.py"
    return [File("space", folder, commands={"Gradio": start}, notes={"repo": repo, "model": str(model)})]


def _packages(repo: str) -> tuple[str, ...]:
    return ("gradio", "xllamacpp", *(["huggingface_hub"] if repo else []))


def check(job: Job, file: File) -> list[str]:
    """What is wrong with the Space: its card, its pins, its imports; and whether it answers as its file does.

    The page runs as a process on a loopback port, from a copy that has the file beside it and no way to the hub.
    """
    wrong = [*_wrong_card(file.path), *_wrong_pins(file.path), *_wrong_imports(file.path / "app.py")]
    if wrong:
        return wrong
    model = Path(file.notes["model"])
    with tempfile.TemporaryDirectory(prefix="tunesmith-space-") as name:
        shutil.copyfile(file.path / "app.py", Path(name) / "app.py")
        link(model, Path(name) / model.name)
        try:
            with Page(Path(name)) as page:
                found = page.ask(QUESTION)
            with GgufModel(model, stop=job.stop, slots=1, context=job.context) as runtime:
                prompts = [[*([Turn("system", job.system)] if job.system else []), Turn("user", QUESTION)]]
                expected = next(iter(runtime.replies(prompts, max_new_tokens=job.limit, batch=1)))[1].text
        except TunesmithError as error:
            return [str(error)]
    return [] if found.strip() == expected else [f"it answers {found[:80]!r} where its file answers {expected[:80]!r}"]


def _app(job: Job, model: str, repo: str) -> str:
    """app.py with the lines of this model's settings."""
    settings: Mapping[str, Any] = {
        "NAME": job.name, "FILE": model, "REPO": repo, "LIMIT": job.limit, "CONTEXT": job.context,
        "STOP": list(job.stop), "SYSTEM": job.system or "",
    }  # fmt: skip
    lines = APP.read_text(encoding="utf-8").split("\n")
    for name, value in settings.items():
        [at] = [number for number, line in enumerate(lines) if re.match(rf"{name}\b.* = ", line)]
        kind, comment = lines[at].partition(" = ")[0], lines[at].partition("  #")
        lines[at] = f"{kind} = {value!r}{comment[1]}{comment[2]}"
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
        "short_description": "A tuned model, on a processor",
    }
    plain = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False, allow_unicode=True)
    lies = f"in [{repo}](https://huggingface.co/{repo})" if repo else "beside app.py"
    return (
        f"---\n{plain}---\n\n# {job.name}\n\nA page that chats with `{model}`, which lies {lies}. llama.cpp answers on"
        f" the processor, with the likeliest reply of at most {job.limit:,} tokens, one person at a time. Nothing is"
        " counted or kept.\n"
    )


def _wrong_card(folder: Path) -> list[str]:
    try:
        front = front_matter((folder / "README.md").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        return [f"README.md cannot be read: {error}"]
    pins = _pins(folder)
    wrong = [] if front.get("sdk") == "gradio" else ["README.md does not say sdk: gradio"]
    if front.get("sdk_version") != pins.get("gradio"):
        wrong.append(f"README.md says Gradio {front.get('sdk_version')}, requirements.txt {pins.get('gradio')}")
    if not (folder / str(front.get("app_file"))).is_file():
        wrong.append(f"there is no app_file '{front.get('app_file')}'")
    return wrong


def _pins(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    except OSError:
        return {}
    return {name: pin for name, _, pin in (line.partition("==") for line in lines)}


def _wrong_pins(folder: Path) -> Iterator[str]:
    for name, pin in _pins(folder).items():
        if name not in ALLOWED:
            yield f"requirements.txt wants {name}, which app.py does not use"
        elif pin != _installed(name):
            yield f"requirements.txt wants {name} {pin or 'in any version'}; tried is {_installed(name)}"


def _wrong_imports(path: Path) -> Iterator[str]:
    try:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    except (OSError, SyntaxError) as error:
        yield f"app.py cannot be read: {error}"
        return
    names = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    wanted = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    for name in sorted(wanted - ALLOWED | (wanted - {*_pins(path.parent)} - {"huggingface_hub"})):
        yield f"app.py imports {name}, which requirements.txt does not bring"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        where = "export.files: space"
        raise MissingExtra(f"{name} is not installed", where=where, next=f"pip install {name}") from None
