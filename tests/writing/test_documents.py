"""Documents, read back by other libraries."""

from __future__ import annotations

import io
import re
import sys
import zlib
from collections.abc import Callable

import docx
import pytest

from tunesmith.errors import MissingExtra
from tunesmith.writing.documents import paragraphs, to_docx, to_pdf, to_txt

LETTER = (
    "Dear Zoë Łukasz,\n\nI am 5 years with Ωmega & Söhne, “Привет”, for €40 — naïve, ﬁne.\nA second line.\n\n"
    "1. <b>Open</b> {{ x }} ${y}\n2. Tap\n\nΓειά σας,\nKim Oat"
)
PARAGRAPHS = [
    "Dear Zoë Łukasz,",
    "I am 5 years with Ωmega & Söhne, “Привет”, for €40 — naïve, ﬁne.\nA second line.",
    "1. <b>Open</b> {{ x }} ${y}\n2. Tap",
    "Γειά σας,\nKim Oat",
]
ODD = "One\x00\x07two\x1b[31m\ud83d\r\n\r\nthree\u2028four\ttab\ufffe\n\n\n\nfive  "
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}  # of a PDF's strings


def test_a_plain_file() -> None:
    assert to_txt(LETTER).decode("utf-8") == LETTER + "\n"
    assert to_txt(ODD).decode("utf-8") == "Onetwo[31m\n\nthree\nfour\ttab\n\n\n\nfive\n"


def test_a_word_document_has_the_same_paragraphs() -> None:
    document = docx.Document(io.BytesIO(to_docx(LETTER, "A letter")))
    assert [paragraph.text for paragraph in document.paragraphs] == PARAGRAPHS
    assert document.core_properties.title == "A letter"
    assert document.core_properties.author == ""
    odd = docx.Document(io.BytesIO(to_docx(ODD, "x\x00" * 300)))
    assert [paragraph.text for paragraph in odd.paragraphs] == ["Onetwo[31m", "three\nfour\ttab", "five"]
    assert to_docx("", "")


def pdf_text(data: bytes) -> str:
    """Return the text of all pages by the file's ToUnicode map (PDF 32000-1:2008, 9.10.3)."""
    streams = []
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL):
        try:
            streams.append(zlib.decompress(stream))
        except zlib.error:
            streams.append(stream)
    (glyph_map,) = [stream for stream in streams if b"beginbfchar" in stream]
    letters = {
        int(glyph, 16): bytes.fromhex(text.decode()).decode("utf-16-be")
        for glyph, text in re.findall(rb"<([0-9A-F]{4})> <([0-9A-F]+)>\n", glyph_map)
    }
    parts = []
    for page in (stream for stream in streams if b") Tj" in stream):
        for line in re.findall(rb"BT(.*?)ET", page, re.DOTALL):
            for raw in re.findall(rb"\(((?:\\.|[^\\)])*)\)", line, re.DOTALL):
                plain = re.sub(rb"\\(.)", lambda match: ESCAPES.get(match[1], match[1]), raw, flags=re.DOTALL)
                parts.append(
                    "".join(letters[plain[index] << 8 | plain[index + 1]] for index in range(0, len(plain), 2))
                )
            parts.append(" ")
    return "".join(parts)


def test_the_pdf_has_its_letters_as_text() -> None:
    pdf = to_pdf(LETTER, "A letter")
    assert pdf.startswith(b"%PDF-")
    assert "".join(pdf_text(pdf).split()) == "".join(LETTER.split())
    assert b"/JavaScript" not in pdf and b"/URI" not in pdf
    assert len(pdf) < 60_000  # only the used glyphs are embedded


def test_a_long_text_has_several_pages_and_control_characters_are_removed() -> None:
    assert len(re.findall(rb"/Type /Page\b", to_pdf(f"{'word ' * 700}\n\n" * 3, "long"))) > 2
    assert "".join(pdf_text(to_pdf(ODD, "t\x00")).split()) == "Onetwo[31mthreefourtabfive"
    assert to_pdf("", "").startswith(b"%PDF-")


def test_paragraphs() -> None:
    assert paragraphs("a\nb\n\n \n\nc \r\nd") == [["a", "b"], ["c", "d"]]
    assert paragraphs(" \n\n") == []


@pytest.mark.parametrize(("package", "make"), [("docx", to_docx), ("fpdf", to_pdf)])
def test_a_missing_package_names_the_extra(
    package: str, make: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"tunesmith\[ui\]"):
        make("text", "title")
