"""Draws claims from prose: every kind's finder, overlaps settled, from left to right."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from tunesmith.claims.amounts import dates, quantities
from tunesmith.claims.claim import Claim
from tunesmith.claims.degrees import degrees
from tunesmith.claims.fold import words
from tunesmith.claims.people import employers, names, titles
from tunesmith.claims.skills import vocabulary

_RANK = {"name": 0, "degree": 1, "employer": 2, "organisation": 3, "title": 4, "skill": 6}  # others: 5


def extract(text: str, skills: Iterable[str] = (), organisations: Iterable[str] = ()) -> list[Claim]:
    """The claims of a text, in order, none overlapping another.

    `skills` and `organisations` are phrases to know beside the built-in words. Where two kinds claim the same
    characters the more particular one stays: a degree's subject is no skill, a school class's 4 is no number.
    """
    named = [*names(text), *degrees(text), *employers(text), *mentions(text, organisations), *titles(text)]
    kept = _settle(named)
    taken = [(each.start, each.end) for each in kept]
    when = [each for each in dates(text) if not _hit(each, taken)]
    spans = taken + [(each.start, each.end) for each in when] + letterhead(text)
    amounts = [each for each in quantities(text, spans) if not _hit(each, spans)]
    when = [each for each in when if not any(a <= each.start < b for a, b in letterhead(text))]
    known = vocabulary(frozenset(skills)).find(text)
    return sorted(_settle(chain(kept, when, amounts, known)), key=lambda each: each.start)


def mentions(text: str, organisations: Iterable[str]) -> Iterable[Claim]:
    """Names of known organisations wherever they stand."""
    for name in organisations:
        at = text.find(name)
        while at >= 0:
            if not text[at - 1 : at].isalnum() and not text[at + len(name) : at + len(name) + 1].isalnum():
                yield Claim("employer", at, at + len(name), name, words(name))
            at = text.find(name, at + len(name))


def letterhead(text: str) -> list[tuple[int, int]]:
    """Lines of addresses, telephone numbers and the letter's own date: short lines without a sentence."""
    spans, at = [], 0
    for line in text.split("\n"):
        bare = line.strip()
        short = 0 < len(bare) < 50 and len(bare.split()) <= 6 and bare[-1] not in ".!?"
        if short and any(mark.isdigit() for mark in bare):
            spans.append((at, at + len(line)))
        at += len(line) + 1
    return spans if len(spans) < text.count("\n") else []  # a text of such lines only is a list, not a letter


def _hit(claim: Claim, spans: Iterable[tuple[int, int]]) -> bool:
    return any(claim.start < end and start < claim.end for start, end in spans)


def _settle(claims: Iterable[Claim]) -> list[Claim]:
    """The claims without those that overlap a more particular or longer one."""
    kept: list[Claim] = []
    for each in sorted(claims, key=lambda one: (_RANK.get(one.kind, 5), one.start - one.end, one.start)):
        if not _hit(each, [(one.start, one.end) for one in kept]):
            kept.append(each)
    return kept
