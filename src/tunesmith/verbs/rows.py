"""The verbs that check and prepare rows for training."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Conversation, to_plain
from tunesmith.data.finding import Context
from tunesmith.data.finding import to_plain as finding_to_plain
from tunesmith.data.opened import open_sources
from tunesmith.data.prepare import Prepared
from tunesmith.data.prepare import prepare as prepare_rows
from tunesmith.data.recognise import recognise
from tunesmith.errors import DataError, Several, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.run import Run, hash_plain
from tunesmith.verbs.reading import counter, loading, processes, say_sources, telling, values
from tunesmith.verbs.shared import (
    PARTS,
    Say,
    is_fresh,
    left_behind,
    load_template_of,
    load_weights,
    plain_prompt,
    silent,
    template_hash,
)


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


def check(recipe: Recipe, say: Say = silent) -> Checked:
    """Reads recipe, rows, model and template, and reports everything wrong at once.

    Raises Several. Refuses a setup in which the stop token is not learnt or padding is.
    """
    from tunesmith.prompt import pack
    from tunesmith.prompt.tokens import encode, show

    wrong: list[TunesmithError] = []
    with loading(recipe.data, recipe.folder, recipe.prompt.system) as reading:
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
    say_sources(loaded, say)
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
    kept_apart = {"pseudonyms": bool(recipe.data.pseudonyms) or None}  # whether, not where: a run may be carried
    made_from = {
        "data": hash_plain(recipe.data.model_dump(mode="json", exclude={"source"}) | kept_apart),
        "prompt": hash_plain(plain_prompt(recipe)),
        "template file": template_hash(recipe),
        "seed": str(recipe.seed),
        "rows": _rows_hash(recipe, run, say),
        "tokenizer": weights.fingerprint,
    }
    if is_fresh(run, "prepare", made_from, say):
        return run / "data"
    from tunesmith.prompt.tokens import encode, show
    from tunesmith.report.audit_page import audit_page

    began = time.time()
    template = load_template_of(recipe, weights)
    unfit: dict[str, DataError] = {}
    count = counter(functools.partial(_tokens, template, recipe.prompt.learn, unfit))
    with contextlib.ExitStack() as stack:
        changes = stack.enter_context(run.lines("data/repairs.jsonl"))
        loaded = stack.enter_context(loading(recipe.data, recipe.folder, recipe.prompt.system, telling(changes)))()
        say_sources(loaded, say)
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


def _recognised(recipe: Recipe) -> str:
    """What `auto` sees in the first row, and why."""
    found = recognise(next(values(recipe.data.source, recipe.folder, recipe.data.encoding)))
    return f"{found.name}, because {found.why}"


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


def _leaks(found: dict[str, Any]) -> str:
    """What of the training rows stands in the held-out ones, in words; '' where nothing does."""
    near = found.get("near_prompts", 0)
    if not found["prompts"] and not near:
        return ""
    return (
        f"{max(found['prompts'], near)} training rows have a prompt that is also, or nearly, a held-out row's"
        f"{' (' + found['example'] + ')' if 'example' in found else ''}"
    )


def _rows_hash(recipe: Recipe, run: Run, say: Say) -> str:
    """What the sources hold; of a run that was carried here without them, what they held when it was prepared."""
    seal = run.read_seal("prepare")
    if seal and left_behind(recipe, run):
        say("prepare: the files of data.source were left where the run comes from; their rows stay as prepared")
        return str(seal["made_from"].get("rows"))
    sources = open_sources(recipe.data.source, recipe.folder, recipe.data.encoding)
    return hash_plain([source.fingerprint() for source in sources])


def _collect(make: Callable[[], Any], wrong: list[TunesmithError]) -> Any:
    try:
        return make()
    except Several as error:
        wrong.extend(error.errors)
    except TunesmithError as error:
        wrong.append(error)
    return None
