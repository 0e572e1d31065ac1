"""Detectors of personal data and secrets, one per kind, each linear in the length of the text.

A pattern only proposes; a checksum, a registry's rule or the standard library decides. Every pattern starts with a
lookbehind and uses bounded or possessive quantifiers, so that no text causes repeated backtracking.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Span:
    """A value found at text[start:end], in characters."""

    start: int
    end: int
    kind: str
    text: str


DIGIT = re.compile(r"\d")

# --- email, URL, IP --------------------------------------------------------------------------------------------

EMAIL = re.compile(r"(?<![\w.%+'-])[\w.%+'-]{1,64}@[\w.-]{4,253}(?!\w)")  # the lengths are RFC 5321's
URL = re.compile(r"(?<![\w@.-])(?:(?:https?|ftp)://|www\.)[^\s<>\"`{}|\\^]+", re.IGNORECASE)
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d|-[A-Za-z])")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:.]{2,45}(?![\w:])")
VERSION = re.compile(r"\b(?:version|release|build|ver\.?)\s{0,2}$", re.IGNORECASE)
DOMAIN_LABEL = re.compile(r"[^\W_](?:[\w-]{0,61}[^\W_])?")


def emails(text: str) -> Iterator[Span]:
    """Email addresses with a dotted domain, in any alphabet."""
    for match in EMAIL.finditer(text) if "@" in text else ():
        start = match.end() - len(match[0].lstrip(".'-%+"))
        value = text[start : match.end()].rstrip(".-_")
        local, _, domain = value.partition("@")
        if local and _is_domain(domain):
            yield Span(start, start + len(value), "email", value)


def urls(text: str) -> Iterator[Span]:
    """URLs that begin with http, https, ftp or www, without the punctuation of the sentence."""
    for match in URL.finditer(text) if "://" in text or "www." in text.lower() else ():
        value = _without_punctuation(match[0])
        try:
            host = urlsplit(value if "://" in value else f"//{value}").hostname or ""
        except ValueError:  # half of an IPv6 address in brackets
            continue
        if host == "localhost" or _is_domain(host) or _address(host):
            yield Span(match.start(), match.start() + len(value), "url", value)


def ips(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses that `ipaddress` accepts, except loopback and unspecified ones."""
    for match in IPV4.finditer(text) if DIGIT.search(text) else ():
        if _is_host_address(match[0]) and not VERSION.search(text[max(0, match.start() - 10) : match.start()]):
            yield Span(match.start(), match.end(), "ip", match[0])
    for match in IPV6.finditer(text) if text.count(":") > 1 and DIGIT.search(text) else ():
        for value in (match[0], match[0].rstrip("."), match[0].rstrip(".:")):
            groups = [group for group in value.split(":") if group]
            if value.count(":") > 1 and len(groups) > 1 and re.search(r"\d", value) and _is_host_address(value):
                yield Span(match.start(), match.start() + len(value), "ip", value)
                break


def _is_domain(domain: str) -> bool:
    labels = domain.split(".")
    top = labels[-1]
    return (
        len(labels) > 1
        and ((len(top) > 1 and top.isalpha()) or top.startswith("xn--"))
        and all(DOMAIN_LABEL.fullmatch(label) for label in labels)
    )


def _without_punctuation(url: str) -> str:
    end, spare = len(url), {")": url.count(")") - url.count("("), "]": url.count("]") - url.count("[")}
    while end and (url[end - 1] in ".,;:!?'’”»*_…" or spare.get(url[end - 1], 0) > 0):
        end -= 1
        if url[end] in spare:
            spare[url[end]] -= 1  # a bracket that is not opened in the URL belongs to the sentence
    return url[:end]


def _address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None


def _is_host_address(value: str) -> bool:
    address = _address(value)
    return address is not None and not address.is_loopback and not address.is_unspecified


# --- cards, IBAN, SSN ------------------------------------------------------------------------------------------

DIGIT_RUN = re.compile(r"(?<![\w.+])(?<!\d[-/])\d++(?:[ -]\d++)*+(?!\w|\.\d)")
IBAN_HEAD = re.compile(r"(?<![^\W_])[A-Za-z]{2}\d{2}(?=[ -]?[A-Za-z0-9])")
SSN = re.compile(r"(?<![\w+])(?<!\d[-.])(?!000|666|9)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?!\w|[-.]\d)")
BARE_SSN = re.compile(
    r"(?:\bSSN|social[ -]security(?: (?:number|no\.?|#))?)[:# ]{0,3}(?:is )?"
    r"((?!000|666|9)\d{3}(?!00)\d{2}(?!0000)\d{4})(?!\w)",
    re.IGNORECASE,
)
CARD_RANGES = (  # first four digits from, to, lengths: ISO/IEC 7812 issuers as the networks publish them
    (3000, 6999, (16,)),  # the industry digits 3 to 6 are all cards; networks open ranges faster than lists follow
    (1800, 1800, (15,)),  # JCB
    (2131, 2131, (15,)),
    (2200, 2204, (16, 17, 18, 19)),  # Mir
    (2221, 2720, (16,)),  # Mastercard
    (3000, 3059, (14, 16, 19)),  # Diners Club
    (3095, 3095, (14, 16, 19)),
    (3400, 3499, (15,)),  # American Express
    (3528, 3589, (16, 17, 18, 19)),  # JCB
    (3600, 3699, (14, 16, 19)),  # Diners Club
    (3700, 3799, (15,)),  # American Express
    (3800, 3999, (14, 16, 19)),  # Diners Club
    (4000, 4999, (13, 16, 19)),  # Visa
    (5000, 5099, tuple(range(12, 20))),  # Maestro
    (5100, 5599, (16,)),  # Mastercard
    (5600, 6999, tuple(range(12, 20))),  # Maestro, Discover, UnionPay
)
DOUBLED = str.maketrans("0123456789", "0246813579")  # the digit sum of twice the digit
CARD_GROUPS = {  # lengths of the digit groups as printed on cards
    *((length,) for length in range(12, 20)),
    *((4, 4, 4, 4, rest) for rest in range(1, 4)),
    *((4, 4, 4, rest) for rest in range(1, 5)),
    *((4, 4, 4), (4, 6, 4), (4, 6, 5)),
}
IBAN_SHAPES = {  # country -> pattern with the length in the SWIFT IBAN registry
    country: re.compile(rf"[A-Za-z]{{2}}(?:[ -]?[A-Za-z0-9]){{{int(length) - 2}}}(?![^\W_])")
    for country, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
        "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
        "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
        "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
        "YE30",
    )
}


def cards(text: str) -> Iterator[Span]:
    """Payment card numbers: an issuer's range and length, Luhn check, plain or grouped as on a card."""
    for run in DIGIT_RUN.finditer(text):
        if len(run[0]) < 12:
            continue
        groups = list(re.finditer(r"\d+", run[0]))
        lengths = tuple(group.end() - group.start() for group in groups)
        first = 0
        while first < len(groups):
            sizes = (1, 4, 3, 5)  # four before three: the start of a card in four groups may be a valid shorter card
            stops = [first + size for size in sizes if first + size <= len(groups)]
            stop = next((s for s in stops if _is_card(groups[first:s], lengths[first:s])), 0)
            if stop:
                start, end = run.start() + groups[first].start(), run.start() + groups[stop - 1].end()
                yield Span(start, end, "card", text[start:end])
            first = stop or first + 1


def _is_card(groups: Sequence[re.Match[str]], lengths: tuple[int, ...]) -> bool:
    if lengths not in CARD_GROUPS:
        return False
    digits = "".join(group[0] for group in groups)
    issuer, length = int(digits[:4]), len(digits)
    is_known = any(length in sizes and low <= issuer <= high for low, high, sizes in CARD_RANGES)
    return is_known and digits.isascii() and luhn(digits)


def luhn(digits: str) -> bool:
    """Luhn check (ISO/IEC 7812-1, annex B): with every second digit from the right doubled, the sum divides by ten."""
    plain, doubled = digits[-1::-2], digits[-2::-2].translate(DOUBLED)
    return sum(map(int, plain + doubled)) % 10 == 0


def ibans(text: str) -> Iterator[Span]:
    """IBANs by the country's length (SWIFT registry) and mod 97 (ISO 13616), plain or with single spaces or dashes."""
    for head in IBAN_HEAD.finditer(text):
        shape = IBAN_SHAPES.get(head[0][:2].upper())
        match = shape.match(text, head.start()) if shape else None
        if match and _is_iban(match[0]):
            yield Span(match.start(), match.end(), "iban", match[0])


def _is_iban(value: str) -> bool:
    plain = re.sub(r"[ -]", "", value).upper()
    issued = 2 <= int(plain[2:4]) <= 98  # 98 minus a remainder; 00, 01 and 99 also pass mod 97 but are never issued
    return issued and int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def ssns(text: str) -> Iterator[Span]:
    """US social security numbers, without area 000, 666 or 9xx, group 00, serial 0000 (SSA); plain only if named."""
    for match in SSN.finditer(text):
        yield Span(match.start(), match.end(), "ssn", match[0])
    for match in BARE_SSN.finditer(text):
        yield Span(match.start(1), match.end(1), "ssn", match[1])


# --- phones ----------------------------------------------------------------------------------------------------

BLANK = "\0"  # replaces values of other kinds
GROUP = r"\d++(?!(?!x ?\d{1,6}(?!\w))[^\W\d])"  # digits that are not part of a word; an extension's x may follow
BETWEEN = r"(?: - | ?\(|\)[ .\u00a0-]?+|[ .\-/\u00a0\u202f\u2010\u2011])"
EXTENSION = r"(?:(?: ?x|,? ?(?:ext(?:ension)?|durchwahl|poste)\b\.?) ?\d{1,6}(?!\w))?+"
PHONE = re.compile(
    rf"(?<![\w+])(?<!\d[.,:/-])(?P<number>(?:\+ ?)?\(?{GROUP}(?:{BETWEEN}{GROUP})*+)(?P<more>{EXTENSION})",
    re.IGNORECASE,
)
NORTH_AMERICAN = re.compile(r"(?:1[ .-])?\(?[2-9]\d\d(?:\) ?|[ .-])[2-9]\d\d[ .-]\d{4}")
DATE = re.compile(
    r"(?<!\d)(?:\d{4}([-./])\d\d?\1\d\d?|\d\d?([-./])\d\d?\2(?:19|20)\d\d"
    r"|(?:19|20)\d\d ?- ?(?:19|20)\d\d)(?!\d)"  # years from, to
)
CUE = re.compile(  # the nearest of these words before a number decides what it is
    r"\b(?:(?P<phone>(?:tele|mobile|cell|i)?phone|t[ée]l(?:[ée](?:ph|f)on\w{0,3})?|tlf|fax|mobile?|m[óo]vil|cell|cellular"
    r"|cellulare|handy|portable|gsm|landline|(?:desk|office|home|work|direct)(?=\W{0,3}$)|call(?:ed|ing|s)?|dial(?:ed|ing|led)?|ring|rang|text(?:ed|ing)?"
    r"|sms|messages?|whatsapp|signal|contact|reach(?:ed)?|answer(?:ed|ing)|hotline|registered|voicemail|pager)"
    r"|(?P<other>orders?|invoices?|tickets?|accounts?|ref(?:erence)?|case|zip|post(?:al)? ?codes?|licen[cs]es?|passport"
    r"|serial|tracking|parcel|id|vat|tax|ssn|isbn|issn|ean|sku|imei|model|part|version|price|total|amount|sum|population"
    r"|between|cards?|iban|sort code|routing|policy|contract|box|room|apt|suite))\b",
    re.IGNORECASE,
)
CUE_AFTER = re.compile(
    r"[ ,(-]{0,3}(?:office|fax|mobile|cell|home|work|landline|desk|phone|tel|direct)\b", re.IGNORECASE
)
AMOUNT_BEFORE = re.compile(r"(?:[$€£¥₹#№]|\b(?:USD|EUR|GBP|CHF|JPY)) ?$")
AMOUNT_AFTER = re.compile(
    r" ?(?:[%€£¥°]|(?:USD|EUR|GBP|CHF|JPY|dollars|euros|people|inhabitants|km|kg|bytes|tokens)\b)"
)


def phones(text: str) -> Iterator[Span]:
    """Phone numbers: international, North American and 0-led formats; others only with a cue word nearby."""
    for match in PHONE.finditer(text):
        number, extension = match["number"], match["more"]
        start = match.start()
        if number.startswith("(") and ")" not in number:  # the bracket belongs to the sentence
            number, start = number[1:], start + 1
        value = _phone(number, extension, text, start)
        if value:
            yield Span(start, start + len(value), "phone", value)
        elif " " in number:
            yield from _listed(number, extension, text, start)


def _listed(number: str, extension: str, text: str, start: int) -> Iterator[Span]:
    """Phones within a run of digits that is not one phone: '555-555-0100 555-555-0101', '555-555-0100 2 times'."""
    if AMOUNT_BEFORE.search(text[max(0, start - 5) : start]) or _cue(text[max(0, start - 40) : start]) == "other":
        return
    for match in re.finditer(r"[^ ]+", number):
        if _plain_phone(match[0]):
            value = match[0] + extension * (match.end() == len(number))
            yield Span(start + match.start(), start + match.start() + len(value), "phone", value)


def _phone(number: str, extension: str, text: str, start: int) -> str:
    """`number` with its extension if it is a phone, else ''."""
    if AMOUNT_BEFORE.search(text[max(0, start - 5) : start]) or number.count("(") != number.count(")"):
        return ""
    end = start + len(number) + len(extension)
    cue = _cue(text[max(0, start - 40) : start])
    if cue != "other" and (_plain_phone(number) or (extension and _possible_phone(number))):
        return number + extension
    is_cued = cue == "phone" or CUE_AFTER.match(text, end)
    if is_cued and _possible_phone(number) and not AMOUNT_AFTER.match(text, end):
        return number + extension
    return ""


def _plain_phone(number: str) -> bool:
    """Whether the format alone identifies a phone. ITU-T E.164: at most 15 digits with the country code."""
    groups = re.findall(r"\d+", number)
    digits = "".join(groups)
    if number.startswith("+"):
        return 8 <= len(digits) <= 15 and not (number[1] == " " and len(groups) == 1)  # '2 + 68940000' is a sum
    if DATE.search(number):
        return False
    if digits.startswith("00"):
        return len(groups) > 1 and digits[2:3] != "0" and 10 <= len(digits) <= 17
    if digits.startswith("0"):
        return 9 <= len(digits) <= 11 and 2 <= len(groups) <= 6 and min(map(len, groups)) > 1
    return bool(NORTH_AMERICAN.fullmatch(number))


def _possible_phone(number: str) -> bool:
    groups = [len(group) for group in re.findall(r"\d+", number)]
    max_digits = 13 if len(groups) > 1 else 11
    return 7 <= sum(groups) <= max_digits and len(groups) <= 6 and min(groups) > 1 and not DATE.search(number)


def _cue(before: str) -> str:
    near = re.split(rf"[\d{BLANK}]", before)[-1]  # a word before another number refers to that one
    cues = [match.lastgroup or "" for match in CUE.finditer(near)]
    return cues[-1] if cues else ""


# --- names -----------------------------------------------------------------------------------------------------

TITLES = "mr mrs ms miss mx dr prof professor sir dame lady lord rev hon herr frau mme mlle sr sra jr phd md"
PARTICLES = "van von der den del della des dos das the and ben bin ibn und"  # also words of their own
NO_PART = frozenset(f"{TITLES} {PARTICLES}".split())


def names(text: str, row_names: Sequence[str]) -> Iterator[Span]:
    """Occurrences of `row_names`, as spelled or in capitals: whole, or parts of three or more letters; never titles."""
    forms = sorted({form for name in row_names for form in _forms(name)}, key=len, reverse=True)
    if not forms:
        return
    alternatives = "|".join(re.escape(form).replace(r"\ ", r"\s{1,3}") for form in forms)
    for match in re.finditer(rf"(?<!\w)(?:{alternatives})(?!\w)", text):
        yield Span(match.start(), match.end(), "name", match[0])


def _forms(name: str) -> Iterator[str]:
    words = [word.strip(",;") for word in name.split()]
    words = [word for word in words if word and word.rstrip(".").casefold() not in TITLES.split()]
    whole = " ".join(words)
    parts = [word for word in words if sum(map(str.isalpha, word)) > 2 and word.casefold() not in NO_PART]
    for form in [whole] * (sum(map(str.isalpha, whole)) > 2) + parts:
        yield from (form, form.upper())


# --- secrets ---------------------------------------------------------------------------------------------------

_B, _E = r"(?<![\w-])", r"(?![^\W_])"
SECRETS = (  # kind, strings of which a text must contain one, pattern: the issuers' documented prefixes
    ("aws_key", ("AKIA", "ASIA", "ABIA", "ACCA"), re.compile(rf"{_B}(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{{16}}{_E}")),
    (
        "github_token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(rf"{_B}(?:gh[pousr]_[A-Za-z0-9]{{36,255}}|github_pat_[A-Za-z0-9_]{{22,255}}){_E}"),
    ),
    ("slack_token", ("xox", "xapp-"), re.compile(rf"{_B}(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{{10,250}}{_E}")),
    ("openai_key", ("sk-",), re.compile(rf"{_B}sk-(?=[a-z_-]{{0,200}}[A-Z0-9])[A-Za-z0-9_-]{{20,250}}{_E}")),
    ("google_key", ("AIza",), re.compile(rf"{_B}AIza[A-Za-z0-9_-]{{35}}{_E}")),
    ("huggingface_token", ("hf_",), re.compile(rf"{_B}hf_[A-Za-z0-9]{{30,60}}{_E}")),
    ("stripe_key", ("k_live_", "k_test_"), re.compile(rf"{_B}[rs]k_(?:live|test)_[A-Za-z0-9]{{16,250}}{_E}")),
    ("gitlab_token", ("glpat-",), re.compile(rf"{_B}glpat-[A-Za-z0-9_-]{{20,100}}{_E}")),
    ("npm_token", ("npm_",), re.compile(rf"{_B}npm_[A-Za-z0-9]{{36}}{_E}")),
    ("sendgrid_key", ("SG.",), re.compile(rf"{_B}SG\.[A-Za-z0-9_-]{{22}}\.[A-Za-z0-9_-]{{43}}{_E}")),
    (
        "jwt",
        ("eyJ",),
        re.compile(r"(?<![\w.-])eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{0,4000}(?![^\W_])"),
    ),  # RFC 7519
    (
        "private_key",  # RFC 7468; a truncated one is still a secret
        ("PRIVATE KEY",),
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*+"
            r"(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?"
        ),
    ),
)
CREDENTIAL = re.compile(
    r"(?:api[_ -]?key|secret|token|passw(?:or)?d|passphrase|pwd|credential|access[_-]?key|auth[_-]?key|bearer)"
    r"[\w-]{0,20}[\"']?\s{0,3}(?:=>|:=|[=:]|(?<=bearer)\s)\s{0,3}[\"']?(?P<value>[^\s\"'<>,;]{12,400})(?![^\W_])",
    re.IGNORECASE,
)
NAMED_SECRET = re.compile(  # 'the key ab12…', 'its password is ab12…': the value must look more random
    r"(?<!\w)(?:key|secret|token|pass(?:word|phrase|code)|login|credentials?)(?!\w)[^.!?\n]{0,30}?(?<=\s)[\"'`“‘]?"
    r"(?P<value>(?=[A-Za-z_+/=-]{0,60}\d)[A-Za-z0-9_+/=-]{20,200})(?![^\W_])",
    re.IGNORECASE,
)
KEYWORDS = ("login", "key", "secret", "token", "passw", "passphrase", "pwd", "credential", "bearer")
IDENTIFIER = re.compile(r"[a-z]{8,}|[_/=-].{0,20}[_/=-]|[A-Z]{14,}")  # an identifier or a path, not random characters
MIN_BITS = 3.0  # Shannon bits per character; detect-secrets' limit for hexadecimal strings


def secrets(text: str) -> Iterator[Span]:
    """Keys in their issuers' formats, and values of high entropy that are assigned to a key, token or password."""
    for kind, markers, pattern in SECRETS:
        for match in pattern.finditer(text) if any(sign in text for sign in markers) else ():
            value = match[0].rstrip() if kind == "private_key" else match[0]
            yield Span(match.start(), match.start() + len(value), kind, value)
    plain = text.lower()
    has_keyword = any(word in plain for word in KEYWORDS) and DIGIT.search(text)  # without a digit nothing looks random
    for match in NAMED_SECRET.finditer(text) if has_keyword else ():
        if _looks_random(match["value"]) and not IDENTIFIER.search(match["value"]):
            yield Span(match.start("value"), match.end("value"), "assigned_secret", match["value"])
    for match in CREDENTIAL.finditer(text) if has_keyword else ():
        value = match["value"].rstrip(".:!?)]}`*")
        if _looks_random(value):
            yield Span(match.start("value"), match.start("value") + len(value), "assigned_secret", value)


def _looks_random(value: str) -> bool:
    mixed = re.search(r"\d", value) and re.search(r"[A-Za-z]", value)
    return bool(mixed) and len(value) >= 12 and entropy(value) >= MIN_BITS


def entropy(value: str) -> float:
    """The Shannon entropy of the characters in `value`, in bits per character."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())
