"""Finds dates, durations, money, percentages and numbers in prose, and numbers that reports state without a numeral."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.claims.claim import Bound, Claim, Kind, Period, Quantity
from tunesmith.claims.words import WORD, Number, PhraseMatch, ReportOptions, find_numbers, fold, split_words

MONTHS = {name: number for number, name in enumerate(split_words("jan feb mar apr may jun jul aug sep oct nov dec"), 1)}
UNITS = {"day": 12 / 365.25, "week": 12 * 7 / 365.25, "month": 1.0, "year": 12.0, "yr": 12.0, "decade": 120.0}  # months
CURRENCIES = {
    "$": "USD", "usd": "USD", "dollar": "USD", "€": "EUR", "eur": "EUR", "euro": "EUR", "£": "GBP", "gbp": "GBP",
    "pound": "GBP", "¥": "JPY", "jpy": "JPY", "yen": "JPY", "₹": "INR", "inr": "INR", "rupee": "INR", "chf": "CHF",
}  # fmt: skip
BOUNDS: dict[str, Bound] = {
    **dict.fromkeys(("over", "more than", "at least", "above", "exceeding", "a minimum of", "minimum of"), "over"),
    **dict.fromkeys(("up to", "under", "below", "less than", "at most"), "under"),
    **dict.fromkeys(("nearly", "almost", "close to"), "nearly"),
    **dict.fromkeys(("about", "around", "approximately", "roughly", "some", "circa", "~"), "about"),
}

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEAR = r"(?:19[5-9]\d|20[0-4]\d)(?![\d%]|,\d|\.\d|\s?(?:percent|dollars|euros)\b)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = (
    rf"(?:\d{{4}}-\d\d(?:-\d\d)?|(?:{_DAY}\s+)?{_MONTH}\s+(?:{_DAY},?\s+)?(?:of\s+)?{_YEAR}|"
    rf"\d{{1,2}}/{_YEAR}|{_YEAR})"
)
DATE = re.compile(
    rf"(?<![\w$€£.,/])(?:(?P<since>since|as of|starting in|from)\s+)?(?P<from>{_DATE})"
    rf"(?:\s*(?:-|–|—|\bto\b|\buntil\b|\btill\b|\bthrough\b|\band\b)\s*"
    rf"(?P<to>{_DATE}|present|now|today|current(?:ly)?|date)\b)?(?![\w/])",
    re.IGNORECASE,
)
MAX_LIST_NUMBER = 30  # '2019. ' is no list mark
_COUNTED_NOUN = re.compile(r"^\s+(?P<noun>[a-z]{3,}s)\b")  # '2000 customers' is no year
_BEFORE = re.compile(
    rf"(?P<bound>\b(?:{'|'.join(map(re.escape, BOUNDS))})\s+)?(?P<sign>[$€£¥₹]|"
    r"\b(?:USD|EUR|GBP|CHF|INR|JPY)\s?)?\s?$",
    re.IGNORECASE,
)
_AFTER_MONEY = re.compile(r"\s?(?:€|£|(?:usd|dollars?|eur|euros?|gbp|pounds?|chf|inr|rupees?|yen|jpy)\b)", re.I)
_AFTER_PERCENT = re.compile(r"\s?(?:%|per\s?cent\b|percentage points?\b)", re.I)
_AFTER_TIME = re.compile(
    r"\+?(?:\s+|-)?(?:full\s+|more\s+)?(?P<unit>years?|yrs?|months?|weeks?|days|decades?)\b"
    r"(?P<half>\s+and\s+a\s+half)?['’]?",
    re.IGNORECASE,
)
_RANGE_SIGN = re.compile(r"[ ]*(?:-|–|—|to|or)[ ]*", re.I)
_PAIR_SIGN = re.compile(r"[ ]*(?:-|–|—|-(?:of|for)-|(?<=[ ])(?:of|for)(?=[ ])|of|for)[ ]*", re.I)
_HAS_YEAR = re.compile(r"\d{4}")  # every date has a year
_SINGLE_TIME = re.compile(r"\ban?\s+(?:year|decade|month)\b", re.I)
_LIST_MARK = re.compile(r"[.)][ \t]")
_HOUR_AFTER = re.compile(
    r"\s?(?:o['’]clock|[ap]\.?m\b)|\s(?:in the (?:morning|afternoon|evening)|at night|past [a-z\d]+)\b", re.I
)
_HOUR_BEFORE = re.compile(r"\b(?:half|quarter|minutes|ten|twenty|five) (?:past|to)\s$", re.I)
_BARE_TIME = re.compile(
    r"\b(?P<bound>over|more than|at least|nearly|almost|about|around)?\s*\b(?:(?P<half>half)\s+an?|an?)\s+"
    r"(?P<unit>year|decade|month)\b(?P<more>\s+and\s+a\s+half)?", re.I)  # fmt: skip
STOP_WORDS = frozenset(
    split_words(
        "a an the of in on at to for from with by and or "
        "but as is are was were be been have has had that which who where "
        "when i my our your their his her its it we you they this these those per each every year month week day hour "
        "more than so while during between into across over under about also both all not"
    )
)


def find_dates(text: str) -> Iterator[Claim]:
    """Yield dates and ranges of dates. A four-digit number before a counted noun is no year."""
    if not _HAS_YEAR.search(text):
        return
    for match in DATE.finditer(text):
        if re.fullmatch(_YEAR, match["from"]) and not match["to"] and _COUNTED_NOUN.match(text[match.end() :]):
            continue
        first, last = _month_range(match["from"])
        end = match["to"]
        start = match.start("from")
        if end and (end[0].isdigit() or end[:3].lower() in MONTHS):
            value = Period(first, last, until=_month_range(end))
        else:
            value = Period(first, last, since=bool(end) or (match["since"] or "").lower() == "since")
        yield Claim("date", start, match.end(), text[start : match.end()], value)


def _month_range(date: str) -> tuple[int, int]:
    """Return the first and last month of a written date, counted from year 0."""
    year = int(next(iter(re.findall(r"\d{4}", date))))
    month_name = re.search(r"[a-z]{3}", date.lower().replace("of", ""))
    digits = re.match(r"(?:\d{4}-(\d\d)|(\d{1,2})/\d{4})", date)
    month = MONTHS.get(month_name[0]) if month_name else int(digits[1] or digits[2]) if digits else None
    return (year * 12, year * 12 + 11) if month is None else (year * 12 + month - 1,) * 2


def find_quantities(text: str, excluded: list[tuple[int, int]], pairs: bool = False) -> Iterator[Claim]:
    """Yield durations, money, percentages and counted numbers outside the `excluded` spans.

    With `pairs`, '31-12' is a score and '7-for-12' and '7 of 12' are shares: one claim with two numbers each.
    """
    free = (
        number
        for number in find_numbers(text)
        if not any(number.start < end and start < number.end for start, end in excluded)
    )
    candidates = [
        number for number in free if not _is_list_mark(text, number) and (pairs or not _is_time_of_day(text, number))
    ]
    skip = -1
    for index, number in enumerate(candidates):
        if index == skip:
            continue
        following = candidates[index + 1] if index + 1 < len(candidates) else None
        if pairs and following and _PAIR_SIGN.fullmatch(text[number.end : following.start]):
            pair = _quantity_claim(text, following, lower=number)
            if pair and pair.kind == "number" and isinstance(pair.value, Quantity):
                skip = index + 1
                yield replace(pair, value=replace(pair.value, pair=True))
                continue
        if following and _RANGE_SIGN.fullmatch(text[number.end : following.start]):
            amount_range = _quantity_claim(text, following, lower=number)
            if amount_range:
                skip = index + 1
                yield amount_range
                continue
        if claim := _quantity_claim(text, number):
            yield claim
    yield from _single_durations(text)


def _is_list_mark(text: str, number: Number) -> bool:
    """Return whether a number marks a list item: '2. ' or '3) ' at the start of a line, or next to another mark."""
    if number.spelled or number.value > MAX_LIST_NUMBER or not _LIST_MARK.match(text, number.end):
        return False
    before = text[max(0, number.start - 4) : number.start].rstrip(" \t(")
    if not before or before[-1] == "\n":
        return True
    sign = text[number.end]
    return before[-1] in ".:;!?" and any(f"{number.value + step:.0f}{sign} " in text for step in (-1, 1))


def _is_time_of_day(text: str, number: Number) -> bool:
    """Return whether a number is a time of day: 'half past nine', 'six in the morning'."""
    if number.value > 60:
        return False
    return bool(
        _HOUR_AFTER.match(text, number.end) or _HOUR_BEFORE.search(text, max(0, number.start - 16), number.start)
    )


def _quantity_claim(text: str, number: Number, lower: Number | None = None) -> Claim | None:
    start = (lower or number).start
    before = _BEFORE.search(text[max(0, start - 20) : start])
    bound: Bound = BOUNDS.get(((before and before["bound"]) or "").strip().lower(), "exact")
    sign = ((before and before["sign"]) or "").strip().lower()
    after = text[number.end : number.end + 60]
    kind: Kind
    unit, end, factor, half = "", number.end, 1.0, 0.0
    if money := _AFTER_MONEY.match(after):
        kind, unit = "money", CURRENCIES[money[0].strip().lower().rstrip("s")]
        end += money.end()
    elif sign:
        kind, unit = "money", CURRENCIES[sign]
    elif percent := _AFTER_PERCENT.match(after):
        kind, end = "percentage", end + percent.end()
    elif (time := _AFTER_TIME.match(after)) and number.group:
        return None  # 'a couple of years' is no exact number
    elif time:
        kind, end = "duration", end + time.end()
        factor, half = UNITS[time["unit"].lower().rstrip("s")], 0.5 * bool(time["half"])
        bound = "over" if "+" in time[0] else bound
    else:
        kind = "number"
        if after.startswith("+"):
            bound, end = "over", end + 1
        if number.spelled and number.value <= 1 and not re.match(r"(?:\s+|-)[a-z]{3,}", after):
            return None  # 'no one', 'one of the': a pronoun
    if money and sign:
        start -= 1
    elif kind == "money" and sign and before:
        start -= len(before["sign"])
    low = (lower.value if lower else number.value + half) * factor
    nouns = counted_nouns(text, start, end) if kind != "duration" else frozenset()
    value = Quantity(low, (number.value + half) * factor, bound, unit, nouns)
    return Claim(kind, start, end, text[start:end], value)


def counted_nouns(text: str, start: int, end: int) -> frozenset[str]:
    """Return the stems of the counted nouns: up to three words after the number, else '(team) of 8', '(Level) 3'."""
    nouns: list[str] = []
    position = end
    for match in WORD.finditer(text, end, end + 60):
        gap = text[position : match.start()]
        if gap.strip(" -") or "\n" in gap or match[0].lower() in STOP_WORDS or match[0][0].isdigit() or len(nouns) == 3:
            break
        nouns.append(fold(match[0]))
        position = match.end()
    before = re.search(r"([A-Za-z]+)\s+(?:of\s+)?$", text[max(0, start - 30) : start])
    if not nouns and before and before[1].lower() not in STOP_WORDS:
        nouns.append(fold(before[1]))
    return frozenset(nouns)


def _single_durations(text: str) -> Iterator[Claim]:
    """Yield 'a year and a half', 'more than a decade', 'half a year'. A plain 'a year' is a rate."""
    if not _SINGLE_TIME.search(text):
        return  # the full pattern takes ten times as long
    for match in _BARE_TIME.finditer(text):
        if match["bound"] or match["half"] or match["more"]:
            amount = UNITS[match["unit"].lower()] * (0.5 if match["half"] else 1.5 if match["more"] else 1.0)
            value = Quantity(amount, amount, BOUNDS.get((match["bound"] or "").lower(), "exact"))
            start = match.start() + len(match[0]) - len(match[0].lstrip())
            yield Claim("duration", start, match.end(), text[start : match.end()], value)


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
