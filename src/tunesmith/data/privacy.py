"""Finds personal data and secrets in texts, replaces personal data with pseudonyms, and restores it.

The pseudonym map is the key to the data: a separate file, readable by its owner only, which belongs neither into a run
folder nor beside the rows.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from itertools import groupby
from pathlib import Path
from typing import Any

from tunesmith.config.extras import missing_extra
from tunesmith.config.registry import nearest
from tunesmith.data import privacy_patterns as patterns
from tunesmith.data.privacy_patterns import DIGIT, TITLES, Span
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


SETTING = "data.checks, personal.ner"
PEOPLE = frozenset({"PERSON", "PER", "PRS", "persName"})  # OntoNotes, WikiNER, the Swedish SUC, the Polish NKJP
UNUSED_COMPONENTS = (  # components of spaCy's pipelines that entities do not need
    *("tagger", "morphologizer", "parser", "senter", "sentencizer", "attribute_ruler", "lemmatizer"),
    *("trainable_lemmatizer", "textcat", "textcat_multilabel", "entity_linker", "spancat"),
)
VECTORS = ("tok2vec", "transformer")  # needed only if the NER component listens to them
BATCH = 64  # texts
PIECE_CHARACTERS = 50_000  # characters; spaCy refuses 1,000,000 and its memory grows with the text
WORD = re.compile(r"[^\s,;]+")
EDGE = " \t.,;:!?\"'`’‘“”()[]{}<>*_-–—•|/"


def find_names(texts: Iterable[str], *, model: str) -> Iterator[list[Span]]:
    """Yields the names of people in each of `texts`: spans of the kind `name`, without titles and possessives.

    `model` is the name of an installed spaCy pipeline, loaded once per process. Raises MissingExtra without spaCy, and
    RecipeError for a pipeline that is not installed or does not recognize people.
    """
    nlp = _pipeline(model)
    pieces = ((piece, (index, start)) for index, text in enumerate(texts) for start, piece in _pieces(text))
    parsed = nlp.pipe(pieces, as_tuples=True, batch_size=BATCH)
    for _, docs in groupby(parsed, key=lambda item: item[1][0]):
        yield [span for doc, (_, start) in docs for span in _person_spans(doc, start)]


@lru_cache(maxsize=1)
def _pipeline(model: str) -> Any:
    try:
        from spacy.util import load_model_from_package
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "spacy":  # spaCy is installed, one of its dependencies is not
            raise
        raise missing_extra("spacy", "ner", where=SETTING) from error
    if not entry_points(group="spacy_models", name=model):
        raise RecipeError(
            f"no spaCy pipeline '{model}' is installed",
            where=SETTING,
            next=f"python -m spacy download {model if model.isidentifier() else 'en_core_web_sm'}",
        )
    nlp = load_model_from_package(model, exclude=[*UNUSED_COMPONENTS])
    for name, component in nlp.pipeline:
        if name in VECTORS and not getattr(component, "listening_components", True):
            nlp.disable_pipe(name)
    labels = {label for name in nlp.pipe_names for label in nlp.pipe_labels.get(name, ())}
    if not labels & PEOPLE:
        raise RecipeError(
            f"the spaCy pipeline '{model}' does not recognize people: it has none of {', '.join(sorted(PEOPLE))}",
            where=SETTING,
            next="Name one that does, such as en_core_web_sm",
        )
    return nlp


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Splits `text` into pieces of at most PIECE characters, at whitespace if possible, each with its start."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        blank = max(text.rfind(separator, start + 1, start + PIECE_CHARACTERS) for separator in " \n")
        end = blank if blank > 0 else start + PIECE_CHARACTERS
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _person_spans(doc: Any, start: int) -> Iterator[Span]:
    for entity in doc.ents:
        if entity.label_ in PEOPLE and (span := _trimmed_name(entity.text, start + entity.start_char)):
            yield span


def _trimmed_name(text: str, start: int) -> Span | None:
    """The name in `text`, which begins at `start`: its first line without titles, possessive ending and punctuation.

    None if fewer than two letters remain or there is a digit, which no name has.
    """
    line = text.lstrip().split("\n")[0]
    start += len(text) - len(text.lstrip())
    words = [(word.start(), word.end()) for word in WORD.finditer(line)]
    while words and _is_title(line[slice(*words[0])]):
        words.pop(0)
    while words and _is_title(line[slice(*words[-1])]):
        words.pop()
    if not words:
        return None
    first, last = words[0][0], words[-1][1]
    bare = line[first:last].lstrip(EDGE)
    first = last - len(bare)
    name = re.sub(r"['’][sS]?$", "", bare.rstrip(EDGE)).rstrip(EDGE)
    if sum(map(str.isalpha, name)) < 2 or DIGIT.search(name):
        return None
    return Span(start + first, start + first + len(name), "name", name)


def _is_title(word: str) -> bool:
    return word.strip(EDGE).casefold() in TITLES.split()
