"""What a text is written in: its script and language, and which of its parts are code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

HIDDEN = "\ue000"  # private use: not a letter, a space, or anything that a pattern here matches
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,400}`", re.DOTALL)
_TAGS = re.compile(r"<[^<>]{1,300}>")
MENTIONS_CODE = re.compile(
    r"(?<!/)\b(?:HTML5?|XML|CSS|JavaScript|JSX|markup)\b|<!DOCTYPE|<(?:html|body|head|script|style)\b", re.IGNORECASE
)
_SIGNS_OF_CODE = re.compile(
    r"^[ \t]*(?:def \w+\(|class \w+[:({]|import \w+|from \w+ import |#include|public |private |(?<=[ \t])return "
    r"|function \w*\(|elif |print\(|(?:var|let|const) \w+ ?=|(?:if|for|while) ?\([^\n]*\{"
    r"|SELECT\b|INSERT INTO|CREATE TABLE|</?(?!(?:br|p|hr)\b)[a-z]+[^>\n]{0,80}>$"
    r"|[\w.]+ = [\w\"'\[{(])|[;{}][ \t]*$|\w\([^()\n]{0,60}\)[;:][ \t]*$|=> ?\{|\w\[\w+\] ?=",
    re.MULTILINE,
)


@lru_cache(maxsize=4)  # the detectors run on one text after the other
def mask(text: str) -> str:
    """The text with its code, line ends included, replaced by `HIDDEN`; all positions stay the same."""
    if _is_code(text):
        return HIDDEN * len(text)
    if "`" not in text and "~~~" not in text:
        return text
    return _CODE.sub(lambda code: HIDDEN * len(code[0]), text)


def _is_code(text: str) -> bool:
    """Whether the whole text is code: JSON, markup from end to end, or a third of its lines look like code."""
    bare = text.strip()
    if bare[:1] + bare[-1:] == "<>" and len(_TAGS.sub("", bare)) > 0.6 * len(bare) and not MENTIONS_CODE.search(bare):
        return False  # the prose of a web page
    if bare[:1] + bare[-1:] in ("{}", "[]", "<>") and len(bare) > 40:
        return not (bare.startswith("{{") and bare.endswith("}}") and "\n" not in bare)
    signs = sum(1 for _ in _SIGNS_OF_CODE.finditer(text))
    return signs >= 2 and signs * 3 >= 1 + sum(1 for line in text.split("\n") if line.strip())


def line_end(text: str, position: int) -> int:
    """The index of the end of the line that contains `position`."""
    end = text.find("\n", position)
    return len(text) if end < 0 else end


@dataclass(frozen=True)
class Language:
    """A script and a language code (ISO 639-1); the code is '' if the stop words do not decide."""

    script: str
    code: str = ""

    @staticmethod
    def detect(text: str) -> Language | None:
        """The script and language of a text; None if it has fewer than 20 letters."""
        return _detect(text)

    def contains_script(self, text: str) -> bool:
        """Whether `text` has a letter of this script."""
        return bool(_LETTERS[self.script].search(text))

    @classmethod
    def of(cls, texts: Iterable[str]) -> Language:
        """The language of most of `texts`. Texts too short to judge do not count; the default is English."""
        languages = [language for text in texts if (language := _detect(text))]
        if not languages:
            return cls("Latin", "en")
        script = Counter(language.script for language in languages).most_common(1)[0][0]
        codes = Counter(language.code for language in languages if language.script == script and language.code)
        return cls(script, codes.most_common(1)[0][0] if codes else "")


_SCRIPTS = {  # Unicode's blocks of letters, by script: https://www.unicode.org/charts/
    "Latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": "\u0400-\u052f",
    "Hebrew": "\u05d0-\u05ea",
    "Arabic": "\u0620-\u064a\u0671-\u06d3",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e01-\u0e4e",
    "CJK": "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff",
    "Hangul": "\u1100-\u11ff\uac00-\ud7af",
}
_LETTERS = {name: re.compile(f"[{ranges}]+") for name, ranges in _SCRIPTS.items()}
_STOP_WORDS = {  # the commonest function words of each language, own lists
    "en": "the of and to is that it was for are with they this have from not by but what you your can be which will"
    " i my we he she a in on at do how an or if has had were been their more when who would there me so our"
    " them his her",
    "de": "der die und das ist nicht ein eine den mit auf für sich dem des von zu auch sie ich wird sind oder wie im"
    " mir mich mein meine meinen meiner ihr ihre ihrem ihren ihrer ihnen uns bei aus nach über unter einen"
    " einem einer eines am zum zur vom bin habe haben hat wurde werden kann können noch nur schon sehr wenn"
    " dass da um als aber bis durch diese dieser dieses alle mehr",
    "fr": "le les des est une dans qui que pour pas sur au avec vous nous ce cette sont mais du et il elle plus ou"
    " je j n qu aux mon ma mes votre vos notre nos son sa ses leur leurs on se y ne ai avez ont être été même"
    " lorsque chez tout tous toute bien aussi comme où si donc par ces cet d l",
    "es": "el los las es una que en por con para del se su más como pero este esta y al lo muy usted puede mi mis me"
    " ha he han soy está están fue ser hay de a o un cuando donde también sin sobre entre hasta desde porque"
    " quien cada otro otra todo todos sus nos les le ya si ustedes",
    "it": "il di che è un una per con non sono gli della nel come anche più ma del alla questo dei si le lo la e i"
    " ho mi ha al",
    "pt": "os é um uma que não para com em da dos das mais como mas você seu sua ao pelo também são por de a o e eu"
    " meu minha no na se",
    "nl": "het een en van dat op te niet zijn voor met de aan die ook als bij maar om wordt naar deze door ik mijn"
    " hij wij we uw u of hebben heeft is bent kan zal nog dan zo over",
    "pl": "w na nie się jest że jak po przez dla od są oraz ale czy może które był tym jego tak już tylko",
}
STOP_WORD_VOTES: dict[str, list[str]] = {}
for _code, _listed in _STOP_WORDS.items():
    for _word in _listed.split():
        STOP_WORD_VOTES.setdefault(_word, []).append(_code)
WORD = re.compile(r"[^\W\d_]+")
READ = 4000  # characters of a text that are read: more do not change the result
_LETTERS_NEEDED = 20


def stop_word_votes(words: Sequence[str]) -> Counter[str]:
    """How many of the words are stop words of each language."""
    return Counter(code for word in words if word in STOP_WORD_VOTES for code in STOP_WORD_VOTES[word])


def _detect(text: str) -> Language | None:
    """The script with most letters, and its language.

    A language needs 15 % stop words, three different ones, and 1.5 times as many as the next language.
    """
    part = mask(text[:READ])
    scripts = ["Latin"] if part.isascii() else list(_SCRIPTS)
    share = {name: sum(map(len, _LETTERS[name].findall(part))) for name in scripts}
    script = max(share, key=lambda name: share[name])
    if sum(share.values()) < _LETTERS_NEEDED:
        return None
    if script != "Latin":
        return Language(script)
    words = WORD.findall(part.lower())
    votes = stop_word_votes(words)
    (first, best_votes), (_, next_votes) = (*votes.most_common(2), ("", 0), ("", 0))[:2]
    different = len({word for word in words if first in STOP_WORD_VOTES.get(word, ())})
    clear = different >= 3 and best_votes >= 0.15 * len(words) and best_votes >= 1.5 * next_votes
    return Language(script, first if clear else "")
