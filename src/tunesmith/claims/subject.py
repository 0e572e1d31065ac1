"""Which named thing a number belongs to: in reports about many things each thing has its own field."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection

_ASIDE = re.compile(r"\b(?:for|of|over|against|from|than)\s+(?:the\s+)?$")  # 'Kim led the way for the Hawks with 20'


class Subjects:
    """Where a text names its subjects, in full or by a word that only one subject has (a surname)."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        shared = Counter(word for name in names for word in set(name.split()))
        spelled = {word: name for name in names for word in name.split() if shared[word] == 1 and word[0].isupper()}
        spelled.update({name: name for name in names})
        self.at: list[int] = []
        self.names: list[str] = []
        if spelled:
            longest = sorted(map(re.escape, spelled), key=len, reverse=True)
            for match in re.finditer(rf"(?<!\w)(?:{'|'.join(longest)})(?!\w)", text):
                sentence = max(text.rfind(mark, 0, match.start()) for mark in (". ", "\n", "; "))
                if self.at and self.at[-1] > sentence and _ASIDE.search(text[: match.start()][-12:]):
                    continue
                self.at.append(match.start())
                self.names.append(spelled[match[0]])

    def before(self, place: int) -> str | None:
        """The subject named last before a character of the text."""
        index = bisect_left(self.at, place)
        return self.names[index - 1] if index else None
