"""Replies of base model, tuned model and exported files side by side: new ones, and those of the evaluation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.commands import exported_files
from tunesmith.commands.chat import chat
from tunesmith.commands.shared import evaluation_rows
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import nearest
from tunesmith.data.conversation import Conversation, Turn
from tunesmith.errors import RunError
from tunesmith.runs.run import Run

RUNNABLE = ("gguf", "gguf_lora", "merged")  # the adapter on its base is `tuned`


@dataclass(frozen=True)
class ReplyModel:
    """A model that can reply: base, tuned or an exported file. `verified` is None for base and tuned."""

    name: str
    about: str
    verified: bool | None = None


def reply_models(recipe: Recipe, run: Run) -> list[ReplyModel]:
    """Returns base, tuned, and every exported file that can be run here. Raises RunError if the run is not trained."""
    run.fingerprint("train")
    models = [ReplyModel("base", "the model before tuning"), ReplyModel("tuned", "the adapter that was trained")]
    for entry in exported_files.export_entries(run):
        if entry["target"] in RUNNABLE:
            kind = {"gguf": "GGUF in llama.cpp", "gguf_lora": "GGUF adapter in llama.cpp", "merged": "merged weights"}
            about = f"{kind[entry['target']]}, {entry['bytes'] / 1e6:,.0f} MB"
            models.append(ReplyModel(entry["name"], about, not entry["problems"]))
    return models


class ReplyGenerator:
    """Generates replies with the models of one run, one at a time. Base and tuned share their weights."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        """Stores the run; models are loaded on first use."""
        self.recipe, self.run = recipe, run
        self._lock = threading.Lock()
        self._tuned: Any = None

    def stream(self, name: str, turns: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """Yields the reply of the model `name` in pieces. Raises RunError for an unknown name, ModelError."""
        with self._lock:
            if name in ("base", "tuned"):
                yield from self._weights(name).stream(turns, max_new_tokens=max_new_tokens)
                return
            with contextlib.closing(self._file(name)) as model:
                if hasattr(model, "stream"):
                    yield from model.stream(turns, max_new_tokens=max_new_tokens)
                else:
                    for _, reply in model.replies([turns], max_new_tokens=max_new_tokens, batch=1):
                        yield reply.text

    def close(self) -> None:
        """Releases the weights."""
        with self._lock:
            self._tuned = None

    def _weights(self, name: str) -> Any:
        from tunesmith.generation.from_weights import WeightsModel

        if self._tuned is None:
            self._tuned = chat(self.recipe, self.run)
        reply_model = self._tuned
        return WeightsModel(
            reply_model.model, reply_model.template, tuned=name == "tuned", stop=self.recipe.prompt.stop
        )

    def _file(self, name: str) -> Any:
        from tunesmith.generation.from_folder import FolderModel
        from tunesmith.generation.from_gguf import GgufModel

        entries = {
            entry["name"]: entry for entry in exported_files.export_entries(self.run) if entry["target"] in RUNNABLE
        }
        if name not in entries:
            where, advice = str(self.run.path), nearest(name, ["base", "tuned", *entries])
            raise RunError(f"there is no exported file '{name}'", where=where, next=advice)
        entry, stop = entries[name], tuple(self.recipe.prompt.stop)
        path = self.run / entry["path"]
        if entry["target"] == "merged":
            return FolderModel(path, stop=stop)
        if entry["target"] == "gguf_lora":
            base = path.parent / Path(entry["notes"]["base"]).name  # the run may have moved
            return GgufModel(base, lora=path, stop=stop, slots=1)
        return GgufModel(path, stop=stop, slots=1)


def prompt_turns(recipe: Recipe, text: str, row: Conversation | None = None) -> tuple[Turn, ...]:
    """Returns the turns of a prompt: those of `row` with its last request replaced by `text`, or just `text`."""
    if row is not None:
        turns = list(row.prompt)
        last = max(place for place, turn in enumerate(turns) if turn.role == "user")
        turns[last] = Turn("user", text)
        return tuple(turns)
    before = (Turn("system", recipe.prompt.system),) if recipe.prompt.system else ()
    return (*before, Turn("user", text))


@dataclass(frozen=True)
class EvaluatedReplies:
    """The held-out rows with the replies of base, tuned (see reporting/replies.py for the items) and exported files.

    `rows` and `items` have the same order. `sieves` are the filters; `files` holds each file's replies by part and
    row. `scores` is the content of scores.json.
    """

    rows: list[Conversation]
    items: list[dict[str, Any]]
    sieves: list[dict[str, Any]]
    worst: list[int]
    files: Mapping[str, Mapping[tuple[str, str], str]]
    scores: dict[str, Any]
    parts: list[str]


def evaluated_replies(recipe: Recipe, run: Run) -> EvaluatedReplies:
    """Returns the replies of the run's evaluation. Raises RunError if the run is not evaluated."""
    from tunesmith.evaluation.review import read_replies
    from tunesmith.reporting.replies import read_reply_items, reply_filters, worst_items

    run.fingerprint("evaluate")
    parts, scores = evaluation_rows(recipe, run), run.read_json("scores.json")
    items_of_part = read_reply_items(run.path, parts, scores, recipe.evaluate.metrics)
    items = [item for members in items_of_part.values() for item in members]
    reply_files = {
        entry["name"]: run / f"replies/export-{entry['name']}.jsonl" for entry in exported_files.export_entries(run)
    }
    return EvaluatedReplies(
        rows=[row for members in parts.values() for row in members],
        items=items,
        sieves=reply_filters(items_of_part, recipe.evaluate.metrics),
        worst=[item["number"] - 1 for item in worst_items(items_of_part)],
        files={name: read_replies(path) for name, path in reply_files.items() if path.is_file()},
        scores=scores,
        parts=[part for part, members in items_of_part.items() for _ in members],
    )
