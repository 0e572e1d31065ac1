"""What can be wrong inside one text. Each public function is a kind of defect: a text in, the places found out.

A catalogue as `find` reads it: the function's name is the kind's name, keyword-only parameters are its options. Places
count characters from 0. Every function is linear in the text's length: an expression that may run on is bounded or
starts once a run. Code (fenced, inline, or a text that is code throughout) is masked first, so that nothing in it is a
defect; a text too short to judge has none.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Defect:
    """A place in a text, why it is wrong, and what belongs there; `fix` is None where the text alone cannot say.

    An error spoils the row, a warning is worth a look, a note is only counted.
    """

    kind: str
    start: int
    end: int
    text: str
    why: str
    severity: Severity = "warning"
    fix: str | None = None


@dataclass(frozen=True)
class Language:
    """A script and, where the vote of its stop words is clear, a language (ISO 639-1); '' where it is not."""

    script: str
    code: str = ""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Language:
        """What most of `texts` are written in. Texts too short to judge have no vote; without any it is English."""
        judged = [judge for text in texts if (judge := _judge(text))]
        if not judged:
            return cls("Latin", "en")
        script = Counter(judge.script for judge in judged).most_common(1)[0][0]
        codes = Counter(judge.code for judge in judged if judge.script == script and judge.code)
        return cls(script, codes.most_common(1)[0][0] if codes else "")


# --- lists ---------------------------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"(?:(?<=\s)|^)(?P<label>(?i:step|tip|question|day|week|phase|option) )?(?P<open>\()?(?P<number>\d{1,2})"
    r"(?P<close>[.)]|(?(label):|(?!)))(?=[ \t]+\S|[A-Z])",
    re.MULTILINE,
)
_BULLET = re.compile(r"(?:(?<=\s)|^)(?P<mark>[•●▪◦‣*-])(?=[ \t]+[^\W\d_]|[ \t]+[*_\"'“(\[])", re.MULTILINE)
_RUNNING_ON = re.compile(r"(?:[,;]|[,;]?\s(?:and|or|then|und|oder|et|ou|y|e))\s*$")  # '1) open it, 2) wait and 3) go'
_CHESS = re.compile(r"(?=[^\d]{0,9}\d)[\sKQRBNOa-hx1-8+#=0-]+")  # '1. e4 e5 2. Nf3 Nc6' is a game, not a list


def collapsed_list(text: str) -> Iterator[Defect]:
    """Lists whose items stand in one line: '1. Mix 2. Bake 3. Eat'. Three items at least, numbers from 1 on.

    A list that runs on as a sentence ('1) mix, 2) bake and 3) eat') is prose. Hyphens and stars count only where the
    first opens the line or follows a colon, and no neighbouring line is such an item.
    """
    masked = _mask(text)
    for chain in (*_numbered(masked), *_bulleted(masked)):
        end = _line_end(masked, chain[-1].start())
        pieces = [masked[a.end() : b.start()] for a, b in pairwise(chain)]
        whole = [*pieces, masked[chain[-1].end() : end]]
        if any(_RUNNING_ON.search(piece[-12:]) for piece in pieces):
            continue
        if not all(any(map(str.isalpha, piece)) for piece in whole) or all(map(_CHESS.fullmatch, whole)):
            continue
        starts = [mark.start() for mark in chain]
        begin = len(text[: starts[0]].rstrip(" \t"))
        opened = begin == 0 or text[begin - 1] == "\n"
        lines = [text[a:b].rstrip(" \t") for a, b in pairwise([*starts, end])]
        begin, lead = (starts[0], "") if opened else (begin, "\n")
        why = f"{len(chain)} items of a list in one line"
        yield _at("collapsed_list", text, begin, end, why, fix=lead + "\n".join(lines))


def _numbered(masked: str) -> Iterator[list[re.Match[str]]]:
    """Runs of numbers 1, 2, 3 … of one style within a line."""
    chain: list[re.Match[str]] = []
    if not all(map(masked.__contains__, "123")):
        return
    for mark in _NUMBER.finditer(masked):
        number = int(mark["number"])
        goes_on = bool(chain) and number == len(chain) + 1 and _style(mark) == _style(chain[-1])
        goes_on = goes_on and "\n" not in masked[chain[-1].end() : mark.start()]
        if goes_on:
            chain.append(mark)
        elif number == 1:
            if len(chain) >= 3:
                yield chain
            chain = [mark]
    if len(chain) >= 3:
        yield chain


def _style(mark: re.Match[str]) -> tuple[str, ...]:
    return (mark["label"] or "").lower(), mark["open"] or "", mark["close"]


def _bulleted(masked: str) -> Iterator[list[re.Match[str]]]:
    """Three bullets of one sign within a line."""
    if all(masked.count(sign) < 3 for sign in "•●▪◦‣*-"):
        return
    start = 0
    for line in masked.split("\n"):
        end = start + len(line)
        by_sign: dict[str, list[re.Match[str]]] = {}
        for mark in _BULLET.finditer(masked, start, end):
            by_sign.setdefault(mark["mark"], []).append(mark)
        for sign, chain in by_sign.items():
            before = masked[start : chain[0].start()].rstrip()
            signs = masked.count(f" {sign} ", start, end) + masked.startswith(f"{sign} ", start)
            first = not before or before[-1] in (":" if sign in "-*" else ":.!?")
            if len(chain) >= 3 and first and (sign not in "-*" or signs == len(chain)):
                if sign in "-*" and not before and _neighbour(masked, start, end, sign):
                    continue  # a list in lines, with dashes inside its items
                yield chain
                break
        start = end + 1


def _neighbour(masked: str, start: int, end: int, sign: str) -> bool:
    before = masked[max(0, start - 400) : max(0, start - 1)].rsplit("\n", 1)[-1]  # 400: the line above, or enough of it
    return before.lstrip().startswith(f"{sign} ") or masked[end + 1 : end + 40].lstrip().startswith(f"{sign} ")


# --- placeholders --------------------------------------------------------------------------------------------

_LEADS = "your my insert enter add recipient recipient's employer hiring applicant candidate customer client company"
_LEADS += " sender state specify name date job position company's"
_NOUNS = "name company date position title address city zip phone number email e-mail manager employer organization"
_NOUNS += " organisation institution school university product service website url location country department"
_NOUNS += " industry signature amount skill skills job role field year month author brand link username client"
_NOUNS += " contractor hours recipient time topic genre representative"
_TAGS = "address title link time data summary details button label input form body head name date url email number"
_LEAD_WORDS, _NOUN_WORDS = frozenset(_LEADS.split()), frozenset(_NOUNS.split())
_XML_WORDS = frozenset(_TAGS.split())
_SLOT = re.compile(
    r"\{\{\s*(?P<double>[^{}\n]{1,60}?)\s*\}\}"
    r"|(?<![\w\])!])\[(?P<square>[^\W\d_][^\[\]\n]{1,60})\](?![(\[:\w])"
    r"|(?<![\w$<{\\])(?P<sign>[<{])(?P<other>[^\W\d_][\w' /-]{1,50})[>}](?![\w>}])"
)
_STAND_IN = re.compile(
    r"(?i:\blorem ipsum\b)|(?i:\binsert (?:(?:your|the|an?|name|text|link|date|image|company)\b[\w' ]{0,40}?) here\b)"
    r"|(?<![\w-])(?<!Bowl )(?<!Chapter )(?<!Part )(?<!Psalm )X{3,}(?![\w])"
    r"|\b(?:TODO|FIXME|TBD)(?=[:(])|\[(?:TODO|TBD|X{2,})\]"
)
_EMPLOYER = re.compile(
    r"\b(?:ABC|XYZ|DEF|GHI|PQR) (?:Tech(?:nolog(?:y|ies))? (?:Solutions|Compan(?:y|ies)|Inc|Corp)|Compan(?:y|ies)"
    r"|Corp(?:oration)?|Inc|Ltd|LLC|Tech(?:nologies)?|Solutions|Bank|University|Industries|Enterprises|Firm|Agency)\b"
)


def placeholders(text: str) -> Iterator[Defect]:
    """Slots nobody filled: [Your Name], {{name}}, <company>, XXX, 'lorem ipsum', 'insert … here', 'TODO:'.

    Made-up employers such as a company called ABC are a note: some texts mean them. Links, JSON, tags are none.
    """
    masked = _mask(text)
    for slot in _SLOT.finditer(masked) if any(map(masked.__contains__, "[{<")) else ():
        if slot["double"] or _is_slot((slot["square"] or slot["other"]), slot["sign"] or "", masked):
            yield _at("placeholders", text, *slot.span(), "a slot nobody filled", "error")
    for found in _STAND_IN.finditer(masked):
        yield _at("placeholders", text, *found.span(), "stands for a text to come", "error")
    for found in _EMPLOYER.finditer(masked):
        yield _at("placeholders", text, *found.span(), "a made-up name", "note")


def _is_slot(inside: str, sign: str, masked: str) -> bool:
    words = inside.replace("_", " ").lower().split()
    if sign == "<" and ((len(words) == 1 and words[0] in _XML_WORDS) or f"</{inside}" in masked):
        return False  # an element of HTML or XML
    if not words or len(words) > 7:
        return False
    return (words[-1] in _NOUN_WORDS and len(words) < 5) or (len(words) > 1 and words[0] in _LEAD_WORDS)


# --- machine tells -------------------------------------------------------------------------------------------

_TELLS: tuple[tuple[Severity, str, tuple[str, ...]], ...] = (
    ("error", "a model speaks of itself", (
        r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
        r"(?=,| (?:language|assistant|chat|model|I\b))",
        r"\bas I(?:'m| am) an AI\b",
        r"\bI(?:'m| am) (?:just |only )?an? (?:large |AI )?language model\b",
    )),
    ("error", "a model speaks of its training", (
        r"\b(?:as of|up to|until|since) my (?:last )?(?:knowledge|training)(?: update| cut-?off| data)?\b",
        r"\bmy knowledge cut-?off\b|\bmy training data (?:only|ends|goes|includes|is stored|does|was last)\b",
    )),
    ("warning", "a refusal", (
        r"\bI(?:'m| am) sorry, but I (?:can(?:'t|not| not)|am (?:un|not )able to)\b"
        r"(?! (?:make|come|attend|log|find|join|wait|stay))",
        r"\bI (?:can(?:'t|not)|am unable to|am not able to) "
        r"(?:assist|help (?:you )?with|fulfil+|comply|provide|answer|engage in|browse|generate)\b",
    )),
    ("error", "a part of the prompt", (
        r"(?m:^)\s{0,9}#{2,3} ?(?:Response|Instruction|Input|Human|Assistant|User|System):",
        r"\A\s{0,9}(?:ASSISTANT|Assistant|Response|Output|AI): ?(?=\S)",
        r"<\|(?:im_start|im_end|endoftext|eot_id|end|user|assistant|system)\|>",
        r"\[/?INST\]|<</?SYS>>|\A<s>|</s>\s{0,9}\Z",
    )),
    ("note", "a cliché", (
        r"\bdelv(?:e|es|ing) (?:deep(?:er)? )?into\b|\btapestry of\b|\brich tapestry\b|\bgame[- ]changer\b",
        r"\bin today's (?:fast-paced|digital|ever-changing|competitive) (?:world|age|landscape)\b",
        r"\bI hope this (?:email|letter|message) finds you well\b|\ba testament to\b|\bembark(?:ing)? on a journey\b",
        r"\bit(?: i|')s important to (?:note|remember) that\b|\bunlock(?:ing)? the (?:full )?(?:power|potential) of\b",
        r"\bnavigat(?:e|ing) the complexit(?:y|ies)\b",
    )),
)  # fmt: skip


@lru_cache(maxsize=1)
def _tells() -> list[tuple[Severity, str, re.Pattern[str]]]:
    """Compiled with typographic apostrophes allowed; letters in any case, but for the speaker at a line's start."""
    return [
        (severity, why, re.compile("|".join(found).replace("'", "['’]"), 0 if "prompt" in why else re.IGNORECASE))
        for severity, why, found in _TELLS
    ]


def machine_tells(text: str) -> Iterator[Defect]:
    """Traces of the machine that wrote the text: it names itself, its training, refuses, or repeats its prompt.

    A refusal is a warning, clichés are a note: people write them too.
    """
    masked = _mask(text)
    for severity, why, found in _tells():
        for hit in found.finditer(masked):
            yield _at("machine_tells", text, *hit.span(), why, severity)


# --- letters and blanks --------------------------------------------------------------------------------------


_PIECE = re.compile("[^\n\ufffd]+")  # ftfy 6.3.1 reads U+FFFD as the byte 1A: it must not see one


def mojibake(text: str) -> Iterator[Defect]:
    """Letters read in the wrong encoding ('cafÃ©'), as ftfy finds them line by line, and lost letters ('�').

    Only the encoding: quotes, widths, ligatures, entities and normal forms stay, and nothing is replaced by '�'.
    """
    if text.isascii():
        return
    for piece in _PIECE.finditer(text):
        if (fixed := _decode(piece[0])) != piece[0]:
            head = _shared(piece[0], fixed)
            tail = _shared(piece[0][head:][::-1], fixed[head:][::-1])
            place = piece.start() + head, piece.end() - tail
            why = "letters read in the wrong encoding"
            yield _at("mojibake", text, *place, why, "error", fixed[head : len(fixed) - tail])
    for lost in re.finditer("\ufffd+", text):
        yield _at("mojibake", text, *lost.span(), "a letter was lost", "error")


def _decode(line: str) -> str:
    if line.isascii():
        return line
    import ftfy  # here: many data sets are ASCII and need none

    return ftfy.fix_encoding(line, replace_lossy_sequences=False)


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


_BROKEN = re.compile(
    r"(?P<crlf>\r\n?)|(?P<escape>\x1b\[[0-9;]{0,20}[A-Za-z])|(?P<feed>[\x0b\x0c\x85])"
    r"|(?P<control>[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]+)"
)
_LOOSE = re.compile(r"(?P<blank>\n(?:[ \t]*\n){3,})|(?<![ \t])(?P<trailing>[ \t]+)(?=\r?\n)")


def broken_whitespace(text: str) -> Iterator[Defect]:
    """Control characters, CRLF, spaces at a line's end, more than two blank lines, blank lines around the text.

    Two spaces before a line of text are Markdown's line break and stay.
    """
    for found in _BROKEN.finditer(text):
        group = str(found.lastgroup)
        fix = "" if group in ("escape", "control") else "\n"
        why = "a carriage return" if group == "crlf" else "a control character"
        yield _at("broken_whitespace", text, *found.span(), why, fix=fix)
    bare = text.strip("\n\r \t")
    first = text.rfind("\n", 0, text.find(bare)) + 1 if bare else 0  # the first line's own indent may mean something
    last = text.find(bare) + len(bare)
    if first and "\r" not in text[:first]:
        yield _at("broken_whitespace", text, 0, first, "blank lines before the text", fix="")
    for found in _LOOSE.finditer(_mask(text), first, last):
        if found["blank"]:
            yield _at("broken_whitespace", text, *found.span(), "more than two blank lines", fix="\n\n")
        elif found[0] != "  " or text[found.end() : found.end() + 2].strip() == "":
            yield _at("broken_whitespace", text, *found.span(), "spaces at a line's end", fix="")
    if last < len(text) and "\r" not in text[last:]:
        yield _at("broken_whitespace", text, last, len(text), "blanks after the text", fix="")


# --- markup --------------------------------------------------------------------------------------------------

_TAG = re.compile(
    r"</?(?:p|br|div|span|b|i|u|em|strong|a|ul|ol|li|h[1-6]|table|tr|td|th|img|font|center|blockquote|hr|pre)"
    r"(?:\s[^<>\n]{0,300})?/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:amp;)*(?P<last>#\d{2,6};|#[xX][0-9a-fA-F]{2,5};|[A-Za-z]{2,10};)")
_ESCAPED_TAG = re.compile(r"&lt;[/!A-Za-z]")
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)


def markup(text: str) -> Iterator[Defect]:
    """HTML tags and entities left in prose, and a code fence nobody closed. A text that speaks of HTML has none."""
    fences = [fence.start() for fence in _FENCE.finditer(text)]
    if len(fences) % 2:
        yield _at("markup", text, fences[-1], _line_end(text, fences[-1]), "a code fence without an end")
    if not ("<" in text or "&" in text) or _SPEAKS_OF_CODE.search(text) or _ESCAPED_TAG.search(text):
        return
    masked = _mask(text)
    for tag in _TAG.finditer(masked):
        yield _at("markup", text, *tag.span(), "an HTML tag in prose")
    for entity in _ENTITY.finditer(masked):
        plain = html.unescape(f"&{entity['last']}").replace("\xa0", " ")
        if len(plain) == 1 and plain.isprintable():  # '&unknown;' stays as it is
            yield _at("markup", text, *entity.span(), "an HTML entity in prose", fix=plain)


# --- truncated -----------------------------------------------------------------------------------------------

_HANGS = "the a an and or nor but of from into than as if because while which whose their your my our every is are was"
_HANGS += (
    " were has have had will would can could should to with for by at der die das und oder le la les et ou el los las"
)
_HANGING = frozenset(_HANGS.split())
_ITEM = re.compile(r"[ \t]*(?:[-*•●▪]|\(?\d{1,3}[.)])(?:[ \t]|$)")
_SHORT = 8  # words: below it an answer is a phrase or a title, which needs no full stop


def truncated(text: str) -> Iterator[Defect]:
    """A text that breaks off: no full stop, and a sign of a cut behind which more must come.

    The signs: a function word, a comma, an opened bracket or quote, a list's mark without its item. Code, list items,
    titles and answers under eight words are not judged.
    """
    body = text.rstrip()
    if len(body.split(None, _SHORT)) < _SHORT or _mask(text)[len(body) - 1] == _HIDDEN:
        return
    start = body.rfind("\n") + 1
    line = body[start:]
    if why := _cut(line, body[:start].rstrip()):
        yield _at("truncated", text, len(body) - len(line.split()[-1]), len(body), why)


def _cut(line: str, above: str) -> str:
    """Why a text whose last line is `line` is cut; '' where it is not."""
    last, word = line[-1], line.split()[-1]
    if _ITEM.fullmatch(line) and _ITEM.match(above[above.rfind("\n") + 1 :]):
        return "a list's mark without its item"
    if _ITEM.match(line) or not (last.isalnum() or last in ",([{“«"):
        return ""
    if last == ",":
        return "" if len(line.split()) < 5 else "ends in a comma"  # 'Kind regards,'
    if last in "([{“«":
        return "ends in an opened bracket or quote"
    if word in _HANGING and len(line.split()) > 3 and line.split()[-2][-1] != ":":
        return f"ends in '{word}'"
    opened = max(line.rfind("("), line.rfind("[")) > max(line.rfind(")"), line.rfind("]"))
    quoted = line.rfind("“") > line.rfind("”") or len(re.findall(r'(?<!\d)"', line)) % 2 == 1
    judged = len(line.split()) >= _SHORT and "://" not in word
    return "a bracket or quote stays open" if (opened or quoted) and judged else ""


# --- language ------------------------------------------------------------------------------------------------

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
    " i my we he she a in on at do how an or if has had were been their more when who would there",
    "de": "der die und das ist nicht ein eine den mit auf für sich dem des von zu auch sie ich wird sind oder wie im",
    "fr": "le les des est une dans qui que pour pas sur au avec vous nous ce cette sont mais du et il elle plus ou",
    "es": "el los las es una que en por con para del se su más como pero este esta y al lo muy usted puede",
    "it": "il di che è un una per con non sono gli della nel come anche più ma del alla questo dei si le lo",
    "pt": "os é um uma que não para com em da dos das mais como mas você seu sua ao pelo também são por",
    "nl": "het een en van dat op te niet zijn voor met de aan die ook als bij maar om wordt naar deze door",
    "pl": "w na nie się jest że jak po przez dla od są oraz ale czy może które był tym jego tak już tylko",
}
_VOTES: dict[str, list[str]] = {}
for _code, _listed in _STOP_WORDS.items():
    for _word in _listed.split():
        _VOTES.setdefault(_word, []).append(_code)
_WORD = re.compile(r"[^\W\d_]+")
_READ = 4000  # characters that are read of a text: more do not change the vote
_LETTERS_NEEDED = 20


def wrong_language(text: str, *, script: str = "Latin", language: str = "en") -> Iterator[Defect]:
    """A text in another script or language than the data set's: `Language.of` names these. Under 20 letters: none.

    The languages told apart are English, German, French, Spanish, Italian, Portuguese, Dutch and Polish.
    """
    judge = _judge(text)
    if judge is None:
        return
    if judge.script != script:
        yield _at("wrong_language", text, 0, len(text), f"written in {judge.script}, not {script}")
    elif language and judge.code and judge.code != language:
        yield _at("wrong_language", text, 0, len(text), f"reads as '{judge.code}', not '{language}'")


def _judge(text: str) -> Language | None:
    """The script with most letters; the language with 15 % stop words, three different, and half again the next's."""
    part = _mask(text[:_READ])
    scripts = ["Latin"] if part.isascii() else list(_SCRIPTS)
    share = {name: sum(map(len, _LETTERS[name].findall(part))) for name in scripts}
    script = max(share, key=lambda name: share[name])
    if sum(share.values()) < _LETTERS_NEEDED:
        return None
    if script != "Latin":
        return Language(script)
    words = _WORD.findall(part.lower())
    votes = Counter(code for word in words if word in _VOTES for code in _VOTES[word])
    (first, most), (_, next_most) = (*votes.most_common(2), ("", 0), ("", 0))[:2]
    different = len({word for word in words if first in _VOTES.get(word, ())})
    clear = different >= 3 and most >= 0.15 * len(words) and most >= 1.5 * next_most
    return Language(script, first if clear else "")


# --- repetition ----------------------------------------------------------------------------------------------

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_GRAM = 6
_TIMES = 3
_CIRCLES = 0.5  # of the text: on real answers songs, quizzes and plans repeat up to 0.48 of themselves on purpose


def repetition(text: str) -> Iterator[Defect]:
    """The same sentence (of four words or more) or the same six words three times or more.

    The place is the third time. A note where the rest says something else (a chorus, a list); a warning where half the
    text repeats: it runs in circles.
    """
    masked = _mask(text).lower()
    if len(masked) < 4 * _TIMES * 2:
        return
    if found := _third_sentence(masked) or _third_gram(masked):
        start, end, share, what = found
        severity: Severity = "warning" if share >= _CIRCLES else "note"
        yield _at("repetition", text, start, end, f"{what} three times, {share:.0%} of the text repeats", severity)


def _third_sentence(masked: str) -> tuple[int, int, float, str] | None:
    """Where a sentence stands the third time, and the share of the sentences that do so."""
    found = [(" ".join(words), sentence) for sentence in _SENTENCE.finditer(masked) if (words := sentence[0].split())]
    keys = [key for key, _ in found]
    if len(keys) - len(set(keys)) < _TIMES - 1:
        return None
    counts = Counter(key for key in keys if sum(word[-1:].isalpha() or word[:1].isalpha() for word in key.split()) >= 4)
    often = {key for key, times in counts.items() if times >= _TIMES}
    seen: Counter[str] = Counter()
    for key, sentence in found:
        seen[key] += 1
        if key in often and seen[key] == _TIMES:
            start = sentence.start() + len(sentence[0]) - len(sentence[0].lstrip())
            return start, sentence.end(), sum(counts[key] for key in often) / len(keys), "the same sentence"
    return None


def _third_gram(masked: str) -> tuple[int, int, float, str] | None:
    """Where six words stand the third time, without overlap, and the share of all sixes that stand three times."""
    tokens = list(_TOKEN.finditer(masked))
    words = [token[0] for token in tokens]
    grams = list(zip(*(words[n:] for n in range(_GRAM)), strict=False))
    if len(grams) - len(set(grams)) < _TIMES - 1:
        return None
    counts = Counter(grams)
    last: dict[tuple[str, ...], tuple[int, int]] = {}
    for place, gram in enumerate(grams):
        times, before = last.get(gram, (0, -_GRAM))
        if counts[gram] < _TIMES or place < before + _GRAM:
            continue
        if times == _TIMES - 1:
            share = sum(times for times in counts.values() if times >= _TIMES) / len(grams)
            return tokens[place].start(), tokens[place + _GRAM - 1].end(), share, "the same six words"
        last[gram] = times + 1, place
    return None


# --- code ----------------------------------------------------------------------------------------------------

_HIDDEN = "\ue000"  # private use: no letter, no blank, no sign that an expression here looks for
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,400}`", re.DOTALL)
_SPEAKS_OF_CODE = re.compile(
    r"\b(?:HTML5?|XML|CSS|JavaScript|JSX|markup)\b|<!DOCTYPE|</?(?:html|body|head|script|style)\b", re.IGNORECASE
)
_SIGNS_OF_CODE = re.compile(
    r"^[ \t]*(?:def \w+\(|class \w+[:({]|import \w+|from \w+ import |#include|public |private |(?<=[ \t])return "
    r"|function \w*\(|elif |print\(|(?:var|let|const) \w+ ?=|(?:if|for|while) ?\([^\n]*\{"
    r"|SELECT\b|INSERT INTO|CREATE TABLE|</?[a-z]+[^>\n]{0,80}>$"
    r"|[\w.]+ = [\w\"'\[{(])|[;{}][ \t]*$|\w\([^()\n]{0,60}\)[;:][ \t]*$|=> ?\{|\w\[\w+\] ?=",
    re.MULTILINE,
)


@lru_cache(maxsize=4)  # the kinds look at one text after the other
def _mask(text: str) -> str:
    """The text with its code hidden, line ends too, every place as before."""
    if _is_code(text):
        return _HIDDEN * len(text)
    if "`" not in text and "~~~" not in text:
        return text
    return _CODE.sub(lambda code: _HIDDEN * len(code[0]), text)


def _is_code(text: str) -> bool:
    """A text that is code throughout: JSON, markup from end to end, or half its lines look like code."""
    bare = text.strip()
    if bare[:1] + bare[-1:] in ("{}", "[]", "<>") and len(bare) > 40:
        return not (bare.startswith("{{") and bare.endswith("}}") and "\n" not in bare)
    signs = sum(1 for _ in _SIGNS_OF_CODE.finditer(text))
    return signs >= 2 and signs * 3 >= 1 + sum(1 for line in text.split("\n") if line.strip())


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def _at(
    kind: str, text: str, start: int, end: int, why: str, severity: Severity = "warning", fix: str | None = None
) -> Defect:
    return Defect(kind, start, end, text[start:end], why, severity, fix)
