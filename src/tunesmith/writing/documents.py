"""Writes a text as .txt, .docx or .pdf. The text is never markup; control characters are removed."""

from __future__ import annotations

import io
import re
import unicodedata
from importlib.util import find_spec
from pathlib import Path

from tunesmith.config.extras import missing_extras_named
from tunesmith.errors import MissingExtra

MARGIN = 25.0  # mm
SIZE, LEADING = 11.0, 1.45  # points; line height per font size
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]|[\ud800-\udfff]")
_BREAK = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def paragraphs(text: str) -> list[list[str]]:
    """Return the lines of each paragraph. Empty lines separate paragraphs."""
    blocks = re.split(r"\n[ \t]*\n\s*", _plain(text).strip("\n"))
    return [[line.rstrip() for line in block.split("\n")] for block in blocks if block.strip()]


def to_txt(text: str, title: str = "") -> bytes:
    """Return UTF-8 without a byte order mark, with line feeds. The title is not part of the text."""
    return (_plain(text).rstrip() + "\n").encode("utf-8")


def to_docx(text: str, title: str) -> bytes:
    """Return a Word document with line breaks inside paragraphs and the title in its properties.

    Raises MissingExtra if python-docx is not installed.
    """
    with missing_extras_named("documents"):
        import docx
    document = docx.Document()
    for lines in paragraphs(text):
        paragraph = document.add_paragraph()
        for index, line in enumerate(lines):
            run = paragraph.add_run(line)
            if index + 1 < len(lines):
                run.add_break()
    properties = document.core_properties
    properties.title, properties.author, properties.comments = _plain(title)[:255], "", ""
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def to_pdf(text: str, title: str) -> bytes:
    """Return a PDF on A4 with embedded glyphs, so that the text can be searched and copied in all scripts of DejaVu.

    Characters that DejaVu Sans lacks are shown as an empty box. Raises MissingExtra if fpdf2 is not installed.
    """
    with missing_extras_named("documents"):
        import fpdf
    page = fpdf.FPDF(format="A4")
    page.set_margins(MARGIN, MARGIN, MARGIN)
    page.set_auto_page_break(True, MARGIN)
    page.set_title(_plain(title)[:255])
    page.add_page()
    page.add_font("DejaVu", fname=str(_font()))
    page.set_font("DejaVu", size=SIZE)
    height = SIZE * LEADING * 25.4 / 72  # mm
    for number, lines in enumerate(paragraphs(text)):
        if number:
            page.ln(height / 2)
        for line in lines:
            page.multi_cell(0, height, line.replace("\t", "    "), align="L", new_x="LMARGIN", new_y="NEXT")
    return bytes(page.output())


def _plain(text: str) -> str:
    return _CONTROL.sub("", unicodedata.normalize("NFC", _BREAK.sub("\n", text)))


def _font() -> Path:
    """Return DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew, symbols."""
    spec = find_spec("matplotlib")
    font = Path(str(spec.origin)).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec else Path()
    if not font.is_file():
        raise MissingExtra("DejaVuSans.ttf is missing", where="matplotlib", next="pip install matplotlib")
    return font
