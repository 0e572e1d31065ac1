"""Checks rows of any source and writes a page about what was found. The source stays as it is."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.commands.read_rows import (
    cached_count,
    log_sources,
    repair_settings,
    row_loader,
    row_values,
    save_pseudonyms,
)
from tunesmith.commands.shared import Reporter, load_recipe_template, load_weights, silent
from tunesmith.config.extras import missing_extras_named
from tunesmith.config.recipe import CHECKS, Data, NamedSetting, Recipe, is_recipe, read_recipe
from tunesmith.config.registry import check_name, entries, entry_constant
from tunesmith.data.clean import CleanedSource, write_clean
from tunesmith.data.finding import CheckContext
from tunesmith.data.finding import finding_to_dict as finding_to_plain
from tunesmith.data.prepare import audit as audit_rows
from tunesmith.data.sources import open_sources
from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.runs.run import Run


@dataclass(frozen=True)
class AuditResult:
    """Output of `audit`: the folder with audit.html, audit.json and findings.jsonl, and the content of audit.json."""

    folder: Path
    account: dict[str, Any]
    cleaned: list[CleanedSource]


def audit(
    name: str,
    data: Data,
    base: Path,
    out: Path,
    log: Reporter = silent,
    *,
    recipe: Recipe | None = None,
    fix: bool = False,
    processes: int = 1,
) -> AuditResult:
    """Checks rows and writes audit.html, audit.json and findings.jsonl into `out`; the sources are not changed.

    Paths in `data` are relative to `base`. With `recipe` its tokenizer counts tokens. With `fix` the cleaned rows are
    written to `out` too, one file for each source, with a diff that `undo` reverts.
    """
    from tunesmith.prompt.tokens import count_tokens as quick_count
    from tunesmith.reporting.audit_page import audit_page

    template = _template_or_none(recipe, log) if recipe else None
    count = cached_count(lambda row: quick_count(row, template)) if template else None
    run = Run(out)
    limit = recipe.prompt.max_tokens if recipe else 1 << 30
    data = data.model_copy(update={"checks": [*data.checks, *_broken_check(data)]})
    with contextlib.ExitStack() as stack:
        loaded = stack.enter_context(row_loader(data, base, recipe.prompt.system if recipe else None))()
        log_sources(loaded, log)
        write_finding = stack.enter_context(run.lines("findings.jsonl"))
        specials = template.specials if template else None
        context = CheckContext(count, limit, {}, loaded.broken, loaded.left_out, specials=specials)
        ledger, account = audit_rows(
            loaded,
            data.checks,
            context,
            sink=lambda finding: write_finding(finding_to_plain(finding)),
            processes=processes,
        )
        cleaned = []
        if fix:
            pseudonym_map, mend = repair_settings(data, base)
            cleaned = write_clean(
                loaded.rows, open_sources(data.source, base, data.encoding), ledger, data.format, mend, out
            )
            save_pseudonyms(pseudonym_map, data, base)
    run.write_json("audit.json", account)
    run.write("audit.html", audit_page(name, data, account, limit=limit if recipe else None))
    return AuditResult(out, account, cleaned)


def audit_arguments(
    recipe_or_source: Recipe | str,
    checks: Sequence[str] = (),
    *,
    small: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> tuple[str, Data, Path, Recipe | None]:
    """Returns what `audit` takes for a recipe or a source of rows: a name, the data section, its folder, the recipe.

    Raises RecipeError for `small` or `settings` without a recipe, and for unknown checks.
    """
    for name in checks:
        check_name(CHECKS, name, where="--checks")
    if isinstance(recipe_or_source, Recipe) or is_recipe(recipe_or_source):
        recipe = recipe_or_source
        if not isinstance(recipe, Recipe):
            recipe = read_recipe(recipe, small=small, settings=settings)
        data = recipe.data
        if checks:
            own_checks = {check.name: check for check in data.checks}
            data = data.model_copy(update={"checks": [own_checks.get(name, NamedSetting(name, {})) for name in checks]})
        return recipe.name, data, recipe.folder, recipe
    if small or settings:
        raise RecipeError("--small and --set need a recipe", where=recipe_or_source, next="Give a recipe, or omit them")
    bare = (
        recipe_or_source.removeprefix("hub:").partition("?")[0].partition("@")[0]
        if recipe_or_source.startswith("hub:")
        else Path(recipe_or_source).name
    )
    name = re.sub(r"[^a-z0-9._-]+", "_", bare.lower()).strip("._-") or "rows"
    return name.partition(".")[0] or "rows", default_data(recipe_or_source, checks), Path(), None


def default_data(source: str, checks: Sequence[str] = ()) -> Data:
    """Returns the data section for an audit of `source` (a file, folder, glob or Hub dataset) without a recipe.

    The format is detected from the first 200 rows. Without `checks`, all checks run that need no split; `ungrounded`
    only if the format has fields to compare answers with.
    """
    from tunesmith.data.detect_format import detect_format

    sample = list(itertools.islice(row_values(source, Path(), None), 200))
    if not sample:
        raise DataError("no row could be read", where=source, next="Check the file")
    format = detect_format(sample)
    names = checks or [name for name in entries(CHECKS) if entry_constant(CHECKS, name, "SCOPE") != "split"]
    if not checks and format.name != "fields":
        names = [name for name in names if name != "ungrounded"]
    plain = {"source": source, "format": {format.name: format.options}, "checks": list(names)}
    return Data.model_validate(plain)


def _template_or_none(recipe: Recipe, log: Reporter) -> Any:
    """Returns the recipe's tokenizer with its template, or logs that the model is not available and returns None."""
    try:
        with missing_extras_named("base.model"):
            return load_recipe_template(recipe, load_weights(recipe, log))
    except TunesmithError as error:
        log(f"audit: tokens are not counted, because the model is not available: {error.what}")
        return None


def _broken_check(data: Data) -> list[NamedSetting]:
    return [] if any(check.name == "broken" for check in data.checks) else [NamedSetting("broken", {})]
