"""Recognizes sentences whose numbers and names state nothing about anybody: general remarks."""

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
_PAST = re.compile(  # a participle after 'is' or 'the' is no past tense
    r"(?<!\bis )(?<!\bare )(?<!\bbe )(?<!\bbeen )(?<!\bhas )(?<!\bhave )(?<!\ba )(?<!\ban )(?<!\bthe )(?<!-)\b"
    r"(?:was|were|had|did|rose|grew|fell|made|won|led|ran|built|sold|went|came|took|brought|kept|saw|taught|wrote|"
    r"(?!(?:need|indeed|speed|feed|seed|bleed|proceed|exceed|succeed|hundred|bed|red|shed|wed)\b)\w+ed)\b"
)
_ACTING_VERB = re.compile(
    r"\s(?:tell|show|teach(?:e)?|say|mean|need|make|do(?:e)?|begin|end|take|cost|rest|live|depend|come|go(?:e)?)s?\b"
)
_LIST_LINE = re.compile(r"[ \t]*(?:[-*•–]|\d{1,2}[.)])\s")


def is_general_remark(text: str, position: int) -> bool:
    """Return whether the sentence at a position is a general remark: complete, present tense, about nobody named.

    A list line is none, nor is a sentence in the past tense or with a first person.
    """
    starts = [index + len(mark) for mark in (". ", "! ", "? ", "\n") if (index := text.rfind(mark, 0, position)) >= 0]
    start = max(starts, default=0)
    ends = [index for mark in ".!?\n" if (index := _sentence_end(text, mark, position)) >= 0]
    end = min(ends, default=len(text))
    if end == len(text) or text[end] == "\n" or _LIST_LINE.match(text, start) or not text[start : start + 1].isupper():
        return False
    statement = _OPINION.sub("", text[start:end])
    if _PERSON.search(statement):
        return False
    return bool(_ANYBODY.match(statement)) or not _PAST.search(_INNER.sub("", statement))


def acts_alone(text: str, start: int, end: int) -> bool:
    """Return whether a name opens its sentence as the subject of a verb: 'Statistics tell me what people want'."""
    before = text[:start].rstrip(" ")
    return (not before or before[-1] in ".!?\n") and bool(_ACTING_VERB.match(text, end))


def _sentence_end(text: str, mark: str, position: int) -> int:
    """Return the first `mark` after a position that ends a sentence; the point in '4.5' does not."""
    index = text.find(mark, position)
    while index >= 0 and mark == "." and text[index + 1 : index + 2].isdigit():
        index = text.find(mark, index + 1)
    return index
