"""A text as a file: .txt, .docx, .pdf. What the text holds stays text; control characters, which no file can, go."""

from __future__ import annotations

import io
import re
import unicodedata
from importlib.util import find_spec
from pathlib import Path

from tunesmith.errors import MissingExtra

MARGIN = 25.0  # mm
SIZE, LEADING = 11.0, 1.45  # points; line height over them
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]|[\ud800-\udfff]")
_BREAK = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def paragraphs(text: str) -> list[list[str]]:
    """The text's paragraphs, which empty lines separate, each as its lines."""
    blocks = re.split(r"\n[ \t]*\n\s*", _plain(text).strip("\n"))
    return [[line.rstrip() for line in block.split("\n")] for block in blocks if block.strip()]


def to_txt(text: str, title: str = "") -> bytes:
    """UTF-8 without a byte order mark, lines end in a line feed. The title is the file's name, and no part of it."""
    return (_plain(text).rstrip() + "\n").encode("utf-8")


def to_docx(text: str, title: str) -> bytes:
    """A Word document: a paragraph for each, its lines broken by line breaks; the title in the properties.

    Raises MissingExtra without python-docx.
    """
    try:
        import docx
    except ImportError as error:
        raise _missing("python-docx") from error
    document = docx.Document()
    for lines in paragraphs(text):
        paragraph = document.add_paragraph()
        for place, line in enumerate(lines):
            run = paragraph.add_run(line)
            if place + 1 < len(lines):
                run.add_break()
    about = document.core_properties
    about.title, about.author, about.comments = _plain(title)[:255], "", ""
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def to_pdf(text: str, title: str) -> bytes:
    """A PDF on A4 with its letters embedded, so that its text can be searched and copied in any script DejaVu knows.

    Letters that DejaVu Sans lacks are shown as an empty box. Raises MissingExtra without fpdf2.
    """
    try:
        import fpdf
    except ImportError as error:
        raise _missing("fpdf2") from error
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
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew and signs."""
    found = find_spec("matplotlib")
    font = Path(str(found.origin)).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found else Path()
    if not font.is_file():
        raise MissingExtra("DejaVuSans.ttf is missing", where="matplotlib", next="pip install matplotlib")
    return font


def _missing(package: str) -> MissingExtra:
    return MissingExtra(f"{package} is not installed", where="documents", next="pip install 'tunesmith[ui]'")
