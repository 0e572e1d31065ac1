"""Finds personal data and secrets in texts, replaces personal data with pseudonyms, and restores it.

The pseudonym map is the key to the data: a separate file, readable by its owner only, which belongs neither into a run
folder nor beside the rows.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tunesmith.config.registry import nearest
from tunesmith.data import privacy_patterns as patterns
from tunesmith.data.privacy_patterns import Span
from tunesmith.errors import DataError, RecipeError
from tunesmith.runs.run import write_atomic

KINDS = ("email", "phone", "card", "iban", "ssn", "ip", "url", "name")
FEW_DIGITS = 7  # no phone number has fewer
CERTAIN: tuple[tuple[str, int, Callable[[str], Iterator[Span]]], ...] = (  # the most specific first: it wins a tie
    ("iban", 2, patterns.ibans),  # the number is the least digits that a text must have: most texts have none
    ("card", FEW_DIGITS, patterns.cards),
    ("ssn", FEW_DIGITS, patterns.ssns),
    ("email", 0, patterns.emails),
    ("ip", 1, patterns.ips),
    ("url", 0, patterns.urls),
)


def check_kinds(kinds: Iterable[str]) -> None:
    """Raises RecipeError for an unknown kind of personal data."""
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"unknown kind '{kind}'", where="data.checks, personal.kinds", next=nearest(kind, KINDS))


def find_personal(
    text: str, *, names: Sequence[str] = (), kinds: Sequence[str] = KINDS, people: Sequence[Span] = ()
) -> list[Span]:
    """Personal data in `text`, in order, without overlaps; `names` are the names in the row's fields.

    `people` are names that NER found; every other kind has priority over them. Of two overlapping spans the longer one
    wins, then the more specific kind. Phone numbers have the vaguest pattern and are searched in the rest of the text.
    All kinds are searched, whatever `kinds` asks for, so that a card is never reported as a phone.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"unknown kinds {unknown}; there are {KINDS}")
    digits = len(patterns.DIGIT.findall(text))
    spans_found = [span for _, min_digits, detect in CERTAIN if digits >= min_digits for span in detect(text)]
    separate = [
        person
        for person in people
        if not any(person.start < span.end and span.start < person.end for span in spans_found)
    ]
    spans_found = without_overlaps([*spans_found, *patterns.names(text, names), *separate])
    if digits >= FEW_DIGITS:
        spans_found += patterns.phones(_blanked(text, without_overlaps([*spans_found, *find_secrets(text)])))
    return [span for span in sorted(spans_found, key=lambda span: span.start) if span.kind in kinds]


def find_secrets(text: str) -> list[Span]:
    """Keys, tokens and passwords in `text`, in order, without overlaps; the kind names the issuer."""
    return without_overlaps(list(patterns.secrets(text)))


def without_overlaps(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, without overlaps: the longest wins, of equally long ones the first."""
    selected: list[Span] = []
    longest_first = sorted(spans, key=lambda span: span.start - span.end)
    occupied = bytearray(max((span.end for span in longest_first), default=0))
    for span in longest_first:
        if not any(occupied[span.start : span.end]):
            occupied[span.start : span.end] = b"\1" * (span.end - span.start)
            selected.append(span)
    return sorted(selected, key=lambda span: span.start)


def _blanked(text: str, spans: Sequence[Span]) -> str:
    """`text` with each of `spans`, which are in order, replaced by blanks."""
    out, position = [], 0
    for span in spans:
        out += [text[position : span.start], patterns.BLANK * len(span.text)]
        position = span.end
    return "".join([*out, text[position:]])


# --- pseudonyms ------------------------------------------------------------------------------------------------

TEST_NETS = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737
HEAD = 4  # characters; every pseudonym is longer


class PseudonymMap:
    """The pseudonym map: the pseudonym of each value, the same in every row.

    Pseudonyms come from ranges that are assigned to no one: example.org (RFC 2606), 555-0100 to 555-0199 (NANPA),
    addresses for documentation and benchmarks (RFC 5737, 2544, 3849), cards that begin with 0, IBANs with the check
    digits 00, SSNs of area 000.
    """

    def __init__(self) -> None:
        self._stand_ins: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._lengths: defaultdict[str, set[int]] = defaultdict(set)  # head of a pseudonym -> lengths to try
        self._numbers: defaultdict[str, int] = defaultdict(int)
        self._reserved: set[str] = set()

    def __len__(self) -> int:
        return len(self._values)

    def reserve(self, spans: Iterable[Span]) -> None:
        """Prevents values that the rows already contain from becoming pseudonyms.

        If the data may contain example.org or 555-01xx, reserve the spans of all rows before replacing the first one;
        otherwise such a value is mistaken for a pseudonym.
        """
        self._reserved.update(span.text for span in spans)

    def pseudonym(self, kind: str, value: str, *, unlike: str = "") -> str:
        """The pseudonym of `value`; a new one never occurs in the text `unlike`."""
        pseudonym = self._stand_ins.get((kind, value))
        while pseudonym is None:
            number = self._numbers[kind]
            self._numbers[kind] += 1
            candidate = _new_pseudonym(kind, value, number)
            if candidate not in unlike and candidate not in self._reserved and candidate not in self._values:
                self._enter(kind, value, pseudonym := candidate)
        return pseudonym

    def value(self, stand_in: str) -> str:
        """The value behind the pseudonym `stand_in`. Raises KeyError if there is none."""
        return self._values[stand_in]

    def occurrences(self, text: str) -> Iterator[Span]:
        """The pseudonyms in `text` from left to right, the longest at each position, never part of a longer word."""
        position = 0
        while position < len(text):
            end = self._end(text, position)
            if end:
                yield Span(position, end, "stand_in", text[position:end])
            position = end or position + 1

    def save(self, path: Path) -> None:
        """Writes the map as JSON, atomically, readable by its owner only (mode 0600)."""
        entries = [[kind, value, stand_in] for (kind, value), stand_in in self._stand_ins.items()]
        plain = {"version": 1, "numbers": self._numbers, "reserved": sorted(self._reserved), "entries": entries}
        write_atomic(path, json.dumps(plain, indent=1), mode=0o600)  # ASCII: a value may have a lone surrogate

    @classmethod
    def load(cls, path: Path) -> PseudonymMap:
        """Loads a map that `save` wrote. Raises DataError if the file is not one."""
        book = cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            for kind, value, stand_in in data["entries"]:
                book._enter(kind, value, stand_in)
            book._numbers.update(data["numbers"])
            book._reserved.update(data["reserved"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"is not a pseudonym map ({type(error).__name__})",
                where=str(path),
                next="Name the file that was saved when the rows were pseudonymized",
            ) from error
        return book

    def _enter(self, kind: str, value: str, stand_in: str) -> None:
        self._stand_ins[kind, value] = stand_in
        self._values[stand_in] = value
        self._lengths[stand_in[:HEAD]].add(len(stand_in))

    def _end(self, text: str, position: int) -> int:
        lengths = self._lengths.get(text[position : position + HEAD])
        if not lengths or _inside_word(text, position):
            return 0
        ends = (position + length for length in sorted(lengths, reverse=True))
        return next((end for end in ends if text[position:end] in self._values and not _inside_word(text, end)), 0)


def pseudonymize(text: str, spans: Iterable[Span], book: PseudonymMap) -> str:
    """Replaces each of `spans` in `text` with its pseudonym; names word by word, so that a first name matches too.

    Spans that overlap a pseudonym of the map are left, so a second call changes nothing. Raises ValueError for a span
    of another text.
    """
    occupied = bytearray(len(text))
    for existing in book.occurrences(text):
        occupied[existing.start : existing.end] = b"\1" * len(existing.text)
    out, position = [], 0
    for span in without_overlaps(span for span in spans if not any(occupied[span.start : span.end])):
        if text[span.start : span.end] != span.text:
            raise ValueError(f"the text has {text[span.start : span.end]!r} at {span.start}, not {span.text!r}")
        out += [text[position : span.start], _pseudonym_for(span, text, book)]
        position = span.end
    return "".join([*out, text[position:]])


def restore(text: str, book: PseudonymMap) -> str:
    """`text` with each pseudonym of the map replaced by its value."""
    out, position = [], 0
    for span in book.occurrences(text):
        out += [text[position : span.start], book.value(span.text)]
        position = span.end
    return "".join([*out, text[position:]])


def _inside_word(text: str, position: int) -> bool:
    """Whether `position` is inside a word or a number."""
    return 0 < position < len(text) and text[position - 1].isalnum() and text[position].isalnum()


def _pseudonym_for(span: Span, text: str, book: PseudonymMap) -> str:
    if span.kind != "name":
        return book.pseudonym(span.kind, span.text, unlike=text)
    return re.sub(r"\w+", lambda word: book.pseudonym("name", word[0], unlike=text), span.text)


def _new_pseudonym(kind: str, value: str, number: int) -> str:
    """The pseudonym with this `number`, from 0, in the format of `value`."""
    fixed = {
        "email": f"person{number + 1}@example.org",
        "name": f"Person{number + 1}",
        "url": f"https://site{number + 1}.example.org",
    }
    shaped = {"phone": _phone, "ip": _ip, "card": _card, "iban": _iban, "ssn": _ssn}
    if kind in shaped:
        return shaped[kind](value, number)
    return fixed.get(kind, f"withheld-{kind.partition('_')[0]}-{number + 1}")


def _card(value: str, number: int) -> str:
    return _zero_filled(value, str(number))


def _iban(value: str, number: int) -> str:
    return value[:2] + _zero_filled(value[2:], str(number))


def _ssn(value: str, number: int) -> str:
    return _zero_filled(value, str(number))


def _zero_filled(value: str, digits: str) -> str:
    """`value` with its letters and digits replaced by zeros that end in `digits`; spaces and dashes stay."""
    width = sum(map(str.isalnum, value))
    digit_iterator = iter(digits.zfill(width))
    return "".join(next(digit_iterator) if character.isalnum() else character for character in value)


def _phone(value: str, number: int) -> str:
    area, line = divmod(number, 100)
    if area >= 800:
        raise DataError("all 80,000 phone pseudonyms are used", next="Set data.pseudonyms to a new file")
    dash = next((character for character in value if character in " .-"), "-")
    country = f"+1{dash}" if value.startswith(("+", "00")) else ""
    return f"{country}{200 + area}{dash}555{dash}01{line:02d}"


def _ip(value: str, number: int) -> str:
    if ":" in value:
        return f"2001:db8::{number // 0xFFFF:x}:{number % 0xFFFF + 1:x}"
    net, host = divmod(number, 254)
    if net < len(TEST_NETS):
        return f"{TEST_NETS[net]}.{host + 1}"
    net -= len(TEST_NETS)
    if net >= 512:
        raise DataError("all 130,810 IPv4 pseudonyms are used", next="Set data.pseudonyms to a new file")
    return f"198.{18 + net // 256}.{net % 256}.{host + 1}"
