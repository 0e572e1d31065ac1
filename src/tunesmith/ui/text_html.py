"""Pieces of HTML that the pages share. Everything that is given is text and becomes text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape

from tunesmith.errors import Several, TunesmithError


def part(*pieces: str) -> str:
    """Pieces of HTML as one part of a page, styled as pages.css says."""
    return f'<div class="ts">{"".join(pieces)}</div>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is a class: soft, good, bad, warn."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading of a page's part."""
    return f"<h2>{escape(text)}</h2>"


def tiles(told: Iterable[tuple[str, str]]) -> str:
    """Figures side by side: (figure, what it is)."""
    made = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in told)
    return f'<div class="tiles">{made}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, numbers: Sequence[int] = ()) -> str:
    """A table of texts; the columns `numbers` stand right."""
    kind = [' class="n"' if place in numbers else "" for place in range(len(head))]
    top = "".join(f'<th scope="col"{kind[i]}>{escape(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{kind[i]}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    inner = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(label)}">{inner}</div>'


def link(address: str, text: str) -> str:
    """A link to a page of our own, opened beside this one."""
    return f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(text)}</a>'


def trouble(error: BaseException) -> str:
    """An error in its parts: what is wrong, where, what to do next."""
    errors = error.errors if isinstance(error, Several) else [error]
    return part(
        *(_one(each) for each in errors[:20]), paragraph(f"… and {len(errors) - 20} more") if len(errors) > 20 else ""
    )


def parts_of(what: str, where: str, advice: str) -> str:
    """One error as a box."""
    told = [f"<b>{escape(what[:1].upper() + what[1:])}.</b>"]
    told += [f'<br><span class="soft">Where: {escape(where)}</span>'] if where else []
    told += [f"<br>{escape(advice)}."] if advice else []
    return f'<div class="trouble" role="alert">{"".join(told)}</div>'


def _one(error: BaseException) -> str:
    if isinstance(error, TunesmithError):
        return parts_of(error.what, error.where, error.next)
    return parts_of(f"{type(error).__name__}: {error}", "", "")


def log(text: str, lines: int = 200) -> str:
    """The end of what a command said."""
    kept = "\n".join(text.rstrip().splitlines()[-lines:])
    name = 'tabindex="0" role="region" aria-label="What the command said"'
    return f'<pre class="log" {name}><code>{escape(kept)}</code></pre>' if kept else ""


def span(seconds: float) -> str:
    """A time for people: 42 s, 3:05 min, 1:12 h."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d} h"


def clock(at: float) -> str:
    """A time of day, with its date when it is not today's."""
    then, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
