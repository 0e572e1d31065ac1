"""Numbers that state nothing about anybody: in general remarks, in times of day."""

from __future__ import annotations

import re

_PERSON = re.compile(r"\b(?:I|I['’]\w+|[Mm]y|me|mine|myself|[Ww]e|[Oo]ur|us)\b")
_OPINION = re.compile(
    r"\b(?:to my mind|in my (?:view|opinion|eyes)|I (?:think|believe|find)|"
    r"I(?:['’]d| would) (?:rather (?:have )?|choose|prefer|pick)|if you ask me)\b",
    re.IGNORECASE,
)
_ANYBODY = re.compile(
    r"\s*(?:nobody|no one|everybody|everyone|anybody|anyone|whoever|people|he who|she who)\b", re.IGNORECASE
)
_INNER = re.compile(r"\bas if \w+ were\b|\b(?:what|who|how|why)\b[^,;.]*", re.IGNORECASE)
_PAST = re.compile(  # a participle behind 'is' or 'the' tells no past
    r"(?<!\bis )(?<!\bare )(?<!\bbe )(?<!\bbeen )(?<!\bhas )(?<!\bhave )(?<!\ba )(?<!\ban )(?<!\bthe )(?<!-)\b"
    r"(?:was|were|had|did|rose|grew|fell|made|won|led|ran|built|sold|went|came|took|brought|kept|saw|taught|wrote|"
    r"(?!(?:need|indeed|speed|feed|seed|bleed|proceed|exceed|succeed|hundred|bed|red|shed|wed)\b)\w+ed)\b"
)
_TOLD = re.compile(
    r"\s(?:tell|show|teach(?:e)?|say|mean|need|make|do(?:e)?|begin|end|take|cost|rest|live|depend|come|go(?:e)?)s?\b"
)
_LINE = re.compile(r"[ \t]*(?:[-*•–]|\d{1,2}[.)])\s")


def remark(text: str, place: int) -> bool:
    """Whether the sentence around a place is a remark about the world: whole, in the present, about nobody named.

    A line of a list is none, nor is a sentence that tells what happened or has a first person in it.
    """
    starts = [at + len(mark) for mark in (". ", "! ", "? ", "\n") if (at := text.rfind(mark, 0, place)) >= 0]
    start = max(starts, default=0)
    ends = [at for mark in ".!?\n" if (at := _stop(text, mark, place)) >= 0]
    end = min(ends, default=len(text))
    if end == len(text) or text[end] == "\n" or _LINE.match(text, start) or not text[start : start + 1].isupper():
        return False
    said = _OPINION.sub("", text[start:end])
    if _PERSON.search(said):
        return False
    return bool(_ANYBODY.match(said)) or not _PAST.search(_INNER.sub("", said))


def acts(text: str, start: int, end: int) -> bool:
    """Whether a name opens its sentence and does something by itself: 'Statistics tell me what people want'."""
    before = text[:start].rstrip(" ")
    return (not before or before[-1] in ".!?\n") and bool(_TOLD.match(text, end))


def _stop(text: str, mark: str, place: int) -> int:
    """The first sign `mark` behind a place that ends a sentence; the point in '4.5' does not."""
    at = text.find(mark, place)
    while at >= 0 and mark == "." and text[at + 1 : at + 2].isdigit():
        at = text.find(mark, at + 1)
    return at
