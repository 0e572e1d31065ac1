"""Detects the encoding of a text file: by its byte-order mark, by decoding all of it, or by a guess with a reason."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.rows import bom_encoding, codec_name, decompressed

SAMPLE = 1 << 16  # bytes of non-ASCII lines for the guess
_CANDIDATES = {  # Python's names -> the usual names; the likelier first, which decides ties
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
_NON_ASCII = re.compile("[^\x00-\x7f\udc80-\udcff]")
_RARE = re.compile("[\x80-\x9f¤\uff61-\uff9f]|[¦¨´¸¼½¾](?=[^\\W\\d_])|(?<=[^\\W\\d_])[¦¨´¸¼½¾]")  # half-width kana too
_ALPHABETS = (  # the non-ASCII letters of languages with similar code pages
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
    """A file's encoding; `mark` means that it begins with a byte-order mark, and `why` is '' for plain UTF-8."""

    name: str
    mark: bool
    guessed: bool
    why: str


def detect_encoding(path: Path, encoding: str | None = None) -> Encoding:
    """The encoding of a text file, which is read to its end in constant memory; `encoding` overrides detection.

    Raises DataError for an unknown encoding, and lets OSError, EOFError and zlib.error pass.
    """
    if encoding is not None:
        codec_name(encoding)
        return Encoding(encoding, False, False, f"{encoding}, as given")
    first = next(decompressed(path), b"")
    mark = bom_encoding(first)
    if mark and mark != "utf-8":
        return Encoding(mark, True, False, f"{mark}, by its byte-order mark")
    if name := _utf16_or_32(first):
        return Encoding(name, False, True, f"{name}, guessed from its zero bytes")
    counts = _ByteCounts()
    for text in _texts(path):
        counts.add(text)
    return _decide(counts, mark is not None)


def _texts(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for chunk in decompressed(path):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


@dataclass
class _ByteCounts:
    """Counts over a text: non-ASCII letters, bytes that are not UTF-8, and a sample of the lines with such bytes."""

    letters: int = 0
    wrong: int = 0
    damaged: int = 0
    sample: list[bytes] = field(default_factory=list)
    _sampled: int = 0
    _line: int = 0
    _last: int = -1

    def add(self, text: str) -> None:
        """Adds the next piece of the text, with undecodable bytes as surrogates."""
        if not text.isascii():
            self._count(text)
        self._line += text.count("\n")

    def _count(self, text: str) -> None:
        if not _ESCAPED.search(text):
            self.letters += len(text.encode()) - len(text)  # continuation bytes: about the number of letters
            return
        for number, line in enumerate(text.split("\n"), start=self._line):
            if line.isascii():
                continue
            wrong = len(_ESCAPED.findall(line))
            self.wrong += wrong
            self.letters += len(_NON_ASCII.findall(line))
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
    """Cuts a long piece to its first and last byte below 0x30, which is not part of a letter in any code page."""
    if len(piece) < SAMPLE // 64:
        return piece
    positions = [match.start() for match in re.finditer(rb"[\x00-\x2f]", piece)]
    return piece[positions[0] : positions[-1]] if len(positions) > 1 else piece


def _decide(counts: _ByteCounts, mark: bool) -> Encoding:
    if not counts.damaged:
        return Encoding("utf-8", mark, False, "utf-8, by its byte-order mark" if mark else "")
    lines = "1 damaged line" if counts.damaged == 1 else f"{counts.damaged} damaged lines"
    damaged = Encoding("utf-8", mark, False, f"utf-8 with {lines}")
    if mark or counts.letters > counts.wrong:
        return damaged
    return _guess(counts) or damaged


def _utf16_or_32(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, recognized by the positions of the zero bytes of its ASCII characters."""
    data = data[: len(data) // 4 * 4][:SAMPLE] or data[: len(data) // 2 * 2]
    zeros = [data[offset::4].count(0) for offset in range(4)]
    if sum(zeros) * 50 < len(data) or not sum(zeros):
        return None
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    quarter = len(data) / 4 * 0.95
    if min(zeros[2:]) > quarter or min(zeros[:2]) > quarter:
        return _fits(data, "utf-32-le" if zeros[3] > zeros[0] else "utf-32-be")
    # U+AC00 and U+3000 have their zero byte in the other position
    if odd > 3 * even:
        return _fits(data, "utf-16-le")
    return _fits(data, "utf-16-be") if even > 3 * odd else None


def _fits(data: bytes, name: str) -> str | None:
    text = codecs.getincrementaldecoder(name)("replace").decode(data)
    control_count = sum(
        unicodedata.category(sign) in ("Cc", "Cn", "Co", "Cs") and sign not in "\t\r\n" for sign in text
    )
    return name if control_count * 100 <= len(text) and "�" not in text and re.search(r"[\n,;\t{\[]", text) else None


def _guess(counts: _ByteCounts) -> Encoding | None:
    sample = b"\n".join(counts.sample)
    ratings = [(rate, name, text) for name in _CANDIDATES for rate, text in _rate(sample, name)]
    if not ratings:
        return None
    _, best, text = min(ratings, key=lambda rating: rating[0])  # of equals the first, which is likelier
    letters = Counter(sign for sign in text if ord(sign) > 127 and sign.isalpha())
    examples = ", ".join(f"'{sign}'" for sign, _ in letters.most_common(3))
    lines = "1 line" if counts.damaged == 1 else f"{counts.damaged} lines"
    name = _CANDIDATES[best]
    return Encoding(
        name,
        False,
        True,
        f"{name}, guessed from {lines} with {f'letters such as {examples}' if examples else 'symbols'}",
    )


def _rate(sample: bytes, name: str) -> Iterator[tuple[float, str]]:
    """Yields how unlikely the sample is in this encoding (0 is best) with its text; nothing if it cannot be decoded.

    The rating is charset-normalizer's mess (0 to 1) minus a tenth of its coherence with a language (0 to 1), plus terms
    for misplaced symbols and for letters of several languages. The weights were fitted on texts in eight languages.
    """
    from charset_normalizer import from_bytes

    # one at a time: it skips code pages that are similar to one it has rejected
    matches = from_bytes(sample, steps=20, cp_isolation=[name], preemptive_behaviour=False, threshold=0.4)
    match = matches.best()
    if match is not None:
        text = str(match)
        yield round(match.chaos - match.coherence / 10 + _rare_share(text, name) + _foreign_share(text) / 2, 2), text


def _rare_share(text: str, name: str) -> float:
    """The weighted share of non-ASCII characters that are rare in real texts."""
    wide: list[str] = _NON_ASCII.findall(text)
    odd = 4.0 * len(_RARE.findall(text)) + 0.2 * sum(sign.isupper() for sign in wide)
    if name in ("gb18030", "big5", "cp949"):
        odd += sum("\u3040" < sign < "\u3100" for sign in wide)  # kana
    if name == "cp949":  # single letters, and syllables beyond the 2,350 of euc-kr, are very rare
        odd += sum("\u3130" < sign < "\u3190" for sign in wide)
        odd += sum("\uac00" <= sign < "\ud7a4" and len(sign.encode("euc_kr")) > 2 for sign in wide)
    return odd / (len(wide) or 1)


def _foreign_share(text: str) -> float:
    """The share of non-ASCII Latin letters that are not in the best-matching alphabet."""
    letters = Counter(sign for sign in text.lower() if "\x7f" < sign < "\u0250" and sign.isalpha())
    if not letters:
        return 0.0
    return 1 - max(sum(letters[sign] for sign in alphabet) for alphabet in _ALPHABETS) / letters.total()
