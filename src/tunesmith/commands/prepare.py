"""The verbs that check and prepare rows for training."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.commands.read_rows import cpu_count, loading, say_sources, telling, values
from tunesmith.commands.shared import (
    DATE,
    PARTS,
    TEMPLATE,
    Say,
    is_fresh,
    left_behind,
    load_template_of,
    load_weights,
    prepared_with,
    prompt_hash,
    silent,
    template_file,
    template_hash,
)
from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Conversation, to_plain
from tunesmith.data.decisions import Ledger
from tunesmith.data.detect_row import recognise
from tunesmith.data.finding import Context
from tunesmith.data.finding import to_plain as finding_to_plain
from tunesmith.data.load import Loaded
from tunesmith.data.open_sources import open_sources
from tunesmith.data.prepare import NoRowsLeft, Prepared, checked, left_out_by
from tunesmith.data.prepare import prepare as prepare_rows
from tunesmith.errors import DataError, ModelError, Several, TunesmithError
from tunesmith.evaluation.comparison import plural
from tunesmith.runs.run import Run, hash_plain

if TYPE_CHECKING:
    from tunesmith.prompt.template import Template

LOUD = 0.1  # share of the rows left out from which it is said loudly
ROUND = 64  # tokens: a limit that is advised is a multiple of it
LONGEST = "the longest row"


@dataclass(frozen=True)
class Shown:
    """One row as the model sees it, in pieces (text, carries loss), with why it is shown and where it stands."""

    title: str
    where: str
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True)
class Checked:
    """What `check` found out about the rows that no check takes out: their number, some of them as the model sees them.

    `longest` is in tokens, `answers` counts those that carry loss.
    """

    rows: int
    shown: list[Shown]
    stop: str
    template: str
    longest: int
    warnings: list[str]
    answers: int = 0


@dataclass
class _Encoder:
    """Rows as tokens, each once: its length, and why it cannot be learned."""

    template: Template
    recipe: Recipe
    lengths: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    faulty: dict[str, DataError] = field(default_factory=dict)  # rows that only a change of their text mends
    answers: dict[str, int] = field(default_factory=dict)  # that carry loss
    expanded: dict[str, int] = field(default_factory=dict)  # conversations that become several rows
    highest: int = -1  # of the ids of all tokens

    def length(self, row: Conversation) -> int:
        """Tokens of the row, of the longest one where it becomes several."""
        if row.id not in self.lengths:
            self.lengths[row.id] = self._measure(row)
        return self.lengths[row.id]

    def refusal(self, row: Conversation) -> str:
        """Why the row cannot be learned under this template; '' where it can."""
        self.length(row)
        return self.refusals.get(row.id, "")

    def _measure(self, row: Conversation) -> int:
        from tunesmith.prompt.tokens import SpecialToken, count, encode_all

        prompt = self.recipe.prompt
        try:
            examples = [example for _, example in encode_all(row, self.template, prompt.learn, prompt.expand)]
        except SpecialToken as error:
            self.faulty[row.id] = error
        except DataError as error:
            self.refusals[row.id] = f"{error.what}. {error.next}"
        except ModelError as error:
            self.template.plain_answer  # noqa: B018  (raises where no row can be learned; then the template is at fault)
            self.refusals[row.id] = f"{error.what}. {error.next}"
        else:
            self.answers[row.id] = sum(example.answers for example in examples)
            self.highest = max(self.highest, *(max(example.ids) for example in examples))
            if len(examples) > 1:
                self.expanded[row.id] = len(examples)
            return max(map(len, examples))
        with contextlib.suppress(TunesmithError):
            return count(row, self.template)
        return 0


def check(recipe: Recipe, say: Say = silent) -> Checked:
    """Reads recipe, rows, model and template, and reports everything wrong at once, before any work.

    Raises Several: for rows that cannot be read, a template under which no row can be learned, more rows left out than
    data.max_dropped allows, and whatever the later stages would refuse.
    """
    from tunesmith.commands.export import export_warnings

    wrong: list[TunesmithError] = []
    with loading(recipe.data, recipe.folder, recipe.prompt.system) as reading:
        loaded = _collect(reading, wrong)
        weights = _collect(lambda: load_weights(recipe, say), wrong)
        template = _collect(lambda: load_template_of(recipe, weights), wrong) if weights else None
        if template is not None:
            _collect(lambda: template.plain_answer, wrong)  # raises where no row can be learned
        if weights:
            wrong += _later_stages(recipe, weights, template)
        if loaded is None or template is None or wrong:
            raise Several(wrong)
        encoder = _Encoder(template, recipe)
        context = _context(encoder, loaded, recipe)
        ledger = checked(loaded, recipe.data.checks, context, processes=cpu_count())
        lengths = [encoder.length(row) for row in loaded.rows]
        kept = [row.id for row in loaded.rows if ledger.fate(row.id) in ("keep", "repair")]
        wrong += _faulty(encoder, kept)
        wrong += _beyond(encoder, weights)
        shown, stop = _examples(loaded.rows, ledger, encoder)
        hints = _hints(template, _reasoned(row for row in loaded.rows if ledger.fate(row.id) in ("keep", "repair")))
    dropped = _dropped(ledger, loaded, lengths, recipe, encoder)
    if dropped.share > recipe.data.max_dropped:
        onward = f", or set data.max_dropped above {dropped.share:.2f} to go on without them" * (dropped.share < 1)
        advice = f"{dropped.advice}{onward}"
        wrong.append(DataError(dropped.text, where="data", next=advice))
    if wrong:
        raise Several(wrong)
    say_sources(loaded, say)
    if recipe.data.format.name == "auto":
        say(f"check: the format is {_recognised(recipe)}")
    warnings = []
    if dropped.rows:
        warnings.append(f"{'WARNING: ' * (dropped.share > LOUD)}{dropped.text}. {dropped.advice}")
    if expanded := [encoder.expanded[row] for row in kept if row in encoder.expanded]:
        warnings.append(_expanded(expanded, template.source))
    warnings += hints
    warnings += export_warnings(recipe, weights, template)
    longest = max((encoder.lengths[row] for row in kept), default=0)
    answers = sum(encoder.answers.get(row, 0) for row in kept)
    return Checked(len(kept), shown, stop, template.source, longest, warnings, answers)


def _later_stages(recipe: Recipe, weights: Any, template: Any) -> list[TunesmithError]:
    """What training and export would refuse, by their own validators."""
    from tunesmith.commands.export import check_export
    from tunesmith.commands.plan import check_training
    from tunesmith.models.build import check_adapter

    train = recipe.train
    wrong = check_training(recipe)
    targets = [named.name for named in recipe.export.files]
    wrong += check_adapter(recipe.adapter, weights, engine=train.engine.name, spread=train.spread, targets=targets)
    if template is not None:
        wrong += check_export(recipe, weights, template)
    return list({str(error): error for error in wrong}.values())


def prepare(recipe: Recipe, run: Run, say: Say = silent) -> Path:
    """Checks and splits the rows into data/*.jsonl, with audit.json, audit.html and findings.jsonl."""
    weights, file = load_weights(recipe, say), template_file(recipe, run, now=True)
    if file == run / TEMPLATE and file.resolve() != recipe.path(recipe.prompt.template):
        say(f"prepare: the chat template {recipe.prompt.template} is gone; the run's copy is used, {file}")
    made_from = {
        "data": prepared_with(recipe),
        "prompt": prompt_hash(recipe, template_hash(file)),
        "template file": template_hash(file),
        "seed": str(recipe.seed),
        "rows": _rows_hash(recipe, run, say),
        "tokenizer": weights.fingerprint,
    }
    if is_fresh(run, "prepare", made_from, say):
        return run / "data"
    from tunesmith.prompt.tokens import encode_all, show

    began, today = time.time(), datetime.date.today()
    template, template_bytes = (
        load_template_of(recipe, weights, file=file, today=today),
        file.read_bytes() if file else None,
    )
    encoder = _Encoder(template, recipe)
    with contextlib.ExitStack() as stack:
        changes = stack.enter_context(run.lines("data/repairs.jsonl"))
        loaded = stack.enter_context(loading(recipe.data, recipe.folder, recipe.prompt.system, telling(changes)))()
        say_sources(loaded, say)
        tell = stack.enter_context(run.lines("findings.jsonl"))
        try:
            made = prepare_rows(
                loaded,
                recipe.data,
                recipe.seed,
                _context(encoder, loaded, recipe),
                sink=lambda found: tell(finding_to_plain(found)),
                processes=cpu_count(),
            )
        except NoRowsLeft as error:
            raise _no_rows(error, recipe, run, encoder) from error
        if wrong := _faulty(encoder, (row.id for part in PARTS for row in made.parts[part])):
            raise Several(wrong)
        for part in PARTS:
            _write(run, part, made, encoder)
        run.write_json(DATE, {"date": today.isoformat()})
        if template_bytes is not None:
            run.write(TEMPLATE, template_bytes)
        with run.lines("data/quarantine.jsonl") as write:
            for row in made.quarantined:
                write(to_plain(row))
        example = encode_all(made.parts["train"][0], template, recipe.prompt.learn, recipe.prompt.expand)[-1][1]
    learned = (row.id for part in EXPANDED for row in made.parts[part])
    many = {name: encoder.expanded[name] for name in learned if name in encoder.expanded}
    reasoned = _reasoned(row for part in PARTS for row in made.parts[part])
    account = {
        **made.audit,
        "expanded": {"conversations": len(many), "rows": sum(many.values())},
        "reasoning_left_out": reasoned if recipe.prompt.reasoning == "drop" else 0,
    }
    run.write_json("audit.json", account)
    stop = str(template.tokenizer.convert_ids_to_tokens(example.stop))
    _write_page(recipe, run, account, example=show(example, template), stop=stop, template=template.source)
    files = [*(f"data/{part}.jsonl" for part in PARTS), DATE, *([TEMPLATE] if file else []), "audit.json"]
    run.keep_recipe()
    run.seal("prepare", made_from, files, seconds=round(time.time() - began, 1))
    if file is None:
        (run / TEMPLATE).unlink(missing_ok=True)
    counts = ", ".join(f"{len(made.parts[part])} {part}" for part in PARTS if len(made.parts[part]))
    dropped, aside = sum(account["dropped"].values()), len(made.quarantined)
    say(f"prepare: {account['read']} rows read, {dropped} dropped, {aside} set aside: {counts}")
    if many:
        say(f"prepare: {_expanded(many.values(), template.source)}")
    for hint in _hints(template, reasoned):
        say(f"prepare: {hint}")
    if recipe.data.split.valid > 0 and not len(made.parts["valid"]):
        say("prepare: no row is left to watch the training: rows that stay together are more than data.split.valid")
    if leaks := _leaks(account["leaks"]):
        say(f"prepare: {leaks}{'' if recipe.data.allow_leaks else '; train will refuse them'}")
    say(f"prepare: see {run / 'audit.html'}")
    return run / "data"


EXPANDED = ("train", "valid")  # the other parts are asked for their last answer


def _write(run: Run, part: str, made: Prepared, encoder: _Encoder) -> None:
    """Writes the rows of a part: in those that training reads, a row for each answer where that is needed."""
    from tunesmith.prompt.tokens import apart

    with run.lines(f"data/{part}.jsonl") as write:
        for row in made.parts[part]:
            for each in apart(row) if part in EXPANDED and row.id in encoder.expanded else (row,):
                write(to_plain(each))


def _write_page(recipe: Recipe, run: Run, account: dict[str, Any], **example: Any) -> None:
    from tunesmith.reporting.audit_page import audit_page

    run.write("audit.html", audit_page(recipe.name, recipe.data, account, limit=recipe.prompt.max_tokens, **example))


def _context(encoder: _Encoder, loaded: Loaded, recipe: Recipe) -> Context:
    return Context(
        encoder.length,
        recipe.prompt.max_tokens,
        {},
        loaded.broken,
        loaded.left_out,
        specials=encoder.template.specials,
        refusal=encoder.refusal,
    )


def _no_rows(error: NoRowsLeft, recipe: Recipe, run: Run, encoder: _Encoder) -> DataError:
    """The error with the setting that keeps the rows; the page of what was found is written."""
    run.write_json("audit.json", error.audit)
    _write_page(recipe, run, error.audit)
    advice = _keeping(error.audit["dropped"], list(encoder.lengths.values()), recipe, encoder)
    return DataError(error.what, where=str(run / "audit.html"), next=advice or error.next)


# --- rows that are left out -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dropped:
    """Rows that would be left out, as a share of those read, in words, and what keeps them."""

    rows: int
    share: float
    text: str
    advice: str


def _dropped(ledger: Ledger, loaded: Loaded, lengths: Sequence[int], recipe: Recipe, encoder: _Encoder) -> _Dropped:
    read = loaded.count
    dropped, aside = ledger.counts("drop"), ledger.counts("quarantine")
    rows = sum(dropped.values()) + sum(aside.values())
    said = left_out_by(ledger)
    advice = _keeping({**dropped, **aside}, lengths, recipe, encoder)
    return _Dropped(rows, rows / read, f"{rows} of {read} rows would be left out: {said}", advice)


def _keeping(reasons: dict[str, int], lengths: Sequence[int], recipe: Recipe, encoder: _Encoder) -> str:
    """The settings that keep the rows, the largest reason first."""
    said = []
    for name, _ in sorted(reasons.items(), key=lambda each: -each[1]):
        if name == "too_long":
            said.append(_limits(lengths, recipe.prompt.max_tokens))
        elif name == "unlearnable":
            why = Counter(encoder.refusals.values()).most_common()
            shown = "; ".join(f"{count} × {reason}" if len(why) > 1 else reason for reason, count in why)
            said.append(f"'unlearnable' means: {shown}")
        elif name == "broken":
            said.append("'broken' rows are not conversations of the form that data.format names")
        elif name == "bad_answer":
            said.append("'bad_answer' rows have a label that marks a bad answer; rename it if it means otherwise")
        else:
            said.append(f"To keep the rows of '{name}', write {{{name}: {{do: keep}}}} in data.checks")
    return ". ".join(text[:1].upper() + text[1:] for text in said)


def _limits(lengths: Sequence[int], limit: int) -> str:
    """Limits on a row's tokens that keep nearly all of the rows, and all of them."""
    ascending = sorted(lengths)
    most = ascending[max(0, -(-95 * len(ascending) // 100) - 1)]
    nearly, every = (-(-length // ROUND) * ROUND for length in (most, ascending[-1]))
    options = f"prompt.max_tokens: {every} keeps all of them"
    if limit < nearly < every:
        options = f"prompt.max_tokens: {nearly} keeps 95 of 100 rows, {options}"
    return f"the limit is {limit} tokens and the longest row has {ascending[-1]}; {options}"


def _beyond(encoder: _Encoder, weights: Any) -> list[TunesmithError]:
    """An error where the rows have tokens that the model has no embedding for."""
    from tunesmith.models.architecture import architecture

    known = architecture(weights).network.get_input_embeddings().weight.shape[0]
    if encoder.highest < known:
        return []
    what = f"the rows have the token {encoder.highest}, and the model has embeddings for {known} tokens only"
    return [ModelError(what, where=weights.name, next="Choose a base.model whose tokenizer belongs to it")]


def _faulty(encoder: _Encoder, kept: Iterable[str]) -> list[TunesmithError]:
    """Errors for rows (by id) that no check takes out and that hold a special token of the model."""
    left = [encoder.faulty[row] for row in kept if row in encoder.faulty] if encoder.faulty else []
    if not left:
        return []
    advice = "Mend them, or add special_token to data.checks"
    return [*left[:20], DataError(f"{len(left)} rows cannot be trained", next=advice)]


# --- what is shown ----------------------------------------------------------------------------------------------


def _examples(rows: Iterable[Conversation], ledger: Ledger, encoder: _Encoder) -> tuple[list[Shown], str]:
    """The longest row that will be kept, one of several answers and one with reasoning; and the stop token."""
    from tunesmith.prompt.tokens import encode_all, show

    template, learn, limit = encoder.template, encoder.recipe.prompt.learn, encoder.recipe.prompt.max_tokens
    chosen: dict[str, Conversation] = {}
    for row in rows:
        if ledger.fate(row.id) not in ("keep", "repair") or row.id in encoder.faulty:
            continue
        length = encoder.length(row)
        longest = chosen.get(LONGEST)
        if length <= limit and (longest is None or length > encoder.length(longest)):
            chosen[LONGEST] = row
        if sum(turn.role == "assistant" for turn in row.turns) > 1:
            chosen.setdefault("a row of several answers", row)
        if any(turn.reasoning for turn in row.turns):
            chosen.setdefault("a row with reasoning", row)
    shown: list[Shown] = []
    stop = ""
    for title, row in chosen.items():
        if any(each.where == str(row.origin) for each in shown):
            continue
        parts = encode_all(row, template, learn, encoder.recipe.prompt.expand)
        for number, (_, example) in enumerate(parts, start=1):
            stop = str(template.tokenizer.convert_ids_to_tokens(example.stop))
            name = f"{title}, answer {number} of {len(parts)}" if len(parts) > 1 else title
            shown.append(Shown(name, str(row.origin), show(example, template)))
    return shown, stop


def _expanded(counts: Iterable[int], source: str) -> str:
    sizes = list(counts)
    become = "conversation becomes" if len(sizes) == 1 else "conversations become"
    return (
        f"{len(sizes)} {become} {sum(sizes)} rows, one for each answer, because the chat template "
        f"({source}) writes an earlier answer differently from the last one"
    )


def _reasoned(rows: Iterable[Conversation]) -> int:
    """Rows that have reasoning."""
    return sum(any(turn.reasoning for turn in row.turns) for row in rows)


def _hints(template: Template, reasoned: int) -> list[str]:
    """What a user should know about reasoning before training; `reasoned` rows have some."""
    from tunesmith.prompt.template import OPEN_THOUGHT

    if reasoned and template.reasoning == "drop":
        rows = f"{reasoned:,} {plural('row', reasoned)}"
        return [f"the reasoning of {rows} is left out, because prompt.reasoning is drop"]
    if not reasoned and OPEN_THOUGHT.search(template.plain_answer.prompt):
        hint = "the generation prompt opens a thought, and no row has reasoning: an empty thought is learned"
        known = "enable_thinking" in template.text
        return [f"{hint}{' (prompt.template_options: {enable_thinking: false} writes none)' * known}"]
    return []


def _recognised(recipe: Recipe) -> str:
    """What `auto` sees in the first row, and why."""
    found = recognise(next(values(recipe.data.source, recipe.folder, recipe.data.encoding)))
    return f"{found.name}, because {found.why}"


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
