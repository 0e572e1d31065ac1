"""Words, phrases and numbers of a text, compared without regard to case, plural, hyphens or spelling.

Abbreviations and legal forms of company names are folded too; numbers are read in digits and words: 3,000, 2.5k,
a dozen.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from rapidfuzz import fuzz

Words = tuple[str, ...]

WORD = re.compile(r"\.?[^\W_]+(?:[.'’][^\W_]+)*[+#]*")  # Node.js, C++, .NET and O'Neil are one word each
LEGAL_FORMS = frozenset({
    "inc", "incorporated", "ltd", "limited", "llc", "llp", "plc", "gmbh", "ag", "corp", "corporation", "co", "company",
    "bv", "sa", "sarl", "srl", "pty", "oy", "ab", "kg", "se",
})  # fmt: skip
ABBREVIATIONS = {
    "sr": "senior", "snr": "senior", "jr": "junior", "jnr": "junior", "mgr": "manager", "dev": "developer",
    "eng": "engineer", "engr": "engineer", "asst": "assistant", "admin": "administrator", "vp": "vice president",
    "js": "javascript", "ts": "typescript", "k8s": "kubernetes", "postgres": "postgresql", "ml": "machine learning",
    "ai": "artificial intelligence", "nlp": "natural language processing", "cs": "computer science",
    "golang": "go", "ms": "microsoft", "rn": "registered nurse", "hr": "human resource", "ux": "user experience",
    "ui": "user interface", "qa": "quality assurance", "cad": "computer aided design",
    "oop": "object oriented programming",
    "uni": "university", "univ": "university", "maths": "mathematics", "math": "mathematics", "licence": "license",
    "restful": "rest", "apis": "api", "nodejs": "node", "node.js": "node", "reactjs": "react", "react.js": "react",
    "vue.js": "vue",
    "analytic": "analytics", "colour": "color", "counsellor": "counselor",
}  # fmt: skip
SHORT_TEXT = 40  # characters: longer texts rarely recur in other rows
MIN_SIMILARITY = 90.0  # rapidfuzz's 0 to 100: one typing error in a name of ten letters or more


def split_words(line: str) -> list[str]:
    """Split a word list that is written as one line."""
    return line.split()


@lru_cache(maxsize=20_000)
def fold(word: str) -> str:
    """Return a word with case and regular English plural folded: 'Nurses' and 'nurse' are equal."""
    plain = word.casefold().replace("’", "'").removesuffix("'s").removesuffix("'")
    if "." in plain.strip("."):
        letters = plain.replace(".", "")
        plain = letters if all(len(part) == 1 for part in plain.strip(".").split(".")) else plain  # B.A. is BA
    if plain in ABBREVIATIONS:
        return ABBREVIATIONS[plain]
    if len(plain) > 4 and plain.endswith("ies"):
        plain = plain[:-3] + "y"
    elif len(plain) > 3 and plain.endswith("s") and not plain.endswith(("ss", "us", "is", "ics")):
        plain = plain[:-1]
    return ABBREVIATIONS.get(plain, plain)


@lru_cache(maxsize=20_000)
def fold_word(word: str) -> Words:
    """Return the folded words of one word; an abbreviation may stand for several."""
    return tuple(fold(word).split())


@lru_cache(maxsize=256)
def word_spans(text: str) -> tuple[tuple[str, int, int], ...]:
    """Return each word of a text as written, with its start and end."""
    return tuple((match[0], match.start(), match.end()) for match in WORD.finditer(text))


def words(text: str) -> Words:
    """Return the folded words of a text; an abbreviation may give several."""
    return _phrase(text) if len(text) <= SHORT_TEXT else _passage(text)


@lru_cache(maxsize=64)
def _passage(text: str) -> Words:
    """Fold a longer text: the entries of a field are read once per claim."""
    return tuple(part for word, _, _ in word_spans(text) for part in fold_word(word))


@lru_cache(maxsize=20_000)
def _phrase(text: str) -> Words:
    """Fold a short text: titles, skills and employers recur in many rows."""
    return tuple(part for match in WORD.finditer(text) for part in fold_word(match[0]))


@lru_cache(maxsize=256)
def core_words(name: Words) -> Words:
    """Return an organization's words without legal form, article and ampersand: 'The Foo Co. Ltd' is 'foo'."""
    every = [word for word in name if word not in {"the", "and"}]
    core = tuple(word for word in every if word.strip(".") not in LEGAL_FORMS)
    return core or tuple(every)


def contains_phrase(sequence: Sequence[str], phrase: Sequence[str]) -> bool:
    """Return whether `sequence` contains the words of `phrase` side by side and in order."""
    haystack, needle = tuple(sequence), tuple(phrase)
    if not needle:
        return False
    start = -1
    for _ in range(haystack.count(needle[0])):
        start = haystack.index(needle[0], start + 1)
        if haystack[start : start + len(needle)] == needle:
            return True
    return False


def nearly_equal(first: Sequence[str], second: Sequence[str]) -> bool:
    """Return whether two names are equal or, from 6 letters on, have an edit similarity of at least MIN_SIMILARITY."""
    left, right = "".join(first), "".join(second)
    return left == right or (min(len(left), len(right)) >= 6 and fuzz.ratio(left, right) >= MIN_SIMILARITY)


@lru_cache(maxsize=8)
def word_list(name: str) -> frozenset[str]:
    """Return the lines of one of the package's word lists, without comments."""
    text = files("tunesmith.claims").joinpath(name).read_text(encoding="utf-8")
    return frozenset(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


@dataclass(frozen=True)
class PhraseMatch:
    """A phrase in a text: its span and the folded words of its meaning."""

    start: int
    end: int
    nouns: frozenset[str]


@dataclass(frozen=True)
class Phrases:
    """Folded phrases by first word, longest first, each with the folded words of its meaning."""

    by_first: Mapping[str, tuple[tuple[Words, frozenset[str]], ...]]

    @classmethod
    def from_synonyms(cls, synonyms: Mapping[str, str]) -> Phrases:
        """Index phrases and their meanings."""
        table: dict[str, list[tuple[Words, frozenset[str]]]] = {}
        for phrase, meaning in sorted(synonyms.items(), key=lambda pair: -len(words(pair[0]))):
            if folded := words(phrase):
                table.setdefault(folded[0], []).append((folded, frozenset(words(meaning))))
        return cls({first: tuple(entries) for first, entries in table.items()})

    def find(self, text: str) -> list[PhraseMatch]:
        """Return the phrases of a text from left to right, the longest one at each word."""
        if not self.by_first:
            return []
        parts = [(part, start, end) for word, start, end in word_spans(text) for part in fold(word).split()]
        stream = tuple(part for part, _, _ in parts)
        matches, index = [], 0
        while index < len(parts):
            candidates = (
                entry
                for entry in self.by_first.get(stream[index], ())
                if stream[index : index + len(entry[0])] == entry[0]
            )
            phrase, nouns = next(candidates, ((), frozenset[str]()))
            if phrase:
                matches.append(PhraseMatch(parts[index][1], parts[index + len(phrase) - 1][2], nouns))
            index += len(phrase) or 1
        return matches


@dataclass(frozen=True)
class ReportOptions:
    """How to read a report, as opposed to a letter.

    With `scores`, numbers joined by a hyphen are a score, not a range, and 'second' is a rank. `nouns` are stems of
    what the fields count: 'a steal' is a number if they count steals. With `names`, capitalized names are claims.
    """

    phrases: Phrases
    nouns: Collection[str] = frozenset()
    names: bool = False
    scores: bool = True


UNITS_AND_TEENS = {
    name: value
    for value, name in enumerate(
        split_words(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen"
        )
    )
}
TENS = {
    name: 10 * value
    for value, name in enumerate(split_words("twenty thirty forty fifty sixty seventy eighty ninety"), start=2)
}
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000, "dozen": 12}
GROUPS = {"pair": 2, "couple": 2, "duo": 2, "trio": 3, "quartet": 4}
SUFFIXES = {"k": 1e3, "m": 1e6, "mn": 1e6, "mio": 1e6, "bn": 1e9, "b": 1e9}

_NAME = "|".join(sorted([*UNITS_AND_TEENS, *TENS, *SCALES], key=len, reverse=True))
_DIGITS = (
    r"(?<![\w.,])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"(?:(?P<suffix>k|mn|mio|bn|m|b)\b|\s(?P<scale>hundred|thousand|million|billion|dozen)s?\b)?(?![\d])"
)
_SPELLED = rf"\b(?:a\s+(?=hundred|thousand|million|dozen))?(?P<words>(?:{_NAME})(?:(?:\s+and\s+|[\s-])(?:{_NAME}))*)\b"
_GROUP = rf"\b(?:a\s+)?(?P<group>{'|'.join(GROUPS)})\s+of\b"
_HALF = r"(?P<half>\s+and\s+a\s+half)?"
_FIRST = (
    rf"(?=\d|a\s|{'|'.join(sorted({name[:3] for name in (*UNITS_AND_TEENS, *TENS, *SCALES, *GROUPS)}))})"  # fast reject
)
NUMBER = re.compile(rf"(?<!\w){_FIRST}(?:(?:{_DIGITS}|{_SPELLED}){_HALF}|{_GROUP})", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """A number's value and span. `spelled`: it is in words. `group`: it is in words such as 'a pair of'."""

    value: float
    start: int
    end: int
    spelled: bool
    group: bool = False


def is_group(phrase: str) -> bool:
    """Return whether a number is written as 'a pair of', 'a trio of'."""
    return any(word in GROUPS for word in phrase.lower().split())


def find_numbers(text: str) -> Iterator[Number]:
    """Yield every number of a text from left to right, except digits inside words (C3PO, mp3)."""
    for match in NUMBER.finditer(text):
        if match["group"]:
            yield Number(float(GROUPS[match["group"].lower()]), *match.span(), True, True)
            continue
        if match["digits"]:
            value = float(match["digits"].replace(",", ""))
            value *= SUFFIXES.get((match["suffix"] or "").lower(), 1) * SCALES.get((match["scale"] or "").lower(), 1)
            after = text[match.end() : match.end() + 1]
            if after.isalpha() or after in {"_", "@"}:
                continue
        else:
            value = parse_spelled(match["words"])
        yield Number(value + 0.5 * bool(match["half"]), match.start(), match.end(), not match["digits"])


def parse_spelled(phrase: str) -> float:
    """Return the value of a number in English words: 'three hundred and five' is 305."""
    total = part = 0
    for word in re.findall(r"[a-z]+", phrase.lower()):
        if word in UNITS_AND_TEENS or word in TENS:
            part += UNITS_AND_TEENS.get(word, 0) + TENS.get(word, 0)
        elif word in {"hundred", "dozen"}:
            part = max(part, 1) * SCALES[word]
        elif word in SCALES:
            total, part = total + max(part, 1) * SCALES[word], 0
    return float(total + part)
