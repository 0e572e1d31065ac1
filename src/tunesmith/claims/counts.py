"""Extracts numbers that reports state without a numeral ('a steal', 'second on the team') and what numerals count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.claims.amounts import STOP_WORDS
from tunesmith.claims.claim import Claim, Quantity
from tunesmith.claims.fold import WORD, fold, split_words
from tunesmith.claims.phrases import PhraseMatch, ReportOptions

ORDINALS = {
    name: value
    for value, name in enumerate(
        split_words("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"), start=1
    )
}
RANK = "rank"  # unit of an ordinal, so that 'second' is not 2
_ORDINAL = re.compile(
    rf"\b(?P<rank>(?:{'|'.join(ORDINALS)})|\d{{1,3}}(?:st|nd|rd|th))(?P<noun>(?:\s+(?:on|in|for|of|among))?"
    r"(?:\s+(?:the|his|her|its|their|all))?\s+[a-z]+)",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\b(?P<article>an?)\s+(?P<noun>[a-z]+)\b(?!-)(?=(?P<next>\W*\w*))", re.IGNORECASE)
_CLAUSE = re.compile(r"[.;:()]|,\s(?!in\b|from\b)")
PHRASE_WINDOW = 50  # characters after a number in which a phrase may say what it counts


def find_article_counts(text: str, report: ReportOptions) -> Iterator[Claim]:
    """Yield 'a steal' as one steal if the fields count steals and no compound follows ('a point guard')."""
    for match in _ARTICLE.finditer(text):
        following = match["next"].strip().lower()
        alone = not following or not following[0].isalpha() or following in STOP_WORDS
        if alone and fold(match["noun"]) in report.nouns:
            start, end = match.span("article")
            yield Claim("number", start, end, text[start:end], Quantity(1, 1, nouns=frozenset({fold(match["noun"])})))


def find_ordinals(text: str) -> Iterator[Claim]:
    """Yield ranks: 'second on the team', '2nd on the team'."""
    for match in _ORDINAL.finditer(text):
        start, end = match.span("rank")
        rank = match["rank"].lower()
        value = float(ORDINALS.get(rank) or int(rank[:-2]))
        nouns = frozenset({fold(match["noun"].split()[-1])})
        yield Claim("number", start, end, text[start:end], Quantity(value, value, unit=RANK, nouns=nouns))


def add_phrase_nouns(text: str, claims: Sequence[Claim], phrases: Sequence[PhraseMatch]) -> Iterator[Claim]:
    """Yield the claims with the meaning of the phrases around them: '7-12 from the field' counts field goals.

    A phrase belongs to the number before it, up to the next number or the end of the clause. A number that counts
    nothing takes the last phrase before it in its sentence.
    """
    for index, claim in enumerate(claims):
        if not isinstance(claim.value, Quantity) or claim.value.unit:
            yield claim
            continue
        until = min([claim.end + PHRASE_WINDOW, *(following.start for following in claims[index + 1 : index + 2])])
        if stop := _CLAUSE.search(text, claim.end, until):
            until = stop.start()
        nouns = claim.value.nouns
        nearby = [phrase for phrase in phrases if claim.end <= phrase.start < until]
        if not nearby and not nouns and text[claim.start - 1 : claim.start] != "(":
            since = max(text.rfind(". ", 0, claim.start), claims[index - 1].end if index else 0)
            nearby = [phrase for phrase in phrases if since <= phrase.start and phrase.end <= claim.start][-1:]
        for phrase in nearby:
            replaced = {fold(word) for word in WORD.findall(text[phrase.start : phrase.end])}
            nouns = (nouns - replaced) | phrase.nouns
        yield replace(claim, value=replace(claim.value, nouns=nouns))
