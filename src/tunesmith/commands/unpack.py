"""Restores a packed run from its archive."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from tunesmith.commands.pack import SOURCES, describe_base, describe_files, describe_run
from tunesmith.commands.shared import Reporter, silent
from tunesmith.errors import DataError, ResourceError, RunError
from tunesmith.runs import archive
from tunesmith.runs.run import atomic_folder
from tunesmith.wording import show_bytes

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # a recipe's name


def unpack(path: Path, folder: Path | None = None, log: Reporter = silent) -> Path:
    """Restores the run packed in `path` into the new `folder` (runs/NAME by default).

    The folder appears only after every byte of the archive was checked against its manifest. Raises DataError for an
    archive that is damaged, truncated, forged or not an archive, RunError for one of another version or a folder that
    exists, ResourceError if the disk has too little space.
    """
    with archive.open_archive(path) as packed:
        run_info = _check_manifest(path, packed.manifest)
        folder = Path("runs") / run_info["name"] if folder is None else folder
        _check_new(folder)
        _check_space(folder, packed.size)
        with atomic_folder(folder) as temporary:
            try:
                packed.extract(temporary)
            except OSError as error:
                if isinstance(
                    error, FileExistsError
                ):  # two names that this file system does not distinguish, such as A and a
                    raise DataError(f"cannot be unpacked on this disk: {error}", where=str(path)) from error
                raise
            for recipe in temporary.rglob("recipe.yaml"):
                (recipe.parent / ".lock").touch()  # marks the folder as a run
            _check_new(folder)
    log(
        f"unpack: {folder}: {describe_run(run_info)}; {describe_files(packed.manifest['members'])}, all checksums match"
    )
    if run_info.get("stopped"):
        log(f"unpack: {_describe_stopped(run_info)}")
    if SOURCES in run_info["left_out"]:
        log("unpack: the files of data.source were not packed: the prepared rows can be used, but not prepared again")
    log(f"unpack: {describe_base(run_info['base'], packed=False)}")
    log(f"unpack: to continue: tunesmith run {shlex.quote(str(folder))}")
    return folder


def _check_manifest(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest if it describes a run. Raises DataError if not."""
    has_name = isinstance(manifest.get("name"), str) and _NAME.fullmatch(manifest["name"])
    has_recipe = any(member["name"] == "recipe.yaml" for member in manifest["members"])
    is_complete = isinstance(manifest.get("base"), dict) and isinstance(manifest.get("left_out"), list)
    if not (has_name and has_recipe and is_complete):
        raise DataError("is not an archive of a run", where=str(path), next="Give a file that tunesmith pack wrote")
    return manifest


def _check_new(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise RunError("this folder already exists", where=str(folder), next="Give a new folder with --into")


def _check_space(folder: Path, needed: int) -> None:
    parent_folder = next(parent for parent in folder.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(parent_folder).free
    if needed > free:
        raise ResourceError(
            f"the disk has {show_bytes(free)} left, but the run needs {show_bytes(needed)}",
            where=str(parent_folder),
            next="Free some space, or use another disk with --into",
        )


def _describe_stopped(manifest: dict[str, Any]) -> str:
    """Says what an unfinished training needs to be resumed."""
    precision = manifest["stopped"].get("precision") if isinstance(manifest["stopped"], dict) else ""
    where = f" on a machine that supports {precision}" if precision else ""
    return f"the training is not finished; it can be resumed{where}"
