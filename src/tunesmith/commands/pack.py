"""Packs a run, finished or not, into one archive with checksums, to move it to another machine."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tunesmith.commands.runs import list_runs
from tunesmith.commands.shared import TEMPLATE, Reporter, packed_without_sources, silent, template_file
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.data.sources import locate, select_tables
from tunesmith.errors import DataError, RecipeError, RunError, TunesmithError
from tunesmith.hardware import versions
from tunesmith.runs import archive
from tunesmith.runs.archive import Member
from tunesmith.runs.run import Run
from tunesmith.wording import show_bytes

INPUTS = "inputs"
SOURCES = "sources"  # stands for the files of data.source in `without`


def describe_run(manifest: dict[str, Any]) -> str:
    """Returns the run's name, state and training steps."""
    steps = manifest.get("steps")
    progress = f", {steps[0]:,} of {steps[1]:,} steps" if isinstance(steps, list) and len(steps) == 2 else ""
    note = f" ({manifest['note']})" if manifest.get("note") else ""
    return f"{manifest['name']}, {manifest.get('state')}{note}{progress}"


def describe_files(members: Sequence[dict[str, Any]]) -> str:
    """Returns the number and total size of the files."""
    return f"{len(members):,} files, {show_bytes(sum(member['size'] for member in members))}"


def describe_base(base: dict[str, Any], *, packed: bool) -> str:
    """Says where the base model comes from, on another machine or here."""
    model, revision, fingerprint = str(base.get("model")), base.get("revision"), str(base.get("fingerprint") or "")[:12]
    with_fingerprint = f", fingerprint {fingerprint}" if fingerprint else ""
    if model.startswith((".", "/", "~")) or Path(model).is_absolute():
        advice = "it must exist at the same path, or be given with --set base.model=FOLDER"
        kind = "file" if Path(model).is_file() or model.endswith(".gguf") else "folder"
        if packed:
            return f"the base model is not packed: the {kind} {model}{with_fingerprint}; {advice}"
        return (
            f"the base model is the {kind} {model}{with_fingerprint}; {'it exists' if Path(model).exists() else advice}"
        )
    at_revision = f" at {revision}" if revision else ""
    fetching = "is not packed; it is downloaded there" if packed else "is downloaded by the first command if necessary"
    return f"the base model {model}{at_revision}{with_fingerprint} {fetching}"


ALWAYS = {
    "recipe.yaml": "the recipe",
    ".fingerprints": "the record of finished products",
    INPUTS: "what the recipe reads",
}
_SHOWN = 12  # names that are listed; the rest are counted


def pack(run: Run, target: Path, log: Reporter = silent, *, without: Sequence[str] = ()) -> Path:
    """Writes the run, and the files that its recipe reads, into one archive `target`, .tar or .tar.gz.

    Not packed are locks, unfinished files, hidden files, the base model, and what `without` names: paths in the run's
    folder, or `sources` for the files of data.source. The pseudonym map is never packed; if the recipe has one, neither
    are the sources, because they contain what it replaces.

    Raises RunError if another process works on the run, a file is a link or changes meanwhile, something in `without`
    is required, or `target` is another file; DataError if an input is missing; ResourceError if the disk is full.
    """
    _check_path(run, target)
    with run.lock():
        roots = _roots(run)
        recipes = {root: read_recipe(str(run / root)) for root in roots}
        without_sources = _without_sources(recipes["."], run, without, log)
        excluded = [entry.strip("/") for entry in without if entry != SOURCES]
        _check_excluded(run, roots, excluded)
        inputs = _Inputs(run, bare=without_sources)
        texts = {_below(root, "recipe.yaml"): inputs.rewritten(recipe, root) for root, recipe in recipes.items()}
        files, left_out = _files(run, excluded)
        members = [_member(name, path, texts) for name, path in files] + inputs.members()
        replaced = _check_existing(target, recipes["."].name)
        members.sort(key=lambda member: member.name)
        description = _describe(run, recipes["."], [*([SOURCES] if without_sources else []), *excluded])
        manifest = archive.write(target, members, description)
    for line in [
        f"{describe_run(description)}; {describe_files(manifest['members'])}",
        *_packed_parts(manifest["members"]),
    ]:
        log(f"pack: {line}")
    if left_out:
        log(f"pack: not packed: {', '.join(left_out)}")
    log(f"pack: {target}, {show_bytes(target.stat().st_size)}{replaced}")
    log(f"pack: {describe_base(description['base'], packed=True)}")
    log(f"pack: copy it to the other machine, then run there: tunesmith unpack {shlex.quote(target.name)}")
    return target


# --- what is packed ----------------------------------------------------------------------------------------


def _roots(run: Run) -> list[str]:
    """Returns the folder of the run and, relative to it, those of the runs inside it: shares of a curve, seeds."""
    recipes = (path for folder in ("curve", "seeds") for path in run.path.glob(f"{folder}/*/recipe.yaml"))
    inner = sorted(path.parent.relative_to(run.path).as_posix() for path in recipes)
    return [".", *inner]


def _below(root: str, name: str) -> str:
    return name if root == "." else f"{root}/{name}"


def _without_sources(recipe: Recipe, run: Run, without: Sequence[str], log: Reporter) -> bool:
    """Returns whether the files of data.source are not packed. Raises RunError if they are still needed for prepare."""
    has_pseudonyms = bool(recipe.data.pseudonyms)
    if not (has_pseudonyms or SOURCES in without or packed_without_sources(recipe, run)):
        return False
    if run.read_fingerprints("prepare") is None:
        why = "they contain what data.pseudonyms replaces" if has_pseudonyms else "--without sources"
        raise RunError(
            f"the files of data.source are not packed ({why}), but the rows are not prepared yet",
            where=str(run.path),
            next=f"Prepare them first: tunesmith prepare {shlex.quote(str(run.path))}",
        )
    if has_pseudonyms:
        log("pack: to protect personal data, the pseudonym map and the files of data.source are not packed")
    return True


def _check_excluded(run: Run, roots: Sequence[str], excluded: Sequence[str]) -> None:
    """Raises RunError if an excluded path does not exist, or is required by a product or to resume the training."""
    for entry in excluded:
        if not entry or not (run / entry).exists() or ".." in PurePosixPath(entry).parts:
            has = ", ".join(sorted(path.name for path in run.path.iterdir() if not path.name.startswith(".")))
            raise RunError(f"there is no '{entry}' to exclude", where=str(run.path), next=f"The run contains: {has}")
        for root in roots:
            if root != "." and _is_inside(entry, root):  # an inner run is excluded as a whole
                continue
            inner = Run(run / root)
            trained = inner.read_fingerprints("train") is not None
            needed = {f: "a finished product" for record in _seals(inner) for f in record["files"]}
            needed |= ALWAYS if trained else ALWAYS | {"checkpoints": "required to resume the training"}
            for name, reason in needed.items():
                full_name = _below(root, name)
                if _is_inside(entry, full_name) or _is_inside(full_name, entry):
                    advice = f"Use --without {SOURCES}" if name == INPUTS else "Omit it from --without"
                    raise RunError(
                        f"'{entry}' must be packed: {full_name} is {reason}", where=str(run.path), next=advice
                    )


def _is_inside(folder: str, name: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")


def _seals(run: Run) -> Iterator[dict[str, Any]]:
    for path in sorted((run / ".fingerprints").glob("*.json")):
        if record := run.read_fingerprints(path.stem):
            yield record


def _files(run: Run, excluded: Sequence[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Returns the run's files by name, and the names of what is not packed. Raises RunError for a link."""
    files: list[tuple[str, Path]] = []
    left_out: list[str] = []
    for folder, folders, names in os.walk(run.path):
        here = Path(folder).relative_to(run.path)
        subfolders = []
        for name in sorted([*folders, *names]):
            full, path = (here / name).as_posix(), Path(folder) / name
            if name.startswith(".") and name != ".fingerprints":
                if not (name in (".lock", ".lock.owner") or name.endswith((".lock", ".tmp", ".old"))):
                    left_out.append(full)
            elif _is_unfinished(full) or any(_is_inside(entry, full) for entry in excluded) or full == INPUTS:
                left_out += [] if full == INPUTS else [full]
            elif path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise RunError(
                    f"{full} is a link or not a regular file",
                    where=str(run.path),
                    next=f"Replace it with the file it points to, or exclude it: --without {shlex.quote(full)}",
                )
            elif path.is_dir():
                subfolders.append(name)
            else:
                files.append((full, path))
        folders[:] = subfolders
    return files, left_out


def _is_unfinished(name: str) -> bool:
    """Returns whether a file is unfinished. Partial replies are packed, because an evaluation resumes from them."""
    path = PurePosixPath(name)
    return path.suffix == ".tmp" or (path.suffix == ".part" and path.parent.name != "replies")


def _member(name: str, path: Path, texts: dict[str, str]) -> Member:
    content = texts[name].encode() if name in texts else path
    return Member(name, content, int(path.stat().st_mtime))


@dataclass
class _Inputs:
    """Gives the files that recipes read names in inputs/, and writes the recipes with these names."""

    run: Run
    bare: bool  # the files of data.source get names, but are not packed
    names: dict[Path, str] = field(default_factory=dict)
    taken: set[Path] = field(default_factory=set)

    def rewritten(self, recipe: Recipe, root: str) -> str:
        """Returns the recipe as text, with input paths relative to its folder `root`."""
        values, up = recipe.dump(), "" if root == "." else "../" * len(PurePosixPath(root).parts)
        for key, section in (("data.source", values["data"]), ("data.mix_in.source", values["data"]["mix_in"])):
            if (sources := section["source"]) is not None:
                section["source"] = [up + name for source in sources for name in self._source(source, recipe, key)]
        if recipe.evaluate.probes:
            values["evaluate"]["probes"] = up + self._probes(recipe)
        if recipe.prompt.template != "model":
            values["prompt"]["template"] = self._template(recipe, Run(self.run / root)) or up + self._take(
                recipe.path(recipe.prompt.template), "prompt.template"
            )
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def members(self) -> list[Member]:
        """The files to be packed."""
        return [Member(self.names[path], path, int(path.stat().st_mtime)) for path in self.taken]

    def _source(self, source: str, recipe: Recipe, key: str) -> list[str]:
        if source.startswith("hub:"):
            return [source]
        if self.bare and packed_without_sources(recipe, self.run):
            return [self._name(Path(source))]
        try:
            files, _ = select_tables(source, recipe.folder)
        except DataError as error:
            if self.bare:
                return [self._name(Path(source))]
            advice = f"Put it where {key} says, or exclude it: --without {SOURCES}"
            raise DataError(error.what, where=error.where, next=advice) from error
        return [self._name(file) if self.bare else self._take(file, key) for file in files]

    def _template(self, recipe: Recipe, run: Run) -> str:
        """Returns the name of the run's template copy if the recipe's file is gone or is that copy, else ''."""
        template_path = recipe.path(recipe.prompt.template)
        with contextlib.suppress(RecipeError):  # no prepared rows
            if template_path == (run / TEMPLATE).resolve() or (
                not template_path.is_file() and template_file(recipe, run)
            ):
                return TEMPLATE
        return ""

    def _probes(self, recipe: Recipe) -> str:
        """Returns the name of the probes file, or of the folder with the files of evaluate.probes."""
        path = recipe.path(recipe.evaluate.probes or "")
        if path.is_file():
            return self._take(path, "evaluate.probes")
        files = locate(str(path), recipe.folder)
        base = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            inner = "/".join(archive.safe_name(part) for part in file.relative_to(base).parts)
            self.names[file] = f"{INPUTS}/probes/{inner}"
            self.taken.add(file)
        return f"{INPUTS}/probes"

    def _take(self, path: Path, key: str) -> str:
        if not path.is_file():
            raise DataError("no such file", where=str(path), next=f"Put it where {key} says, or set {key} with --set")
        self.taken.add(path)
        return self._name(path)

    def _name(self, path: Path) -> str:
        """Returns inputs/NAME, or inputs/2/NAME if that is taken. The order of the recipe makes it deterministic."""
        if path not in self.names:
            name, number, used = (
                archive.safe_name(path.name),
                1,
                {taken_name.casefold() for taken_name in self.names.values()},
            )
            while (full := f"{INPUTS}/{name}" if number == 1 else f"{INPUTS}/{number}/{name}").casefold() in used:
                number += 1
            self.names[path] = full
        return self.names[path]


def _describe(run: Run, recipe: Recipe, left_out: Sequence[str]) -> dict[str, Any]:
    """Returns the manifest's description of the run."""
    home = run.path.resolve()
    row = next((row for row in list_runs(home.parent) if row.name == home.name), None)
    records = {
        path.stem: run.read_fingerprints(path.stem) or {} for path in sorted((run / ".fingerprints").glob("*.json"))
    }
    trained, prepared = records.get("train", {}), records.get("prepare", {})
    fingerprint = trained.get("weights") or prepared.get("inputs", {}).get("tokenizer")
    stopped = row is not None and row.steps is not None and not trained
    return {
        "tunesmith": versions().get("tunesmith", ""),
        "name": recipe.name,
        "state": row.state if row else "",
        "note": row.note if row and row.state == "damaged" else "",
        "steps": list(row.steps) if row and row.steps else None,
        "products": list(records),
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


# --- target ------------------------------------------------------------------------------------------------


def _check_path(run: Run, target: Path) -> None:
    """Raises RunError if the target's name has another ending, or it is inside the run."""
    if not target.name.endswith((*archive.PACKED, archive.PLAIN)):
        raise RunError("the name must end in .tar or .tar.gz", where=str(target), next="Use --out NAME.tar")
    if target.resolve().is_relative_to(run.path.resolve()):
        raise RunError("the archive cannot be inside the run", where=str(target), next="Use another path with --out")


def _check_existing(target: Path, name: str) -> str:
    """Says that an older archive of the same run is replaced, or ''; raises RunError if `target` is anything else."""
    if not target.exists():
        return ""
    try:
        with archive.open_archive(target) as old:
            other_name = old.manifest.get("name")
    except TunesmithError:
        other_name = None
    if other_name != name:
        problem = (
            f"already contains the run {other_name}" if other_name else "exists, and is not a valid archive of this run"
        )
        raise RunError(problem, where=str(target), next="Use another path with --out, or remove it")
    return "; it replaces an older one"


# --- what is said ------------------------------------------------------------------------------------------


def _packed_parts(members: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Says what is packed: top-level names, largest first, and the files that the recipe reads."""
    sizes = Counter[str]()
    for member in members:
        sizes[member["name"].partition("/")[0]] += member["size"]
    lines = [f"{name} ({show_bytes(size)})" for name, size in sizes.most_common()]
    for start in range(0, len(lines), _SHOWN):
        yield f"packed {', '.join(lines[start : start + _SHOWN])}"
    inputs = [member["name"] for member in members if member["name"].startswith(f"{INPUTS}/")]
    more = f" and {len(inputs) - _SHOWN} more" if len(inputs) > _SHOWN else ""
    if inputs:
        yield f"files that the recipe reads: {', '.join(inputs[:_SHOWN])}{more}"
