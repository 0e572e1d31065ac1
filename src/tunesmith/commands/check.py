"""Checks a recipe and its rows before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.commands.prepare import (
    RowEncoder,
    check_context,
    count_reasoning,
    describe_expanded,
    draw_mixed_rows,
    keep_advice,
    reasoning_hints,
    special_token_errors,
)
from tunesmith.commands.read_rows import (
    cpu_count,
    log_sources,
    mixed_row_fingerprints,
    row_loader,
    row_values,
)
from tunesmith.commands.shared import (
    Reporter,
    load_recipe_template,
    load_weights,
    silent,
)
from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, RowDecisions
from tunesmith.data.formats import detect_row_format
from tunesmith.data.load import LoadedRows
from tunesmith.data.mix_in import describe as describe_mixed
from tunesmith.data.mix_in import too_few
from tunesmith.data.prepare import check_rows, drop_reasons, rows_kept, split_rows
from tunesmith.errors import DataError, ModelError, MultipleErrors, TunesmithError
from tunesmith.runs.run import Run

WARNING_SHARE = 0.1  # share of dropped rows above which the message starts with WARNING


LONGEST = "the longest row"


@dataclass(frozen=True)
class ShownRow:
    """One row as the model sees it: why it is shown, its file and line, and its pieces (text, has loss)."""

    title: str
    where: str
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True)
class CheckResult:
    """Result of `check`: the number of rows that no check removes, and some of them as the model sees them.

    `longest` is in tokens; `answers` counts the answers with loss.
    """

    rows: int
    shown: list[ShownRow]
    stop: str
    template: str
    longest: int
    warnings: list[str]
    answers: int = 0


def check(recipe: Recipe, log: Reporter = silent, run: Run | None = None) -> CheckResult:
    """Validates recipe, rows, model and chat template, and reports all problems at once, before any work is done.

    With a `run` that was evaluated before, it also warns if the base model's primary score left no room for a gain.
    Raises MultipleErrors: for rows that cannot be read, split or mixed in, a template that no row can be trained with,
    more dropped rows than data.max_dropped allows, and whatever the later stages would refuse.
    """
    from tunesmith.commands.export import export_warnings
    from tunesmith.evaluation.sample_size import sample_size_warnings

    errors: list[TunesmithError] = []
    with row_loader(recipe.data, recipe.folder, recipe.prompt.system) as read_rows:
        loaded = _collect(read_rows, errors)
        if recipe.data.mix_in.source is not None:
            _collect(lambda: mixed_row_fingerprints(recipe.data, recipe.folder), errors)
        weights = _collect(lambda: load_weights(recipe, log), errors)
        template = _collect(lambda: load_recipe_template(recipe, weights), errors) if weights else None
        if template is not None:
            _collect(lambda: template.plain_answer, errors)  # raises if no row can be trained on
        if weights:
            errors += _later_stages(recipe, weights, template)
        if loaded is None or template is None or errors:
            raise MultipleErrors(errors)
        encoder = RowEncoder(template, recipe)
        context = check_context(encoder, loaded, recipe)
        ledger = check_rows(loaded, recipe.data.checks, context, processes=cpu_count())
        lengths = [encoder.length(row) for row in loaded.rows]
        kept_ids = [row.id for row in loaded.rows if ledger.keeps(row.id)]
        errors += special_token_errors(encoder, kept_ids)
        errors += _check_vocabulary(encoder, weights)
        examples, stop = _examples(loaded.rows, ledger, encoder)
        held_out = _collect(lambda: _held_out_rows(loaded, ledger, recipe, context), errors) if kept_ids else None
        mixed = None
        if held_out is not None:
            held_out_rows = [row for rows in held_out.values() for row in rows]
            mixed = _collect(lambda: draw_mixed_rows(recipe, encoder, held_out_rows, log), errors)
        hints = reasoning_hints(template, count_reasoning(row for row in loaded.rows if ledger.keeps(row.id)))
    dropped = _count_dropped(ledger, loaded, lengths, recipe, encoder)
    if dropped.share > recipe.data.max_dropped:
        without = f", or set data.max_dropped above {dropped.share:.2f} to continue without them" * (dropped.share < 1)
        advice = f"{dropped.advice}{without}"
        errors.append(DataError(dropped.text, where="data", next=advice))
    if errors:
        raise MultipleErrors(errors)
    log_sources(loaded, log)
    if recipe.data.format.name == "auto":
        log(f"check: the format is {_detected_format(recipe)}")
    warnings = []
    if dropped.rows:
        warnings.append(f"{'WARNING: ' * (dropped.share > WARNING_SHARE)}{dropped.text}. {dropped.advice}")
    if expanded := [encoder.expanded[row] for row in kept_ids if row in encoder.expanded]:
        warnings.append(describe_expanded(expanded, template.source))
    if mixed and too_few(mixed.audit):
        warnings.append(describe_mixed(mixed.audit))
    elif mixed:
        log(f"check: {describe_mixed(mixed.audit)}")
    warnings += hints
    if held_out is not None:
        parts = {part: held_out[part] for part in ("test", "unseen")}
        kind = str(recipe.data.format.options.get("group") or "group")
        warnings += sample_size_warnings(parts, limit=recipe.evaluate.rows, seed=recipe.seed, kind=kind)
    warnings += _saturation_warnings(recipe, run, weights) if run else []
    warnings += export_warnings(recipe, weights, template)
    longest = max((encoder.lengths[row] for row in kept_ids), default=0)
    answers = sum(encoder.answers.get(row, 0) for row in kept_ids)
    return CheckResult(len(kept_ids), examples, stop, template.source, longest, warnings, answers)


def _held_out_rows(
    loaded: LoadedRows, ledger: RowDecisions, recipe: Recipe, context: CheckContext
) -> dict[str, list[Conversation]]:
    """Returns the rows of each part but the training, as `prepare` splits them. Raises DataError if it cannot."""
    _, parts = split_rows(rows_kept(loaded.rows, ledger), recipe.data, recipe.seed, context, RowDecisions(()))
    return {part: list(parts[part]) for part in ("valid", "test", "unseen")}


def _saturation_warnings(recipe: Recipe, run: Run, weights: Any) -> list[str]:
    """Returns a warning if the run's evaluation showed that the same base model has the best primary score already."""
    from tunesmith.evaluation.sentences import saturated_sentences

    trained = run.read_fingerprints("train")
    if not trained or trained.get("weights") != weights.fingerprint or run.read_fingerprints("evaluate") is None:
        return []
    try:
        verdict = next(iter(run.read_json("scores.json")["sections"].values())).get(recipe.evaluate.primary)
        sentences = saturated_sentences(verdict, recipe.evaluate.primary)
    except (TunesmithError, LookupError, TypeError, AttributeError, StopIteration):  # deleted, or changed by hand
        return []
    return [f"the run {run.path} was evaluated before. {sentence}" for sentence in sentences]


def _later_stages(recipe: Recipe, weights: Any, template: Any) -> list[TunesmithError]:
    """Returns the errors of the training and export validators."""
    from tunesmith.commands.export import check_export
    from tunesmith.commands.plan import check_training
    from tunesmith.models.build import check_adapter

    train = recipe.train
    errors = check_training(recipe)
    targets = [target.name for target in recipe.export.files]
    errors += check_adapter(recipe.adapter, weights, engine=train.engine.name, parallel=train.parallel, targets=targets)
    if template is not None:
        errors += check_export(recipe, weights, template)
    return list({str(error): error for error in errors}.values())


@dataclass(frozen=True)
class _Dropped:
    """Rows that would be left out: number, share of the rows read, a sentence, and the settings that keep them."""

    rows: int
    share: float
    text: str
    advice: str


def _count_dropped(
    ledger: RowDecisions, loaded: LoadedRows, lengths: Sequence[int], recipe: Recipe, encoder: RowEncoder
) -> _Dropped:
    read = loaded.count
    dropped, quarantined = ledger.counts("drop"), ledger.counts("quarantine")
    rows = sum(dropped.values()) + sum(quarantined.values())
    reasons = drop_reasons(ledger)
    advice = keep_advice({**dropped, **quarantined}, lengths, recipe, encoder)
    return _Dropped(rows, rows / read, f"{rows} of {read} rows would be left out: {reasons}", advice)


def _check_vocabulary(encoder: RowEncoder, weights: Any) -> list[TunesmithError]:
    """Returns an error if the rows have tokens that the model has no embedding for."""
    from tunesmith.models.architecture import architecture_from_weights

    vocabulary = architecture_from_weights(weights).network.get_input_embeddings().weight.shape[0]
    if encoder.highest < vocabulary:
        return []
    problem = f"the rows have token {encoder.highest}, but the model has embeddings for only {vocabulary} tokens"
    return [ModelError(problem, where=weights.name, next="Choose a base.model that comes with its own tokenizer")]


def _examples(rows: Iterable[Conversation], ledger: RowDecisions, encoder: RowEncoder) -> tuple[list[ShownRow], str]:
    """Returns the longest row that is kept, one with several answers, one with reasoning, and the stop token."""
    from tunesmith.prompt.tokens import encode_expanded, loss_pieces

    template, loss_on, limit = encoder.template, encoder.recipe.prompt.learn, encoder.recipe.prompt.max_tokens
    row_of_title: dict[str, Conversation] = {}
    for row in rows:
        if not ledger.keeps(row.id) or row.id in encoder.faulty:
            continue
        length = encoder.length(row)
        longest = row_of_title.get(LONGEST)
        if length <= limit and (longest is None or length > encoder.length(longest)):
            row_of_title[LONGEST] = row
        if sum(turn.role == "assistant" for turn in row.turns) > 1:
            row_of_title.setdefault("a row with several answers", row)
        if any(turn.reasoning for turn in row.turns):
            row_of_title.setdefault("a row with reasoning", row)
    examples: list[ShownRow] = []
    stop = ""
    for title, row in row_of_title.items():
        if any(example.where == str(row.origin) for example in examples):
            continue
        parts = encode_expanded(row, template, loss_on, encoder.recipe.prompt.expand)
        for number, (_, encoded) in enumerate(parts, start=1):
            stop = str(template.tokenizer.convert_ids_to_tokens(encoded.stop))
            name = f"{title}, answer {number} of {len(parts)}" if len(parts) > 1 else title
            examples.append(ShownRow(name, str(row.origin), loss_pieces(encoded, template)))
    return examples, stop


def _detected_format(recipe: Recipe) -> str:
    """Returns the format that `auto` detects in the first row, and why."""
    format = detect_row_format(next(row_values(recipe.data.source, recipe.folder, recipe.data.encoding)))
    return f"{format.name}, because {format.why}"


def _collect(function: Callable[[], Any], error_list: list[TunesmithError]) -> Any:
    try:
        return function()
    except MultipleErrors as error:
        error_list.extend(error.errors)
    except TunesmithError as error:
        error_list.append(error)
    return None
