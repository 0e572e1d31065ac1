"""Texts in another script or language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.defects._code import mask
from tunesmith.data.defects._defect import Defect, at


@dataclass(frozen=True)
class Language:
    """A script and, where the vote of its stop words is clear, a language (ISO 639-1); '' where it is not."""

    script: str
    code: str = ""

    @staticmethod
    def judged(text: str) -> Language | None:
        """A text's script and language; None where it has under 20 letters."""
        return _judge(text)

    def holds(self, text: str) -> bool:
        """Whether `text` has a word of this script."""
        return bool(_LETTERS[self.script].search(text))

    @classmethod
    def of(cls, texts: Iterable[str]) -> Language:
        """What most of `texts` are written in. Texts too short to judge have no vote; without any it is English."""
        judged = [judge for text in texts if (judge := _judge(text))]
        if not judged:
            return cls("Latin", "en")
        script = Counter(judge.script for judge in judged).most_common(1)[0][0]
        codes = Counter(judge.code for judge in judged if judge.script == script and judge.code)
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
_READ = 4000  # characters that are read of a text: more do not change the vote
_LETTERS_NEEDED = 20
_PART = 60  # letters of a paragraph that is judged alone
_ASIDE = 0.3  # of the letters: less in another language is a quotation


def wrong_language(text: str, *, script: str = "Latin", language: str = "en") -> Iterator[Defect]:
    """A text in another script or language than the data set's: `Language.of` names these. Under 20 letters: none.

    Or paragraphs that are, where they hold three tenths of the letters: a text that changes the language on its way.

    Told as well is prose in a language that is not among these, by its accents and the want of the usual's stop words.
    The languages told apart are English, German, French, Spanish, Italian, Portuguese, Dutch and Polish.
    """
    judge = _judge(text)
    if judge is None:
        return
    if judge.script != script:
        yield at("wrong_language", text, 0, len(text), f"written in {judge.script}, not {script}")
    elif language and judge.code and judge.code != language:
        yield at("wrong_language", text, 0, len(text), f"reads as '{judge.code}', not '{language}'")
    elif language and not judge.code and _foreign(text, language):
        yield at("wrong_language", text, 0, len(text), f"does not read as '{language}'")
    elif language and "\n" in text and (part := _part(text, language)):
        start, end, code = part
        yield at("wrong_language", text, start, end, f"goes on as '{code}', not '{language}'")


def _part(text: str, language: str) -> tuple[int, int, str] | None:
    """From where to where paragraphs read as another language, and which."""
    votes = _votes(_WORD.findall(text[:_READ].lower()))
    if all(count < 6 for code, count in votes.items() if code != language):
        return None
    found, letters, start = [], 0, 0
    for paragraph in text[:_READ].split("\n"):
        judge = _judge(paragraph) if len(paragraph) >= _PART else None
        if judge and judge.code and judge.code != language:
            found.append((start, start + len(paragraph), judge.code))
            letters += len(paragraph)
        start += len(paragraph) + 1
    if not found or letters < _ASIDE * min(len(text), _READ):
        return None
    return found[0][0], found[-1][1], found[0][2]


def _foreign(text: str, language: str) -> bool:
    """Whether prose of 20 words or more has next to no stop words of `language`, but words with accents."""
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


def _judge(text: str) -> Language | None:
    """The script with most letters; the language with 15 % stop words, three different, and half again the next's."""
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
    (first, most), (_, next_most) = (*votes.most_common(2), ("", 0), ("", 0))[:2]
    different = len({word for word in words if first in _VOTES.get(word, ())})
    clear = different >= 3 and most >= 0.15 * len(words) and most >= 1.5 * next_most
    return Language(script, first if clear else "")
