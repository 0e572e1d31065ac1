"""Writes drafts with a run's best model from the form of its recipe, and edits their statements."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tunesmith.commands import exported_files
from tunesmith.commands.chat import chat
from tunesmith.commands.shared import Reporter, silent
from tunesmith.config.recipe import Recipe
from tunesmith.errors import RecipeError
from tunesmith.runs.run import Run
from tunesmith.writing import documents, repair
from tunesmith.writing.events import ClaimEvent, Event, claim_events
from tunesmith.writing.form import build_form, build_prompt
from tunesmith.writing.stream_filter import StreamFilter

DocumentFormat = Literal["txt", "docx", "pdf"]


class Writer:
    """A form and a model that writes a text from its values. Threads can share it; one reply is written at a time."""

    def __init__(self, recipe: Recipe, model: Any, about: str) -> None:
        """`model` is a TextModel, which the caller closes; `about` describes it."""
        self.recipe, self.form, self.about = recipe, build_form(recipe), about
        self._model, self._lock = model, threading.Lock()

    def write(
        self, values: Mapping[str, str], system: str | None = None, max_tokens: int | None = None
    ) -> Iterator[Event]:
        """Yields the reply to the form's values as events, with checked statements; the last event is a Done.

        `system` None takes the recipe's message, '' none; `max_tokens` None takes evaluate.max_new_tokens. Closing the
        iterator stops the reply. Raises DataError, or MultipleErrors, for invalid values, before anything is written;
        ModelError if the model fails or the prompt is too long; RecipeError if `max_tokens` is below 1.
        """
        limit = self.form.max_tokens if max_tokens is None else max_tokens
        if limit < 1:
            raise RecipeError(f"max_tokens is {limit}", where="max_tokens", next="Use 1 or more")
        turns = build_prompt(self.recipe, values, system)
        return self._events(StreamFilter.of(self.form, values, turns), turns, limit)

    def _events(self, gate: StreamFilter, turns: Any, limit: int) -> Iterator[Event]:
        text, pieces = "", 0
        with self._lock, contextlib.closing(self._model.stream(turns, max_new_tokens=limit)) as stream:
            for piece in stream:
                text, pieces = text + piece, pieces + 1
                yield from gate.feed(piece)
                if gate.over:
                    break
            stopped = not gate.over and max(pieces, self._tokens(text)) < limit
        yield from gate.end(stopped)

    def _tokens(self, text: str) -> int:
        """Returns the length of a text in tokens, for runtimes that do not say why a reply ended."""
        if hasattr(self._model, "tokens"):
            return len(self._model.tokens(text))
        template = getattr(self._model, "template", None)
        return len(template.tokenizer(text, add_special_tokens=False)["input_ids"]) if template else 0

    def judged(self, text: str, values: Mapping[str, str]) -> tuple[ClaimEvent, ...]:
        """Returns the statements of an edited text, compared with the fields; none if the form has no facts."""
        form_facts = {name: value for name, value in values.items() if name in self.form.facts}
        return claim_events(text, form_facts) if self.form.checked else ()

    def without(self, text: str, claim: ClaimEvent, others: Iterable[ClaimEvent] = ()) -> str:
        """Returns the text without a statement, see writing.repair; the statements in `others` stay."""
        return repair.remove_claim(text, claim, others)

    def filled(self, text: str, claim: ClaimEvent, values: Mapping[str, str]) -> str | None:
        """Returns the text with a statement corrected from the fields, see writing.repair."""
        return repair.replace_claim(text, claim, values)

    def filling(self, text: str, claim: ClaimEvent, values: Mapping[str, str]) -> str | None:
        """Returns the words that `filled` would insert."""
        return repair.find_replacement(text, claim, values)

    def document(self, text: str, title: str, kind: DocumentFormat) -> bytes:
        """Returns the text as a file. Raises MissingExtra if python-docx or fpdf2 is not installed."""
        return {"txt": documents.to_txt, "docx": documents.to_docx, "pdf": documents.to_pdf}[kind](text, title)


@contextlib.contextmanager
def open_writer(recipe: Recipe, run: Run, log: Reporter = silent, *, threads: int | None = None) -> Iterator[Writer]:
    """Loads the run's best model: the verified GGUF file closest to the adapter, or the adapter on its base.

    Raises RunError if the run is not trained, ModelError if the model cannot be run.
    """
    from tunesmith.generation.from_gguf import GgufModel

    file = best_gguf(run)
    if file is None:
        yield Writer(recipe, chat(recipe, run, log), f"the adapter of {recipe.name} on its base")
        return
    log(f"writing with {file.name}")
    with GgufModel(file, stop=recipe.prompt.stop, slots=1, threads=threads) as model:
        yield Writer(recipe, model, f"{file.name}, verified")


def best_gguf(run: Run) -> Path | None:
    """Returns the verified GGUF file closest to the current adapter, or None."""
    files = [run / entry["path"] for entry in exported_files.verified_ggufs(run)]
    if not files or (
        run.read_fingerprints("train")
        and run.read_fingerprints("export-gguf")
        and not exported_files.is_of_current_adapter(run)
    ):
        return None
    return next((file for file in files if file.is_file()), None)
