"""Splits a model's output into its thought, the template's opening, and the reply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

NEVER_MATCHES = re.compile(r"(?!)")


class ThoughtTags(NamedTuple):
    """The tags around a thought; `start` is '' if the generation prompt already contains it."""

    start: str
    end: str


THINK_TAGS = ThoughtTags("<think>", "</think>")


@dataclass(frozen=True)
class ReplyFormat:
    """How a model's output under a template splits into a thought and the reply.

    `opening` is what the template writes before a reply without a thought. `specials` matches special tokens, which are
    removed from a reply.
    """

    opening: str = ""
    thoughts: Sequence[ThoughtTags] = (THINK_TAGS,)
    specials: re.Pattern[str] = NEVER_MATCHES

    @property
    def needs_special_tokens(self) -> bool:
        """Whether the output that `split` reads must be decoded with special tokens."""
        tags = [self.opening, *(tag for thought in self.thoughts for tag in thought)]
        return any(self.specials.search(tag) for tag in tags)

    def split(self, output: str) -> tuple[str, str]:
        """Returns thought and reply, both stripped. A thought that does not end takes the whole output."""
        stream = ReplyStream(self)
        text = stream.feed(output) + stream.rest()
        return stream.thought.strip(), text.strip()


class ReplyStream:
    """Removes the thought and the template's opening from streamed output."""

    def __init__(self, form: ReplyFormat) -> None:
        """`form` describes thoughts and opening."""
        self._form = form
        self._pending = ""  # output not yet known to be thought, opening or reply
        self._open: ThoughtTags | None = None
        self._in_reply = self._strip_start = False
        self._thought = ""

    @property
    def thought(self) -> str:
        """The thought so far, without special tokens."""
        return self._form.specials.sub("", self._thought)

    def feed(self, piece: str) -> str:
        """Returns the part of the reply that `piece` adds; a special token must not be split between pieces."""
        if not self._in_reply:
            self._pending += piece
            piece = self._read_start()
            if not self._in_reply:
                return ""
        return self._clean(piece)

    def rest(self) -> str:
        """Returns the pending part of the reply at the end of the output."""
        if self._in_reply:
            return ""
        self._in_reply, pending = True, self._pending
        if self._open is not None:
            self._thought += pending
            return ""
        return self._clean(pending)

    def _clean(self, piece: str) -> str:
        """Removes special tokens, and the whitespace between an opening and the reply."""
        text = self._form.specials.sub("", piece)
        if self._strip_start:
            text = text.lstrip()
            self._strip_start = not text
        return text

    def _read_start(self) -> str:
        """Consumes the thought or the opening; returns the beginning of the reply once that is reached."""
        if self._open is None and self._needs_more():
            return ""
        if self._open is not None:
            return self._close_thought(self._open)
        self._in_reply, pending = True, self._pending
        return pending

    def _needs_more(self) -> bool:
        """Whether more output is needed to tell what it begins with; removes an opening or a thought's start tag."""
        pending = self._pending.lstrip()
        for thought in self._form.thoughts:
            if pending.startswith(thought.start):
                self._open, self._pending = thought, pending[len(thought.start) :]
                return False
        if self._form.opening and pending.startswith(self._form.opening):
            self._in_reply = self._strip_start = True
            self._pending = pending[len(self._form.opening) :]
            return False
        tags = [self._form.opening, *(thought.start for thought in self._form.thoughts)]
        return any(tag.startswith(pending) for tag in tags if tag)

    def _close_thought(self, thought: ThoughtTags) -> str:
        """Returns what follows the thought's end tag; '' until it has come."""
        thought_text, end_tag, reply = self._pending.partition(thought.end)
        if not end_tag:
            return ""
        self._thought, self._in_reply, self._strip_start = thought_text, True, True
        return reply
