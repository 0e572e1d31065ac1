"""HTML building blocks styled by pages.css. Arguments are plain text and are escaped, except those of `part`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tunesmith.errors import MultipleErrors, TunesmithError


def part(*pieces: str) -> str:
    """Wraps pieces of HTML in a container that pages.css styles."""
    return f'<div class="ts">{"".join(pieces)}</div>'


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph; `kind` is its CSS class: soft, good, bad or warn."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """Returns a second-level heading."""
    return f"<h2>{escape(text)}</h2>"


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Returns a row of tiles, each a (value, caption) pair."""
    tiles_html = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in figures
    )
    return f'<div class="tiles">{tiles_html}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, numbers: Sequence[int] = ()) -> str:
    """Returns a table of texts; the columns `numbers` are right-aligned."""
    kind = [' class="n"' if place in numbers else "" for place in range(len(head))]
    top = "".join(f'<th scope="col"{kind[i]}>{escape(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{kind[i]}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    inner = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(label)}">{inner}</div>'


def link(address: str, text: str) -> str:
    """Returns a link to one of our own pages that opens in a new tab."""
    return f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(text)}</a>'


def error_boxes(error: BaseException) -> str:
    """Returns a box for each error: what is wrong, where, and what to do next."""
    errors = error.errors if isinstance(error, MultipleErrors) else [error]
    return part(
        *(_error_box_of(item) for item in errors[:20]),
        paragraph(f"… and {len(errors) - 20} more") if len(errors) > 20 else "",
    )


def error_box(what: str, where: str, advice: str) -> str:
    """Returns a box for one error."""
    lines = [f"<b>{escape(what[:1].upper() + what[1:])}.</b>"]
    lines += [f'<br><span class="soft">Where: {escape(where)}</span>'] if where else []
    lines += [f"<br>{escape(advice)}."] if advice else []
    return f'<div class="trouble" role="alert">{"".join(lines)}</div>'


def _error_box_of(error: BaseException) -> str:
    if isinstance(error, TunesmithError):
        return error_box(error.what, error.where, error.next)
    return error_box(f"{type(error).__name__}: {error}", "", "")


def log(text: str, lines: int = 200) -> str:
    """Returns the last lines of a command's output."""
    tail = "\n".join(text.rstrip().splitlines()[-lines:])
    attributes = 'tabindex="0" role="region" aria-label="Output of the command"'
    return f'<pre class="log" {attributes}><code>{escape(tail)}</code></pre>' if tail else ""
