"""Compares the base model and the tuned model on held-out rows."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.commands.shared import (
    Reporter,
    evaluation_rows,
    is_up_to_date,
    load_models,
    require_same_settings,
    silent,
    train_index,
)
from tunesmith.config.recipe import METRICS, Recipe
from tunesmith.config.registry import packages
from tunesmith.data.conversation import Conversation
from tunesmith.runs.run import Run, hash_file, hash_json

JUDGE_LABELS = {"wins": "for tuned", "ties": "ties", "losses": "for base", "missing": "missing"}


def evaluate(
    recipe: Recipe, run: Run, log: Reporter = silent, on_progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Lets the base and the tuned model reply to the held-out rows; writes replies/*.jsonl and scores.json.

    Replies that an interrupted evaluation wrote are reused. If the recipe names a judge, it compares the replies too.
    """
    require_same_settings(recipe, run)
    inputs = _evaluation_inputs(recipe, run)
    if not is_up_to_date(run, "evaluate", inputs, log):
        _evaluate(recipe, run, inputs, log, on_progress)
    if recipe.evaluate.judge.url:
        _judge(recipe, run, log)
    return run / "scores.json"


def _evaluation_inputs(recipe: Recipe, run: Run) -> dict[str, str]:
    probes = recipe.path(recipe.evaluate.probes) if recipe.evaluate.probes else None
    return {
        "adapter": run.fingerprint("train"),
        "data": run.fingerprint("prepare"),
        "evaluate": hash_json(recipe.evaluate.model_dump(mode="json", exclude={"probes", "judge"})),
        "probes": hash_file(probes) if probes and probes.is_file() else "",
        "seed": str(recipe.seed),
        "stop": hash_json(recipe.prompt.stop),
        **packages(METRICS, [metric.name for metric in recipe.evaluate.metrics]),
    }


def _evaluate(
    recipe: Recipe,
    run: Run,
    inputs: dict[str, str],
    log: Reporter,
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    from tunesmith.evaluation.comparison import RowReply, compare, score_row
    from tunesmith.evaluation.retention import MAX_NEW_TOKENS, PART, retention_rows, retention_table
    from tunesmith.evaluation.robustness import perturbed_rows, robustness_tables
    from tunesmith.evaluation.sentences import saturated_sentences, worse_elsewhere

    start, settings = time.time(), recipe.evaluate
    parts = evaluation_rows(recipe, run)
    perturbed = perturbed_rows(parts, settings.robustness, seed=recipe.seed, limit=settings.robustness_rows)
    general_rows = retention_rows(settings.retention, recipe.seed)
    index = train_index(run)
    answers_of: dict[str, list[RowReply]] = {}
    perturbed_answers: dict[str, list[RowReply]] = {}
    general_answers: dict[str, list[RowReply]] = {}
    costs: dict[str, dict[str, float | None]] = {}
    for name, model in load_models(recipe, run, log):
        resumed, started = (run / f"replies/{name}.part").exists(), time.perf_counter()
        answers_of[name] = _replies(recipe, run, name, model, parts, inputs, on_progress)
        costs[name] = _reply_costs(answers_of[name], None if resumed else time.perf_counter() - started)
        perturbed_answers[name] = _replies(recipe, run, f"{name}-perturbed", model, perturbed.rows, inputs, on_progress)
        general_answers[name] = _replies(
            recipe,
            run,
            f"{name}-{PART}",
            model,
            {PART: general_rows},
            inputs,
            on_progress,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    kind = str(recipe.data.format.options.get("group") or "group")
    scores = compare(
        parts, answers_of["base"], answers_of["tuned"], settings.metrics,
        primary=settings.primary, planned=_planned_primary(run), kind=kind, seed=recipe.seed, training=index,
    )  # fmt: skip
    if perturbed.rows:
        scores["robustness"] = robustness_tables(
            parts,
            perturbed,
            answers_of,
            perturbed_answers,
            lambda row, item: score_row(row, item, settings.metrics, index),
            seed=recipe.seed,
        )
    if general_rows:
        scores["retention"] = retention_table(general_rows, general_answers, seed=recipe.seed)
    scores["but"] = worse_elsewhere(scores)
    scores["notes"] = saturated_sentences(
        next(iter(scores["sections"].values())).get(settings.primary), settings.primary
    )
    run.write_json("scores.json", scores)
    names = [
        *answers_of,
        *(f"{name}-perturbed" for name, answers in perturbed_answers.items() if answers),
        *(f"{name}-{PART}" for name, answers in general_answers.items() if answers),
    ]
    files = ["scores.json", *(f"replies/{name}.jsonl" for name in names)]
    run.write_recipe()
    run.write_fingerprints("evaluate", inputs, files, seconds=round(time.time() - start, 1), costs=costs)
    for part in (run / "replies").glob("*.part"):
        part.unlink()
    for sentence in (scores["verdict"], *scores["notes"], *scores["but"]):
        log(f"evaluate: {sentence}")


def _reply_costs(answers: Sequence[Any], seconds: float | None) -> dict[str, float | None]:
    """Returns mean tokens and seconds of a reply; seconds, losses included, are None if earlier replies were reused."""
    count = max(1, len(answers))
    tokens = round(sum(answer.reply.tokens for answer in answers) / count, 1)
    return {"tokens": tokens, "seconds": None if seconds is None else round(seconds / count, 3)}


def _planned_primary(run: Run) -> str:
    """Returns the primary score that the recipe named when the adapter was trained; '' if that is not recorded."""
    return str(((run.read_fingerprints("train") or {}).get("summary") or {}).get("primary", ""))


def _replies(
    recipe: Recipe,
    run: Run,
    label: str,
    model: Any,
    parts: Mapping[str, Sequence[Conversation]],
    inputs: dict[str, str],
    on_progress: Callable[[str, int, int], None] | None,
    max_new_tokens: int | None = None,
) -> list[Any]:
    """Returns one model's replies to the rows, reusing those of an interrupted run; writes replies/LABEL.jsonl."""
    from tunesmith.evaluation.answer_loss import answer_losses
    from tunesmith.evaluation.comparison import generate_replies
    from tunesmith.evaluation.reply_log import ReplyLog

    if not any(parts.values()):
        return []
    wants_loss = {"loss", "perplexity"} & {metric.name for metric in recipe.evaluate.metrics}
    log = ReplyLog(run / f"replies/{label}.part", inputs)
    try:
        answers = generate_replies(
            model,
            parts,
            max_new_tokens=max_new_tokens or recipe.evaluate.max_new_tokens,
            batch=recipe.evaluate.batch,
            losses=functools.partial(answer_losses, model, learn=recipe.prompt.learn) if wants_loss else None,
            on_progress=functools.partial(on_progress or (lambda name, count, total: None), label),
            reply_log=log,
        )
    finally:
        log.close()
    lines = "".join(json.dumps(item.describe(), ensure_ascii=False) + "\n" for item in answers)
    run.write(f"replies/{label}.jsonl", lines)
    return answers


def _judge(recipe: Recipe, run: Run, log: Reporter) -> None:
    """Lets the recipe's judge compare the replies of base and tuned; writes judge.json."""
    from tunesmith.evaluation.comparison import read_row_replies
    from tunesmith.evaluation.judge import Judge, sample_pairs
    from tunesmith.generation.from_server import ServerModel

    settings = recipe.evaluate.judge
    inputs = {"scores": run.fingerprint("evaluate"), "judge": hash_json(settings.model_dump(mode="json"))}
    if is_up_to_date(run, "judge", inputs, log):
        return
    parts = evaluation_rows(recipe, run)
    base, tuned = (read_row_replies(run / f"replies/{which}.jsonl") for which in ("base", "tuned"))
    pairs = sample_pairs(parts, base, tuned, limit=settings.rows, seed=recipe.seed, reference=settings.reference)
    with ServerModel(settings.url or "", settings.model, key=settings.key, timeout=settings.timeout) as server:
        judge = Judge(
            server, run / "replies/judge.jsonl", criteria=settings.criteria, marks=settings.marks, batch=settings.batch,
            max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=recipe.seed,
        )  # fmt: skip
        judged = judge.judge(pairs, log).describe()
    run.write_json("judge.json", judged)
    if not judged["missing"]:  # missing judgments are requested again next time
        run.write_fingerprints("judge", inputs, ["judge.json"])
    counts = ", ".join(f"{judged[key]} {label}" for key, label in JUDGE_LABELS.items())
    log(f"judge: {counts}")
