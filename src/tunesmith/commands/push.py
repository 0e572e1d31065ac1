"""Uploads an exported model repository to the Hub."""

from __future__ import annotations

import shlex

from tunesmith.commands import exported_files
from tunesmith.commands.export import Exporter
from tunesmith.commands.shared import Reporter, silent
from tunesmith.config.recipe import Recipe
from tunesmith.errors import (
    RunError,
    VerificationFailed,
)
from tunesmith.runs.run import Run


def push(recipe: Recipe, run: Run, log: Reporter = silent, *, dry_run: bool = False) -> None:
    """Uploads the folder of the export target `hub`; with `dry_run` only logs what would be uploaded.

    Raises RunError if it was not exported, VerificationFailed if it did not pass, and what exporting.targets.hub.push
    raises.
    """
    from tunesmith.exporting.targets import hub

    setting = next((setting for setting in recipe.export.files if setting.name == "hub"), None)
    entry = next((entry for entry in exported_files.export_entries(run) if entry["target"] == "hub"), None)
    if setting is None or entry is None:
        command = f"tunesmith export {shlex.quote(str(run.path))}"
        raise RunError(
            "the target hub is not exported", where=str(run.path),
            next=f"Add {{hub: {{repo: owner/name}}}} to export.files, then run: {command}",
        )  # fmt: skip
    if entry["problems"]:
        raise VerificationFailed(f"the folder for the Hub did not pass: {entry['problems'][0]}", where=entry["path"])
    exporter = Exporter(recipe, run, log, lambda label, count, total: None)
    (file,) = hub.write(exporter.job, **setting.options)
    private = file.notes["private"] == "yes"
    uploads = hub.push(exporter.job, file, repo=file.notes["repo"], private=private, dry_run=dry_run)
    for upload in uploads:
        note = "" if upload.searched else " (not searched)"
        log(f"push: {upload.bytes:>13,} {upload.sha256[:12]} {upload.path}{note}")
    where = f"{file.notes['repo']} ({'private' if private else 'public'})"
    log(f"push: {len(uploads)} files {'would be uploaded' if dry_run else 'uploaded'} to {where}")
