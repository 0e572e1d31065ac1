"""Detects loops in a text while it is written: repeated words and repeated sentences."""

from __future__ import annotations

import re
from collections import Counter

MAX_PERIOD = 40  # words per cycle
MIN_SENTENCE_WORDS = 3  # shorter sentences may repeat
THIRD_COPY_WORDS = 4  # this many words of a third copy make a loop
LONG_PERIOD = 8  # words: cycles from this length on are cut in the middle of the third round
MAX_REPEATED_CHARACTERS = 200  # this many repeated characters are a loop, wherever the first copy is
MAX_REPEATED_SHARE = 0.5  # of the sentences: songs and plans repeat up to 0.48 on purpose
CODE_FACTOR = 4  # code is repetitive: a loop needs this many times more words
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)*_]*$")
_LIST_MARK = re.compile(r"[-*•–]|\(?\d{1,3}[.)]")
_REPEATED_PIECE = re.compile(r"^(.{1,16}?)\1+")


class LoopDetector:
    """Reads words in order and says from where on the text must be held back or cut.

    `hold` is the first character that may be part of a loop, or None; `cut` is where a loop began.
    """

    def __init__(self) -> None:
        self.hold: int | None = None
        self.cut: int | None = None
        self._words: list[str] = []
        self._starts: list[int] = []
        self._runs = [0] * (MAX_PERIOD + 1)
        self._unit: list[str] = []
        self._unit_start = 0
        self._units: Counter[tuple[str, ...]] = Counter()
        self._order: list[tuple[str, ...]] = []
        self._candidates: list[tuple[str, ...]] = []
        self._repeat_start: int | None = None  # start of a sentence that repeats the one before it
        self._repeats = 0
        self._cycle_start: int | None = None

    def add_word(self, word: str, start: int, *, code: bool = False) -> None:
        """Add a word and the position of its first character."""
        folded = word.casefold()
        self._words.append(folded)
        self._starts.append(start)
        self._cycle_start = self._cycle(code)
        holds = [
            position
            for position in (self._cycle_start, None if code else self._sentence(folded, start))
            if position is not None
        ]
        if self.cut is None and len(word) >= 60 and _repeats_one_piece(word):
            self.cut = start
        self.hold = min(holds, default=None)

    def end_line(self, *, code: bool = False) -> None:
        """End a line."""
        if not code and self._unit:
            self._end_sentence(self._unit_start)

    @property
    def open_loop(self) -> int | None:
        """Start of the loop that the text is in, or None."""
        return self._repeat_start if self._repeat_start is not None and self._candidates else self._cycle_start

    def _cycle(self, code: bool) -> int | None:
        """Return from where on the last words repeat the ones before them more than once, or None."""
        last, hold = len(self._words) - 1, None
        for period in range(1, min(MAX_PERIOD, last) + 1):
            is_repeat = self._words[last] == self._words[last - period]
            run = self._runs[period] = self._runs[period] + 1 if is_repeat else 0
            if run < period:
                continue
            needed = _required_run(period, self._words[last]) * (CODE_FACTOR if code else 1)
            if run >= needed and self.cut is None:
                self.cut = self._starts[last + 1 - run]
            elif period > 2 and run > period:
                start = self._starts[last + 1 - run + period]
                hold = start if hold is None else min(hold, start)
        return hold

    def _sentence(self, word: str, start: int) -> int | None:
        if not self._unit:
            self._unit_start = start
            self._candidates = [unit for unit in self._units if unit[0] == word]
        else:
            index = len(self._unit)
            self._candidates = [unit for unit in self._candidates if len(unit) > index and unit[index] == word]
        self._unit.append(word)
        loop_start = self._unit_start if self._repeat_start is None else self._repeat_start
        is_third = self._repeat_start is not None and tuple(self._unit) == self._order[-1][: len(self._unit)]
        if (is_third and len(self._unit) >= THIRD_COPY_WORDS) or (
            self._candidates and start + len(word) - self._unit_start >= MAX_REPEATED_CHARACTERS
        ):
            self.cut = loop_start if self.cut is None else self.cut
        if _SENTENCE_END.search(word) and not (len(self._unit) == 1 and _LIST_MARK.fullmatch(word)):
            return self._end_sentence(self._unit_start)
        if self._candidates:
            return self._unit_start if self._repeat_start is None else self._repeat_start
        self._repeat_start = None
        return None

    def _end_sentence(self, start: int) -> int | None:
        """Count the finished sentence and return from where on to hold back."""
        unit, self._unit = tuple(self._unit), []
        self._candidates = []
        if len(unit) < MIN_SENTENCE_WORDS:
            self._repeat_start = None
            return None
        earlier_count, previous = self._units[unit], self._order[-1] if self._order else ()
        self._units[unit] += 1
        self._order.append(unit)
        self._repeats = self._repeats + 1 if earlier_count else 0
        repeated_share = 1 - len(self._units) / len(self._order)
        is_second = unit == previous
        loop_start = self._repeat_start if self._repeat_start is not None else start
        if (is_second and self._repeat_start is not None) or (
            earlier_count > 1 and (repeated_share >= MAX_REPEATED_SHARE or self._repeats > 2)
        ):
            self.cut = loop_start if self.cut is None else self.cut
        self._repeat_start = loop_start if is_second else None
        return self._repeat_start


def _required_run(period: int, word: str) -> int:
    """Return how many words must repeat the ones `period` before them."""
    if period == 1:
        return 7 if len(word) > 2 and word[0].isalpha() else 15
    if period < LONG_PERIOD:
        return max(6, 2 * period)
    return period + period // 2


def _repeats_one_piece(word: str) -> bool:
    """Return whether a long word repeats one piece: 'wacky-wacky-wacky-…'."""
    for skip in range(16):
        match = _REPEATED_PIECE.match(word, skip) if skip == 0 else _REPEATED_PIECE.match(word[skip:])
        if match and len(match[0]) >= 48 and any(char.isalpha() for char in match[1]):
            return True
    return False
