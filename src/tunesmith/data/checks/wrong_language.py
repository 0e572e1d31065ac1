"""Answers in another script or language than most of the data.

Why it hurts: a few rows in another language make a model switch languages in the middle of a conversation.

Example: a German letter among 240 English ones.

What to do: translate the answer, or let the row be quarantined. If several languages are intended, omit this
check; `language` and `script` set what is expected. It distinguishes English, German, French, Spanish, Italian,
Portuguese, Dutch and Polish, and other languages by their script. An answer in the language of its question, or after
a question that names a language, is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from tunesmith.data import defects
from tunesmith.data.checks._damage import defect_findings
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal

SCOPE = "row"
_NAMES_A_LANGUAGE = re.compile(  # 'Translate …', 'in French'
    r"(?i:\btranslat\w+|\blanguages?\b)|\b(?:German|French|Spanish|Italian|Portuguese|Dutch|Polish|English|Latin|Russian"
    r"|Chinese|Japanese|Korean|Arabic|Hindi|Greek|Turkish|Swedish|Hebrew|Mandarin)\b"
)


def find_defects(
    rows: Sequence[Conversation],
    context: CheckContext,
    *,
    language: str | None = None,
    script: str | None = None,
    do: Proposal | None = None,
) -> Iterator[Finding]:
    """Yields answers of 20 or more letters whose script or language is not the expected one."""
    usual = context.language
    detect = partial(
        defects.wrong_language,
        script=usual.script if script is None else script,
        language=usual.code if language is None else language,
    )
    for row in rows:
        for finding in defect_findings("wrong_language", [row], detect, do):
            if not _is_intended(row, finding.turn, usual.script):
                yield finding


def _is_intended(row: Conversation, turn_index: int, usual_script: str) -> bool:
    """Whether the question is in the language of the answer at `turn_index`, or a turn before asks for a language."""
    questions = [turn.text for turn in row.turns[:turn_index] if turn.role != "assistant"]
    # the first line only: the next ones may be fields, such as skills
    if any(_NAMES_A_LANGUAGE.search(text.lstrip().split("\n", 1)[0]) for text in questions):
        return True
    answer_language = defects.Language.detect(row.turns[turn_index].text)
    if answer_language and answer_language.script != usual_script:
        return answer_language.contains_script(questions[-1])  # the question may be too short to judge
    return bool(answer_language and answer_language.code and defects.Language.detect(questions[-1]) == answer_language)
