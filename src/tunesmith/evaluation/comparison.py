"""Compares models on the same rows: replies, scores, paired differences and a verdict."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import NamedSetting
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Conversation
from tunesmith.errors import ExtensionError, RunError
from tunesmith.evaluation.reply_log import ReplyLog
from tunesmith.evaluation.score import Score, TrainingAnswers, View
from tunesmith.evaluation.sentences import chosen_later_sentence, headline
from tunesmith.evaluation.verdict import Verdict, correct, decide
from tunesmith.generation.text_model import Reply, TextModel

NO_TRAINING_ANSWERS = TrainingAnswers()
HELD_OUT = ("test", "unseen")  # the held-out parts; probes are scored separately
MAX_LOSS = 230.0  # nats; exp(230) = 1e100, far above the perplexity of any working model


@dataclass(frozen=True)
class RowReply:
    """One model's reply to one row, and its loss on the row's own answer."""

    id: str
    part: str
    reply: Reply
    loss: float | None

    def describe(self) -> dict[str, Any]:
        """Returns the line of replies/*.jsonl as a dict."""
        return {"id": self.id, "part": self.part, **asdict(self.reply), "loss": self.loss}


def read_row_replies(path: Path) -> list[RowReply]:
    """Reads a file of replies/*.jsonl, one `RowReply.describe` per line."""
    answers = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            values = json.loads(line)
            reply = Reply(values["text"], values["stopped"], values["tokens"], values.get("cut", ""))
            answers.append(RowReply(values["id"], values["part"], reply, values["loss"]))
    return answers


def sample_rows(parts: Mapping[str, Sequence[Conversation]], limit: int, seed: int) -> dict[str, list[Conversation]]:
    """Draws at most `limit` rows from all parts together, evenly over groups; the same rows for the same seed."""
    total = sum(len(rows) for rows in parts.values())
    if total <= limit:
        return {part: list(rows) for part, rows in parts.items()}
    queues: dict[tuple[str, str], list[Conversation]] = defaultdict(list)
    for part, rows in parts.items():
        for row in rows:
            queues[part, row.group].append(row)
    order = list(queues.values())
    for queue in order:
        random.Random(seed).shuffle(queue)  # noqa: S311  (sampling, not secrecy)
    random.Random(seed).shuffle(order)  # noqa: S311  (with more groups than `limit`, no group may be favored)
    chosen_ids: set[str] = set()
    while len(chosen_ids) < limit:
        for queue in order:
            if queue and len(chosen_ids) < limit:
                chosen_ids.add(queue.pop().id)
    return {part: [row for row in rows if row.id in chosen_ids] for part, rows in parts.items()}


def generate_replies(
    model: TextModel,
    parts: Mapping[str, Sequence[Conversation]],
    *,
    max_new_tokens: int,
    batch: int,
    losses: Callable[[Sequence[Conversation]], list[float]] | None,
    on_progress: Callable[[int, int], None],
    reply_log: ReplyLog | None = None,
) -> list[RowReply]:
    """Returns one model's replies to all rows; `losses`, if given, adds its loss on each row's own answer.

    Replies that are already in `reply_log` are reused, and new ones are appended to it as they are generated.
    """
    rows = [(part, row) for part, members in parts.items() for row in members]
    logged = reply_log.replies if reply_log else {}
    replies = {index: logged[part, row.id] for index, (part, row) in enumerate(rows) if (part, row.id) in logged}
    pending = [index for index in range(len(rows)) if index not in replies]
    prompts = [rows[index][1].prompt for index in pending]
    for index, reply in model.replies(prompts, max_new_tokens=max_new_tokens, batch=batch):
        part, row = rows[pending[index]]
        replies[pending[index]] = reply
        if reply_log:
            reply_log.add(part, row.id, reply)
        on_progress(len(replies), len(rows))
    with_answer = [index for index, (_, row) in enumerate(rows) if losses and row.answer]
    loss_by_index: dict[int, float] = {}
    if losses and with_answer:
        loss_by_index = dict(zip(with_answer, losses([rows[index][1] for index in with_answer]), strict=True))
    return [RowReply(row.id, part, replies[index], loss_by_index.get(index)) for index, (part, row) in enumerate(rows)]


def score_row(
    row: Conversation,
    answered: RowReply,
    metrics: Sequence[NamedSetting],
    training: TrainingAnswers = NO_TRAINING_ANSWERS,
) -> dict[str, Score]:
    """Returns all scores of one row by name; `training` holds the answers that the tuned model was trained on.

    Raises AssertionError naming the metric and the row if a value is not a finite number. A metric that does not apply
    to a row returns nothing, so such a value is a bug in the metric.
    """
    view, scores = View(row, answered.reply, answered.loss, training), {}
    for metric in metrics:
        for metric_score in resolve("tunesmith.evaluation.metrics", metric.name)(view, **metric.options):
            if not isinstance(metric_score, Score):
                raise ExtensionError(
                    f"'{metric.name}' must return a list of Score, not of {type(metric_score).__name__}"
                )
            if not math.isfinite(metric_score.value) or (metric_score.fold == "exp" and metric_score.value > MAX_LOSS):
                shown_value = f"{metric_score.name} = {metric_score.value} ({metric_score.fold})"
                raise AssertionError(
                    f"the metric '{metric.name}' gave {shown_value} for the row '{row.id}' of {answered.part}"
                )
            scores[metric_score.name] = metric_score
    return scores


def compare(
    parts: Mapping[str, Sequence[Conversation]],
    base: Sequence[RowReply],
    tuned: Sequence[RowReply],
    metrics: Sequence[NamedSetting],
    *,
    primary: str,
    planned: str = "",
    kind: str,
    seed: int,
    training: TrainingAnswers = NO_TRAINING_ANSWERS,
) -> dict[str, Any]:
    """Compares the tuned model with the base; returns the content of scores.json.

    `planned` is the primary score that was named before the training, by default `primary`. If it is another one,
    `primary` was chosen after a first look, and its p is corrected like that of every other score.
    `kind` is what a group of rows is called, such as "topic". The scores of a section are corrected for multiple
    testing (see verdict.correct), except the primary score in the first section, which the verdict is about. `unpaired`
    counts, by section, the rows of scores that no row has for both models. Raises as `score` does, and RunError if the
    two models did not answer the same rows.
    """
    scored = _score_all(parts, {"base": base, "tuned": tuned}, metrics, training)
    planned = planned or primary
    sections = _differences_by_model(parts, scored, "base", primary if planned == primary else "", seed)["tuned"]
    main = _first_section(sections).get(primary)
    sentence = verdict_sentence(primary, main, kind)
    if planned != primary:
        sentence += f" {chosen_later_sentence(planned)}"
    return {
        "primary": primary,
        "planned": planned,
        "kind": kind,
        "verdict": sentence,
        "helped": main.outcome if main else "not measured",
        "sections": _describe_sections(sections),
        "unpaired": _unpaired(parts, scored["base"], scored["tuned"]),
        "rows": [{"id": key[1], "part": key[0], **values} for key, values in _values_by_row(parts, scored)],
    }


def compare_models(
    parts: Mapping[str, Sequence[Conversation]],
    answered: Mapping[str, Sequence[RowReply]],
    metrics: Sequence[NamedSetting],
    *,
    against: str,
    primary: str,
    kind: str,
    seed: int,
    training: TrainingAnswers = NO_TRAINING_ANSWERS,
) -> dict[str, Any]:
    """Compares several named models with the one named `against`, on the same rows.

    `models` holds for each other name, in the given order, what `compare` returns for the tuned model: `base` is the
    value of `against`, `tuned` that of the model. `rows` holds every model's scores of each row. The correction for
    multiple testing spans the scores of all models in a section; with more than one other model it includes the
    primary score. Raises as `compare` does, and ValueError if `against` or a second model is missing.
    """
    if against not in answered or len(answered) < 2:
        raise ValueError(f"'{against}' and at least one other model are needed; got {list(answered)}")
    scored = _score_all(parts, answered, metrics, training)
    models = {}
    for name, sections in _differences_by_model(parts, scored, against, primary, seed).items():
        main = _first_section(sections).get(primary)
        models[name] = {
            "verdict": verdict_sentence(primary, main, kind, name=name, against=against),
            "helped": main.outcome if main else "not measured",
            "sections": _describe_sections(sections),
            "unpaired": _unpaired(parts, scored[against], scored[name]),
        }
    rows = [{"id": key[1], "part": key[0], "scores": values} for key, values in _values_by_row(parts, scored)]
    return {"primary": primary, "kind": kind, "against": against, "models": models, "rows": rows}


def verdict_sentence(
    primary: str, result: Verdict | None, kind: str = "group", *, name: str = "", against: str = ""
) -> str:
    """Returns the verdict as a sentence, about base and tuned or about the model `name` compared with `against`.

    `kind` is what a group of rows is called.
    """
    if result is None:
        return f"'{primary}' was not measured, so there is no verdict."
    quoted = (f"'{name}'", f"'{against}'") if name else ("", "")
    return headline(result.describe(), primary, kind, name=quoted[0], against=quoted[1])


RowKey = tuple[str, str]  # a row's part and id
Scored = dict[RowKey, dict[str, Score]]
Sections = dict[str, dict[str, Verdict]]  # by section and metric


def _score_all(
    parts: Mapping[str, Sequence[Conversation]],
    answered: Mapping[str, Sequence[RowReply]],
    metrics: Sequence[NamedSetting],
    training: TrainingAnswers,
) -> dict[str, Scored]:
    """Scores every row for every model. Raises RunError if a model did not answer exactly these rows."""
    rows = {(part, row.id): row for part, members in parts.items() for row in members}
    for name, items in answered.items():
        if mismatched := rows.keys() ^ {(item.part, item.id) for item in items}:
            part, row = min(mismatched)
            where, message = f"row '{row}' of {part}", f"'{name}' did not answer the same rows as the others"
            raise RunError(message, where=where, next="Let every model answer the same rows, then compare them")
    return {
        name: {(item.part, item.id): score_row(rows[item.part, item.id], item, metrics, training) for item in items}
        for name, items in answered.items()
    }


def _rows_by_section(parts: Mapping[str, Sequence[Conversation]]) -> dict[str, list[tuple[RowKey, str]]]:
    """Returns rows and their groups by section: `all` if both held-out parts have rows, then each part."""
    rows_by_part = {part: [((part, row.id), row.group) for row in rows] for part, rows in parts.items() if rows}
    held_out = [rows_by_part[part] for part in rows_by_part if part in HELD_OUT]
    return {"all": [row for rows in held_out for row in rows], **rows_by_part} if len(held_out) > 1 else rows_by_part


def _differences_by_model(
    parts: Mapping[str, Sequence[Conversation]], scored: Mapping[str, Scored], against: str, primary: str, seed: int
) -> dict[str, Sections]:
    """Returns every other model's differences from `against`, corrected for multiple testing within each section."""
    others = [name for name in scored if name != against]
    by_model: dict[str, Sections] = {name: {} for name in others}
    for index, (title, rows) in enumerate(_rows_by_section(parts).items()):
        section_differences = {
            (name, metric): difference
            for name in others
            for metric, difference in score_differences(
                [(group, scored[against][key], scored[name][key]) for key, group in rows], seed
            ).items()
        }
        settled = correct(
            section_differences, primary=(others[0], primary) if index == 0 and len(others) == 1 else None
        )
        for name in others:
            by_model[name][title] = {metric: result for (model, metric), result in settled.items() if model == name}
    return by_model


def score_differences(
    rows: Sequence[tuple[str, Mapping[str, Score], Mapping[str, Score]]], seed: int, *, power: bool = True
) -> dict[str, Verdict]:
    """Returns each score's paired difference; `rows` holds a group and the scores before and after.

    A difference covers the rows that have the score on both sides. Rows that have it on one side count as missing, and
    all rows as asked. For `power` see verdict.decide.
    """
    by_metric: dict[str, Verdict] = {}
    for name in dict.fromkeys(name for _, before, after in rows for name in (*before, *after)):
        first = next((before[name] for _, before, after in rows if name in before and name in after), None)
        if first is None:
            continue
        by_metric[name] = decide(
            [before[name].value if name in before else None for _, before, _ in rows],
            [after[name].value if name in after else None for _, _, after in rows],
            [group for group, _, _ in rows],
            better=first.better,
            fold=first.fold,
            limits=first.limits,
            seed=seed,
            power=power,
        )
    return by_metric


def _unpaired(parts: Mapping[str, Sequence[Conversation]], before: Scored, after: Scored) -> dict[str, dict[str, int]]:
    """Counts, by section, the rows of each metric that no row has for both models."""
    unpaired = {}
    for title, rows in _rows_by_section(parts).items():
        both = {name for key, _ in rows for name in before[key].keys() & after[key]}
        either = Counter(name for key, _ in rows for name in {**before[key], **after[key]} if name not in both)
        if either:
            unpaired[title] = dict(either)
    return unpaired


def _first_section(sections: Sections) -> dict[str, Verdict]:
    """Returns the section that the verdict is about."""
    return next(iter(sections.values()))


def _describe_sections(sections: Sections) -> dict[str, dict[str, Any]]:
    """Returns the sections as dicts, without those that have no score (probes may have none)."""
    return {
        title: {name: difference.describe() for name, difference in differences.items()}
        for title, differences in sections.items()
        if differences
    }


def _values_by_row(
    parts: Mapping[str, Sequence[Conversation]], scored: Mapping[str, Scored]
) -> list[tuple[RowKey, dict[str, dict[str, float]]]]:
    """Returns each row's scores by model and metric."""
    keys = [(part, row.id) for part, rows in parts.items() for row in rows]
    return [
        (key, {model: {name: one.value for name, one in scores[key].items()} for model, scores in scored.items()})
        for key in keys
    ]
