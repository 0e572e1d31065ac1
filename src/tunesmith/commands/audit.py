"""The verb that looks at rows and changes nothing, and the one that takes a cleaning back."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.commands.read_rows import counter, loading, mending, save, say_sources, values
from tunesmith.commands.shared import Say, load_template_of, load_weights, silent
from tunesmith.config.recipe import CHECKS, Data, Named, Recipe, is_recipe, read_recipe
from tunesmith.config.registry import attribute, entries, nearest
from tunesmith.data.clean import Cleaned, undo_clean, write_clean
from tunesmith.data.finding import Context
from tunesmith.data.finding import to_plain as finding_to_plain
from tunesmith.data.open_sources import open_sources
from tunesmith.data.prepare import audit as audit_rows
from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.runs.run import Run


@dataclass(frozen=True)
class Audited:
    """What `audit` wrote: the folder with audit.html, audit.json and findings.jsonl, and the account itself."""

    folder: Path
    account: dict[str, Any]
    cleaned: list[Cleaned]


def audit(
    name: str,
    data: Data,
    base: Path,
    out: Path,
    say: Say = silent,
    *,
    recipe: Recipe | None = None,
    fix: bool = False,
    processes: int = 1,
) -> Audited:
    """Looks at rows and writes audit.html, audit.json and findings.jsonl into `out`; drops nothing.

    Paths in `data` are relative to `base`. With `recipe` its tokenizer counts tokens. With `fix` the cleaned rows are
    written there too, each source as its own file, with a diff that `undo` takes back; the sources stay as they are.
    """
    from tunesmith.prompt.tokens import count as quick_count
    from tunesmith.reporting.audit_page import audit_page

    template = _template_or_none(recipe, say) if recipe else None
    count = counter(lambda row: quick_count(row, template)) if template else None
    run = Run(out)
    limit = recipe.prompt.max_tokens if recipe else 1 << 30
    data = data.model_copy(update={"checks": [*data.checks, *_broken_too(data)]})
    with contextlib.ExitStack() as stack:
        loaded = stack.enter_context(loading(data, base, recipe.prompt.system if recipe else None))()
        say_sources(loaded, say)
        tell = stack.enter_context(run.lines("findings.jsonl"))
        specials = template.specials if template else None
        context = Context(count, limit, {}, loaded.broken, loaded.left_out, specials=specials)
        ledger, account = audit_rows(
            loaded, data.checks, context, sink=lambda found: tell(finding_to_plain(found)), processes=processes
        )
        cleaned = []
        if fix:
            book, mend = mending(data, base)
            cleaned = write_clean(
                loaded.rows, open_sources(data.source, base, data.encoding), ledger, data.format, mend, out
            )
            save(book, data, base)
    run.write_json("audit.json", account)
    run.write("audit.html", audit_page(name, data, account, limit=limit if recipe else None))
    return Audited(out, account, cleaned)


def undo(diff: Path, out: Path) -> int:
    """Takes back the cleaning that `audit --fix` wrote beside `diff`: the rows go to `out`; returns their number.

    Raises DataError when the cleaned file is no longer the one that the diff was written for.
    """
    return undo_clean(diff, out)


def to_audit(
    what: str, checks: Sequence[str] = (), *, small: bool = False, settings: Mapping[str, Any] | None = None
) -> tuple[str, Data, Path, Recipe | None]:
    """What `audit` needs for `what`, a recipe or a source of rows: a name, the data section, its folder, the recipe.

    Raises RecipeError for `small` or `settings` without a recipe, and for unknown checks.
    """
    for name in checks:
        if name not in entries(CHECKS):
            raise RecipeError(f"unknown check '{name}'", where="--checks", next=nearest(name, entries(CHECKS)))
    if is_recipe(what):
        recipe = read_recipe(what, small=small, settings=settings)
        data = recipe.data
        if checks:
            known = {check.name: check for check in data.checks}
            data = data.model_copy(update={"checks": [known.get(name, Named(name, {})) for name in checks]})
        return recipe.name, data, recipe.folder, recipe
    if small or settings:
        raise RecipeError("--small and --set need a recipe", where=what, next="Name a recipe, or leave them out")
    bare = what.removeprefix("hub:").partition("?")[0].partition("@")[0] if what.startswith("hub:") else Path(what).name
    name = re.sub(r"[^a-z0-9._-]+", "_", bare.lower()).strip("._-") or "rows"
    return name.partition(".")[0] or "rows", data_of(what, checks), Path(), None


def data_of(source: str, checks: Sequence[str] = ()) -> Data:
    """What an audit of `source` (a file, folder, glob or hub data set) looks for when no recipe says it.

    The format is guessed from the first 200 rows. Without `checks` all that suit it are made: those that need a split
    wait for one, and answers are held against fields only where the format has fields.
    """
    from tunesmith.data.detect_format import guess

    sample = list(itertools.islice(values(source, Path(), None), 200))
    if not sample:
        raise DataError("there are no rows that can be read", where=source, next="Check the file")
    guessed = guess(sample)
    wanted = checks or [name for name in entries(CHECKS) if attribute(CHECKS, name, "SCOPE") != "split"]
    if not checks and guessed.name != "fields":
        wanted = [name for name in wanted if name != "ungrounded"]
    plain = {"source": source, "format": {guessed.name: guessed.options}, "checks": list(wanted)}
    return Data.model_validate(plain)


def _template_or_none(recipe: Recipe, say: Say) -> Any:
    """The recipe's template and tokenizer; None, said, where its model cannot be had: an audit needs no model."""
    try:
        return load_template_of(recipe, load_weights(recipe, say))
    except TunesmithError as error:
        say(f"audit: tokens are not counted, because the model is not here: {error.what}")
        return None


def _broken_too(data: Data) -> list[Named]:
    return [] if any(check.name == "broken" for check in data.checks) else [Named("broken", {})]
