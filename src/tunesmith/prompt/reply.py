"""What of a model's output is its thought, what is the template's own opening, and what is the reply to be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tunesmith.data.conversation import Turn
from tunesmith.errors import TunesmithError
from tunesmith.prompt.template import ANSWER, OPEN_THOUGHT, PROBE, THOUGHT, Template

NOTHING = re.compile(r"(?!)")


class Thought(NamedTuple):
    """The marks around a thought; `start` is '' where the generation prompt has opened it already."""

    start: str
    end: str


INLINE = Thought("<think>", "</think>")


@dataclass(frozen=True)
class ReplyFormat:
    """How a model's output under a template divides into a thought and the reply.

    `opening` is what the template writes before a reply without a thought; `specials` finds special tokens, which are
    no part of a reply.
    """

    opening: str = ""
    thoughts: Sequence[Thought] = (INLINE,)
    specials: re.Pattern[str] = NOTHING

    @classmethod
    def of(cls, template: Template) -> ReplyFormat:
        """The format of a template's answers."""
        answer = template.plain_answer
        thoughts = []
        if match := OPEN_THOUGHT.search(answer.prompt):
            thoughts.append(Thought("", f"</{match[1]}>"))
        elif (thought := _own_thought(template)) is not None:
            thoughts.append(thought)
        return cls(answer.opening.strip(), tuple(dict.fromkeys((*thoughts, INLINE))), template.specials)

    @property
    def keeps_specials(self) -> bool:
        """Whether special tokens must be written out in the output that `split` reads."""
        marks = [self.opening, *(mark for thought in self.thoughts for mark in thought)]
        return any(self.specials.search(mark) for mark in marks)

    def split(self, output: str) -> tuple[str, str]:
        """The thought and the reply, without blanks around them; all is thought where a thought does not end."""
        stream = ReplyStream(self)
        text = stream.feed(output) + stream.rest()
        return stream.thought.strip(), text.strip()


class ReplyStream:
    """Lets a reply through piece by piece, without the thought and the template's opening before it."""

    def __init__(self, form: ReplyFormat) -> None:
        """`form` says what a thought and an opening look like."""
        self._form = form
        self._held = ""  # output of which it is not known yet what it is
        self._inside: Thought | None = None
        self._begun = self._blank = False
        self._thought = ""

    @property
    def thought(self) -> str:
        """The thought as far as it was written, without special tokens."""
        return self._form.specials.sub("", self._thought)

    def feed(self, piece: str) -> str:
        """What of the reply is known after `piece`; each piece holds special tokens whole."""
        if not self._begun:
            self._held += piece
            piece = self._begin()
            if not self._begun:
                return ""
        return self._shown(piece)

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        if self._begun:
            return ""
        self._begun, held = True, self._held
        if self._inside is not None:
            self._thought += held
            return ""
        return self._shown(held)

    def _shown(self, piece: str) -> str:
        """The piece without special tokens, and without the blanks between an opening and the reply."""
        text = self._form.specials.sub("", piece)
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        return text

    def _begin(self) -> str:
        """Decides what the output begins with; returns the reply's beginning once it is known to have begun."""
        if self._inside is None and self._undecided():
            return ""
        if self._inside is not None:
            return self._go_on(self._inside)
        self._begun, held = True, self._held
        return held

    def _undecided(self) -> bool:
        """Whether more output is needed to tell; takes the opening or the thought's start off the output."""
        held = self._held.lstrip()
        for thought in self._form.thoughts:
            if held.startswith(thought.start):
                self._inside, self._held = thought, held[len(thought.start) :]
                return False
        if self._form.opening and held.startswith(self._form.opening):
            self._begun = self._blank = True
            self._held = held[len(self._form.opening) :]
            return False
        marks = [self._form.opening, *(thought.start for thought in self._form.thoughts)]
        return any(mark.startswith(held) for mark in marks if mark)

    def _go_on(self, thought: Thought) -> str:
        """Looks for the thought's end."""
        inside, found, behind = self._held.partition(thought.end)
        if not found:
            return ""
        self._thought, self._begun, self._blank = inside, True, True
        return behind


def _own_thought(template: Template) -> Thought | None:
    """The marks that the template itself writes around reasoning, if it writes any."""
    try:
        answer = template.answer((Turn("user", PROBE), Turn("assistant", ANSWER, THOUGHT)))
    except TunesmithError:
        return None
    before, found, between = (answer.opening + answer.thought).partition(THOUGHT)
    start, end = before.strip(), between.strip()
    return Thought(start, end) if found and start and end else None
