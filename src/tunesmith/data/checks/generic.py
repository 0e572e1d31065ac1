"""Answers that would fit any other row: a template that many rows share, or a text that uses nothing of its input.

Why it hurts: the model learns that the input does not matter, and writes the template for everyone.

Example: ten applicants, ten jobs, one letter: "I am excited to apply for this position at your esteemed company …"

What to do: write real answers, or quarantine the rows. If most rows have one of several canonical answers,
which answer many prompts on purpose, their copies do not count as a template (`repeated_answer` reports them).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import (
    CheckContext,
    Finding,
    Proposal,
    answer_turn,
    dialog_text,
    form_values,
    prompt_key,
    span_finding,
)

SCOPE = "table"
MIN_WORDS = 6  # words: shorter sentences (a greeting, a thank-you) may be shared
SHARED = 3  # prompts: a sentence in the answers to more different prompts belongs to a template
TEMPLATE = 20  # words in such sentences: fewer are a phrase
RARE = 0.05  # of the prompts: a word in more of them belongs to the form, not to the row
MIN_ROWS = 25  # rows: with fewer, 'rare' and 'usual' mean nothing
CANONICAL = 0.5  # of the rows: if more share their answer with many prompts, such answers are intended
MIN_CANONICAL = 5  # different canonical answers: a single one is a template
MIN_USED = 6  # distinctive words of a form in the median answer: with this many, answers are written from the form
FEW_USED = 0.15  # of the median answer's number of distinctive words
DATA = 0.8  # of a prompt's words are distinctive: it is a list of values
_SENTENCE = re.compile(r"[^.!?\n]+")
_WORD = re.compile(r"[^\W_]{3,}")


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, shared: float = 0.6, do: Proposal = "quarantine"
) -> Iterator[Finding]:
    """Yields answers whose words are, by a share of `shared` or more, in sentences that answer other prompts too.

    Also yields answers of usual length with almost none of the prompt's distinctive words, in data whose other answers
    use them.
    """
    template_shares = _template_share(rows)
    unrelated = _unrelated(rows)
    for row, template_share, is_unrelated in zip(rows, template_shares, unrelated, strict=True):
        whole = (0, len(row.answer))
        if template_share >= shared:
            message = f"{template_share:.0%} of it is also in the answers to {SHARED} or more other prompts"
            yield span_finding("generic", row, answer_turn(row), whole, message, do)
        elif is_unrelated:
            yield span_finding("generic", row, answer_turn(row), whole, "uses nothing of its own input", do)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """The hash and the number of words of each sentence of at least `LONG` words."""
    for match in _SENTENCE.finditer(text):
        words = normalize(match[0]).split()
        if len(words) >= MIN_WORDS:
            digest = hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()
            yield int.from_bytes(digest, "big"), len(words)


def _template_share(rows: Sequence[Conversation]) -> list[float]:
    """For each row, the share of its answer's words in sentences that also answer `SHARED` or more other prompts."""
    canonical = _canonical(rows)
    sources: dict[int, set[int]] = {}
    for row in rows:
        source = hash(normalize(row.answer)) if canonical else hash(prompt_key(row))
        for sentence, _ in _sentences(row.answer):
            sentence_sources = sources.setdefault(sentence, set())
            if len(sentence_sources) <= SHARED:
                sentence_sources.add(source)
    common = {sentence for sentence, sentence_sources in sources.items() if len(sentence_sources) > SHARED}
    del sources
    shares = []
    for row in rows:
        shared_words = sum(words for sentence, words in _sentences(row.answer) if sentence in common) if common else 0
        shares.append(shared_words / len(normalize(row.answer).split()) if shared_words >= TEMPLATE else 0.0)
    return shares


def _canonical(rows: Sequence[Conversation]) -> bool:
    """Whether several answers, each of more than `SHARED` rows, make up half of the table."""
    repeated_counts = [
        count for count in Counter(hash(normalize(row.answer)) for row in rows).values() if count > SHARED
    ]
    return len(repeated_counts) >= MIN_CANONICAL and sum(repeated_counts) >= CANONICAL * len(rows)


def _unrelated(rows: Sequence[Conversation]) -> list[bool]:
    """For each row, whether its answer has almost none of its prompt's distinctive words although answers usually do.

    A word is distinctive if at most a share `RARE` of the prompts contain it. Answers usually have such words if most
    prompts are forms of named values, four of five answers to prompts with three distinctive words have one, and the
    median answer has `TAKEN` (two if the prompts are values and nothing else). Answers with less than half the median
    number of words are not judged, because a number may be the right answer.
    """
    none_flagged = [False] * len(rows)
    if len(rows) < MIN_ROWS:
        return none_flagged
    prompt_words = [set(_words(dialog_text(row.prompt))) for row in rows]
    prompt_counts = Counter(word for words in prompt_words for word in words)
    limit = max(2, RARE * len(rows))
    used_counts = np.full(len(rows), -1)
    lengths = np.fromiter((len(row.answer.split()) for row in rows), dtype=np.int64)
    distinctive_shares = []
    for index, row in enumerate(rows):
        distinctive = {word for word in prompt_words[index] if prompt_counts[word] <= limit}
        if len(distinctive) >= 3:
            used_counts[index] = len(distinctive.intersection(_words(row.answer)))
            distinctive_shares.append(len(distinctive) / len(prompt_words[index]))
    judged_counts = used_counts[used_counts >= 0]
    if len(judged_counts) < MIN_ROWS or np.mean(judged_counts > 0) < 0.8:
        return none_flagged
    usual = float(np.median(judged_counts))
    mostly_forms = sum(bool(form_values(row.question)) for row in rows) > 0.5 * len(rows)
    if not (mostly_forms and usual >= MIN_USED) and not (np.median(distinctive_shares) >= DATA and usual >= 2):
        return none_flagged
    flagged = (used_counts >= 0) & (used_counts <= FEW_USED * usual) & (lengths >= 0.5 * np.median(lengths))
    return flagged.tolist()  # type: ignore[no-any-return]


def _words(text: str) -> list[str]:
    """The words of three or more letters, case-folded, without a plural s."""
    return [word.removesuffix("s") for word in _WORD.findall(text.casefold())]
