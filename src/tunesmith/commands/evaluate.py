"""The verbs that compare, tell and talk: evaluate, report, chat."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.commands.shared import (
    PARTS,
    Say,
    is_fresh,
    load_template_of,
    load_weights,
    refuse_changed,
    refuse_other_template,
    silent,
)
from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Conversation, from_plain, read_rows
from tunesmith.data.sources import locate, read
from tunesmith.errors import DataError
from tunesmith.runs.run import Run, hash_file, hash_plain

OTHERS = ("judge.json", "reviews.json", "export.json")  # what the report shows where it is there
COUNTED = {"wins": "for tuned", "ties": "ties", "losses": "for base", "missing": "missing"}


def evaluate(recipe: Recipe, run: Run, say: Say = silent, tell: Callable[[str, int, int], None] | None = None) -> Path:
    """Base and tuned answer the held-out rows; writes replies/*.jsonl and scores.json.

    Stopped, it goes on with the replies that are there. Where the recipe names a judge, that is asked as well.
    """
    refuse_changed(recipe, run)
    made_from = _evaluated_from(recipe, run)
    if not is_fresh(run, "evaluate", made_from, say):
        _evaluate(recipe, run, made_from, say, tell)
    if recipe.evaluate.judge.url:
        _judge(recipe, run, say)
    return run / "scores.json"


def _evaluated_from(recipe: Recipe, run: Run) -> dict[str, str]:
    probes = recipe.path(recipe.evaluate.probes) if recipe.evaluate.probes else None
    return {
        "adapter": run.fingerprint("train"),
        "data": run.fingerprint("prepare"),
        "evaluate": hash_plain(recipe.evaluate.model_dump(mode="json", exclude={"probes", "judge"})),
        "probes": hash_file(probes) if probes and probes.is_file() else "",
        "seed": str(recipe.seed),
        "stop": hash_plain(recipe.prompt.stop),
    }


def _evaluate(
    recipe: Recipe,
    run: Run,
    made_from: dict[str, str],
    say: Say,
    tell: Callable[[str, int, int], None] | None,
) -> None:
    from tunesmith.evaluation.comparison import Answered, compare, score
    from tunesmith.evaluation.robustness import disturbed_rows, robust_tables

    began, wish = time.time(), recipe.evaluate
    parts = asked(recipe, run)
    disturbed = disturbed_rows(parts, wish.robustness, seed=recipe.seed, limit=wish.robustness_rows)
    known = learnt(run)
    plain: dict[str, list[Answered]] = {}
    twins: dict[str, list[Answered]] = {}
    for which, text in _speakers(recipe, run, say):
        plain[which] = _answered(recipe, run, which, text, parts, made_from, tell)
        twins[which] = _answered(recipe, run, f"{which}-disturbed", text, disturbed.rows, made_from, tell)
    kind = str(recipe.data.format.options.get("group") or "group")
    scores = compare(
        parts, plain["base"], plain["tuned"], wish.metrics,
        primary=wish.primary, kind=kind, seed=recipe.seed, training=known,
    )  # fmt: skip
    if disturbed.rows:
        scores["robustness"] = robust_tables(
            parts, disturbed, plain, twins, lambda row, item: score(row, item, wish.metrics, known), seed=recipe.seed
        )
    run.write_json("scores.json", scores)
    written = [*plain, *(f"{which}-disturbed" for which, found in twins.items() if found)]
    files = ["scores.json", *(f"replies/{which}.jsonl" for which in written)]
    run.keep_recipe()
    run.seal("evaluate", made_from, files, seconds=round(time.time() - began, 1))
    for part in (run / "replies").glob("*.part"):
        part.unlink()
    say(f"evaluate: {scores['verdict']}")


def _answered(
    recipe: Recipe,
    run: Run,
    which: str,
    text: Any,
    parts: Mapping[str, Sequence[Conversation]],
    made_from: dict[str, str],
    tell: Callable[[str, int, int], None] | None,
) -> list[Any]:
    """One model's replies to the parts' rows, those of a run that stopped among them; writes replies/WHICH.jsonl."""
    from tunesmith.evaluation.answer_loss import losses
    from tunesmith.evaluation.comparison import answer
    from tunesmith.evaluation.reply_log import Kept

    if not any(parts.values()):
        return []
    wants_loss = {"loss", "perplexity"} & {metric.name for metric in recipe.evaluate.metrics}
    kept = Kept(run / f"replies/{which}.part", made_from)
    try:
        found = answer(
            text,
            parts,
            max_new_tokens=recipe.evaluate.max_new_tokens,
            batch=recipe.evaluate.batch,
            losses=functools.partial(losses, text, learn=recipe.prompt.learn) if wants_loss else None,
            on_progress=functools.partial(tell or (lambda name, done, of: None), which),
            reply_log=kept,
        )
    finally:
        kept.close()
    lines = "".join(json.dumps(item.describe(), ensure_ascii=False) + "\n" for item in found)
    run.write(f"replies/{which}.jsonl", lines)
    return found


def _judge(recipe: Recipe, run: Run, say: Say) -> None:
    """Asks the recipe's judge about base and tuned; writes judge.json."""
    from tunesmith.evaluation.comparison import read_answered
    from tunesmith.evaluation.judge import Judge, pairs_of
    from tunesmith.generation.from_server import FromServer

    wish = recipe.evaluate.judge
    made_from = {"scores": run.fingerprint("evaluate"), "judge": hash_plain(wish.model_dump(mode="json"))}
    if is_fresh(run, "judge", made_from, say):
        return
    parts = asked(recipe, run)
    base, tuned = (read_answered(run / f"replies/{which}.jsonl") for which in ("base", "tuned"))
    pairs = pairs_of(parts, base, tuned, limit=wish.rows, seed=recipe.seed, reference=wish.reference)
    with FromServer(wish.url or "", wish.model, key=wish.key, timeout=wish.timeout) as server:
        judge = Judge(
            server, run / "replies/judge.jsonl", criteria=wish.criteria, marks=wish.marks, batch=wish.batch,
            max_new_tokens=wish.max_new_tokens, temperature=wish.temperature, seed=recipe.seed,
        )  # fmt: skip
        found = judge.judge(pairs, say).describe()
    run.write_json("judge.json", found)
    if not found["missing"]:  # what is missing is asked for again next time
        run.seal("judge", made_from, ["judge.json"])
    counts = ", ".join(f"{found[key]} {what}" for key, what in COUNTED.items())
    say(f"judge: {counts}")


def report(recipe: Recipe, run: Run, say: Say = silent, *, command: str = "") -> Path:
    """Writes report.html: one offline page that says whether the tuning helped."""
    refuse_changed(recipe, run)
    made_from = {
        "scores": run.fingerprint("evaluate"),
        "adapter": run.fingerprint("train"),
        "about": recipe.about,
        "metrics": hash_plain(recipe.evaluate.model_dump(mode="json", include={"metrics"})),
        **{name: hash_file(run / name) if (run / name).is_file() else "" for name in OTHERS},
    }
    if is_fresh(run, "report", made_from, say):
        return run / "report.html"
    from tunesmith.reporting.run_report import report_page

    seals = {name: run.read_seal(name) or {} for name in ("prepare", "train", "evaluate", "judge", "review")}
    run.write("report.html", report_page(recipe, run.path, asked(recipe, run), command=command, seals=seals))
    run.seal("report", made_from, ["report.html"])
    say(f"report: {run / 'report.html'}")
    return run / "report.html"


def chat(recipe: Recipe, run: Run, say: Say = silent, *, tuned: bool = True) -> Any:
    """The run's model, ready to `stream` replies: tuned, or the base it came from."""
    return next(text for which, text in _speakers(recipe, run, say, only="tuned" if tuned else "base"))


def chat_file(path: Path) -> Any:
    """The model in a GGUF file, ready to `stream` replies by the file's own template; to be closed.

    Raises ModelError for a file that is none, is damaged or cannot be run.
    """
    from tunesmith.generation.from_gguf import FromGguf

    return FromGguf(path, slots=1)


def asked(recipe: Recipe, run: Run) -> dict[str, list[Conversation]]:
    """The rows that models are compared on, by part: test, unseen, and each kind of probe."""
    parts = held_out(recipe, run)
    if recipe.evaluate.probes:
        for row in _probes(recipe):
            parts.setdefault(str(row.fields.get("kind", "probes")), []).append(row)
    if not parts:
        raise DataError("no row was held out, so nothing can be compared", next="Set data.split.test above 0")
    return parts


def held_out(recipe: Recipe, run: Run) -> dict[str, list[Conversation]]:
    """The rows of `asked` that were held out of the data, probes apart."""
    from tunesmith.evaluation.comparison import choose

    held = {part: read_rows(run / f"data/{part}.jsonl") for part in ("test", "unseen")}
    return choose({part: rows for part, rows in held.items() if rows}, recipe.evaluate.rows, recipe.seed)


def learnt(run: Run) -> Any:
    """What the tuned model was trained on, as metrics know it."""
    from tunesmith.evaluation.score import Known

    return Known(tuple(row.answer for row in read_rows(run / "data/train.jsonl")))


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


def _speakers(recipe: Recipe, run: Run, say: Say, *, only: str = "") -> Iterator[tuple[str, Any]]:
    """The base and the tuned model on the same loaded weights, the adapter read back from disk."""
    from tunesmith.generation.from_weights import FromWeights
    from tunesmith.hardware import look
    from tunesmith.models.adapter import attach
    from tunesmith.models.build import load

    if only != "base":
        run.fingerprint("train")  # raises when the adapter is not finished
        refuse_other_template(recipe, run)
    weights = load_weights(recipe, say)
    machine = look(recipe.train.precision)
    model = load(weights, bits=recipe.base.bits, device=machine.device, precision=machine.precision)
    if machine.device == "cpu":
        model.keep_dense()
    template = load_template_of(recipe, weights, run, say)
    if only != "base":
        attach(model, run / "adapter")
    for which in ("base", "tuned") if not only else (only,):
        yield which, FromWeights(model, template, tuned=which == "tuned", stop=recipe.prompt.stop)
