"""Personal data and secrets in a text: found, given stand-ins, and put back.

The book of stand-ins is the key to the data: it is a file of its own, readable by its owner only, and belongs neither
into a run's folder nor beside the rows.
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
FEW_DIGITS = 7  # no phone has fewer
CERTAIN: tuple[tuple[str, int, Callable[[str], Iterator[Span]]], ...] = (  # the most specific first: it wins a tie
    ("iban", 2, patterns.ibans),  # the second is how many digits a text must hold for one: most texts have none
    ("card", FEW_DIGITS, patterns.cards),
    ("ssn", FEW_DIGITS, patterns.ssns),
    ("email", 0, patterns.emails),
    ("ip", 1, patterns.ips),
    ("url", 0, patterns.urls),
)


def check_kinds(kinds: Iterable[str]) -> None:
    """Raises RecipeError for a kind of personal data that a recipe asks for and nobody knows."""
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"unknown kind '{kind}'", where="data.checks, personal.kinds", next=nearest(kind, KINDS))


def find_personal(
    text: str, *, names: Sequence[str] = (), kinds: Sequence[str] = KINDS, people: Sequence[Span] = ()
) -> list[Span]:
    """Personal data in `text`, in order, without overlaps; `names` are the row's own, from its fields.

    `people` are names found in the text by other means; they give way to every other kind. Of two that overlap the
    longer wins, then the more specific. A phone is the vaguest shape: it is looked for in what the others leave. Every
    kind is looked for, whatever `kinds` asks for: a card never is a phone.
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"unknown kinds {unknown}; there are {KINDS}")
    digits = len(patterns.DIGIT.findall(text))
    found = [span for _, least, find in CERTAIN if digits >= least for span in find(text)]
    apart = [each for each in people if not any(each.start < span.end and span.start < each.end for span in found)]
    found = resolve([*found, *patterns.names(text, names), *apart])
    if digits >= FEW_DIGITS:
        found += patterns.phones(_without(text, resolve([*found, *find_secrets(text)])))
    return [span for span in sorted(found, key=lambda span: span.start) if span.kind in kinds]


def find_secrets(text: str) -> list[Span]:
    """Keys, tokens and passwords in `text`, in order, without overlaps; the kind says whose key it is."""
    return resolve(list(patterns.secrets(text)))


def resolve(spans: Iterable[Span]) -> list[Span]:
    """`spans` in order, of those that overlap only the longest; of equally long ones the first given."""
    chosen: list[Span] = []
    longest_first = sorted(spans, key=lambda span: span.start - span.end)
    taken = bytearray(max((span.end for span in longest_first), default=0))
    for span in longest_first:
        if not any(taken[span.start : span.end]):
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
            chosen.append(span)
    return sorted(chosen, key=lambda span: span.start)


def _without(text: str, spans: Sequence[Span]) -> str:
    """`text` with each of `spans`, in order, blanked."""
    out, at = [], 0
    for span in spans:
        out += [text[at : span.start], patterns.BLANK * len(span.text)]
        at = span.end
    return "".join([*out, text[at:]])


# --- stand-ins -------------------------------------------------------------------------------------------------

TEST_NETS = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737
HEAD = 4  # characters; every stand-in is longer


class Pseudonyms:
    """The book: each value's stand-in, the same in every row.

    Stand-ins come from ranges that belong to nobody: example.org (RFC 2606), 555-0100 to 555-0199 (NANPA), addresses
    for documentation and benchmarks (RFC 5737, 2544, 3849), cards that begin with 0, IBANs with the check digits 00,
    SSNs of area 000.
    """

    def __init__(self) -> None:
        self._stand_ins: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._lengths: defaultdict[str, set[int]] = defaultdict(set)  # a stand-in's head -> the lengths to try
        self._numbers: defaultdict[str, int] = defaultdict(int)
        self._reserved: set[str] = set()

    def __len__(self) -> int:
        return len(self._values)

    def reserve(self, spans: Iterable[Span]) -> None:
        """Keeps what the rows already say from becoming a stand-in. For data that may hold example.org or 555-01xx:

        reserve every row's spans before the first is pseudonymised, or such a value is taken for a stand-in.
        """
        self._reserved.update(span.text for span in spans)

    def stand_in(self, kind: str, value: str, *, unlike: str = "") -> str:
        """The stand-in for `value`; a new one never occurs in the text `unlike`."""
        known = self._stand_ins.get((kind, value))
        while known is None:
            number = self._numbers[kind]
            self._numbers[kind] += 1
            made = _made(kind, value, number)
            if made not in unlike and made not in self._reserved and made not in self._values:
                self._enter(kind, value, known := made)
        return known

    def value(self, stand_in: str) -> str:
        """What `stand_in` stands for. Raises KeyError when it is none."""
        return self._values[stand_in]

    def occurrences(self, text: str) -> Iterator[Span]:
        """The book's stand-ins in `text`, from the left, the longest at each place, never a part of a longer word."""
        at = 0
        while at < len(text):
            end = self._end(text, at)
            if end:
                yield Span(at, end, "stand_in", text[at:end])
            at = end or at + 1

    def save(self, path: Path) -> None:
        """Writes the book as JSON, whole or not at all, readable by its owner only (mode 0600)."""
        entries = [[kind, value, stand_in] for (kind, value), stand_in in self._stand_ins.items()]
        plain = {"version": 1, "numbers": self._numbers, "reserved": sorted(self._reserved), "entries": entries}
        write_atomic(path, json.dumps(plain, indent=1), mode=0o600)  # in ASCII: a value may hold half a surrogate pair

    @classmethod
    def load(cls, path: Path) -> Pseudonyms:
        """The book that `save` wrote. Raises DataError when the file is none."""
        book = cls()
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            for kind, value, stand_in in plain["entries"]:
                book._enter(kind, value, stand_in)
            book._numbers.update(plain["numbers"])
            book._reserved.update(plain["reserved"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"this is no book of pseudonyms ({type(error).__name__})",
                where=str(path),
                next="Name the file that was saved when the rows were pseudonymised",
            ) from error
        return book

    def _enter(self, kind: str, value: str, stand_in: str) -> None:
        self._stand_ins[kind, value] = stand_in
        self._values[stand_in] = value
        self._lengths[stand_in[:HEAD]].add(len(stand_in))

    def _end(self, text: str, at: int) -> int:
        lengths = self._lengths.get(text[at : at + HEAD])
        if not lengths or _joined(text, at):
            return 0
        ends = (at + length for length in sorted(lengths, reverse=True))
        return next((end for end in ends if text[at:end] in self._values and not _joined(text, end)), 0)


def pseudonymise(text: str, spans: Iterable[Span], book: Pseudonyms) -> str:
    """`text` with a stand-in for each of `spans`; names word by word, so that a first name stays the same person.

    A span that touches a stand-in of the book is left: doing it twice changes nothing. Raises ValueError for a span of
    another text.
    """
    there = bytearray(len(text))
    for known in book.occurrences(text):
        there[known.start : known.end] = b"\1" * len(known.text)
    out, at = [], 0
    for span in resolve(span for span in spans if not any(there[span.start : span.end])):
        if text[span.start : span.end] != span.text:
            raise ValueError(f"the text holds {text[span.start : span.end]!r} at {span.start}, not {span.text!r}")
        out += [text[at : span.start], _replaced(span, text, book)]
        at = span.end
    return "".join([*out, text[at:]])


def restore(text: str, book: Pseudonyms) -> str:
    """`text` with each of the book's stand-ins turned back into its value."""
    out, at = [], 0
    for span in book.occurrences(text):
        out += [text[at : span.start], book.value(span.text)]
        at = span.end
    return "".join([*out, text[at:]])


def _joined(text: str, at: int) -> bool:
    """Whether `at` lies within a word or a number."""
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()


def _replaced(span: Span, text: str, book: Pseudonyms) -> str:
    if span.kind != "name":
        return book.stand_in(span.kind, span.text, unlike=text)
    return re.sub(r"\w+", lambda word: book.stand_in("name", word[0], unlike=text), span.text)


def _made(kind: str, value: str, number: int) -> str:
    """The stand-in with this `number`, from 0, shaped like `value`."""
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
    return _filled(value, str(number))


def _iban(value: str, number: int) -> str:
    return value[:2] + _filled(value[2:], str(number))


def _ssn(value: str, number: int) -> str:
    return _filled(value, str(number))


def _filled(value: str, digits: str) -> str:
    """`value` with zeros for its letters and digits, ending in `digits`; its spaces and dashes stay."""
    room = sum(map(str.isalnum, value))
    fill = iter(digits.zfill(room))
    return "".join(next(fill) if each.isalnum() else each for each in value)


def _phone(value: str, number: int) -> str:
    area, line = divmod(number, 100)
    if area >= 800:
        raise DataError("the book holds 80,000 phone numbers, and no more are reserved", next="Begin another book")
    dash = next((each for each in value if each in " .-"), "-")
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
        raise DataError("the book holds 130,810 IPv4 addresses, and no more are reserved", next="Begin another book")
    return f"198.{18 + net // 256}.{net % 256}.{host + 1}"
