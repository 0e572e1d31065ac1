"""A model's words pass the gate piece by piece: what is shown of them, what they state, where they end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from tunesmith.data.conversation import Turn
from tunesmith.evaluation.text_measures import askers
from tunesmith.writing.claim_stream import Judged
from tunesmith.writing.events import Cut, Done, Event, Text
from tunesmith.writing.form import Form
from tunesmith.writing.pieces import Atoms
from tunesmith.writing.preamble import Opening
from tunesmith.writing.run_on import Ending

_ATOM = re.compile(r"\s|\S+")


class Gate:
    """Takes a reply as it is written and tells what of it is text, statement by statement.

    The events' text, joined, is the same however the reply is cut into pieces. Nothing in the reply or in the fields is
    read as markup, as a template or as a token: what is shown is a part of the reply, letter by letter.
    """

    def __init__(
        self,
        values: Mapping[str, str],
        *,
        claims: bool,
        document: bool | None = None,
        echoes: Iterable[str] = (),
        prompt: Sequence[Turn] = (),
        today: date | None = None,
    ) -> None:
        """`values` are the fields. With `claims` statements are held against them.

        `document` (default: as `claims`): one document is wanted, so that what announces it, what follows its signature
        and a second one are no part of it. `echoes` are lines of the prompt that no reply should say, `prompt` is the
        conversation that is answered. `today` ends 'since 2019'.
        """
        document = claims if document is None else document
        asked = [turn.text for turn in prompt if turn.role == "user"]
        lines, question = tuple(echoes), "\n".join(asked)
        self._atoms = Atoms()
        self._opening = Opening(document=document, fields=values, echoes=lines, question=question)
        self._ending = Ending(
            document=document, fields=values, echoes=lines, names=() if document else askers(asked), question=question
        )
        self._judged = Judged(values, today=today) if claims else None
        self._text, self._done = "", False
        self._cut: Cut | None = None

    @classmethod
    def of(
        cls, form: Form, values: Mapping[str, str], prompt: Sequence[Turn] = (), *, today: date | None = None
    ) -> Gate:
        """The gate for a reply to a form's values; `prompt` as `conversation` gives it."""
        known = {name: text for name, text in values.items() if name in form.facts} if form.checked else {}
        listed = known if form.checked else dict(values)
        document = form.checked or form.document
        return cls(listed, claims=form.checked, document=document, echoes=form.echoes, prompt=prompt, today=today)

    @property
    def over(self) -> bool:
        """Whether the text has ended although the reply may go on: whoever writes it can be stopped."""
        return self._cut is not None

    @property
    def text(self) -> str:
        """What is visible so far."""
        return self._text

    def feed(self, piece: str) -> list[Event]:
        """What a piece of the reply brings, in order."""
        events: list[Event] = []
        if not self._done:
            for atom in self._atoms.feed(piece):
                self._take(atom, events)
        return events

    def end(self, stopped: bool) -> list[Event]:
        """What is left, and Done. `stopped`: the model ended by itself, before the limit of tokens."""
        if self._done:
            return []
        events: list[Event] = []
        for atom in self._atoms.end():
            self._take(atom, events)
        if self._opening.open:
            self._pass(self._opening.end(stopped=stopped), events)
        self._show(self._ending.end(stopped=stopped), events)
        if not self._text and not self._cut and (said := self._opening.dropped.strip()):
            self._opening.dropped = ""  # nothing came behind it: better this than an empty page
            self._pass(said, events)
            self._show(self._ending.end(stopped=stopped), events)
        self._done = True
        last, claims = self._judged.end(self._text) if self._judged else ([], ())
        events += last
        prefix = self._opening.dropped.strip()
        events.append(Done(self._text, claims, stopped and self._cut is None, prefix, self._cut))
        return events

    def _take(self, atom: str, events: list[Event]) -> None:
        if self._cut:
            return
        if self._opening.open:
            self._pass(self._opening.add(atom), events)
            return
        self._show(self._ending.add(atom), events)
        if self._judged and atom.isspace() and self._ending.all_told:
            events += self._judged.more(self._text + atom)

    def _pass(self, text: str, events: list[Event]) -> None:
        if text:
            self._ending.fenced, self._ending.quoted = self._opening.fenced, self._opening.quoted
            for atom in _ATOM.findall(text):
                self._show(self._ending.add(atom), events)

    def _show(self, text: str, events: list[Event]) -> None:
        if text:
            self._text += text
            events.append(Text(text))
            if self._judged:
                events += self._judged.more(self._text)
        if self._ending.why and not self._cut:
            self._cut = Cut(self._ending.why, self._ending.removed)
            events.append(self._cut)
