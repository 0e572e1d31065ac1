"""Numbers that a report states without a numeral: 'a steal', 'second on the team'; and what its numerals count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.claims.amounts import STOP
from tunesmith.claims.claim import Claim, Quantity
from tunesmith.claims.fold import WORD, fold, listed
from tunesmith.claims.phrases import Report, Said

ORDINALS = {
    name: value
    for value, name in enumerate(
        listed("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"), start=1
    )
}
RANK = "rank"  # the unit of an ordinal: 'second' is no two
_ORDINAL = re.compile(
    rf"\b(?P<rank>(?:{'|'.join(ORDINALS)})|\d{{1,3}}(?:st|nd|rd|th))(?P<noun>(?:\s+(?:on|in|for|of|among))?"
    r"(?:\s+(?:the|his|her|its|their|all))?\s+[a-z]+)",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\b(?P<article>an?)\s+(?P<noun>[a-z]+)\b(?!-)(?=(?P<next>\W*\w*))", re.IGNORECASE)
_CLAUSE = re.compile(r"[.;:()]|,\s(?!in\b|from\b)")
REACH = 50  # characters behind a number in which a phrase tells what it counts


def articles(text: str, report: Report) -> Iterator[Claim]:
    """'a steal' as one steal, where the fields count steals and no compound follows ('a point guard')."""
    for match in _ARTICLE.finditer(text):
        following = match["next"].strip().lower()
        alone = not following or not following[0].isalpha() or following in STOP
        if alone and fold(match["noun"]) in report.nouns:
            start, end = match.span("article")
            yield Claim("number", start, end, text[start:end], Quantity(1, 1, nouns=frozenset({fold(match["noun"])})))


def ordinals(text: str) -> Iterator[Claim]:
    """'second on the team', '2nd on the team': a rank among what the noun names."""
    for match in _ORDINAL.finditer(text):
        start, end = match.span("rank")
        written = match["rank"].lower()
        value = float(ORDINALS.get(written) or int(written[:-2]))
        nouns = frozenset({fold(match["noun"].split()[-1])})
        yield Claim("number", start, end, text[start:end], Quantity(value, value, unit=RANK, nouns=nouns))


def named(text: str, claims: Sequence[Claim], said: Sequence[Said]) -> Iterator[Claim]:
    """The claims with the meaning of the phrases that go with them: '7-12 from the field' counts field goals.

    A phrase goes with the number in front of it, up to the next number or the clause's end. A number that counts
    nothing takes the phrase in front of it in its sentence.
    """
    for at, claim in enumerate(claims):
        if not isinstance(claim.value, Quantity) or claim.value.unit:
            yield claim
            continue
        until = min([claim.end + REACH, *(other.start for other in claims[at + 1 : at + 2])])
        if stop := _CLAUSE.search(text, claim.end, until):
            until = stop.start()
        nouns = claim.value.nouns
        close = [each for each in said if claim.end <= each.start < until]
        if not close and not nouns and text[claim.start - 1 : claim.start] != "(":
            since = max(text.rfind(". ", 0, claim.start), claims[at - 1].end if at else 0)
            close = [each for each in said if since <= each.start and each.end <= claim.start][-1:]
        for each in close:
            replaced = {fold(word) for word in WORD.findall(text[each.start : each.end])}
            nouns = (nouns - replaced) | each.nouns
        yield replace(claim, value=replace(claim.value, nouns=nouns))
