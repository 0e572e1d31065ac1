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

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Finding, Proposal, defect_findings, make_defect
from tunesmith.data.language import READ, STOP_WORD_VOTES, WORD, Language, mask, stop_word_votes

SCOPE = "row"
_NAMES_A_LANGUAGE = re.compile(  # 'Translate …', 'in French'
    r"(?i:\btranslat\w+|\blanguages?\b)|\b(?:German|French|Spanish|Italian|Portuguese|Dutch|Polish|English|Latin|Russian"
    r"|Chinese|Japanese|Korean|Arabic|Hindi|Greek|Turkish|Swedish|Hebrew|Mandarin)\b"
)
_PROSE = re.compile(r"[^\W\d_]{2,} [^\W\d_]{2,} [^\W\d_]{2,}[^.!?\n]{0,200}[.!?]")
_MIN_PARAGRAPH = 60  # characters: a shorter paragraph is not judged alone
_MIN_SHARE = 0.3  # of the letters: less in another language is a quotation


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
    detect_foreign = partial(
        detect,
        script=usual.script if script is None else script,
        language=usual.code if language is None else language,
    )
    for row in rows:
        for finding in defect_findings("wrong_language", [row], detect_foreign, do):
            if not _is_intended(row, finding.turn, usual.script):
                yield finding


def _is_intended(row: Conversation, turn_index: int, usual_script: str) -> bool:
    """Whether the question is in the language of the answer at `turn_index`, or a turn before asks for a language."""
    questions = [turn.text for turn in row.turns[:turn_index] if turn.role != "assistant"]
    # the first line only: the next ones may be fields, such as skills
    if any(_NAMES_A_LANGUAGE.search(text.lstrip().split("\n", 1)[0]) for text in questions):
        return True
    answer_language = Language.detect(row.turns[turn_index].text)
    if answer_language and answer_language.script != usual_script:
        return answer_language.contains_script(questions[-1])  # the question may be too short to judge
    return bool(answer_language and answer_language.code and Language.detect(questions[-1]) == answer_language)


def detect(text: str, *, script: str = "Latin", language: str = "en") -> Iterator[Defect]:
    """Yields a text, or paragraphs of it, in another script or language than `Language.of` the data set.

    Paragraphs count if they have three tenths of the letters. Languages are English, German, French, Spanish, Italian,
    Portuguese, Dutch and Polish; prose in another one is recognized by its accents and the lack of stop words. A text
    of fewer than 20 letters is not judged.
    """
    detected = Language.detect(text)
    if detected is None:
        return
    if detected.script != script:
        yield make_defect("wrong_language", text, 0, len(text), f"written in {detected.script}, not {script}")
    elif language and detected.code and detected.code != language:
        yield make_defect("wrong_language", text, 0, len(text), f"reads as '{detected.code}', not '{language}'")
    elif language and not detected.code and _foreign(text, language):
        yield make_defect("wrong_language", text, 0, len(text), f"does not read as '{language}'")
    elif language and "\n" in text and (part := _foreign_paragraphs(text, language)):
        start, end, code = part
        yield make_defect("wrong_language", text, start, end, f"continues as '{code}', not '{language}'")


def _foreign_paragraphs(text: str, language: str) -> tuple[int, int, str] | None:
    """The start, end and language code of the paragraphs in another language; None if they are too few."""
    votes = stop_word_votes(WORD.findall(text[:READ].lower()))
    if all(count < 6 for code, count in votes.items() if code != language):
        return None
    parts, letters, start = [], 0, 0
    for paragraph in text[:READ].split("\n"):
        detected = Language.detect(paragraph) if len(paragraph) >= _MIN_PARAGRAPH else None
        if detected and detected.code and detected.code != language:
            parts.append((start, start + len(paragraph), detected.code))
            letters += len(paragraph)
        start += len(paragraph) + 1
    if not parts or letters < _MIN_SHARE * min(len(text), READ):
        return None
    return parts[0][0], parts[-1][1], parts[0][2]


def _foreign(text: str, language: str) -> bool:
    """Whether prose of 20 or more words has almost no stop words of `language`, but words with accents."""
    part = mask(text[:READ])
    if part.isascii() or not _PROSE.search(part):
        return False
    words = WORD.findall(part)
    accented = sum(not word.isascii() for word in words)
    usual = sum(language in STOP_WORD_VOTES.get(word.lower(), ()) for word in words)
    small = sum(map(str.islower, words))
    return len(words) >= 20 and small >= 0.7 * len(words) and accented >= 0.1 * len(words) and usual < 0.08 * len(words)
