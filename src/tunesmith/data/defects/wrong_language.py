"""Texts in another script or language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.defects._code import mask
from tunesmith.data.defects._defect import Defect, make_defect


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
_VOTES: dict[str, list[str]] = {}
for _code, _listed in _STOP_WORDS.items():
    for _word in _listed.split():
        _VOTES.setdefault(_word, []).append(_code)
_WORD = re.compile(r"[^\W\d_]+")
_PROSE = re.compile(r"[^\W\d_]{2,} [^\W\d_]{2,} [^\W\d_]{2,}[^.!?\n]{0,200}[.!?]")
_READ = 4000  # characters of a text that are read: more do not change the result
_LETTERS_NEEDED = 20
_MIN_PARAGRAPH = 60  # characters: a shorter paragraph is not judged alone
_MIN_SHARE = 0.3  # of the letters: less in another language is a quotation


def wrong_language(text: str, *, script: str = "Latin", language: str = "en") -> Iterator[Defect]:
    """Yields a text, or paragraphs of it, in another script or language than `Language.of` the data set.

    Paragraphs count if they have three tenths of the letters. Languages are English, German, French, Spanish, Italian,
    Portuguese, Dutch and Polish; prose in another one is recognized by its accents and the lack of stop words. A text
    of fewer than 20 letters is not judged.
    """
    detected = _detect(text)
    if detected is None:
        return
    if detected.script != script:
        yield make_defect("wrong_language", text, 0, len(text), f"written in {detected.script}, not {script}")
    elif language and detected.code and detected.code != language:
        yield make_defect("wrong_language", text, 0, len(text), f"reads as '{detected.code}', not '{language}'")
    elif language and not detected.code and _foreign(text, language):
        yield make_defect("wrong_language", text, 0, len(text), f"does not read as '{language}'")
    elif language and "\n" in text and (part := _foreign_paragraphs(text, language)):
        start, end, code = part
        yield make_defect("wrong_language", text, start, end, f"continues as '{code}', not '{language}'")


def _foreign_paragraphs(text: str, language: str) -> tuple[int, int, str] | None:
    """The start, end and language code of the paragraphs in another language; None if they are too few."""
    votes = _votes(_WORD.findall(text[:_READ].lower()))
    if all(count < 6 for code, count in votes.items() if code != language):
        return None
    parts, letters, start = [], 0, 0
    for paragraph in text[:_READ].split("\n"):
        detected = _detect(paragraph) if len(paragraph) >= _MIN_PARAGRAPH else None
        if detected and detected.code and detected.code != language:
            parts.append((start, start + len(paragraph), detected.code))
            letters += len(paragraph)
        start += len(paragraph) + 1
    if not parts or letters < _MIN_SHARE * min(len(text), _READ):
        return None
    return parts[0][0], parts[-1][1], parts[0][2]


def _foreign(text: str, language: str) -> bool:
    """Whether prose of 20 or more words has almost no stop words of `language`, but words with accents."""
    part = mask(text[:_READ])
    if part.isascii() or not _PROSE.search(part):
        return False
    words = _WORD.findall(part)
    accented = sum(not word.isascii() for word in words)
    usual = sum(language in _VOTES.get(word.lower(), ()) for word in words)
    small = sum(map(str.islower, words))
    return len(words) >= 20 and small >= 0.7 * len(words) and accented >= 0.1 * len(words) and usual < 0.08 * len(words)


def _votes(words: Sequence[str]) -> Counter[str]:
    return Counter(code for word in words if word in _VOTES for code in _VOTES[word])


def _detect(text: str) -> Language | None:
    """The script with most letters, and its language.

    A language needs 15 % stop words, three different ones, and 1.5 times as many as the next language.
    """
    part = mask(text[:_READ])
    scripts = ["Latin"] if part.isascii() else list(_SCRIPTS)
    share = {name: sum(map(len, _LETTERS[name].findall(part))) for name in scripts}
    script = max(share, key=lambda name: share[name])
    if sum(share.values()) < _LETTERS_NEEDED:
        return None
    if script != "Latin":
        return Language(script)
    words = _WORD.findall(part.lower())
    votes = _votes(words)
    (first, best_votes), (_, next_votes) = (*votes.most_common(2), ("", 0), ("", 0))[:2]
    different = len({word for word in words if first in _VOTES.get(word, ())})
    clear = different >= 3 and best_votes >= 0.15 * len(words) and best_votes >= 1.5 * next_votes
    return Language(script, first if clear else "")
