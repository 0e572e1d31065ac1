"""Words compared as people mean them: case, plural, hyphens, abbreviations and legal forms folded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from rapidfuzz import fuzz

Words = tuple[str, ...]

WORD = re.compile(r"\.?[^\W_]+(?:[.'’][^\W_]+)*[+#]*")  # Node.js, C++, .NET and O'Neil are one word each
LEGAL = frozenset({
    "inc", "incorporated", "ltd", "limited", "llc", "llp", "plc", "gmbh", "ag", "corp", "corporation", "co", "company",
    "bv", "sa", "sarl", "srl", "pty", "oy", "ab", "kg", "se",
})  # fmt: skip
SHORT = {
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
PHRASE = 40  # characters: what is longer hardly ever comes again in another row
ALIKE = 90.0  # rapidfuzz's 0 to 100: one typing error in a name of ten letters or more


def listed(line: str) -> list[str]:
    """The words of a list that stands in the code as one line."""
    return line.split()


@lru_cache(maxsize=20_000)
def fold(word: str) -> str:
    """One word, case and regular English plural folded: 'Nurses' and 'nurse' are equal."""
    plain = word.casefold().replace("’", "'").removesuffix("'s").removesuffix("'")
    if "." in plain.strip("."):
        letters = plain.replace(".", "")
        plain = letters if all(len(part) == 1 for part in plain.strip(".").split(".")) else plain  # B.A. is BA
    if plain in SHORT:
        return SHORT[plain]
    if len(plain) > 4 and plain.endswith("ies"):
        plain = plain[:-3] + "y"
    elif len(plain) > 3 and plain.endswith("s") and not plain.endswith(("ss", "us", "is", "ics")):
        plain = plain[:-1]
    return SHORT.get(plain, plain)


@lru_cache(maxsize=20_000)
def parts(word: str) -> Words:
    """The folded words of one word: an abbreviation may stand for several."""
    return tuple(fold(word).split())


@lru_cache(maxsize=256)
def located(text: str) -> tuple[tuple[str, int, int], ...]:
    """Each word of a text as written, with its first character and the one behind its last."""
    return tuple((match[0], match.start(), match.end()) for match in WORD.finditer(text))


def words(text: str) -> Words:
    """The folded words of a text; an abbreviation may give several."""
    return _phrase(text) if len(text) <= PHRASE else _passage(text)


@lru_cache(maxsize=64)
def _passage(text: str) -> Words:
    """The folded words of a longer text: the entries of a field are looked at once a claim."""
    return tuple(part for word, _, _ in located(text) for part in parts(word))


@lru_cache(maxsize=20_000)
def _phrase(text: str) -> Words:
    """The folded words of a short text: titles, skills and employers come again in row after row."""
    return tuple(part for match in WORD.finditer(text) for part in parts(match[0]))


@lru_cache(maxsize=256)
def bare(name: Words) -> Words:
    """An organisation's words without legal form, article and ampersand: 'The Foo Co. Ltd' is 'foo'."""
    every = [word for word in name if word not in {"the", "and"}]
    core = tuple(word for word in every if word.strip(".") not in LEGAL)
    return core or tuple(every)


def holds(many: Sequence[str], few: Sequence[str]) -> bool:
    """Whether `few` stand in `many` side by side and in this order."""
    whole, part = tuple(many), tuple(few)
    if not part:
        return False
    start = -1
    for _ in range(whole.count(part[0])):
        start = whole.index(part[0], start + 1)
        if whole[start : start + len(part)] == part:
            return True
    return False


def alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Equal but for a typing error (normalised edit similarity of at least ALIKE, names of 6 letters or more)."""
    left, right = "".join(one), "".join(other)
    return left == right or (min(len(left), len(right)) >= 6 and fuzz.ratio(left, right) >= ALIKE)


@lru_cache(maxsize=8)
def word_list(name: str) -> frozenset[str]:
    """The lines of one of the room's word lists, comments apart."""
    text = files("tunesmith.claims").joinpath(name).read_text(encoding="utf-8")
    return frozenset(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
