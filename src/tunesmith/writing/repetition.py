"""Text that runs in circles, found while it is written: words said over and over, sentences said again."""

from __future__ import annotations

import re
from collections import Counter

PERIOD = 40  # words of a circle at most
FEW = 3  # words that a sentence must have to be a repeated one
SURE = 4  # words of a third copy that make it one
LONG = 8  # words from which a circle is clear in the midst of the third round
SAME = 200  # characters that stand a second time are a circle, wherever they stood first
HALF = 0.5  # of the sentences: songs and plans repeat up to 0.48 of themselves on purpose
IN_CODE = 4  # code repeats itself: circles need so many times more
_ENDS = re.compile(r"[.!?…][\"'”’)*_]*$")
_NUMBER = re.compile(r"[-*•–]|\(?\d{1,3}[.)]")
_CHARACTERS = re.compile(r"^(.{1,16}?)\1+")


class Loops:
    """Sees a text's words in order and says from where on it must be held back, or cut.

    `hold` is the first character that may still be part of a circle, None where none is; `cut` is where one began.
    """

    def __init__(self) -> None:
        self.hold: int | None = None
        self.cut: int | None = None
        self._words: list[str] = []
        self._starts: list[int] = []
        self._runs = [0] * (PERIOD + 1)
        self._unit: list[str] = []
        self._unit_start = 0
        self._units: Counter[tuple[str, ...]] = Counter()
        self._order: list[tuple[str, ...]] = []
        self._alike: list[tuple[str, ...]] = []
        self._again: int | None = None  # where a sentence began that repeats the one before it
        self._repeats = 0
        self._turning: int | None = None

    def word(self, word: str, start: int, *, code: bool = False) -> None:
        """A word and the character it begins with."""
        said = word.casefold()
        self._words.append(said)
        self._starts.append(start)
        self._turning = self._circle(code)
        waits = [at for at in (self._turning, None if code else self._sentence(said, start)) if at is not None]
        if self.cut is None and len(word) >= 60 and _spins(word):
            self.cut = start
        self.hold = min(waits, default=None)

    def line(self, *, code: bool = False) -> None:
        """A line has ended."""
        if not code and self._unit:
            self._ended(self._unit_start)

    @property
    def broken_off(self) -> int | None:
        """Where a circle began in the midst of which the text is now; None where it is in none."""
        return self._again if self._again is not None and self._alike else self._turning

    def _circle(self, code: bool) -> int | None:
        """From where on the last words repeat those before them, as a whole and once more."""
        last, wait = len(self._words) - 1, None
        for period in range(1, min(PERIOD, last) + 1):
            same = self._words[last] == self._words[last - period]
            run = self._runs[period] = self._runs[period] + 1 if same else 0
            if run < period:
                continue
            needed = _needed(period, self._words[last]) * (IN_CODE if code else 1)
            if run >= needed and self.cut is None:
                self.cut = self._starts[last + 1 - run]
            elif period > 2 and run > period:
                at = self._starts[last + 1 - run + period]
                wait = at if wait is None else min(wait, at)
        return wait

    def _sentence(self, said: str, start: int) -> int | None:
        if not self._unit:
            self._unit_start = start
            self._alike = [each for each in self._units if each[0] == said]
        else:
            place = len(self._unit)
            self._alike = [each for each in self._alike if len(each) > place and each[place] == said]
        self._unit.append(said)
        begun = self._unit_start if self._again is None else self._again
        third = self._again is not None and tuple(self._unit) == self._order[-1][: len(self._unit)]
        if (third and len(self._unit) >= SURE) or (self._alike and start + len(said) - self._unit_start >= SAME):
            self.cut = begun if self.cut is None else self.cut
        if _ENDS.search(said) and not (len(self._unit) == 1 and _NUMBER.fullmatch(said)):
            return self._ended(self._unit_start)
        if self._alike:
            return self._unit_start if self._again is None else self._again
        self._again = None
        return None

    def _ended(self, start: int) -> int | None:
        """Counts the sentence that ended, and says from where on to hold back."""
        unit, self._unit = tuple(self._unit), []
        self._alike = []
        if len(unit) < FEW:
            self._again = None
            return None
        times, before = self._units[unit], self._order[-1] if self._order else ()
        self._units[unit] += 1
        self._order.append(unit)
        self._repeats = self._repeats + 1 if times else 0
        share = 1 - len(self._units) / len(self._order)
        twice = unit == before
        begun = self._again if self._again is not None else start
        if (twice and self._again is not None) or (times > 1 and (share >= HALF or self._repeats > 2)):
            self.cut = begun if self.cut is None else self.cut
        self._again = begun if twice else None
        return self._again


def _needed(period: int, word: str) -> int:
    """How many words must repeat those `period` before them."""
    if period == 1:
        return 7 if len(word) > 2 and word[0].isalpha() else 15
    if period < LONG:
        return max(6, 2 * period)
    return period + period // 2


def _spins(word: str) -> bool:
    """Whether a long word is one piece over and over: 'wacky-wacky-wacky-…'."""
    for skip in range(16):
        found = _CHARACTERS.match(word, skip) if skip == 0 else _CHARACTERS.match(word[skip:])
        if found and len(found[0]) >= 48 and any(sign.isalpha() for sign in found[1]):
            return True
    return False
