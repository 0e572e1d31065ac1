"""Answers that would fit any other row: a template shared by rows, or a text that names nothing of its own input.

Why it hurts: the model learns that the input does not matter, and writes the template for everybody.

Example: ten applicants, ten jobs, one letter: "I am excited to apply for this position at your esteemed company …"

What to do: write real answers, or leave the rows aside (quarantine). Where most rows have one of several canonical
answers, which stand under many prompts on purpose, copies of them are no template (`repeated_answer` tells them).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from tunesmith.data.conversation import Conversation, normalise
from tunesmith.data.finding import Context, Finding, Proposal, answer_turn, form_values, of_place, prompt_key, spoken

SCOPE = "table"
LONG = 6  # words: shorter sentences (a greeting, a thank-you) may well be shared
SHARED = 3  # prompts: a sentence that so many different prompts' answers hold is a template's
TEMPLATE = 20  # words of such sentences: fewer are a phrase
RARE = 0.05  # of the prompts: a word in more of them is the form's, not the row's own
ENOUGH = 25  # rows: below it 'rare' and 'usual' mean nothing
CANONICAL = 0.5  # of the rows have an answer that stands under many prompts: such answers are meant
SEVERAL = 5  # different ones of them: one alone is a template
TAKEN = 6  # own words of a form that the median answer takes up: so many say that answers are written from it
LITTLE = 0.15  # of what the median answer takes up
DATA = 0.8  # of a prompt's words are its own: it is a list of values
_SENTENCE = re.compile(r"[^.!?\n]+")
_WORD = re.compile(r"[^\W_]{3,}")


def look(
    rows: Sequence[Conversation], context: Context, *, shared: float = 0.6, do: Proposal = "quarantine"
) -> Iterator[Finding]:
    """Answers of which a share of `shared` or more (in words) is sentences that other prompts' answers hold too.

    And answers of usual length with next to none of their prompt's own words, in data whose answers are written from
    them.
    """
    template = _template_share(rows)
    strange = _names_nothing(rows)
    for row, portion, unnamed in zip(rows, template, strange, strict=True):
        whole = (0, len(row.answer))
        if portion >= shared:
            message = f"{portion:.0%} of it stands in the answers to {SHARED} or more other prompts"
            yield of_place("generic", row, answer_turn(row), whole, message, do)
        elif unnamed:
            yield of_place("generic", row, answer_turn(row), whole, "names nothing of its own input", do)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Each sentence of `LONG` words or more: its hash, and its words."""
    for found in _SENTENCE.finditer(text):
        words = normalise(found[0]).split()
        if len(words) >= LONG:
            digest = hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()
            yield int.from_bytes(digest, "big"), len(words)


def _template_share(rows: Sequence[Conversation]) -> list[float]:
    """For each row, the share of its answer's words in sentences that stand in answers to `SHARED` other prompts."""
    canonical = _canonical(rows)
    holders: dict[int, set[int]] = {}
    for row in rows:
        holder = hash(normalise(row.answer)) if canonical else hash(prompt_key(row))
        for sentence, _ in _sentences(row.answer):
            seen = holders.setdefault(sentence, set())
            if len(seen) <= SHARED:
                seen.add(holder)
    common = {sentence for sentence, seen in holders.items() if len(seen) > SHARED}
    del holders
    shares = []
    for row in rows:
        held = sum(words for sentence, words in _sentences(row.answer) if sentence in common) if common else 0
        shares.append(held / len(normalise(row.answer).split()) if held >= TEMPLATE else 0.0)
    return shares


def _canonical(rows: Sequence[Conversation]) -> bool:
    """Whether several answers, each to more than `SHARED` rows, make up half of the table."""
    often = [times for times in Counter(hash(normalise(row.answer)) for row in rows).values() if times > SHARED]
    return len(often) >= SEVERAL and sum(often) >= CANONICAL * len(rows)


def _names_nothing(rows: Sequence[Conversation]) -> list[bool]:
    """For each row, whether its answer holds next to none of its prompt's own words although answers usually do.

    A prompt's own words stand in at most `RARE` of the prompts. Usual means: most prompts are forms of named values,
    four of five answers with three own words to take up have one, and the median has `TAKEN`; where prompts are values
    and nothing else, two. Answers of less than half the median answer's words are not judged: a number may be right.
    """
    nothing = [False] * len(rows)
    if len(rows) < ENOUGH:
        return nothing
    asked = [set(_words(spoken(row.prompt))) for row in rows]
    spread = Counter(word for words in asked for word in words)
    limit = max(2, RARE * len(rows))
    taken = np.full(len(rows), -1)
    lengths = np.fromiter((len(row.answer.split()) for row in rows), dtype=np.int64)
    portions = []
    for place, row in enumerate(rows):
        own = {word for word in asked[place] if spread[word] <= limit}
        if len(own) >= 3:
            taken[place] = len(own.intersection(_words(row.answer)))
            portions.append(len(own) / len(asked[place]))
    judged = taken[taken >= 0]
    if len(judged) < ENOUGH or np.mean(judged > 0) < 0.8:
        return nothing
    usual = float(np.median(judged))
    form = sum(bool(form_values(row.question)) for row in rows) > 0.5 * len(rows)
    if not (form and usual >= TAKEN) and not (np.median(portions) >= DATA and usual >= 2):
        return nothing
    few = (taken >= 0) & (taken <= LITTLE * usual) & (lengths >= 0.5 * np.median(lengths))
    return few.tolist()  # type: ignore[no-any-return]


def _words(text: str) -> list[str]:
    """Words of three letters and more, case folded, a plural's s taken off."""
    return [word.removesuffix("s") for word in _WORD.findall(text.casefold())]
