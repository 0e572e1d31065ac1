"""A folder laid out as a model repository on the hub; and `push`, which sends it. Writing it sends nothing."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tunesmith.config.registry import raise_first
from tunesmith.data.finding import PRIVATE
from tunesmith.data.privacy import find_personal, find_secrets
from tunesmith.errors import DataError, ModelError, RecipeError, TunesmithError, raise_all
from tunesmith.exporting.job import File, Job, Request
from tunesmith.exporting.merge import shipped_template
from tunesmith.exporting.targets._shipped import front_matter, link, wrong_repo
from tunesmith.models.gguf_header import read_header
from tunesmith.runs.run import atomic_folder, write_atomic

WEIGHTS, TEXTS = (".safetensors", ".gguf"), (".json", ".jinja", ".md", ".txt")
KINDS = (*WEIGHTS, *TEXTS, ".model")
SMALL = 1 << 20  # bytes of a text that is searched for personal data; larger ones are vocabularies
BASE = "FOLDER-OF-THE-BASE-MODEL"  # the card's word for a base without a public name


@dataclass(frozen=True)
class Entry:
    """A file that goes to the hub. `searched`: it was read for personal data; weights and vocabularies are not."""

    path: str
    bytes: int
    sha256: str
    searched: bool


def wrong_options(repo: Any = "", **_: Any) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the options, whatever the model."""
    if wrong := wrong_repo(repo):
        yield "repo", *wrong


def needs(what: str = "adapter", **_: Any) -> str:
    """The target whose files this one is made of."""
    return what


def validate(request: Request, *, repo: str, what: str = "adapter", private: bool = True) -> Iterator[TunesmithError]:
    """Why the folder cannot be laid out: what goes into it is not written before it."""
    folder = request.job.folder / what
    if what != "adapter" and not (request.follows(what) or any(_weights(folder))):
        advice = f"Put {what} before hub in export.files"
        yield RecipeError(f"hub needs {what}, which no target before it writes", where="export.files: hub", next=advice)


def write(
    job: Job, *, repo: str, what: Literal["adapter", "merged", "gguf"] = "adapter", private: bool = True
) -> list[File]:
    """`repo`: owner/name; `what` must have been written before; `private`: who has no leave cannot see it.

    The files are linked, or copied where the disk cannot link, and the card lies beside them. Nothing is sent. Raises
    ModelError for what is missing or of a kind that is not sent.
    """
    raise_first(wrong_options(repo), "export.files: hub")
    folder = job.out("hub")
    if not job.standing:
        sources = _sources(job, what)
        for name, source in sources.items():
            _refuse_kind(name, source)
        with atomic_folder(folder) as made:
            for name, source in sources.items():
                link(source, made / name)
            card = job.card()
            write_atomic(made / "README.md", card)
            if what == "adapter":
                _name_base(made / "adapter_config.json", card)
                write_atomic(made / "chat_template.jinja", shipped_template(job))
    return [File("hub", folder, notes={"repo": repo, "private": "yes" if private else "no", "what": what})]


def check(job: Job, file: File) -> list[str]:
    """What is wrong with the folder: kinds, headers, the card, personal data."""
    paths = _files(file.path)
    wrong = [f"{name} is of a kind that is not sent" for name, path in paths.items() if not _allowed(path)]
    weights = [path for path in paths.values() if path.suffix in WEIGHTS]
    wrong += [] if weights else ["there are no weights"]
    wrong += [said for path in weights if (said := _unreadable(path))]
    wrong += _wrong_card(paths.get("README.md"))
    return [*wrong, *(str(error) for error in findings(job, file.path))]


def push(
    job: Job, file: File, *, repo: str, private: bool, dry_run: bool, token: str | None = None, api: Any = None
) -> list[Entry]:
    """Sends the folder to the hub; with `dry_run` says what would go, and needs neither network nor token.

    `token`: the environment's HF_TOKEN unless given; it is told to the hub alone. `api`: what speaks to the hub,
    huggingface_hub's HfApi unless given. Raises ModelError for a file of another kind, a missing token and the hub's
    refusals; DataError, or Several of them, for personal data, keys and paths of this machine.
    """
    raise_first(wrong_options(repo), "hub")
    paths = _files(file.path)
    for name, path in paths.items():
        _refuse_kind(name, path)
    raise_all(list(findings(job, file.path)))
    entries = [_entry(name, path) for name, path in paths.items()]
    if dry_run:
        return entries
    token = token or os.environ.get("HF_TOKEN")
    if not token:
        advice = "Make a token that may write at https://huggingface.co/settings/tokens, then: export HF_TOKEN=…"
        raise ModelError("there is no token for the hub", where="HF_TOKEN", next=advice)
    _send(api or _client(token), file.path, [entry.path for entry in entries], repo, private, token)
    return entries


def findings(job: Job, folder: Path) -> Iterator[TunesmithError]:
    """Personal data, keys and paths of this machine in the small texts and the GGUF headers, each with its place.

    What was found is not told: the message may be kept where the data must not be.
    """
    homes = {f"{place}{os.sep}" for place in (Path.home(), job.folder.absolute().parent) if len(place.parts) > 1}
    for name, path in _files(folder).items():
        for where, text in _texts(name, path):
            spans = [*find_personal(text, kinds=PRIVATE), *find_secrets(text)]
            told = [(span.start, span.kind.replace("_", " ")) for span in spans]
            told += [(text.index(home), "path of this machine") for home in homes if home in text]
            for start, kind in sorted(told):
                line = text.count("\n", 0, start) + 1
                advice = "Remove it where it comes from (recipe, template, base), and export again"
                yield DataError(f"holds what must not be published: {kind}", where=f"{where} line {line}", next=advice)


def _texts(name: str, path: Path) -> Iterator[tuple[str, str]]:
    if _searched(path):
        yield name, path.read_text(encoding="utf-8", errors="replace")
    elif path.suffix == ".gguf":
        try:
            known = read_header(path, values=False).metadata
        except ModelError:
            return  # `check` says so
        for key, value in known.items():
            if isinstance(value, str):
                yield f"{name}, {key}", value


def _searched(path: Path) -> bool:
    return path.suffix in TEXTS and path.stat().st_size <= SMALL


def _entry(name: str, path: Path) -> Entry:
    with path.open("rb") as file:
        return Entry(name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest(), _searched(path))


def _client(token: str) -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=token)


def _send(api: Any, folder: Path, names: list[str], repo: str, private: bool, token: str) -> None:
    try:
        api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="model",
            commit_message="A model made with tunesmith",
            allow_patterns=[glob.escape(name) for name in names],
        )
    except Exception as error:  # whatever it raises may quote the token: it goes no further as it is
        said = " ".join(str(error).replace(token, "…").split())[:200]
        advice = "Check that HF_TOKEN may write there and that the hub can be reached, then push again: it goes on"
        raise ModelError(f"the hub did not take it: {said or type(error).__name__}", where=repo, next=advice) from None


def _sources(job: Job, what: str) -> Mapping[str, Path]:
    folder = {"adapter": job.adapter, "merged": job.folder / "merged", "gguf": job.folder / "gguf"}[what]
    found = _files(folder)
    if not any(path.suffix in WEIGHTS for path in found.values()):
        advice = f"Put {what} before hub in export.files"
        raise ModelError(f"there is no {what} to lay out", where=str(folder), next=advice)
    return {name: path for name, path in found.items() if name != "README.md"}


def _weights(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.suffix in WEIGHTS)


def _files(folder: Path) -> dict[str, Path]:
    """Every file below the folder by its path in it, in order."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}


def _allowed(path: Path) -> bool:
    return path.suffix in KINDS and not path.is_symlink()


def _refuse_kind(name: str, path: Path) -> None:
    if not _allowed(path):
        kinds = ", ".join(kind.removeprefix(".") for kind in KINDS)
        what = f"'{name}' is of a kind that is not sent; sent are {kinds}"
        raise ModelError(what, where=str(path), next="Move it elsewhere, and export again")


def _name_base(path: Path, card: str) -> None:
    """The base by its public name: PEFT writes where it lay, which is nobody's business and of no use elsewhere."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = front_matter(card).get("base_model") or BASE
    write_atomic(path, json.dumps(config, indent=2) + "\n")  # takes the link's place; the adapter's own file stays


def _wrong_card(path: Path | None) -> list[str]:
    if path is None:
        return ["there is no README.md"]
    try:
        front = front_matter(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [f"README.md: its front matter cannot be read: {error}"]
    if not front:
        return ["README.md has no front matter"]
    return [] if front.get("base_model") else ["README.md names no base_model: the base has no public name"]


def _unreadable(path: Path) -> str:
    if path.suffix == ".gguf":
        try:
            read_header(path, values=False)
        except ModelError as error:
            return str(error)
        return ""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return "" if list(file.keys()) else f"{path.name} holds no tensor"
    except (SafetensorError, OSError) as error:
        return f"{path.name} is no safetensors file: {error}"
