"""Code inside a text, hidden so that nothing in it is a defect."""

from __future__ import annotations

import re
from functools import lru_cache

HIDDEN = "\ue000"  # private use: no letter, no blank, no sign that an expression here looks for
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,400}`", re.DOTALL)
_TAGS = re.compile(r"<[^<>]{1,300}>")
SPEAKS_OF_CODE = re.compile(
    r"(?<!/)\b(?:HTML5?|XML|CSS|JavaScript|JSX|markup)\b|<!DOCTYPE|<(?:html|body|head|script|style)\b", re.IGNORECASE
)
_SIGNS_OF_CODE = re.compile(
    r"^[ \t]*(?:def \w+\(|class \w+[:({]|import \w+|from \w+ import |#include|public |private |(?<=[ \t])return "
    r"|function \w*\(|elif |print\(|(?:var|let|const) \w+ ?=|(?:if|for|while) ?\([^\n]*\{"
    r"|SELECT\b|INSERT INTO|CREATE TABLE|</?(?!(?:br|p|hr)\b)[a-z]+[^>\n]{0,80}>$"
    r"|[\w.]+ = [\w\"'\[{(])|[;{}][ \t]*$|\w\([^()\n]{0,60}\)[;:][ \t]*$|=> ?\{|\w\[\w+\] ?=",
    re.MULTILINE,
)


@lru_cache(maxsize=4)  # the kinds look at one text after the other
def mask(text: str) -> str:
    """The text with its code hidden, line ends too, every place as before."""
    if _is_code(text):
        return HIDDEN * len(text)
    if "`" not in text and "~~~" not in text:
        return text
    return _CODE.sub(lambda code: HIDDEN * len(code[0]), text)


def _is_code(text: str) -> bool:
    """A text that is code throughout: JSON, markup from end to end, or half its lines look like code."""
    bare = text.strip()
    if bare[:1] + bare[-1:] == "<>" and len(_TAGS.sub("", bare)) > 0.6 * len(bare) and not SPEAKS_OF_CODE.search(bare):
        return False  # prose in paragraphs of a web page
    if bare[:1] + bare[-1:] in ("{}", "[]", "<>") and len(bare) > 40:
        return not (bare.startswith("{{") and bare.endswith("}}") and "\n" not in bare)
    signs = sum(1 for _ in _SIGNS_OF_CODE.finditer(text))
    return signs >= 2 and signs * 3 >= 1 + sum(1 for line in text.split("\n") if line.strip())


def line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end
