"""The same prompt with answers that contradict each other: another number, yes against no, other facts of one form.

Why it hurts: the model is punished for each of the two answers by the other, and learns to guess. Different wordings
of one answer are no contradiction, and several answers to an open question are told but kept.

Example: "How long is the trial?" answered "14 days" in one row and "30 days" in another; two letters from the same
fields, one of which says nothing of what the fields say.

What to do: find out which is right. Rows that contradict are set aside (quarantine), because none can be trusted. A
prompt with more than four different answers is an open question: one note tells how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.claims.match import check
from tunesmith.data.conversation import Conversation, normalise
from tunesmith.data.finding import (
    Context,
    Finding,
    Proposal,
    answer_turn,
    form_values,
    of_place,
    of_row,
    of_table,
    prompt_key,
)

SCOPE = "table"
SHORT = 6  # words: below it an answer is a value, and another value is another answer
OPEN = 4  # different answers to one prompt: more, and it has no one answer
ALIKE = 0.5  # Jaccard similarity of the words of two sentences that say the same thing with another number
FACTS = 8  # of the form's words that an answer takes up: fewer prove nothing
SHARED = 0.5  # of what the fuller answer takes up: answers from one form share more of it
_WORD = re.compile(r"[^\W_]{3,}")
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?=\S)[^.!?\n]+)*")
_ASIAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_OPEN_QUESTION = re.compile(r"\W*(?:what|which|who|whom|whose|when|where|why|how)\b", re.IGNORECASE)
_YES = re.compile(r"\W*(?:yes|yeah|yep|sure|of course|correct|true)\b", re.IGNORECASE)
_NO = re.compile(r"\W*(?:no|nope|false|incorrect|never)\b", re.IGNORECASE)


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal = "quarantine") -> Iterator[Finding]:
    """Rows that share a prompt (its system message too) and whose answers differ in fact; each names the other."""
    opened = [0, 0]
    for places in _same_prompt(rows):
        members = [row for place in places if (row := rows[place]).answer.strip()]
        texts = [normalise(row.answer) for row in members]
        different = len(set(texts))
        if different > OPEN:
            opened[0] += 1
            opened[1] += len(members)
            continue
        told = False
        for row, text in zip(members, texts, strict=True):
            others = [other for other, its in zip(members, texts, strict=True) if its != text]
            for other in others[:8]:  # more say nothing new, and a prompt may stand a thousand times
                if found := _disagreement(row, other):
                    why, span = found
                    yield of_place("contradiction", row, answer_turn(row), span, f"{why} {other.origin}", do)
                    told = True
                    break
        if not told and different > 1:
            message = f"one of {different} different answers to one prompt"
            yield from (of_row("contradiction", row, message, "keep") for row in members[1:])
    if opened[0]:
        message = f"{opened[0]} prompts have more than {OPEN} different answers each, {opened[1]} rows: open questions"
        yield of_table("contradiction", message)


def _same_prompt(rows: Sequence[Conversation]) -> list[list[int]]:
    """The places of rows that share a prompt, in groups of two and more."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(
            hash((row.turns[0].text if row.turns[0].role == "system" else "", prompt_key(row))), []
        ).append(place)
    return [group for group in places.values() if len(group) > 1]


def _disagreement(row: Conversation, its: Conversation) -> tuple[str, tuple[int, int]] | None:
    """Why two answers to one prompt cannot both be right, and where in the first it shows."""
    answer, other = row.answer, its.answer
    opposite = (_YES.match(answer) and _NO.match(other)) or (_NO.match(answer) and _YES.match(other))
    if opposite and not _OPEN_QUESTION.match(row.question):
        return "says the opposite of", (0, len(answer.split(maxsplit=1)[0]))
    if max(_length(answer), _length(other)) < SHORT and not _overlap(answer, other):
        return "is another answer than", (0, len(answer))
    if _other_facts(row.question, answer, other):
        return "takes up other facts of the form than", (0, len(answer))
    for claim in check(answer, {"answer": other}, about="both"):
        if claim.verdict == "contradicted" and _said_alike(answer, claim.claim.start, claim.claim.end, other):
            return f"says '{claim.claim.text}', unlike", (claim.claim.start, claim.claim.end)
    return None


def _length(answer: str) -> float:
    """Words; a sign of a script without blanks counts for half a word."""
    return len(answer.split()) + len(_ASIAN.findall(answer)) / 2


def _other_facts(question: str, answer: str, other: str) -> bool:
    """Whether two answers from one form share little of what the fuller of them takes up."""
    own = {word for value in form_values(question) for word in _WORD.findall(value.casefold())}
    one, two = (own.intersection(_WORD.findall(text.casefold())) for text in (answer, other))
    fuller = max(len(one), len(two))
    return fuller >= FACTS and len(one & two) < SHARED * fuller


def _said_alike(answer: str, start: int, end: int, other: str) -> bool:
    """Whether a sentence of `other` has most words of the one around the claim, the claim's own apart."""
    around = next((found for found in _SENTENCE.finditer(answer) if found.start() <= start < found.end()), None)
    if around is None:
        return False
    own = set(normalise(answer[around.start() : start] + " " + answer[end : around.end()]).split())
    for sentence in _SENTENCE.findall(other):
        words = set(normalise(sentence).split())
        if len(own & words) >= ALIKE * (len(own | words) - 1):  # less the other sentence's own number
            return True
    return False


def _overlap(answer: str, other: str) -> bool:
    """Whether one short answer says the other in more words."""
    one, two = set(normalise(answer).split()), set(normalise(other).split())
    return one <= two or two <= one
