"""Draws claims from prose: every kind's finder, overlaps settled, from left to right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain

from tunesmith.claims.abilities import abilities
from tunesmith.claims.amounts import dates, quantities
from tunesmith.claims.claim import Claim
from tunesmith.claims.counts import articles, named, ordinals
from tunesmith.claims.degrees import degrees
from tunesmith.claims.fold import words
from tunesmith.claims.people import employers, names, titles
from tunesmith.claims.phrases import Report
from tunesmith.claims.proper import proper
from tunesmith.claims.skills import vocabulary
from tunesmith.claims.workplaces import workplaces

FIRST_PERSON = re.compile(r"\bI\b|\b[Mm]y\b")  # somebody speaks of himself: the text is read as a letter
_BULLETS = frozenset("-*•–")
_MARKED = re.compile(r"\d{1,2}[.)]\s")
_RANK = {"name": 0, "degree": 1, "employer": 2, "organisation": 3, "title": 4, "skill": 6}  # others: 5


def extract(
    text: str,
    skills: Iterable[str] = (),
    organisations: Iterable[str] = (),
    report: Report | None = None,
    field: bool = False,
) -> list[Claim]:
    """The claims of a text, in order, none overlapping another.

    `skills` and `organisations` are phrases to know beside the built-in words. Where two kinds claim the same
    characters the more particular one stays: a degree's subject is no skill, a school class's 4 is no number.
    A text with an 'I' or 'my' in it is read as a letter, unless it is a `field`: employers and skills that no list
    names count where the words around them make them so. A field has no letterhead.
    With `report` the text is read as a report; if that asks for names, degrees, titles and employers are names too.
    """
    said = report.phrases.find(text) if report else []
    stated = [
        *([] if field else names(text)),
        *degrees(text),
        *employers(text),
        *mentions(text, organisations),
        *titles(text),
    ]
    if report and report.names:
        stated = [
            each for each in proper(text) if not _hit(each, [(one.start, one.end) for one in said])
        ]  # a report states names, no degrees, titles or employers
    known = vocabulary(frozenset(skills))
    letter = not (report or field) and bool(FIRST_PERSON.search(text))
    if letter:
        stated += workplaces(text, stated, known)
    kept = _settle(stated)
    taken = [(each.start, each.end) for each in kept]
    when = [each for each in dates(text) if not _hit(each, taken)]
    head = [] if field else letterhead(text)
    spans = taken + [(each.start, each.end) for each in when] + head
    inside = [(each.start, each.end) for each in said]  # the 3 of '3-point range' counts nothing
    amounts = [
        each for each in quantities(text, spans + inside, bool(report and report.scores)) if not _hit(each, spans)
    ]
    if report:
        ranks = [each for each in ordinals(text) if report.scores and not _hit(each, inside)]
        counted = sorted([*amounts, *articles(text, report), *ranks], key=lambda each: each.start)
        amounts = [each for each in named(text, counted, said) if not _hit(each, spans)]
    when = [each for each in when if not any(a <= each.start < b for a, b in head)]
    settled = _settle(chain(kept, when, amounts, known.find(text)))
    if letter:
        told = abilities(text, [each for each in settled if each.kind == "skill"])
        spans = [(each.start, each.end) for each in settled]
        settled += [each for each in told if not _hit(each, spans)]
    return sorted(settled, key=lambda each: each.start)


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
        listed = bare[:1] in _BULLETS or _MARKED.match(bare)
        short = not listed and 0 < len(bare) < 50 and len(bare.split()) <= 6 and bare[-1] not in ".!?"
        if short and any(mark.isdigit() for mark in bare):
            spans.append((at, at + len(line)))
        at += len(line) + 1
    return spans if len(spans) < text.count("\n") else []  # a text of such lines only is a list, not a letter


def _hit(claim: Claim, spans: Iterable[tuple[int, int]]) -> bool:
    first, last = claim.start, claim.end
    return any([first < end and start < last for start, end in spans])  # noqa: C419  a generator takes twice as long


def _settle(claims: Iterable[Claim]) -> list[Claim]:
    """The claims without those that overlap a more particular or longer one."""
    kept: list[Claim] = []
    spans: list[tuple[int, int]] = []
    for each in sorted(claims, key=lambda one: (_RANK.get(one.kind, 5), one.start - one.end, one.start)):
        if not _hit(each, spans):
            kept.append(each)
            spans.append((each.start, each.end))
    return kept
