"""Dates, durations, money, percentages and plain numbers drawn from prose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from tunesmith.claims.claim import Bound, Claim, Kind, Period, Quantity
from tunesmith.claims.fold import WORD, fold, listed
from tunesmith.claims.numbers import Number, numbers

MONTHS = {name: number for number, name in enumerate(listed("jan feb mar apr may jun jul aug sep oct nov dec"), 1)}
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
MOST_ITEMS = 30  # a list's marks; 'It was 2019. ' is none
COUNTED = re.compile(r"^\s+(?P<noun>[a-z]{3,}s)\b")  # '2000 customers' is no year
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
_JOIN = re.compile(r"[ ]*(?:-|–|—|to|or)[ ]*", re.I)
_PAIR = re.compile(r"[ ]*(?:-|–|—|-(?:of|for)-|(?<=[ ])(?:of|for)(?=[ ])|of|for)[ ]*", re.I)
_FOUR = re.compile(r"\d{4}")  # every date has a year
_SINGLE_TIME = re.compile(r"\ban?\s+(?:year|decade|month)\b", re.I)
_MARK = re.compile(r"[.)][ \t]")
_HOUR_AFTER = re.compile(
    r"\s?(?:o['’]clock|[ap]\.?m\b)|\s(?:in the (?:morning|afternoon|evening)|at night|past [a-z\d]+)\b", re.I
)
_HOUR_BEFORE = re.compile(r"\b(?:half|quarter|minutes|ten|twenty|five) (?:past|to)\s$", re.I)
_BARE_TIME = re.compile(
    r"\b(?P<bound>over|more than|at least|nearly|almost|about|around)?\s*\b(?:(?P<half>half)\s+an?|an?)\s+"
    r"(?P<unit>year|decade|month)\b(?P<more>\s+and\s+a\s+half)?", re.I)  # fmt: skip
STOP = frozenset(
    listed(
        "a an the of in on at to for from with by and or "
        "but as is are was were be been have has had that which who where "
        "when i my our your their his her its it we you they this these those per each every year month week day hour "
        "more than so while during between into across over under about also both all not"
    )
)


def dates(text: str) -> Iterator[Claim]:
    """Dates and ranges of dates; a four-digit number in front of what it counts is none."""
    if not _FOUR.search(text):
        return
    for match in DATE.finditer(text):
        if re.fullmatch(_YEAR, match["from"]) and not match["to"] and COUNTED.match(text[match.end() :]):
            continue
        first, last = _months(match["from"])
        end = match["to"]
        start = match.start("from")
        if end and (end[0].isdigit() or end[:3].lower() in MONTHS):
            value = Period(first, last, until=_months(end))
        else:
            value = Period(first, last, since=bool(end) or (match["since"] or "").lower() == "since")
        yield Claim("date", start, match.end(), text[start : match.end()], value)


def _months(date: str) -> tuple[int, int]:
    """First and last month of a written date, counted from year 0."""
    year = int(next(iter(re.findall(r"\d{4}", date))))
    named = re.search(r"[a-z]{3}", date.lower().replace("of", ""))
    figures = re.match(r"(?:\d{4}-(\d\d)|(\d{1,2})/\d{4})", date)
    month = MONTHS.get(named[0]) if named else int(figures[1] or figures[2]) if figures else None
    return (year * 12, year * 12 + 11) if month is None else (year * 12 + month - 1,) * 2


def quantities(text: str, taken: list[tuple[int, int]], pairs: bool = False) -> Iterator[Claim]:
    """Durations, money, percentages and counted numbers outside the `taken` characters.

    With `pairs` '31-12' is a score and '7-for-12' and '7 of 12' are shares, each one claim with two numbers.
    """
    free = (each for each in numbers(text) if not any(each.start < end and start < each.end for start, end in taken))
    found = [each for each in free if not _mark(text, each) and (pairs or not _hour(text, each))]
    skip = -1
    for at, number in enumerate(found):
        if at == skip:
            continue
        following = found[at + 1] if at + 1 < len(found) else None
        if pairs and following and _PAIR.fullmatch(text[number.end : following.start]):
            both = _quantity(text, following, lower=number)
            if both and both.kind == "number" and isinstance(both.value, Quantity):
                skip = at + 1
                yield replace(both, value=replace(both.value, pair=True))
                continue
        if following and _JOIN.fullmatch(text[number.end : following.start]):
            ranged = _quantity(text, following, lower=number)
            if ranged:
                skip = at + 1
                yield ranged
                continue
        if claim := _quantity(text, number):
            yield claim
    yield from _articles(text)


def _mark(text: str, number: Number) -> bool:
    """Whether a number marks an item of a list: '2. ' or '3) ' at a line's start, or in a run of such marks."""
    if number.spelled or number.value > MOST_ITEMS or not _MARK.match(text, number.end):
        return False
    before = text[max(0, number.start - 4) : number.start].rstrip(" \t(")
    if not before or before[-1] == "\n":
        return True
    sign = text[number.end]
    return before[-1] in ".:;!?" and any(f"{number.value + step:.0f}{sign} " in text for step in (-1, 1))


def _hour(text: str, number: Number) -> bool:
    """Whether a number is a time of day: 'half past nine', 'six in the morning'."""
    if number.value > 60:
        return False
    return bool(
        _HOUR_AFTER.match(text, number.end) or _HOUR_BEFORE.search(text, max(0, number.start - 16), number.start)
    )


def _quantity(text: str, number: Number, lower: Number | None = None) -> Claim | None:
    begin = (lower or number).start
    before = _BEFORE.search(text[max(0, begin - 20) : begin])
    bound: Bound = BOUNDS.get(((before and before["bound"]) or "").strip().lower(), "exact")
    sign = ((before and before["sign"]) or "").strip().lower()
    rest = text[number.end : number.end + 60]
    kind: Kind
    unit, end, factor, half = "", number.end, 1.0, 0.0
    if money := _AFTER_MONEY.match(rest):
        kind, unit = "money", CURRENCIES[money[0].strip().lower().rstrip("s")]
        end += money.end()
    elif sign:
        kind, unit = "money", CURRENCIES[sign]
    elif percent := _AFTER_PERCENT.match(rest):
        kind, end = "percentage", end + percent.end()
    elif (time := _AFTER_TIME.match(rest)) and number.group:
        return None  # 'a couple of years' is no exact number
    elif time:
        kind, end = "duration", end + time.end()
        factor, half = UNITS[time["unit"].lower().rstrip("s")], 0.5 * bool(time["half"])
        bound = "over" if "+" in time[0] else bound
    else:
        kind = "number"
        if rest.startswith("+"):
            bound, end = "over", end + 1
        if number.spelled and number.value <= 1 and not re.match(r"(?:\s+|-)[a-z]{3,}", rest):
            return None  # 'no one', 'one of the': a pronoun
    if money and sign:
        begin -= 1
    elif kind == "money" and sign and before:
        begin -= len(before["sign"])
    low = (lower.value if lower else number.value + half) * factor
    nouns = counted(text, begin, end) if kind != "duration" else frozenset()
    value = Quantity(low, (number.value + half) * factor, bound, unit, nouns)
    return Claim(kind, begin, end, text[begin:end], value)


def counted(text: str, start: int, end: int) -> frozenset[str]:
    """Stems of what is counted: up to three words behind the number, else the noun of '(team) of 8', '(Level) 3'."""
    found: list[str] = []
    place = end
    for match in WORD.finditer(text, end, end + 60):
        gap = text[place : match.start()]
        if gap.strip(" -") or "\n" in gap or match[0].lower() in STOP or match[0][0].isdigit() or len(found) == 3:
            break
        found.append(fold(match[0]))
        place = match.end()
    before = re.search(r"([A-Za-z]+)\s+(?:of\s+)?$", text[max(0, start - 30) : start])
    if not found and before and before[1].lower() not in STOP:
        found.append(fold(before[1]))
    return frozenset(found)


def _articles(text: str) -> Iterator[Claim]:
    """'a year and a half', 'more than a decade', 'half a year'; a plain 'a year' is a rate."""
    if not _SINGLE_TIME.search(text):
        return  # the full pattern takes ten times as long
    for match in _BARE_TIME.finditer(text):
        if match["bound"] or match["half"] or match["more"]:
            amount = UNITS[match["unit"].lower()] * (0.5 if match["half"] else 1.5 if match["more"] else 1.0)
            value = Quantity(amount, amount, BOUNDS.get((match["bound"] or "").lower(), "exact"))
            start = match.start() + len(match[0]) - len(match[0].lstrip())
            yield Claim("duration", start, match.end(), text[start : match.end()], value)
