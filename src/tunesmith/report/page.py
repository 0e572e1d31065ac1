"""One offline HTML file from a template beside this module: no script from elsewhere, everything escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render(page: str, /, **values: Any) -> str:
    """The page that `page` (a file in report/pages) makes of `values`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # our own plots, made from numbers and escaped labels
    environment.filters["number"] = number
    environment.filters["percent"] = lambda value: f"{100 * value:.0f} %"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    return environment.get_template(page).render(**values)


def number(value: float | None) -> str:
    """A number for people: three significant digits, a real minus."""
    if value is None:
        return "–"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return text.replace("-", "−")
