"""The verbs about rows: check, prepare, audit, and writing down what was mended."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.clean import Cleaned, undo_clean, write_clean
from tunesmith.data.conversation import Conversation, to_plain
from tunesmith.data.finding import Context
from tunesmith.data.finding import to_plain as finding_to_plain
from tunesmith.data.load import Loaded, Sink, load
from tunesmith.data.mend import Mend
from tunesmith.data.mend import to_plain as changes_to_plain
from tunesmith.data.opened import open_sources
from tunesmith.data.prepare import Prepared
from tunesmith.data.prepare import audit as audit_rows
from tunesmith.data.prepare import prepare as prepare_rows
from tunesmith.data.privacy import Pseudonyms, check_kinds
from tunesmith.data.recognise import recognise
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, RecipeError, Several, TunesmithError
from tunesmith.find import attribute, entries, nearest
from tunesmith.recipe import CHECKS, Data, Named, Recipe, is_recipe, read_recipe
from tunesmith.run import Run, hash_file, hash_plain
from tunesmith.verbs.shared import PARTS, Say, is_fresh, load_template_of, load_weights, silent


@dataclass(frozen=True)
class Checked:
    """What `check` found out: rows, the first example in pieces (text, learnt), stop token, template, warnings."""

    rows: int
    pieces: list[tuple[str, bool]]
    stop: str
    template: str
    longest: int
    too_long: int
    warnings: list[str]


@dataclass(frozen=True)
class Audited:
    """What `audit` wrote: the folder with audit.html, audit.json and findings.jsonl, and the account itself."""

    folder: Path
    account: dict[str, Any]
    cleaned: list[Cleaned]


def check(recipe: Recipe, say: Say = silent) -> Checked:
    """Reads recipe, rows, model and template, and reports everything wrong at once.

    Raises Several. Refuses a setup in which the stop token is not learnt or padding is.
    """
    from tunesmith.prompt import pack
    from tunesmith.prompt.tokens import encode, show

    wrong: list[TunesmithError] = []
    with _loading(recipe.data, recipe.folder, recipe.prompt.system) as reading:
        loaded = _collect(reading, wrong)
        template = _collect(lambda: load_template_of(recipe, load_weights(recipe, say)), wrong)
        if loaded is None or template is None:
            raise Several(wrong)
        lengths: list[int] = []
        first: list[Any] = []
        for row in loaded.rows:
            example = _collect(functools.partial(encode, row, template, recipe.prompt.learn), wrong)
            if example is not None:
                lengths.append(len(example))
                first += [example] * (len(first) < 2)
            elif not isinstance(wrong[-1], DataError):
                break  # the template is at fault, not the row
        if first:
            batch = pack.collate(first, template.tokenizer.pad_token_id)
            _collect(lambda: pack.check_batch(batch, first[0].stop), wrong)
    if wrong:
        raise Several(wrong)
    _say_sources(loaded, say)
    if recipe.data.format.name == "auto":
        say(f"check: the format is {_recognised(recipe)}")
    limit = recipe.prompt.max_tokens
    long = sum(length > limit for length in lengths)
    warnings = [f"{long} of {len(lengths)} rows are longer than {limit} tokens and will be dropped"] if long else []
    if loaded.broken:
        warnings.append(f"{len(loaded.broken)} rows are no conversations and will be dropped; audit.html names them")
    stop = template.tokenizer.convert_ids_to_tokens(first[0].stop)
    return Checked(len(lengths), show(first[0], template), str(stop), template.source, max(lengths), long, warnings)


def prepare(recipe: Recipe, run: Run, say: Say = silent) -> Path:
    """Checks and splits the rows into data/*.jsonl, with audit.json, audit.html and findings.jsonl."""
    weights = load_weights(recipe, say)
    sources = open_sources(recipe.data.source, recipe.folder, recipe.data.encoding)
    made_from = {
        "data": hash_plain(recipe.data.model_dump(mode="json", exclude={"source"})),
        "prompt": hash_plain(recipe.prompt.model_dump(mode="json")),
        "template file": _template_hash(recipe),
        "seed": str(recipe.seed),
        "rows": hash_plain([source.fingerprint() for source in sources]),
        "tokenizer": weights.fingerprint,
    }
    if is_fresh(run, "prepare", made_from, say):
        return run / "data"
    from tunesmith.prompt.tokens import encode, show
    from tunesmith.report.audit_page import audit_page

    began = time.time()
    template = load_template_of(recipe, weights)
    unfit: dict[str, DataError] = {}
    count = _counter(functools.partial(_tokens, template, recipe.prompt.learn, unfit))
    with contextlib.ExitStack() as stack:
        changes = stack.enter_context(run.lines("data/repairs.jsonl"))
        loaded = stack.enter_context(_loading(recipe.data, recipe.folder, recipe.prompt.system, _telling(changes)))()
        _say_sources(loaded, say)
        tell = stack.enter_context(run.lines("findings.jsonl"))
        context = Context(count, recipe.prompt.max_tokens, {}, loaded.broken, specials=template.specials)
        made = prepare_rows(
            loaded,
            recipe.data,
            recipe.seed,
            context,
            sink=lambda found: tell(finding_to_plain(found)),
            processes=processes(),
        )
        _refuse_unfit(made, unfit)
        for name, rows in (*((part, made.parts[part]) for part in PARTS), ("quarantine", made.quarantined)):
            with run.lines(f"data/{name}.jsonl") as write:
                for row in rows:
                    write(to_plain(row))
        example = encode(made.parts["train"][0], template, recipe.prompt.learn)
    run.write_json("audit.json", made.audit)
    stop = str(template.tokenizer.convert_ids_to_tokens(example.stop))
    shown = {"example": show(example, template), "stop": stop, "template": template.source}
    run.write("audit.html", audit_page(recipe.name, recipe.data, made.audit, limit=recipe.prompt.max_tokens, **shown))
    files = [*(f"data/{part}.jsonl" for part in PARTS), "audit.json"]
    run.seal("prepare", made_from, files, seconds=round(time.time() - began, 1))
    counts = ", ".join(f"{len(made.parts[part])} {part}" for part in PARTS if len(made.parts[part]))
    dropped, aside = sum(made.audit["dropped"].values()), len(made.quarantined)
    say(f"prepare: {made.audit['read']} rows read, {dropped} dropped, {aside} set aside: {counts}")
    if recipe.data.split.valid > 0 and not len(made.parts["valid"]):
        say("prepare: no row is left to watch the training: rows that stay together are more than data.split.valid")
    if leaks := _leaks(made.audit["leaks"]):
        say(f"prepare: {leaks}{'' if recipe.data.allow_leaks else '; train will refuse them'}")
    say(f"prepare: see {run / 'audit.html'}")
    return run / "data"


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
    from tunesmith.report.audit_page import audit_page

    template = _template_or_none(recipe, say) if recipe else None
    count = _counter(lambda row: quick_count(row, template)) if template else None
    run = Run(out)
    limit = recipe.prompt.max_tokens if recipe else 1 << 30
    data = data.model_copy(update={"checks": [*data.checks, *_broken_too(data)]})
    with contextlib.ExitStack() as stack:
        loaded = stack.enter_context(_loading(data, base, recipe.prompt.system if recipe else None))()
        _say_sources(loaded, say)
        tell = stack.enter_context(run.lines("findings.jsonl"))
        specials = template.specials if template else None
        context = Context(count, limit, {}, loaded.broken, specials=specials)
        ledger, account = audit_rows(
            loaded, data.checks, context, sink=lambda found: tell(finding_to_plain(found)), processes=processes
        )
        cleaned = []
        if fix:
            book, mend = _mend(data, base)
            cleaned = write_clean(
                loaded.rows, open_sources(data.source, base, data.encoding), ledger, data.format, mend, out
            )
            _save(book, data, base)
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
    from tunesmith.data.recognise import guess

    sample = list(itertools.islice(_values(source, Path(), None), 200))
    if not sample:
        raise DataError("there are no rows that can be read", where=source, next="Check the file")
    guessed = guess(sample)
    wanted = checks or [name for name in entries(CHECKS) if attribute(CHECKS, name, "SCOPE") != "split"]
    if not checks and guessed.name != "fields":
        wanted = [name for name in wanted if name != "ungrounded"]
    plain = {"source": source, "format": {guessed.name: guessed.options}, "checks": list(wanted)}
    return Data.model_validate(plain)


def _values(source: str | list[str], base: Path, encoding: str | None) -> Iterator[Mapping[str, Any]]:
    """The values of the rows that can be read."""
    for each in open_sources(source, base, encoding):
        yield from (item.values for item in each.rows() if isinstance(item, Row))


# --- reading -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _loading(data: Data, base: Path, system: str | None, changed: Sink | None = None) -> Iterator[Callable[[], Loaded]]:
    """A function that reads the rows into a table, which lasts as long as the block. The book is saved afterwards."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        book, mend = _mend(data, base)

        def read_them() -> Loaded:
            sources = open_sources(data.source, base, data.encoding)
            drop = any(check.name == "broken" for check in data.checks)
            table = Path(folder) / "rows.arrow"
            found = load(
                sources,
                data.format,
                system,
                into=table,
                drop_broken=drop,
                mend=mend,
                changed=changed if book is None else None,  # what was personal must not stand in a run's folder
            )
            _save(book, data, base)
            return found

        yield read_them


def _mend(data: Data, base: Path) -> tuple[Pseudonyms | None, Mend]:
    """What `data` wants to be mended, and the book of stand-ins, as its file left it."""
    book: Pseudonyms | None = None
    if data.pseudonyms:
        path = base / Path(data.pseudonyms).expanduser()
        book = Pseudonyms.load(path) if path.exists() else Pseudonyms()
    options = next((check.options for check in data.checks if check.name == "personal"), {})
    given = {name: options[name] for name in ("kinds", "names", "ner") if options.get(name)}
    check_kinds(given.get("kinds", ()))
    return book, Mend(data.repair, book, **given)


def _save(book: Pseudonyms | None, data: Data, base: Path) -> None:
    if book is not None and data.pseudonyms:
        book.save(base / Path(data.pseudonyms).expanduser())


def _telling(write: Callable[[Any], None]) -> Sink:
    """Each mended row as a line: where it stands and its changes, which undo it."""
    return lambda row, changes: write({"where": str(row.origin), "changes": changes_to_plain(changes)})


def _say_sources(loaded: Loaded, say: Say) -> None:
    """What was recognised in the files and is not plain UTF-8 with commas."""
    for facts in loaded.sources:
        for note in facts.get("notes", ()):
            say(f"{facts['file']}: {note}")
    if loaded.repairs.rows:
        kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in loaded.repairs.kinds.most_common())
        more = [f"{loaded.repairs.stand_ins} stand-ins for personal data"] if loaded.repairs.stand_ins else []
        say(f"mended: {loaded.repairs.rows} rows ({'; '.join([*([kinds] if kinds else []), *more])})")


def _recognised(recipe: Recipe) -> str:
    """What `auto` sees in the first row, and why."""
    found = recognise(next(_values(recipe.data.source, recipe.folder, recipe.data.encoding)))
    return f"{found.name}, because {found.why}"


# --- small things --------------------------------------------------------------------------------------------


def _counter(count: Callable[[Conversation], int]) -> Callable[[Conversation], int]:
    """`count`, each row once."""
    known: dict[str, int] = {}

    def counted(row: Conversation) -> int:
        if row.id not in known:
            known[row.id] = count(row)
        return known[row.id]

    return counted


def _tokens(template: Any, learn: Any, unfit: dict[str, DataError], row: Conversation) -> int:
    """The row's tokens as training will see them; a row that cannot be trained is remembered in `unfit`."""
    from tunesmith.prompt.tokens import count, encode

    try:
        return len(encode(row, template, learn))
    except DataError as error:
        unfit[row.id] = error
        return count(row, template)


def _refuse_unfit(made: Prepared, unfit: dict[str, DataError]) -> None:
    """Raises Several for rows that no check took out and that cannot be trained."""
    left = [unfit[row.id] for part in PARTS for row in made.parts[part] if row.id in unfit] if unfit else []
    if left:
        told = DataError(f"{len(left)} rows cannot be trained", next="Mend them, or add special_token to data.checks")
        raise Several([*left[:20], told])


def _template_or_none(recipe: Recipe, say: Say) -> Any:
    """The recipe's template and tokenizer; None, said, where its model cannot be had: an audit needs no model."""
    try:
        return load_template_of(recipe, load_weights(recipe, say))
    except TunesmithError as error:
        say(f"audit: tokens are not counted, because the model is not here: {error.what}")
        return None


def _broken_too(data: Data) -> list[Named]:
    return [] if any(check.name == "broken" for check in data.checks) else [Named("broken", {})]


def processes() -> int:
    """Processes for checks of single rows: one for each core."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leaks(found: dict[str, Any]) -> str:
    """What of the training rows stands in the held-out ones, in words; '' where nothing does."""
    near = found.get("near_prompts", 0)
    if not found["prompts"] and not near:
        return ""
    return (
        f"{max(found['prompts'], near)} training rows have a prompt that is also, or nearly, a held-out row's"
        f"{' (' + found['example'] + ')' if 'example' in found else ''}"
    )


def _template_hash(recipe: Recipe) -> str:
    path = recipe.path(recipe.prompt.template)
    return hash_file(path) if recipe.prompt.template != "model" and path.is_file() else "model"


def _collect(make: Callable[[], Any], wrong: list[TunesmithError]) -> Any:
    try:
        return make()
    except Several as error:
        wrong.extend(error.errors)
    except TunesmithError as error:
        wrong.append(error)
    return None
