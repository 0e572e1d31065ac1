"""The verb drafting: a run's best model behind the form of its recipe, and what is done with the text it writes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tunesmith.commands import exported_files
from tunesmith.commands.evaluate import chat
from tunesmith.commands.shared import Say, silent
from tunesmith.config.recipe import Recipe
from tunesmith.errors import RecipeError
from tunesmith.runs.run import Run
from tunesmith.writing import documents, repair
from tunesmith.writing.claim_stream import judged
from tunesmith.writing.events import Claimed, Event
from tunesmith.writing.form import conversation, form_of
from tunesmith.writing.stream_filter import Gate

Paper = Literal["txt", "docx", "pdf"]


class Drafting:
    """A form and a model that writes to its values. `about` says which model it is. Several may ask, one at a time."""

    def __init__(self, recipe: Recipe, model: Any, about: str) -> None:
        """`model` is a TextModel; closing it is the caller's affair."""
        self.recipe, self.form, self.about = recipe, form_of(recipe), about
        self._model, self._lock = model, threading.Lock()

    def write(
        self, values: Mapping[str, str], system: str | None = None, max_tokens: int | None = None
    ) -> Iterator[Event]:
        """The reply to the form's values as it is written, statements judged, the last event a Done.

        `system` None takes the recipe's message, '' none; `max_tokens` None as many as in the comparison. Closing the
        iterator ends the reply. Raises DataError, or Several, for values that do not fit, before anything is written;
        ModelError when the model fails or the prompt does not fit it; RecipeError for no tokens.
        """
        limit = self.form.max_tokens if max_tokens is None else max_tokens
        if limit < 1:
            raise RecipeError(f"{limit} tokens are none", where="max_tokens", next="Ask for 1 or more")
        turns = conversation(self.recipe, values, system)
        return self._events(Gate.of(self.form, values, turns), turns, limit)

    def _events(self, gate: Gate, turns: Any, limit: int) -> Iterator[Event]:
        written, pieces = "", 0
        with self._lock, contextlib.closing(self._model.stream(turns, max_new_tokens=limit)) as stream:
            for piece in stream:
                written, pieces = written + piece, pieces + 1
                yield from gate.feed(piece)
                if gate.over:
                    break
            stopped = not gate.over and max(pieces, self._tokens(written)) < limit
        yield from gate.end(stopped)

    def _tokens(self, text: str) -> int:
        """How many tokens a text has, for runtimes that do not say why they ended."""
        if hasattr(self._model, "tokens"):
            return len(self._model.tokens(text))
        template = getattr(self._model, "template", None)
        return len(template.tokenizer(text, add_special_tokens=False)["input_ids"]) if template else 0

    def judged(self, text: str, values: Mapping[str, str]) -> tuple[Claimed, ...]:
        """The statements of a text that somebody edited, held against the fields; none where the form has no facts."""
        known = {name: value for name, value in values.items() if name in self.form.facts}
        return judged(text, known) if self.form.checked else ()

    def without(self, text: str, claim: Claimed, others: Iterable[Claimed] = ()) -> str:
        """See writing/repair.py; `others` are the text's other statements, which stay."""
        return repair.without(text, claim, others)

    def filled(self, text: str, claim: Claimed, values: Mapping[str, str]) -> str | None:
        """See write/mend.py."""
        return repair.filled(text, claim, values)

    def filling(self, text: str, claim: Claimed, values: Mapping[str, str]) -> str | None:
        """The words that `filled` would put there."""
        return repair.filling(text, claim, values)

    def document(self, text: str, title: str, kind: Paper) -> bytes:
        """The text as a file. Raises MissingExtra where python-docx or fpdf2 is not installed."""
        return {"txt": documents.to_txt, "docx": documents.to_docx, "pdf": documents.to_pdf}[kind](text, title)


@contextlib.contextmanager
def drafting(recipe: Recipe, run: Run, say: Say = silent, *, threads: int | None = None) -> Iterator[Drafting]:
    """The run's best model, ready to write: the verified GGUF nearest to this adapter, else the adapter on its base.

    Raises RunError when nothing is trained, ModelError when the model cannot be run.
    """
    from tunesmith.generation.from_gguf import FromGguf

    found = exported(run)
    if found is None:
        yield Drafting(recipe, chat(recipe, run, say), f"the adapter of {recipe.name} on its base")
        return
    say(f"writing with {found.name}")
    with FromGguf(found, stop=recipe.prompt.stop, slots=1, threads=threads) as model:
        yield Drafting(recipe, model, f"{found.name}, verified")


def exported(run: Run) -> Path | None:
    """The run's GGUF nearest to the adapter among those verified, unless the adapter was made anew since."""
    files = [run / entry["path"] for entry in exported_files.verified(run)]
    if not files or (
        run.read_seal("train") and run.read_seal("export-gguf") and not exported_files.of_this_adapter(run)
    ):
        return None
    return next((file for file in files if file.is_file()), None)
