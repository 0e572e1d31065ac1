"""Writes a folder in the layout of a Hub model repository; `push` uploads it. Writing uploads nothing."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.registry import raise_first
from tunesmith.data.finding import PRIVATE
from tunesmith.data.privacy import find_personal, find_secrets
from tunesmith.errors import DataError, ModelError, RecipeError, TunesmithError, raise_all
from tunesmith.exporting.job import File, Job, Request
from tunesmith.exporting.merge import shipped_template
from tunesmith.exporting.targets._shipped import front_matter, link, repo_error
from tunesmith.models.gguf_header import read_header
from tunesmith.runs.run import atomic_folder, write_atomic

WEIGHTS, TEXTS = (".safetensors", ".gguf"), (".json", ".jinja", ".md", ".txt")
SUFFIXES = (*WEIGHTS, *TEXTS, ".model")
MAX_SEARCHED_BYTES = 1 << 20  # larger texts are vocabularies and not searched for personal data
UNNAMED_BASE = "FOLDER-OF-THE-BASE-MODEL"  # stands for a base without a public name


@dataclass(frozen=True)
class UploadEntry:
    """A file to upload. `searched`: it was searched for personal data; weights and vocabularies are not."""

    path: str
    bytes: int
    sha256: str
    searched: bool


def wrong_options(repo: Any = "", **_: Any) -> Iterator[tuple[str, str, str]]:
    """Yields problems of the options that do not depend on the model."""
    if problem := repo_error(repo):
        yield "repo", *problem


def needs(what: str = "adapter", **_: Any) -> str:
    """Returns the target whose files this one uses."""
    return what


def validate(request: Request, *, repo: str, what: str = "adapter", private: bool = True) -> Iterator[TunesmithError]:
    """Yields why the folder cannot be written: the target that it needs is not written before it."""
    folder = request.job.folder / what
    if what != "adapter" and not (request.follows(what) or any(_weight_files(folder))):
        advice = f"Put {what} before hub in export.files"
        yield RecipeError(f"hub needs {what}, which no target before it writes", where="export.files: hub", next=advice)


def write(
    job: Job, *, repo: str, what: Literal["adapter", "merged", "gguf"] = "adapter", private: bool = True
) -> list[File]:
    """Writes the folder of the repository `repo` (owner/name); the target `what` must already be written.

    Files are hard links, or copies if the disk cannot link; README.md is the model card. Nothing is uploaded. `private`
    restricts access to the repository. Raises ModelError for missing files and for file types that are not uploaded.
    """
    raise_first(wrong_options(repo), "export.files: hub")
    folder = job.out("hub")
    if not job.standing:
        sources = _sources(job, what)
        for name, source in sources.items():
            _check_kind(name, source)
        with atomic_folder(folder) as new:
            for name, source in sources.items():
                link(source, new / name)
            card = job.card()
            write_atomic(new / "README.md", card)
            if what == "adapter":
                _set_base_name(new / "adapter_config.json", card)
                write_atomic(new / "chat_template.jinja", shipped_template(job))
    return [File("hub", folder, notes={"repo": repo, "private": "yes" if private else "no", "what": what})]


def check(job: Job, file: File) -> list[str]:
    """Returns problems of the folder: file types, headers, the model card, personal data."""
    paths = _files(file.path)
    problems = [f"{name} has a file type that is not uploaded" for name, path in paths.items() if not _is_allowed(path)]
    weights = [path for path in paths.values() if path.suffix in WEIGHTS]
    problems += [] if weights else ["there are no weights"]
    problems += [problem for path in weights if (problem := _weights_problem(path))]
    problems += _card_problems(paths.get("README.md"))
    return [*problems, *(str(error) for error in privacy_errors(job, file.path))]


def push(
    job: Job, file: File, *, repo: str, private: bool, dry_run: bool, token: str | None = None, api: Any = None
) -> list[UploadEntry]:
    """Uploads the folder to the Hub; with `dry_run`, only returns what would be uploaded, without network or token.

    `token` is the environment's HF_TOKEN unless given, and is sent only to the Hub; `api` is huggingface_hub's HfApi
    unless given. Raises ModelError for other file types, a missing token and errors of the Hub; DataError, or
    MultipleErrors of them, for personal data, keys and paths of this machine.
    """
    raise_first(wrong_options(repo), "hub")
    paths = _files(file.path)
    for name, path in paths.items():
        _check_kind(name, path)
    raise_all(list(privacy_errors(job, file.path)))
    entries = [_entry(name, path) for name, path in paths.items()]
    if dry_run:
        return entries
    token = token or os.environ.get("HF_TOKEN")
    if not token:
        advice = "Create a token with write access at https://huggingface.co/settings/tokens, then: export HF_TOKEN=…"
        raise ModelError("there is no token for the Hub", where="HF_TOKEN", next=advice)
    _upload(api or _client(token), file.path, [entry.path for entry in entries], repo, private, token)
    return entries


def privacy_errors(job: Job, folder: Path) -> Iterator[TunesmithError]:
    """Yields personal data, keys and paths of this machine in small texts and GGUF headers, with file and line.

    Errors do not quote the data, because they may be stored where it must not be.
    """
    local_paths = {
        f"{folder_path}{os.sep}"
        for folder_path in (Path.home(), job.folder.absolute().parent)
        if len(folder_path.parts) > 1
    }
    for name, path in _files(folder).items():
        for where, text in _texts(name, path):
            spans = [*find_personal(text, kinds=PRIVATE), *find_secrets(text)]
            places = [(span.start, span.kind.replace("_", " ")) for span in spans]
            places += [
                (text.index(local_path), "path of this machine") for local_path in local_paths if local_path in text
            ]
            for start, kind in sorted(places):
                line = text.count("\n", 0, start) + 1
                advice = "Remove it at its source (recipe, template or base), and export again"
                yield DataError(f"must not be published: {kind}", where=f"{where} line {line}", next=advice)


def _texts(name: str, path: Path) -> Iterator[tuple[str, str]]:
    if _is_searched(path):
        yield name, path.read_text(encoding="utf-8", errors="replace")
    elif path.suffix == ".gguf":
        try:
            pairs = read_header(path, values=False).metadata
        except ModelError:
            return  # `check` reports it
        for key, value in pairs.items():
            if isinstance(value, str):
                yield f"{name}, {key}", value


def _is_searched(path: Path) -> bool:
    return path.suffix in TEXTS and path.stat().st_size <= MAX_SEARCHED_BYTES


def _entry(name: str, path: Path) -> UploadEntry:
    with path.open("rb") as file:
        return UploadEntry(
            name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest(), _is_searched(path)
        )


def _client(token: str) -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=token)


def _upload(api: Any, folder: Path, names: list[str], repo: str, private: bool, token: str) -> None:
    try:
        api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="model",
            commit_message="Upload a model made with tunesmith",
            allow_patterns=[glob.escape(name) for name in names],
        )
    except Exception as error:  # any error may quote the token, so it is not chained
        message = " ".join(str(error).replace(token, "…").split())[:200]
        advice = "Check that HF_TOKEN has write access and that the Hub is reachable, then push again to resume"
        raise ModelError(f"the upload failed: {message or type(error).__name__}", where=repo, next=advice) from None


def _sources(job: Job, what: str) -> Mapping[str, Path]:
    folder = {"adapter": job.adapter, "merged": job.folder / "merged", "gguf": job.folder / "gguf"}[what]
    files = _files(folder)
    if not any(path.suffix in WEIGHTS for path in files.values()):
        advice = f"Put {what} before hub in export.files"
        raise ModelError(f"the files of {what} do not exist", where=str(folder), next=advice)
    return {name: path for name, path in files.items() if name != "README.md"}


def _weight_files(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.suffix in WEIGHTS)


def _files(folder: Path) -> dict[str, Path]:
    """Returns every file below the folder by its relative path, sorted."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}


def _is_allowed(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.is_symlink()


def _check_kind(name: str, path: Path) -> None:
    if not _is_allowed(path):
        suffixes = ", ".join(kind.removeprefix(".") for kind in SUFFIXES)
        problem = f"'{name}' has a file type that is not uploaded; allowed types: {suffixes}"
        raise ModelError(problem, where=str(path), next="Move it out of the folder, and export again")


def _set_base_name(path: Path, card: str) -> None:
    """Replaces the base's local path, which PEFT writes, by its public name."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = front_matter(card).get("base_model") or UNNAMED_BASE
    write_atomic(path, json.dumps(config, indent=2) + "\n")  # replaces the link; the adapter's own file is unchanged


def _card_problems(path: Path | None) -> list[str]:
    if path is None:
        return ["there is no README.md"]
    try:
        front = front_matter(path.read_text(encoding="utf-8"))
    except (RecipeError, UnicodeDecodeError) as error:
        return [f"README.md cannot be read: {error}"]
    if not front:
        return ["README.md has no front matter"]
    return [] if front.get("base_model") else ["README.md names no base_model: the base has no public name"]


def _weights_problem(path: Path) -> str:
    if path.suffix == ".gguf":
        try:
            read_header(path, values=False)
        except ModelError as error:
            return str(error)
        return ""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return "" if list(file.keys()) else f"{path.name} contains no tensors"
    except (SafetensorError, OSError) as error:
        return f"{path.name} is not a safetensors file: {error}"
