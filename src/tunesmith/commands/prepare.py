"""Checks and splits rows for training; rows are tokenized here to measure and refuse them."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.commands.read_rows import (
    cpu_count,
    log_sources,
    mixed_row_fingerprints,
    mixed_row_loader,
    repair_writer,
    row_loader,
)
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
from tunesmith.data.conversation import Conversation, conversation_to_dict
from tunesmith.data.finding import CheckContext, Finding, finding_to_dict
from tunesmith.data.load import LoadedRows
from tunesmith.data.mix_in import HeldOut, MixedRows, add_to_account, draw
from tunesmith.data.mix_in import describe as describe_mixed
from tunesmith.data.prepare import NoRowsLeft
from tunesmith.data.prepare import prepare as prepare_rows
from tunesmith.data.sources import open_sources
from tunesmith.errors import DataError, ModelError, MultipleErrors, TunesmithError
from tunesmith.runs.run import Run, hash_json
from tunesmith.wording import counted

if TYPE_CHECKING:
    from tunesmith.prompt.template import Template


ROUND = 64  # tokens: suggested limits are multiples of it


@dataclass
class RowEncoder:
    """Tokenizes each row once; keeps its length, or why it cannot be trained on."""

    template: Template
    recipe: Recipe
    lengths: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    faulty: dict[str, DataError] = field(default_factory=dict)  # rows whose text must be changed
    answers: dict[str, int] = field(default_factory=dict)  # answers with loss
    expanded: dict[str, int] = field(default_factory=dict)  # rows that a conversation is split into, if more than one
    highest: int = -1  # highest token id in the rows

    def length(self, row: Conversation) -> int:
        """Returns the row's length in tokens; of the longest part if the row is split into several."""
        if row.id not in self.lengths:
            self.lengths[row.id] = self._measure(row)
        return self.lengths[row.id]

    def refusal(self, row: Conversation) -> str:
        """Returns why the row cannot be trained on with this template, or ''."""
        self.length(row)
        return self.refusals.get(row.id, "")

    def _measure(self, row: Conversation) -> int:
        from tunesmith.prompt.tokens import SpecialTokenError, count_tokens, encode_expanded

        prompt = self.recipe.prompt
        try:
            examples = [example for _, example in encode_expanded(row, self.template, prompt.learn, prompt.expand)]
        except SpecialTokenError as error:
            self.faulty[row.id] = error
        except DataError as error:
            self.refusals[row.id] = f"{error.what}. {error.next}"
        except ModelError as error:
            self.template.plain_answer  # noqa: B018  (raises if no row can be trained on: then the template is wrong)
            self.refusals[row.id] = f"{error.what}. {error.next}"
        else:
            self.answers[row.id] = sum(example.answers for example in examples)
            self.highest = max(self.highest, *(max(example.ids) for example in examples))
            if len(examples) > 1:
                self.expanded[row.id] = len(examples)
            return max(map(len, examples))
        with contextlib.suppress(TunesmithError):
            return count_tokens(row, self.template)
        return 0


def check_context(encoder: RowEncoder, loaded: LoadedRows, recipe: Recipe) -> CheckContext:
    """Returns what the checks need to know about the loaded rows."""
    return CheckContext(
        encoder.length,
        recipe.prompt.max_tokens,
        {},
        loaded.broken,
        loaded.left_out,
        specials=encoder.template.specials,
        refusal=encoder.refusal,
    )


def keep_advice(reasons: dict[str, int], lengths: Sequence[int], recipe: Recipe, encoder: RowEncoder) -> str:
    """Returns the settings that keep the dropped rows, the most frequent reason first."""
    sentences = []
    for name, _ in sorted(reasons.items(), key=lambda item: -item[1]):
        if name == "too_long":
            sentences.append(_limits(lengths, recipe.prompt.max_tokens))
        elif name == "unlearnable":
            why = Counter(encoder.refusals.values()).most_common()
            listed = "; ".join(f"{count} × {reason}" if len(why) > 1 else reason for reason, count in why)
            sentences.append(f"'unlearnable' means: {listed}")
        elif name == "broken":
            sentences.append("'broken' rows do not match data.format")
        elif name == "bad_answer":
            sentences.append(
                "'bad_answer' rows have a label for bad answers; rename the column if it means something else"
            )
        else:
            sentences.append(f"To keep the rows of '{name}', write {{{name}: {{do: keep}}}} in data.checks")
    return ". ".join(text[:1].upper() + text[1:] for text in sentences)


def _limits(lengths: Sequence[int], limit: int) -> str:
    """Returns the values of prompt.max_tokens that keep 95 % of the rows and all of them."""
    ascending = sorted(lengths)
    most = ascending[max(0, -(-95 * len(ascending) // 100) - 1)]
    nearly, every = (-(-length // ROUND) * ROUND for length in (most, ascending[-1]))
    options = f"prompt.max_tokens: {every} keeps all of them"
    if limit < nearly < every:
        options = f"prompt.max_tokens: {nearly} keeps 95 % of the rows, {options}"
    return f"the limit is {limit} tokens and the longest row has {ascending[-1]}; {options}"


def special_token_errors(encoder: RowEncoder, row_ids: Iterable[str]) -> list[TunesmithError]:
    """Returns errors for the rows (by id) that contain a special token of the model."""
    errors = [encoder.faulty[row] for row in row_ids if row in encoder.faulty] if encoder.faulty else []
    if not errors:
        return []
    advice = "Change their text, or add special_token to data.checks"
    return [*errors[:20], DataError(f"{len(errors)} rows cannot be trained on", next=advice)]


def describe_expanded(counts: Iterable[int], source: str) -> str:
    """Says how many conversations become how many rows; `source` names the chat template."""
    sizes = list(counts)
    become = "conversation becomes" if len(sizes) == 1 else "conversations become"
    return (
        f"{len(sizes)} {become} {sum(sizes)} rows, one for each answer, because the chat template "
        f"({source}) renders an earlier answer differently from the last one"
    )


def count_reasoning(rows: Iterable[Conversation]) -> int:
    """Returns the number of rows with reasoning."""
    return sum(any(turn.reasoning for turn in row.turns) for row in rows)


def reasoning_hints(template: Template, reasoned: int) -> list[str]:
    """Returns hints about reasoning in the rows, of which `reasoned` have some."""
    from tunesmith.prompt.template import OPEN_THOUGHT

    if reasoned and template.reasoning == "drop":
        return [f"the reasoning of {counted(reasoned, 'row')} is dropped, because prompt.reasoning is drop"]
    if not reasoned and OPEN_THOUGHT.search(template.plain_answer.prompt):
        hint = "the generation prompt opens a thought, but no row has reasoning: the model learns an empty thought"
        has_switch = "enable_thinking" in template.text
        return [f"{hint}{' (prompt.template_options: {enable_thinking: false} prevents it)' * has_switch}"]
    return []


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
        **_mixed_inputs(recipe, run),
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

        def sink(finding: Finding) -> None:
            write_finding(finding_to_dict(finding))

        context = check_context(encoder, loaded, recipe)
        try:
            prepared = prepare_rows(loaded, recipe.data, recipe.seed, context, sink=sink, processes=cpu_count())
        except NoRowsLeft as error:
            raise _no_rows_error(error, recipe, run, encoder) from error
        held_out = [row for part in SPLIT_PARTS[1:] for row in prepared.parts[part]]
        mixed = draw_mixed_rows(recipe, encoder, held_out, log, sink=sink)
        mixed_rows = mixed.rows if mixed else []
        trained = {**prepared.parts, "train": [*prepared.parts["train"], *mixed_rows]} if mixed else prepared.parts
        if errors := special_token_errors(encoder, (row.id for part in SPLIT_PARTS for row in prepared.parts[part])):
            raise MultipleErrors(errors)
        for part in SPLIT_PARTS:
            _write(run, part, trained[part], encoder)
        run.write_json(DATE, {"date": today.isoformat()})
        if template_bytes is not None:
            run.write(TEMPLATE, template_bytes)
        with run.lines("data/quarantine.jsonl") as write:
            for row in prepared.quarantined:
                write(conversation_to_dict(row))
        example = encode_expanded(prepared.parts["train"][0], template, recipe.prompt.learn, recipe.prompt.expand)[-1][
            1
        ]
    trained_ids = (row.id for part in EXPANDED for row in trained[part])
    expanded_counts = {name: encoder.expanded[name] for name in trained_ids if name in encoder.expanded}
    reasoned = count_reasoning(row for part in SPLIT_PARTS for row in trained[part])
    account = {
        **add_to_account(prepared.audit, mixed, held_out),
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
    notes = {"train": f" ({len(mixed_rows)} mixed in)" if mixed else ""}
    counts = ", ".join(
        f"{len(trained[part])} {part}{notes.get(part, '')}" for part in SPLIT_PARTS if len(trained[part])
    )
    dropped, quarantine_count = sum(account["dropped"].values()), len(prepared.quarantined)
    log(f"prepare: {account['read']} rows read, {dropped} dropped, {quarantine_count} quarantined: {counts}")
    if mixed:
        log(f"prepare: {describe_mixed(account['mixed_in'], account['parts']['train'])}")
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


def draw_mixed_rows(
    recipe: Recipe,
    encoder: RowEncoder,
    held_out: Sequence[Conversation],
    log: Reporter = silent,
    *,
    sink: Callable[[Finding], None] | None = None,
) -> MixedRows | None:
    """Returns the rows of data.mix_in that are added to the training rows, with their account; None without a source.

    Left out are also rows with the prompt of one of the shipped prompts on general abilities (evaluate.retention),
    which would otherwise be trained on and asked. Raises DataError or MultipleErrors if no row can be read or used.
    """
    if recipe.data.mix_in.source is None:
        return None
    from tunesmith.evaluation.retention import read_probes, retention_rows

    data = recipe.data
    abilities = retention_rows(len(read_probes()), recipe.seed)
    with mixed_row_loader(data, recipe.folder) as read_rows:
        loaded = read_rows()
        log_sources(loaded, lambda text: log(f"mix_in: {text}"))
        context = check_context(encoder, loaded, recipe)
        prompts = HeldOut(held_out, abilities, data.split.together)
        return draw(loaded, data.mix_in, prompts, context, recipe.seed, checks=data.checks, sink=sink)


def _write(run: Run, part: str, rows: Iterable[Conversation], encoder: RowEncoder) -> None:
    """Writes the rows of a part; in the parts for training, one row for each answer if the template requires it."""
    from tunesmith.prompt.tokens import split_answers

    with run.lines(f"data/{part}.jsonl") as write:
        for row in rows:
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


def _mixed_inputs(recipe: Recipe, run: Run) -> dict[str, str]:
    """Returns the inputs of the rows of data.mix_in; of a run packed without them, those from when it was prepared."""
    if recipe.data.mix_in.source is None:
        return {}
    record = run.read_fingerprints("prepare")
    if record and packed_without_sources(recipe, run):
        rows = str(record["inputs"].get("mixed-in rows"))
    else:
        rows = hash_json(mixed_row_fingerprints(recipe.data, recipe.folder))
    return {"mixed-in rows": rows, **packages(FORMATS, [recipe.data.mix_in.format.name])}


def _rows_hash(recipe: Recipe, run: Run, log: Reporter) -> str:
    """Returns a hash of the sources; if the run was packed without them, the hash from when it was prepared."""
    record = run.read_fingerprints("prepare")
    if record and packed_without_sources(recipe, run):
        log("prepare: the files of data.source were not packed with the run; its rows stay as they were prepared")
        return str(record["inputs"].get("rows"))
    sources = open_sources(recipe.data.source, recipe.folder, recipe.data.encoding)
    return hash_json([source.fingerprint() for source in sources])
