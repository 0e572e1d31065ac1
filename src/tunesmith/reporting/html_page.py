"""Renders offline HTML pages from the templates in `pages`: no external resources, everything escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.wording import plural


def render_page(page: str, /, **values: Any) -> str:
    """Renders the template `page`, a file in reporting/pages, with `values`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # only for our own plots, whose labels are escaped
    environment.filters["number"] = format_number
    environment.filters["short"] = lambda value: f"{value:.2f}".rstrip("0").rstrip(".")
    environment.filters["plural"] = plural
    environment.filters["first_upper"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["code"] = markup_code
    environment.filters["thousands"] = lambda value: f"{value:,}"
    return environment.get_template(page).render(**values)


def markup_code(text: str) -> Any:
    """Escapes a text and turns words between backticks into code elements."""
    from markupsafe import Markup, escape

    pieces = (
        Markup("<code>{}</code>").format(part) if odd % 2 else escape(part) for odd, part in enumerate(text.split("`"))
    )
    return Markup("").join(pieces)


def format_number(value: float | None) -> str:
    """Formats a number for display: three decimals below ten, else one; a real minus sign, and no minus zero."""
    if value is None:
        return "–"
    text = f"{value:.3f}" if abs(value) < 9.9995 else f"{value:,.1f}"
    return text.replace("-", "−") if text.strip("-0.") else text.lstrip("-")
