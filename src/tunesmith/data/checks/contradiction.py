"""Answers to one prompt that contradict each other: different numbers, yes against no, different facts of one form.

Why it hurts: each of the two answers counts as an error against the other, so the model learns to guess. Different
wordings of one answer are not a contradiction, and several answers to an open question are reported but kept.

Example: "How long is the trial?" answered "14 days" in one row and "30 days" in another; two letters from the same
fields, one of which mentions none of them.

What to do: find out which is right. Rows that contradict each other are quarantined, because none of them
can be trusted. A prompt with more than four different answers is an open question; one note counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.claims.match import check_claims
from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import (
    CheckContext,
    Finding,
    Proposal,
    answer_turn,
    form_values,
    prompt_key,
    row_finding,
    span_finding,
    table_finding,
)

SCOPE = "table"
MIN_WORDS = 6  # words: a shorter answer is a value, and a different value is a different answer
MAX_ANSWERS = 4  # different answers to one prompt: a prompt with more is an open question
SIMILARITY = 0.5  # Jaccard similarity of the words of two sentences that differ in a number only
MIN_FACTS = 8  # words of the form that an answer uses: fewer prove nothing
MIN_SHARED = 0.5  # of the form's words in the fuller answer: answers from one form share more
_WORD = re.compile(r"[^\W_]{3,}")
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?=\S)[^.!?\n]+)*")
_ASIAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_OPEN_QUESTION = re.compile(r"\W*(?:what|which|who|whom|whose|when|where|why|how)\b", re.IGNORECASE)
_YES = re.compile(r"\W*(?:yes|yeah|yep|sure|of course|correct|true)\b", re.IGNORECASE)
_NO = re.compile(r"\W*(?:no|nope|false|incorrect|never)\b", re.IGNORECASE)


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal = "quarantine"
) -> Iterator[Finding]:
    """Yields rows that share a prompt and system message and whose answers contradict each other, naming both."""
    open_counts = [0, 0]
    for indices in _same_prompt(rows):
        members = [row for index in indices if (row := rows[index]).answer.strip()]
        texts = [normalize(row.answer) for row in members]
        different = len(set(texts))
        if different > MAX_ANSWERS:
            open_counts[0] += 1
            open_counts[1] += len(members)
            continue
        reported = False
        for row, text in zip(members, texts, strict=True):
            different_rows = [
                candidate for candidate, candidate_text in zip(members, texts, strict=True) if candidate_text != text
            ]
            for candidate in different_rows[:8]:  # more add nothing, and a prompt may occur a thousand times
                if conflict := _disagreement(row, candidate):
                    reason, span = conflict
                    yield span_finding("contradiction", row, answer_turn(row), span, f"{reason} {candidate.origin}", do)
                    reported = True
                    break
        if not reported and different > 1:
            message = f"one of {different} different answers to one prompt"
            yield from (row_finding("contradiction", row, message, "keep") for row in members[1:])
    if open_counts[0]:
        message = f"{open_counts[0]} prompts have more than {MAX_ANSWERS} different answers each, {open_counts[1]} rows"
        yield table_finding("contradiction", f"{message}: open questions")


def _same_prompt(rows: Sequence[Conversation]) -> list[list[int]]:
    """The indices of rows that share a prompt, in groups of two or more."""
    indices: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        indices.setdefault(
            hash((row.turns[0].text if row.turns[0].role == "system" else "", prompt_key(row))), []
        ).append(index)
    return [group for group in indices.values() if len(group) > 1]


def _disagreement(row: Conversation, second_row: Conversation) -> tuple[str, tuple[int, int]] | None:
    """Why two answers to one prompt cannot both be right, and the span of the first that shows it."""
    answer, second_answer = row.answer, second_row.answer
    opposite = (_YES.match(answer) and _NO.match(second_answer)) or (_NO.match(answer) and _YES.match(second_answer))
    if opposite and not _OPEN_QUESTION.match(row.question):
        return "says the opposite of", (0, len(answer.split(maxsplit=1)[0]))
    if max(_length(answer), _length(second_answer)) < MIN_WORDS and not _one_contains_other(answer, second_answer):
        return "differs from the answer of", (0, len(answer))
    if _different_facts(row.question, answer, second_answer):
        return "uses other facts of the form than", (0, len(answer))
    for claim in check_claims(answer, {"answer": second_answer}, about="both"):
        if claim.verdict == "contradicted" and _same_wording(answer, claim.claim.start, claim.claim.end, second_answer):
            return f"says '{claim.claim.text}', unlike", (claim.claim.start, claim.claim.end)
    return None


def _length(answer: str) -> float:
    """The number of words; a character of a script without spaces counts as half a word."""
    return len(answer.split()) + len(_ASIAN.findall(answer)) / 2


def _different_facts(question: str, answer: str, second: str) -> bool:
    """Whether two answers from one form share little of the form's words that the fuller one uses."""
    form_words = {word for value in form_values(question) for word in _WORD.findall(value.casefold())}
    first_words, second_words = (form_words.intersection(_WORD.findall(text.casefold())) for text in (answer, second))
    fuller = max(len(first_words), len(second_words))
    return fuller >= MIN_FACTS and len(first_words & second_words) < MIN_SHARED * fuller


def _same_wording(answer: str, start: int, end: int, second: str) -> bool:
    """Whether a sentence of `second` has most words of the sentence around the claim, the claim itself excluded."""
    context = next((match for match in _SENTENCE.finditer(answer) if match.start() <= start < match.end()), None)
    if context is None:
        return False
    context_words = set(normalize(answer[context.start() : start] + " " + answer[end : context.end()]).split())
    for sentence in _SENTENCE.findall(second):
        words = set(normalize(sentence).split())
        union = len(context_words | words) - 1  # minus the other sentence's number
        if len(context_words & words) >= SIMILARITY * union:
            return True
    return False


def _one_contains_other(answer: str, second: str) -> bool:
    """Whether all words of one short answer are in the other."""
    first_words, second_words = set(normalize(answer).split()), set(normalize(second).split())
    return first_words <= second_words or second_words <= first_words
