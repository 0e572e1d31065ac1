"""Masks code inside a text, so that nothing in it counts as a defect."""

from __future__ import annotations

import re
from functools import lru_cache

HIDDEN = "\ue000"  # private use: not a letter, a space, or anything that a pattern here matches
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,400}`", re.DOTALL)
_TAGS = re.compile(r"<[^<>]{1,300}>")
MENTIONS_CODE = re.compile(
    r"(?<!/)\b(?:HTML5?|XML|CSS|JavaScript|JSX|markup)\b|<!DOCTYPE|<(?:html|body|head|script|style)\b", re.IGNORECASE
)
_SIGNS_OF_CODE = re.compile(
    r"^[ \t]*(?:def \w+\(|class \w+[:({]|import \w+|from \w+ import |#include|public |private |(?<=[ \t])return "
    r"|function \w*\(|elif |print\(|(?:var|let|const) \w+ ?=|(?:if|for|while) ?\([^\n]*\{"
    r"|SELECT\b|INSERT INTO|CREATE TABLE|</?(?!(?:br|p|hr)\b)[a-z]+[^>\n]{0,80}>$"
    r"|[\w.]+ = [\w\"'\[{(])|[;{}][ \t]*$|\w\([^()\n]{0,60}\)[;:][ \t]*$|=> ?\{|\w\[\w+\] ?=",
    re.MULTILINE,
)


@lru_cache(maxsize=4)  # the detectors run on one text after the other
def mask(text: str) -> str:
    """The text with its code, line ends included, replaced by `HIDDEN`; all positions stay the same."""
    if _is_code(text):
        return HIDDEN * len(text)
    if "`" not in text and "~~~" not in text:
        return text
    return _CODE.sub(lambda code: HIDDEN * len(code[0]), text)


def _is_code(text: str) -> bool:
    """Whether the whole text is code: JSON, markup from end to end, or a third of its lines look like code."""
    bare = text.strip()
    if bare[:1] + bare[-1:] == "<>" and len(_TAGS.sub("", bare)) > 0.6 * len(bare) and not MENTIONS_CODE.search(bare):
        return False  # the prose of a web page
    if bare[:1] + bare[-1:] in ("{}", "[]", "<>") and len(bare) > 40:
        return not (bare.startswith("{{") and bare.endswith("}}") and "\n" not in bare)
    signs = sum(1 for _ in _SIGNS_OF_CODE.finditer(text))
    return signs >= 2 and signs * 3 >= 1 + sum(1 for line in text.split("\n") if line.strip())


def line_end(text: str, position: int) -> int:
    """The index of the end of the line that contains `position`."""
    end = text.find("\n", position)
    return len(text) if end < 0 else end
