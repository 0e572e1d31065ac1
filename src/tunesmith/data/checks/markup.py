"""HTML tags and entities left in prose, and code fences that are never closed.

Why it hurts: a page copied with its markup teaches the model to write tags, which readers then see.

Example: "Fish &amp; chips<br>are served hot."

What to do: entities are repaired; rows with tags are quarantined, because only a person can keep what a tag
means (a list, a link). Texts about HTML are left alone.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Finding, Proposal, defect_findings, make_defect
from tunesmith.data.language import MENTIONS_CODE, line_end, mask

_TAG = re.compile(
    r"</?(?:p|br|div|span|b|i|u|em|strong|a|ul|ol|li|h[1-6]|table|tr|td|th|img|font|center|blockquote|hr|pre"
    r"|section|article|main|nav|header|footer|textarea|form|button|small|su[bp]|tbody|thead)(?:\s[^<>\n]{0,300})?/?>"
    r"|</(?:html|body|head|script|style|input|label|select|option|code)>|<!--(?:[^-\n]|-(?!->)){0,300}-->",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:amp;)*(?P<last>#\d{2,6};|#[xX][0-9a-fA-F]{2,5};|[A-Za-z]{2,10};)")
_ESCAPED_TAG = re.compile(r"&lt;[/!A-Za-z]")
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)


def detect(text: str) -> Iterator[Defect]:
    """Yields HTML tags and entities in prose, and a code fence that is never closed; no tags in a text about HTML."""
    fences = [fence.start() for fence in _FENCE.finditer(text)]
    if len(fences) % 2:
        yield make_defect("markup", text, fences[-1], line_end(text, fences[-1]), "a code fence that is never closed")
    if not ("<" in text or "&" in text) or MENTIONS_CODE.search(text) or _ESCAPED_TAG.search(text):
        return
    masked = mask(text)
    for tag in _TAG.finditer(masked):
        yield make_defect("markup", text, *tag.span(), "an HTML tag in prose")
    for entity in _ENTITY.finditer(masked):
        plain = html.unescape(f"&{entity['last']}").replace("\xa0", " ")
        if len(plain) == 1 and plain.isprintable():  # '&unknown;' stays as it is
            yield make_defect("markup", text, *entity.span(), "an HTML entity in prose", fix=plain)


SCOPE = "row"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields HTML tags and entities in prose, and unclosed code fences."""
    yield from defect_findings("markup", rows, detect, do)
