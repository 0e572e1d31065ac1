"""Checks and splits rows for training."""

from __future__ import annotations

import contextlib
import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.commands.encoded_rows import (
    RowEncoder,
    check_context,
    count_reasoning,
    describe_expanded,
    keep_advice,
    reasoning_hints,
    special_token_errors,
)
from tunesmith.commands.read_rows import cpu_count, log_sources, repair_writer, row_loader
from tunesmith.commands.shared import (
    DATE,
    SPLIT_PARTS,
    TEMPLATE,
    Reporter,
    hash_data_settings,
    hash_prompt_settings,
    hash_template,
    is_up_to_date,
    load_recipe_template,
    load_weights,
    packed_without_sources,
    silent,
    template_file,
)
from tunesmith.config.recipe import CHECKS, FORMATS, Recipe
from tunesmith.config.registry import packages
from tunesmith.data.conversation import conversation_to_dict
from tunesmith.data.finding import finding_to_dict as finding_to_plain
from tunesmith.data.open_sources import open_sources
from tunesmith.data.prepare import NoRowsLeft, Prepared
from tunesmith.data.prepare import prepare as prepare_rows
from tunesmith.errors import DataError, MultipleErrors
from tunesmith.runs.run import Run, hash_json

if TYPE_CHECKING:
    pass


def prepare(recipe: Recipe, run: Run, log: Reporter = silent) -> Path:
    """Checks the rows and splits them into data/*.jsonl; writes audit.json, audit.html and findings.jsonl."""
    weights, file = load_weights(recipe, log), template_file(recipe, run, prefer_recipe=True)
    if file == run / TEMPLATE and file.resolve() != recipe.path(recipe.prompt.template):
        log(f"prepare: the chat template {recipe.prompt.template} is gone; using the run's copy, {file}")
    inputs = {
        "data": hash_data_settings(recipe),
        "prompt": hash_prompt_settings(recipe, hash_template(file)),
        "template file": hash_template(file),
        "seed": str(recipe.seed),
        "rows": _rows_hash(recipe, run, log),
        "tokenizer": weights.fingerprint,
        **packages(CHECKS, [check.name for check in recipe.data.checks]),
        **packages(FORMATS, [recipe.data.format.name]),
    }
    if is_up_to_date(run, "prepare", inputs, log):
        return run / "data"
    from tunesmith.prompt.tokens import encode_expanded, loss_pieces

    start, today = time.time(), datetime.date.today()
    template, template_bytes = (
        load_recipe_template(recipe, weights, file=file, today=today),
        file.read_bytes() if file else None,
    )
    encoder = RowEncoder(template, recipe)
    with contextlib.ExitStack() as stack:
        changes = stack.enter_context(run.lines("data/repairs.jsonl"))
        loaded = stack.enter_context(
            row_loader(recipe.data, recipe.folder, recipe.prompt.system, repair_writer(changes))
        )()
        log_sources(loaded, log)
        write_finding = stack.enter_context(run.lines("findings.jsonl"))
        try:
            prepared = prepare_rows(
                loaded,
                recipe.data,
                recipe.seed,
                check_context(encoder, loaded, recipe),
                sink=lambda finding: write_finding(finding_to_plain(finding)),
                processes=cpu_count(),
            )
        except NoRowsLeft as error:
            raise _no_rows_error(error, recipe, run, encoder) from error
        if errors := special_token_errors(encoder, (row.id for part in SPLIT_PARTS for row in prepared.parts[part])):
            raise MultipleErrors(errors)
        for part in SPLIT_PARTS:
            _write(run, part, prepared, encoder)
        run.write_json(DATE, {"date": today.isoformat()})
        if template_bytes is not None:
            run.write(TEMPLATE, template_bytes)
        with run.lines("data/quarantine.jsonl") as write:
            for row in prepared.quarantined:
                write(conversation_to_dict(row))
        example = encode_expanded(prepared.parts["train"][0], template, recipe.prompt.learn, recipe.prompt.expand)[-1][
            1
        ]
    trained_ids = (row.id for part in EXPANDED for row in prepared.parts[part])
    expanded_counts = {name: encoder.expanded[name] for name in trained_ids if name in encoder.expanded}
    reasoned = count_reasoning(row for part in SPLIT_PARTS for row in prepared.parts[part])
    account = {
        **prepared.audit,
        "expanded": {"conversations": len(expanded_counts), "rows": sum(expanded_counts.values())},
        "reasoning_left_out": reasoned if recipe.prompt.reasoning == "drop" else 0,
    }
    run.write_json("audit.json", account)
    stop = str(template.tokenizer.convert_ids_to_tokens(example.stop))
    _write_page(recipe, run, account, example=loss_pieces(example, template), stop=stop, template=template.source)
    files = [*(f"data/{part}.jsonl" for part in SPLIT_PARTS), DATE, *([TEMPLATE] if file else []), "audit.json"]
    run.write_recipe()
    run.write_fingerprints("prepare", inputs, files, seconds=round(time.time() - start, 1))
    if file is None:
        (run / TEMPLATE).unlink(missing_ok=True)
    counts = ", ".join(f"{len(prepared.parts[part])} {part}" for part in SPLIT_PARTS if len(prepared.parts[part]))
    dropped, quarantine_count = sum(account["dropped"].values()), len(prepared.quarantined)
    log(f"prepare: {account['read']} rows read, {dropped} dropped, {quarantine_count} quarantined: {counts}")
    if expanded_counts:
        log(f"prepare: {describe_expanded(expanded_counts.values(), template.source)}")
    for hint in reasoning_hints(template, reasoned):
        log(f"prepare: {hint}")
    if recipe.data.split.valid > 0 and not len(prepared.parts["valid"]):
        log(
            "prepare: no validation row is left: the groups of rows that stay together are larger than data.split.valid"
        )
    if leaks := _describe_leaks(account["leaks"]):
        log(f"prepare: {leaks}{'' if recipe.data.allow_leaks else '; train refuses them'}")
    log(f"prepare: see {run / 'audit.html'}")
    return run / "data"


EXPANDED = ("train", "valid")  # in the other parts only the last answer is compared


def _write(run: Run, part: str, prepared: Prepared, encoder: RowEncoder) -> None:
    """Writes the rows of a part; in the parts for training, one row for each answer if the template requires it."""
    from tunesmith.prompt.tokens import split_answers

    with run.lines(f"data/{part}.jsonl") as write:
        for row in prepared.parts[part]:
            for answer in split_answers(row) if part in EXPANDED and row.id in encoder.expanded else (row,):
                write(conversation_to_dict(answer))


def _write_page(recipe: Recipe, run: Run, account: dict[str, Any], **example: Any) -> None:
    from tunesmith.reporting.audit_page import audit_page

    run.write("audit.html", audit_page(recipe.name, recipe.data, account, limit=recipe.prompt.max_tokens, **example))


def _no_rows_error(error: NoRowsLeft, recipe: Recipe, run: Run, encoder: RowEncoder) -> DataError:
    """Writes the audit page and returns the error with the settings that keep rows."""
    run.write_json("audit.json", error.audit)
    _write_page(recipe, run, error.audit)
    advice = keep_advice(error.audit["dropped"], list(encoder.lengths.values()), recipe, encoder)
    return DataError(error.what, where=str(run / "audit.html"), next=advice or error.next)


# --- rows that are left out -------------------------------------------------------------------------------------


# --- what is shown ----------------------------------------------------------------------------------------------


def _describe_leaks(leaks: dict[str, Any]) -> str:
    """Returns a sentence about training rows whose prompts are also in held-out rows, or ''."""
    near = leaks.get("near_prompts", 0)
    if not leaks["prompts"] and not near:
        return ""
    return (
        f"{max(leaks['prompts'], near)} training rows have the same or nearly the same prompt as a held-out row"
        f"{' (' + leaks['example'] + ')' if 'example' in leaks else ''}"
    )


def _rows_hash(recipe: Recipe, run: Run, log: Reporter) -> str:
    """Returns a hash of the sources; if the run was packed without them, the hash from when it was prepared."""
    record = run.read_fingerprints("prepare")
    if record and packed_without_sources(recipe, run):
        log("prepare: the files of data.source were not packed with the run; its rows stay as they were prepared")
        return str(record["inputs"].get("rows"))
    sources = open_sources(recipe.data.source, recipe.folder, recipe.data.encoding)
    return hash_json([source.fingerprint() for source in sources])
