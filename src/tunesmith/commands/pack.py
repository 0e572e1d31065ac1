"""The verbs pack and unpack: a run, half-done or finished, as one checked archive that is carried elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tunesmith.commands.runs import list_runs
from tunesmith.commands.shared import TEMPLATE, Say, left_behind, silent, template_file
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.data.folders import tables
from tunesmith.data.sources import locate
from tunesmith.errors import DataError, RecipeError, ResourceError, RunError, TunesmithError
from tunesmith.hardware import versions
from tunesmith.runs import archive
from tunesmith.runs.archive import Member
from tunesmith.runs.run import Run, new_folder

INPUTS = "inputs"
SOURCES = "sources"  # the word in `without` for the files of data.source
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # a recipe's name
ALWAYS = {"recipe.yaml": "the recipe", ".seals": "what says what is finished", INPUTS: "what the recipe reads"}
_SHOWN = 12  # parts of a run that are told one by one


def to_pack(name: str, runs: Path) -> Run:
    """The run that `name` means: a folder, or a name in `runs`. Raises RunError when there is none."""
    for path in (Path(name), runs / name):
        if (path / "recipe.yaml").is_file():
            return Run(path)
    raise RunError(f"there is no run '{name}'", where=str(runs), next="List them: tunesmith runs")


def pack(run: Run, target: Path, say: Say = silent, *, without: Sequence[str] = ()) -> Path:
    """Writes the run, and the files that its recipe reads, as one archive `target`, .tar or .tar.gz.

    Left out are locks, what other processes write just now, hidden files, and what `without` names: paths from the
    run's folder on, or `sources` for the files of data.source. The book of stand-ins is never packed, and where the
    recipe has one the sources, which hold what it replaces, are not either. The base model stays out too.

    Raises RunError while another process works on the run, for a file that is no plain one or that changes meanwhile,
    for what cannot be left out, and where `target` is something else already; DataError when an input is missing;
    ResourceError when the disk is full.
    """
    _check_target(run, target)
    with run.lock():
        roots = _roots(run)
        recipes = {root: read_recipe(str(run / root)) for root in roots}
        bare = _without_sources(recipes["."], run, without, say)
        wishes = [each.strip("/") for each in without if each != SOURCES]
        _refuse(run, roots, wishes)
        inputs = _Inputs(run, bare=bare)
        texts = {_below(root, "recipe.yaml"): inputs.rewritten(recipe, root) for root, recipe in recipes.items()}
        files, left_out = _files(run, wishes)
        members = [_member(name, path, texts) for name, path in files] + inputs.members()
        old = _replaced(target, recipes["."].name)
        members.sort(key=lambda member: member.name)
        about = _about(run, recipes["."], [*([SOURCES] if bare else []), *wishes])
        manifest = archive.write(target, members, about)
    for line in [f"{_told(about)}; {_counted(manifest['members'])}", *_parts(manifest["members"])]:
        say(f"pack: {line}")
    if left_out:
        say(f"pack: left out: {', '.join(left_out)}")
    say(f"pack: {target}, {_size(target.stat().st_size)}{old}")
    say(f"pack: {_base(about['base'], packed=True)}")
    say(f"pack: carry it over, then: tunesmith unpack {shlex.quote(target.name)}")
    return target


def unpack(path: Path, folder: Path | None = None, say: Say = silent) -> Path:
    """Makes the run that was packed in `path` again, in the new `folder` (runs/NAME by default), checked whole first.

    Nothing stands under the folder's name before every byte of the archive was read and found as its manifest says.
    Raises DataError for an archive that is damaged, cut off, forged or none, RunError for one of another version and
    for a folder that is there, ResourceError when the disk does not suffice.
    """
    with archive.reading(path) as packed:
        about = _checked(path, packed.manifest)
        folder = Path("runs") / about["name"] if folder is None else folder
        _refuse_taken(folder)
        _check_room(folder, packed.size)
        with new_folder(folder) as made:
            try:
                packed.extract(made)
            except OSError as error:
                if isinstance(error, FileExistsError):  # two names that are one here, as A and a on Windows
                    raise DataError(f"cannot be unpacked on this disk: {error}", where=str(path)) from error
                raise
            for recipe in made.rglob("recipe.yaml"):
                (recipe.parent / ".lock").touch()  # by it a folder is known as a run, and found by its path
            _refuse_taken(folder)
    say(f"unpack: {folder}: {_told(about)}; {_counted(packed.manifest['members'])}, each as it was packed")
    if about.get("stopped"):
        say(f"unpack: {_stopped(about)}")
    if SOURCES in about["left_out"]:
        say("unpack: the files of data.source were not packed: the rows can be used, but not prepared anew")
    say(f"unpack: {_base(about['base'], packed=False)}")
    say(f"unpack: to go on: tunesmith run {shlex.quote(str(folder))}")
    return folder


# --- what is packed ----------------------------------------------------------------------------------------


def _roots(run: Run) -> list[str]:
    """The run's own folder, and those of the runs inside it (a curve's points), relative to it."""
    inner = sorted(path.parent.relative_to(run.path).as_posix() for path in run.path.glob("curve/*/recipe.yaml"))
    return [".", *inner]


def _below(root: str, name: str) -> str:
    return name if root == "." else f"{root}/{name}"


def _without_sources(recipe: Recipe, run: Run, without: Sequence[str], say: Say) -> bool:
    """Whether the files of data.source stay here. Raises RunError where the rows are not prepared and so are needed."""
    kept_apart = bool(recipe.data.pseudonyms)
    if not (kept_apart or SOURCES in without or left_behind(recipe, run)):
        return False
    if run.read_seal("prepare") is None:
        why = "they hold what data.pseudonyms replaces" if kept_apart else "you leave them out"
        raise RunError(
            f"the files of data.source stay here ({why}), and the rows are not prepared yet",
            where=str(run.path),
            next=f"First: tunesmith prepare {shlex.quote(str(run.path))}",
        )
    if kept_apart:
        say("pack: data.pseudonyms keeps personal data apart: its book, and the files of data.source, stay here")
    return True


def _refuse(run: Run, roots: Sequence[str], wishes: Sequence[str]) -> None:
    """Raises RunError for what is not there, or without which a product or a training could not go on."""
    for wish in wishes:
        if not wish or not (run / wish).exists() or ".." in PurePosixPath(wish).parts:
            has = ", ".join(sorted(path.name for path in run.path.iterdir() if not path.name.startswith(".")))
            raise RunError(f"there is no '{wish}' to leave out", where=str(run.path), next=f"It has: {has}")
        for root in roots:
            if root != "." and _covers(wish, root):  # a run inside goes as a whole
                continue
            inner = Run(run / root)
            trained = inner.read_seal("train") is not None
            needed = {f: "a finished product" for seal in _seals(inner) for f in seal["files"]}
            needed |= ALWAYS if trained else ALWAYS | {"checkpoints": "what a half-done training goes on from"}
            for name, what in needed.items():
                full = _below(root, name)
                if _covers(wish, full) or _covers(full, wish):
                    advice = f"Leave out {SOURCES}" if name == INPUTS else "Take it along"
                    raise RunError(f"'{wish}' cannot be left out: {full} is {what}", where=str(run.path), next=advice)


def _covers(folder: str, name: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")


def _seals(run: Run) -> Iterator[dict[str, Any]]:
    for path in sorted((run / ".seals").glob("*.json")):
        if seal := run.read_seal(path.stem):
            yield seal


def _files(run: Run, wishes: Sequence[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """The run's files by their names, and the names of what is left out and no lock. Raises RunError for a link."""
    found: list[tuple[str, Path]] = []
    left_out: list[str] = []
    for folder, folders, names in os.walk(run.path):
        here = Path(folder).relative_to(run.path)
        kept = []
        for name in sorted([*folders, *names]):
            full, path = (here / name).as_posix(), Path(folder) / name
            if name.startswith(".") and name != ".seals":
                if not (name in (".lock", ".lock.owner") or name.endswith((".lock", ".tmp", ".old"))):
                    left_out.append(full)
            elif _unfinished(full) or any(_covers(wish, full) for wish in wishes) or full == INPUTS:
                left_out += [] if full == INPUTS else [full]
            elif path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise RunError(
                    f"{full} is a link or no plain file",
                    where=str(run.path),
                    next=f"Put what it points to in its place, or leave it out: --without {shlex.quote(full)}",
                )
            elif path.is_dir():
                kept.append(name)
            else:
                found.append((full, path))
        folders[:] = kept
    return found, left_out


def _unfinished(name: str) -> bool:
    """What a process has not finished writing; but half of an evaluation's replies is what it goes on from."""
    path = PurePosixPath(name)
    return path.suffix == ".tmp" or (path.suffix == ".part" and path.parent.name != "replies")


def _member(name: str, path: Path, texts: dict[str, str]) -> Member:
    content = texts[name].encode() if name in texts else path
    return Member(name, content, int(path.stat().st_mtime))


@dataclass
class _Inputs:
    """The files that recipes read, each under a name in inputs/, and the recipes with these names in their places."""

    run: Run
    bare: bool  # the files of data.source are named, but stay here
    names: dict[Path, str] = field(default_factory=dict)
    taken: set[Path] = field(default_factory=set)

    def rewritten(self, recipe: Recipe, root: str) -> str:
        """The recipe as text, its inputs told from its own folder `root` on."""
        plain, up = recipe.dump(), "" if root == "." else "../" * len(PurePosixPath(root).parts)
        sources = plain["data"]["source"]
        plain["data"]["source"] = [up + name for source in sources for name in self._source(source, recipe)]
        if recipe.evaluate.probes:
            plain["evaluate"]["probes"] = up + self._probes(recipe)
        if recipe.prompt.template != "model":
            plain["prompt"]["template"] = self._template(recipe, Run(self.run / root)) or up + self._take(
                recipe.path(recipe.prompt.template), "prompt.template"
            )
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

    def members(self) -> list[Member]:
        """The files to be packed."""
        return [Member(self.names[path], path, int(path.stat().st_mtime)) for path in self.taken]

    def _source(self, source: str, recipe: Recipe) -> list[str]:
        if source.startswith("hub:"):
            return [source]
        if self.bare and left_behind(recipe, self.run):
            return [self._name(Path(source))]
        try:
            files, _ = tables(source, recipe.folder)
        except DataError as error:
            if self.bare:
                return [self._name(Path(source))]
            advice = f"Put it where data.source says, or leave it out: --without {SOURCES}"
            raise DataError(error.what, where=error.where, next=advice) from error
        return [self._name(file) if self.bare else self._take(file, "data.source") for file in files]

    def _template(self, recipe: Recipe, run: Run) -> str:
        """The copy of the chat template in `run`, where the recipe's own file is gone or is that copy; else ''."""
        own = recipe.path(recipe.prompt.template)
        with contextlib.suppress(RecipeError):  # nothing was prepared
            if own == (run / TEMPLATE).resolve() or (not own.is_file() and template_file(recipe, run)):
                return TEMPLATE
        return ""

    def _probes(self, recipe: Recipe) -> str:
        """A file's name, or that of the folder with the files that evaluate.probes means."""
        path = recipe.path(recipe.evaluate.probes or "")
        if path.is_file():
            return self._take(path, "evaluate.probes")
        files = locate(str(path), recipe.folder)
        base = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            inner = "/".join(archive.safe(part) for part in file.relative_to(base).parts)
            self.names[file] = f"{INPUTS}/probes/{inner}"
            self.taken.add(file)
        return f"{INPUTS}/probes"

    def _take(self, path: Path, key: str) -> str:
        if not path.is_file():
            raise DataError("no such file", where=str(path), next=f"Put it where {key} says, or give another by --set")
        self.taken.add(path)
        return self._name(path)

    def _name(self, path: Path) -> str:
        """inputs/NAME, or inputs/2/NAME where the name is taken: the same each time, as the recipe tells them."""
        if path not in self.names:
            name, number, used = archive.safe(path.name), 1, {each.casefold() for each in self.names.values()}
            while (full := f"{INPUTS}/{name}" if number == 1 else f"{INPUTS}/{number}/{name}").casefold() in used:
                number += 1
            self.names[path] = full
        return self.names[path]


def _about(run: Run, recipe: Recipe, left_out: Sequence[str]) -> dict[str, Any]:
    """What the manifest says of the run."""
    home = run.path.resolve()
    row = next((row for row in list_runs(home.parent) if row.name == home.name), None)
    seals = {path.stem: run.read_seal(path.stem) or {} for path in sorted((run / ".seals").glob("*.json"))}
    trained, prepared = seals.get("train", {}), seals.get("prepare", {})
    fingerprint = trained.get("weights") or prepared.get("made_from", {}).get("tokenizer")
    stopped = row is not None and row.steps is not None and not trained
    return {
        "tunesmith": versions().get("tunesmith", ""),
        "name": recipe.name,
        "state": row.state if row else "",
        "note": row.note if row and row.state == "damaged" else "",
        "steps": list(row.steps) if row and row.steps else None,
        "products": list(seals),
        "stopped": {"precision": _precision(run)} if stopped else None,
        "base": {
            "model": recipe.dump()["base"]["model"],
            "revision": recipe.base.revision,
            "bits": recipe.base.bits,
            "fingerprint": fingerprint,
        },
        "left_out": sorted(left_out),
    }


def _precision(run: Run) -> str:
    try:
        return str(run.read_json("machine.json")["precision"])
    except (TunesmithError, LookupError, TypeError):
        return ""


# --- where it goes -----------------------------------------------------------------------------------------


def _check_target(run: Run, target: Path) -> None:
    """Raises RunError for a name that says no form, and for a place inside the run."""
    if not target.name.endswith((*archive.PACKED, archive.PLAIN)):
        raise RunError("an archive is called .tar or .tar.gz", where=str(target), next="Name it with --out NAME.tar")
    if target.resolve().is_relative_to(run.path.resolve()):
        raise RunError("the archive would lie in the run it holds", where=str(target), next="Name another with --out")


def _replaced(target: Path, name: str) -> str:
    """Words about the older archive of the same run that is replaced; raises RunError for anything else there."""
    if not target.exists():
        return ""
    try:
        with archive.reading(target) as old:
            other = old.manifest.get("name")
    except TunesmithError:
        other = None
    if other != name:
        what = f"holds the run {other} already" if other else "is there already, and is no whole archive of this run"
        raise RunError(what, where=str(target), next="Name another with --out, or remove it")
    return "; it takes the place of an older one"


def _checked(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the run. Raises DataError where that is no run."""
    named = isinstance(manifest.get("name"), str) and _NAME.fullmatch(manifest["name"])
    holds = any(each["name"] == "recipe.yaml" for each in manifest["members"])
    told = isinstance(manifest.get("base"), dict) and isinstance(manifest.get("left_out"), list)
    if not (named and holds and told):
        raise DataError("is no archive of a run", where=str(path), next="Give the file that tunesmith pack wrote")
    return manifest


def _refuse_taken(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise RunError("there is something already", where=str(folder), next="Name a new folder with --into")


def _check_room(folder: Path, wanted: int) -> None:
    there = next(parent for parent in folder.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise ResourceError(
            f"the disk has {_size(free)} left, and the run takes {_size(wanted)}",
            where=str(there),
            next="Free some space, or name another place with --into",
        )


# --- what is said ------------------------------------------------------------------------------------------


def _told(about: dict[str, Any]) -> str:
    steps = about.get("steps")
    done = f", {steps[0]:,} of {steps[1]:,} steps" if isinstance(steps, list) and len(steps) == 2 else ""
    note = f" ({about['note']})" if about.get("note") else ""
    return f"{about['name']}, {about.get('state')}{note}{done}"


def _counted(members: Sequence[dict[str, Any]]) -> str:
    return f"{len(members):,} files, {_size(sum(each['size'] for each in members))}"


def _parts(members: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What is packed, by its first name, the largest first; and what of it the recipe reads, by name."""
    sizes = Counter[str]()
    for each in members:
        sizes[each["name"].partition("/")[0]] += each["size"]
    told = [f"{name} ({_size(size)})" for name, size in sizes.most_common()]
    for first in range(0, len(told), _SHOWN):
        yield f"takes {', '.join(told[first : first + _SHOWN])}"
    inputs = [each["name"] for each in members if each["name"].startswith(f"{INPUTS}/")]
    more = f" and {len(inputs) - _SHOWN} more" if len(inputs) > _SHOWN else ""
    if inputs:
        yield f"what the recipe reads goes along: {', '.join(inputs[:_SHOWN])}{more}"


def _stopped(about: dict[str, Any]) -> str:
    """What a half-done training needs to go on."""
    kind = about["stopped"].get("precision") if isinstance(about["stopped"], dict) else ""
    return f"the training is half-done{f' in {kind}' if kind else ''}; it goes on where the machine calculates in that"


def _base(base: dict[str, Any], *, packed: bool) -> str:
    """Where the base model comes from, elsewhere or here."""
    model, revision, print_ = str(base.get("model")), base.get("revision"), str(base.get("fingerprint") or "")[:12]
    known = f", fingerprint {print_}" if print_ else ""
    if model.startswith((".", "/", "~")) or Path(model).is_absolute():
        advice = "it must be there in the same place, or be named with --set base.model=FOLDER"
        kind = "file" if Path(model).is_file() or model.endswith(".gguf") else "folder"
        if packed:
            return f"the base model is not packed: the {kind} {model}{known}; {advice}"
        return f"the base model is the {kind} {model}{known}; {'it is here' if Path(model).exists() else advice}"
    at = f" at {revision}" if revision else ""
    kept = "is not packed; it is fetched there" if packed else "is fetched by the first command, if it is not here"
    return f"the base model {model}{at}{known} {kept}"


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
