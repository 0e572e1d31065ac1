"""Folds words so that case, plural, hyphens, abbreviations and legal forms do not matter in comparisons."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
