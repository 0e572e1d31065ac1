"""Filters a streamed reply: what of it is shown, what it claims, and where it ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from tunesmith.data.conversation import Turn
from tunesmith.evaluation.text_measures import speaker_names
from tunesmith.writing.events import ClaimStream, CutEvent, DoneEvent, Event, TextEvent
from tunesmith.writing.form import Form
from tunesmith.writing.preamble import PreambleFilter
from tunesmith.writing.run_on import RunOnFilter

MAX_WORD = 64  # characters: languages without spaces, URLs and loops must not wait forever
_OPENERS = "<["  # first characters of control tokens
_MAX_CONTROL_TOKEN = 40  # characters


class WordSplitter:
    """Splits text into words and single whitespace characters, as soon as each is complete."""

    def __init__(self) -> None:
        self._pending = ""

    def feed(self, piece: str) -> list[str]:
        """Return the words and whitespace completed by this piece."""
        text, start, atoms = self._pending + piece, 0, list[str]()
        for index in range(len(self._pending), len(text)):
            if text[index].isspace():
                if start < index:
                    atoms.append(text[start:index])
                atoms.append(text[index])
                start = index + 1
            elif index + 1 - start >= MAX_WORD:
                cut = _cut_position(text, start, index + 1)
                atoms.append(text[start:cut])
                start = cut
        self._pending = text[start:]
        return atoms

    def flush(self) -> list[str]:
        """Return what is left."""
        pending, self._pending = self._pending, ""
        return [pending] if pending else []


def _cut_position(text: str, start: int, end: int) -> int:
    """Return where to cut a long word: not inside what may be a control token."""
    token_start = max(text.rfind(mark, max(start + 1, end - _MAX_CONTROL_TOKEN), end) for mark in _OPENERS)
    return token_start if token_start > start else end


_WORD_OR_SPACE = re.compile(r"\s|\S+")


class StreamFilter:
    """Turns the pieces of a reply into events: visible text, checked claims, the cut and the end.

    The joined text of the events does not depend on how the reply is cut into pieces. Nothing in the reply or the
    fields is read as markup, template or control token: the visible text is a literal part of the reply.
    """

    def __init__(
        self,
        values: Mapping[str, str],
        *,
        claims: bool,
        document: bool | None = None,
        prompt_lines: Iterable[str] = (),
        prompt: Sequence[Turn] = (),
        today: date | None = None,
    ) -> None:
        """`values` are the fields. With `claims`, the text is checked against them.

        `document` (default: `claims`): the reply is one document, so announcements, text after the signature and a
        second document are removed. `prompt_lines` are lines of the prompt that no reply should repeat, `prompt` is the
        conversation to answer. `today` ends 'since 2019'.
        """
        document = claims if document is None else document
        questions = [turn.text for turn in prompt if turn.role == "user"]
        lines, question = tuple(prompt_lines), "\n".join(questions)
        self._splitter = WordSplitter()
        self._preamble = PreambleFilter(document=document, fields=values, prompt_lines=lines, question=question)
        self._run_on = RunOnFilter(
            document=document,
            fields=values,
            prompt_lines=lines,
            names=() if document else speaker_names(questions),
            question=question,
        )
        self._claims = ClaimStream(values, today=today) if claims else None
        self._text, self._done = "", False
        self._cut: CutEvent | None = None

    @classmethod
    def of(
        cls, form: Form, values: Mapping[str, str], prompt: Sequence[Turn] = (), *, today: date | None = None
    ) -> StreamFilter:
        """Return the filter for a reply to a form's values; `prompt` is what `build_prompt` returns."""
        fields = {name: text for name, text in values.items() if not form.checked or name in form.facts}
        document = form.checked or form.document
        return cls(
            fields, claims=form.checked, document=document, prompt_lines=form.prompt_lines, prompt=prompt, today=today
        )

    @property
    def over(self) -> bool:
        """Whether the text has ended, so that the model can be stopped."""
        return self._cut is not None

    @property
    def text(self) -> str:
        """The visible text so far."""
        return self._text

    def feed(self, piece: str) -> list[Event]:
        """Return the events of a piece of the reply, in order."""
        events: list[Event] = []
        if not self._done:
            for word in self._splitter.feed(piece):
                self._add_word(word, events)
        return events

    def end(self, stopped: bool) -> list[Event]:
        """Return the remaining events, with Done last. `stopped`: the model ended before the token limit."""
        if self._done:
            return []
        events: list[Event] = []
        for word in self._splitter.flush():
            self._add_word(word, events)
        if self._preamble.open:
            self._pass_on(self._preamble.finish(stopped=stopped), events)
        self._show(self._run_on.finish(stopped=stopped), events)
        if not self._text and not self._cut and (dropped := self._preamble.dropped.strip()):
            self._preamble.dropped = ""  # showing the chatter is better than an empty page
            self._pass_on(dropped, events)
            self._show(self._run_on.finish(stopped=stopped), events)
        self._done = True
        last, claims = self._claims.finish(self._text) if self._claims else ([], ())
        events += last
        prefix = self._preamble.dropped.strip()
        events.append(DoneEvent(self._text, claims, stopped and self._cut is None, prefix, self._cut))
        return events

    def _add_word(self, word: str, events: list[Event]) -> None:
        if self._cut:
            return
        if self._preamble.open:
            self._pass_on(self._preamble.add(word), events)
            return
        self._show(self._run_on.add(word), events)
        if self._claims and word.isspace() and self._run_on.all_shown:
            events += self._claims.update(self._text + word)

    def _pass_on(self, text: str, events: list[Event]) -> None:
        if text:
            self._run_on.fenced, self._run_on.quoted = self._preamble.fenced, self._preamble.quoted
            for word in _WORD_OR_SPACE.findall(text):
                self._show(self._run_on.add(word), events)

    def _show(self, text: str, events: list[Event]) -> None:
        if text:
            self._text += text
            events.append(TextEvent(text))
            if self._claims:
                events += self._claims.update(self._text)
        if self._run_on.reason and not self._cut:
            self._cut = CutEvent(self._run_on.reason, self._run_on.removed)
            events.append(self._cut)
