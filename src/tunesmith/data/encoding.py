"""Which encoding a file of text has: by its mark, by decoding the whole of it, or guessed, and then why."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.stream import codec, mark_of, unpacked

SAMPLE = 1 << 16  # bytes of lines with other than ASCII letters, shown to the guesser
_CANDIDATES = {  # Python's names and the usual ones, the likelier first: it decides between equals
    "cp1252": "windows-1252",
    "iso8859_15": "iso-8859-15",
    "cp1250": "windows-1250",
    "iso8859_2": "iso-8859-2",
    "cp1251": "windows-1251",
    "koi8_r": "koi8-r",
    "koi8_u": "koi8-u",
    "cp866": "cp866",
    "cp932": "cp932",
    "gb18030": "gb18030",
    "cp949": "cp949",
    "big5": "big5",
    "euc_jp": "euc-jp",
    "mac_roman": "mac-roman",
    "cp1253": "windows-1253",
    "cp1254": "windows-1254",
    "cp1255": "windows-1255",
    "cp1256": "windows-1256",
    "cp1257": "windows-1257",
}
_ESCAPED = re.compile("[\udc80-\udcff]")
_WIDE = re.compile("[^\x00-\x7f\udc80-\udcff]")
_ODD = re.compile("[\x80-\x9f¤\uff61-\uff9f]|[¦¨´¸¼½¾](?=[^\\W\\d_])|(?<=[^\\W\\d_])[¦¨´¸¼½¾]")  # half-width kana too
_ALPHABETS = (  # the letters beyond ASCII of the languages whose code pages are alike
    "äöüß",
    "àâæçéèêëîïôœùûüÿ",
    "áéíñóúü",
    "àáâãçéêíóôõúü",
    "àèéìíîòóùú",
    "åäöéü",
    "åæøéèêòóô",
    "áðéíóúýþæö",
    "àáäèéêëïíóöüĳ",
    "ąćęłńóśźż",
    "áčďéěíňóřšťúůýž",
    "áäčďéíĺľňóôŕšťúýž",
    "áéíóöőúüű",
    "čćđšž",
    "ăâîșțşţ",
    "âçğıîöşüû",
    "äöõüšž",
    "āčēģīķļņšūž",
    "ąčęėįšųūž",
)


@dataclass(frozen=True)
class Encoding:
    """A file's encoding. `mark`: it begins with a byte-order mark; `why`: empty when plain UTF-8."""

    name: str
    mark: bool
    guessed: bool
    why: str


def recognise(path: Path, given: str | None = None) -> Encoding:
    """The encoding of a text file, which is read to its end in constant memory.

    One that is `given` wins. Raises DataError when there is no such encoding; OSError, EOFError and zlib.error as they
    come.
    """
    if given is not None:
        codec(given)
        return Encoding(given, False, False, f"{given}, as given")
    first = next(unpacked(path), b"")
    mark = mark_of(first)
    if mark and mark != "utf-8":
        return Encoding(mark, True, False, f"{mark}, by its byte-order mark")
    if wide := _unmarked(first):
        return Encoding(wide, False, True, f"{wide}, guessed from its zero bytes")
    seen = _Seen()
    for text in _texts(path):
        seen.add(text)
    return _judge(seen, mark is not None)


def _texts(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for chunk in unpacked(path):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


@dataclass
class _Seen:
    """Counts over a text: letters that are UTF-8, bytes that are not, and the lines that these stand in."""

    letters: int = 0
    wrong: int = 0
    damaged: int = 0
    sample: list[bytes] = field(default_factory=list)
    _sampled: int = 0
    _line: int = 0
    _last: int = -1

    def add(self, text: str) -> None:
        """The next piece of the text, undecodable bytes as surrogates."""
        if not text.isascii():
            self._look(text)
        self._line += text.count("\n")

    def _look(self, text: str) -> None:
        if not _ESCAPED.search(text):
            self.letters += len(text.encode()) - len(text)  # bytes behind a letter's first: about the letters
            return
        for number, line in enumerate(text.split("\n"), start=self._line):
            if line.isascii():
                continue
            wrong = len(_ESCAPED.findall(line))
            self.wrong += wrong
            self.letters += len(_WIDE.findall(line))
            if wrong:
                self.damaged += number != self._last
                self._last = number
                self._keep(line)

    def _keep(self, line: str) -> None:
        if self._sampled < SAMPLE:
            data = _trim(line.encode("utf-8", "surrogateescape")[: SAMPLE - self._sampled])
            self.sample.append(data)
            self._sampled += len(data)


def _trim(piece: bytes) -> bytes:
    """A long piece from its first to its last byte below 0x30, which is half a letter in no code page."""
    if len(piece) < SAMPLE // 64:
        return piece
    places = [match.start() for match in re.finditer(rb"[\x00-\x2f]", piece)]
    return piece[places[0] : places[-1]] if len(places) > 1 else piece


def _judge(seen: _Seen, mark: bool) -> Encoding:
    if not seen.damaged:
        return Encoding("utf-8", mark, False, "utf-8, by its byte-order mark" if mark else "")
    lines = "1 damaged line" if seen.damaged == 1 else f"{seen.damaged} damaged lines"
    damaged = Encoding("utf-8", mark, False, f"utf-8 with {lines}")
    if mark or seen.letters > seen.wrong:
        return damaged
    return _guess(seen) or damaged


def _unmarked(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: the zero bytes of its ASCII signs stand in the same places throughout."""
    data = data[: len(data) // 4 * 4][:SAMPLE] or data[: len(data) // 2 * 2]
    zeros = [data[place::4].count(0) for place in range(4)]
    if sum(zeros) * 50 < len(data) or not sum(zeros):
        return None
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    quarter = len(data) / 4 * 0.95
    if min(zeros[2:]) > quarter or min(zeros[:2]) > quarter:
        return _fits(data, "utf-32-le" if zeros[3] > zeros[0] else "utf-32-be")
    # U+AC00 and U+3000 have a zero byte in the other place
    if odd > 3 * even:
        return _fits(data, "utf-16-le")
    return _fits(data, "utf-16-be") if even > 3 * odd else None


def _fits(data: bytes, name: str) -> str | None:
    text = codecs.getincrementaldecoder(name)("replace").decode(data)
    strange = sum(unicodedata.category(sign) in ("Cc", "Cn", "Co", "Cs") and sign not in "\t\r\n" for sign in text)
    return name if strange * 100 <= len(text) and "�" not in text and re.search(r"[\n,;\t{\[]", text) else None


def _guess(seen: _Seen) -> Encoding | None:
    sample = b"\n".join(seen.sample)
    rated = [(rate, name, text) for name in _CANDIDATES for rate, text in _rate(sample, name)]
    if not rated:
        return None
    _, best, text = min(rated, key=lambda one: one[0])  # of equals the first, which is the likelier
    letters = Counter(sign for sign in text if ord(sign) > 127 and sign.isalpha())
    shown = ", ".join(f"'{sign}'" for sign, _ in letters.most_common(3))
    lines = "1 line" if seen.damaged == 1 else f"{seen.damaged} lines"
    name = _CANDIDATES[best]
    return Encoding(
        name, False, True, f"{name}, guessed from {lines} with {f'letters such as {shown}' if shown else 'signs'}"
    )


def _rate(sample: bytes, name: str) -> Iterator[tuple[float, str]]:
    """How unlikely the sample is in this encoding, from 0, with its text; nothing when it cannot be that.

    charset-normalizer's mess (0 to 1) less a tenth of its coherence with a language (0 to 1), more for signs where no
    writer puts them and for letters that no one language has. The weights were set on texts in eight languages.
    """
    from charset_normalizer import from_bytes

    # one by one: it leaves out code pages that are like one it has refused
    found = from_bytes(sample, steps=20, cp_isolation=[name], preemptive_behaviour=False, threshold=0.4)
    match = found.best()
    if match is not None:
        text = str(match)
        yield round(match.chaos - match.coherence / 10 + _strange(text, name) + _foreign(text) / 2, 2), text


def _strange(text: str, name: str) -> float:
    """The share of signs beyond ASCII that are seldom written so, times what that says about the encoding."""
    wide: list[str] = _WIDE.findall(text)
    odd = 4.0 * len(_ODD.findall(text)) + 0.2 * sum(sign.isupper() for sign in wide)
    if name in ("gb18030", "big5", "cp949"):
        odd += sum("\u3040" < sign < "\u3100" for sign in wide)  # kana
    if name == "cp949":  # letters alone, and syllables beyond the 2,350 of euc-kr, are hardly ever written
        odd += sum("\u3130" < sign < "\u3190" for sign in wide)
        odd += sum("\uac00" <= sign < "\ud7a4" and len(sign.encode("euc_kr")) > 2 for sign in wide)
    return odd / (len(wide) or 1)


def _foreign(text: str) -> float:
    """The share of letters beyond ASCII that are not in the alphabet which has most of them; Latin script alone."""
    letters = Counter(sign for sign in text.lower() if "\x7f" < sign < "\u0250" and sign.isalpha())
    if not letters:
        return 0.0
    return 1 - max(sum(letters[sign] for sign in alphabet) for alphabet in _ALPHABETS) / letters.total()
