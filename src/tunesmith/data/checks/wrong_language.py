"""Answers in another script or language than most of the data.

Why it hurts: a few rows in another language make a model switch language in the middle of a talk.

Example: a German letter among 240 English ones.

What to do: translate or set aside (quarantine). Where several languages are meant, leave this check out; `language`
and `script` fix what is expected. Told apart are English, German, French, Spanish, Italian, Portuguese, Dutch and
Polish, and the scripts of others. An answer in the language of its question, or after a question that names one, is
left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from tunesmith.data import defects
from tunesmith.data.checks._damage import damage
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal

SCOPE = "row"
_NAMES_ONE = re.compile(  # 'Translate …', 'in French'
    r"(?i:\btranslat\w+|\blanguages?\b)|\b(?:German|French|Spanish|Italian|Portuguese|Dutch|Polish|English|Latin|Russian"
    r"|Chinese|Japanese|Korean|Arabic|Hindi|Greek|Turkish|Swedish|Hebrew|Mandarin)\b"
)


def look(
    rows: Sequence[Conversation],
    context: Context,
    *,
    language: str | None = None,
    script: str | None = None,
    do: Proposal | None = None,
) -> Iterator[Finding]:
    """Answers of 20 letters or more whose script or language is not the expected one."""
    own = context.language
    kind = partial(
        defects.wrong_language,
        script=own.script if script is None else script,
        language=own.code if language is None else language,
    )
    for row in rows:
        for finding in damage("wrong_language", [row], kind, do):
            if not _meant(row, finding.turn, own.script):
                yield finding


def _meant(row: Conversation, place: int, usual: str) -> bool:
    """Whether the question is in the language of the answer at `place`, or a turn before asks for a language."""
    before = [turn.text for turn in row.turns[:place] if turn.role != "assistant"]
    if any(_NAMES_ONE.search(text.lstrip().split("\n", 1)[0]) for text in before):  # below may stand fields with skills
        return True
    said = defects.Language.judged(row.turns[place].text)
    if said and said.script != usual:
        return said.holds(before[-1])  # it may be too short to judge
    return bool(said and said.code and defects.Language.judged(before[-1]) == said)
