"""Extracts the claims of a text, from left to right and without overlaps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain

from tunesmith.claims.abilities import find_abilities
from tunesmith.claims.amounts import find_dates, find_quantities
from tunesmith.claims.claim import Claim
from tunesmith.claims.counts import add_phrase_nouns, find_article_counts, find_ordinals
from tunesmith.claims.degrees import find_degrees
from tunesmith.claims.fold import words
from tunesmith.claims.people import find_employers, find_people, find_titles
from tunesmith.claims.phrases import ReportOptions
from tunesmith.claims.proper import find_proper_names
from tunesmith.claims.skills import load_vocabulary
from tunesmith.claims.workplaces import find_workplaces

FIRST_PERSON = re.compile(r"\bI\b|\b[Mm]y\b")  # a text with one of these is read as a letter
_BULLETS = frozenset("-*•–")
_NUMBERED = re.compile(r"\d{1,2}[.)]\s")
_PRIORITY = {"name": 0, "degree": 1, "employer": 2, "organisation": 3, "title": 4, "skill": 6}  # others: 5


def extract(
    text: str,
    skills: Iterable[str] = (),
    organizations: Iterable[str] = (),
    report: ReportOptions | None = None,
    field: bool = False,
) -> list[Claim]:
    """Return the claims of a text in order, without overlaps.

    `skills` and `organizations` are phrases to find in addition to the built-in words. If two claims overlap, the more
    specific kind wins: a degree's subject is no skill, the 4 of a school class is no number. A text with 'I' or 'my' is
    read as a letter: employers and skills that no list names are found by their context. Pass `field` for the text of a
    field, which is never read as a letter and has no letterhead. Pass `report` to read the text as a report; if it asks
    for names, they replace degrees, titles and employers.
    """
    phrases = report.phrases.find(text) if report else []
    phrase_spans = [(phrase.start, phrase.end) for phrase in phrases]  # the 3 of '3-point range' counts nothing
    stated = [
        *([] if field else find_people(text)),
        *find_degrees(text),
        *find_employers(text),
        *find_mentions(text, organizations),
        *find_titles(text),
    ]
    if report and report.names:
        stated = [
            claim for claim in find_proper_names(text) if not _overlaps(claim, phrase_spans)
        ]  # names replace degrees, titles and employers
    skill_vocabulary = load_vocabulary(frozenset(skills))
    letter = not (report or field) and bool(FIRST_PERSON.search(text))
    if letter:
        stated += find_workplaces(text, stated, skill_vocabulary)
    named_claims = _drop_overlaps(stated)
    named_spans = [(claim.start, claim.end) for claim in named_claims]
    date_claims = [claim for claim in find_dates(text) if not _overlaps(claim, named_spans)]
    head_spans = [] if field else letterhead_spans(text)
    spans = named_spans + [(claim.start, claim.end) for claim in date_claims] + head_spans
    amounts = [
        claim
        for claim in find_quantities(text, spans + phrase_spans, bool(report and report.scores))
        if not _overlaps(claim, spans)
    ]
    if report:
        ranks = [claim for claim in find_ordinals(text) if report.scores and not _overlaps(claim, phrase_spans)]
        counted = sorted([*amounts, *find_article_counts(text, report), *ranks], key=lambda claim: claim.start)
        amounts = [claim for claim in add_phrase_nouns(text, counted, phrases) if not _overlaps(claim, spans)]
    date_claims = [claim for claim in date_claims if not any(a <= claim.start < b for a, b in head_spans)]
    settled = _drop_overlaps(chain(named_claims, date_claims, amounts, skill_vocabulary.find(text)))
    if letter:
        ability_claims = find_abilities(text, [claim for claim in settled if claim.kind == "skill"])
        spans = [(claim.start, claim.end) for claim in settled]
        settled += [claim for claim in ability_claims if not _overlaps(claim, spans)]
    return sorted(settled, key=lambda claim: claim.start)


def find_mentions(text: str, organizations: Iterable[str]) -> Iterable[Claim]:
    """Yield known organizations wherever the text names them."""
    for name in organizations:
        start = text.find(name)
        while start >= 0:
            if not text[start - 1 : start].isalnum() and not text[start + len(name) : start + len(name) + 1].isalnum():
                yield Claim("employer", start, start + len(name), name, words(name))
            start = text.find(name, start + len(name))


def letterhead_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans of addresses, telephone numbers and the letter's own date: short lines without a sentence."""
    spans, start = [], 0
    for line in text.split("\n"):
        stripped = line.strip()
        is_item = stripped[:1] in _BULLETS or _NUMBERED.match(stripped)
        is_short = not is_item and 0 < len(stripped) < 50 and len(stripped.split()) <= 6 and stripped[-1] not in ".!?"
        if is_short and any(char.isdigit() for char in stripped):
            spans.append((start, start + len(line)))
        start += len(line) + 1
    return spans if len(spans) < text.count("\n") else []  # a text with such lines only is a list, not a letter


def _overlaps(claim: Claim, spans: Iterable[tuple[int, int]]) -> bool:
    first, last = claim.start, claim.end
    return any([first < end and start < last for start, end in spans])  # noqa: C419  a generator takes twice as long


def _drop_overlaps(claims: Iterable[Claim]) -> list[Claim]:
    """Return the claims without those that overlap a more specific or longer one."""
    settled: list[Claim] = []
    spans: list[tuple[int, int]] = []
    for claim in sorted(claims, key=lambda claim: (_PRIORITY.get(claim.kind, 5), claim.start - claim.end, claim.start)):
        if not _overlaps(claim, spans):
            settled.append(claim)
            spans.append((claim.start, claim.end))
    return settled
