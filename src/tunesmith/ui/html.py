"""HTML building blocks for gr.HTML, styled by pages.css, or by marks.css within `components.pane`.

Arguments are text and are escaped, except those that are described as HTML.

gr.HTML interpolates `{{…}}` and `${…}` in its templates but not in the value inserted for `${value}`, so texts are only
passed as the value: with `{{name}}` in a template, a `${…}` in a text would run as script.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunesmith.errors import MultipleErrors, TunesmithError
from tunesmith.wording import counted

VERDICTS = {
    "contradicted": "Contradicted",
    "unsupported": "Unsupported",
    "supported": "Supported",
}
ACTION_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button) return;
  const { do: action, at = "" } = button.dataset;
  if (action === "find") document.dispatchEvent(new CustomEvent("tunesmith-claim", { detail: at }));
  else trigger("action", { do: action, at });
});
"""
COPY_JS = """
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const text = element.querySelector("#" + CSS.escape(button.dataset.copy));
  try { await navigator.clipboard.writeText(text.textContent); } catch {
    getSelection().selectAllChildren(text);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
"""


def escape(text: object) -> str:
    """Returns `text` escaped for HTML content and attributes."""
    return html.escape(str(text), quote=True)


def note(text: str, kind: str = "soft") -> str:
    """Returns a one-paragraph note, '' for no text; `kind` is soft, good or bad."""
    return f'<p class="note {kind}"{" role=alert" if kind == "bad" else ""}>{escape(text)}</p>' if text else ""


def error_note(error: TunesmithError) -> str:
    """Returns an error as HTML: what is wrong, what to do, and where."""
    errors = error.errors if isinstance(error, MultipleErrors) else [error]
    paragraphs = "".join(
        f"<p><b>{escape(item.what[:1].upper() + item.what[1:])}.</b> {escape(item.next + '.' if item.next else '')}"
        + (f'<br><span class="soft">{escape(item.where)}</span>' if item.where else "")
        + "</p>"
        for item in errors
    )
    return f'<div class="note bad" role="alert">{paragraphs}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Returns a table with row headers. `head` is text, cells are HTML; narrow screens show each row as a block."""
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(
            f'<td data-label="{escape(name)}"><div>{cell}</div></td>'
            for name, cell in zip(head[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table>{caption}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


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


def claim_list(claims: Sequence[Mapping[str, Any]], checked: bool) -> str:
    """Returns the list of claims: first those in doubt, each with its actions, then the supported ones.

    A claim has id, text, verdict, why, field and `fill`, the replacement from its field ('' if there is none).
    `checked` is False if the recipe has no fields to check statements against.
    """
    if not checked:
        return note("This recipe has no fact fields, so statements are not checked.")
    doubted = [claim for claim in claims if claim["verdict"] != "supported"]
    supported = [claim for claim in claims if claim["verdict"] == "supported"]
    if not claims:
        return note("No statements yet. Each one is checked as soon as its sentence is complete.")
    heading = (
        f"{counted(len(doubted), 'statement')} to review" if doubted else "Every statement is supported by a field"
    )
    parts = [f"<h3>{heading}</h3>"]
    if doubted:
        parts.append(f'<ol class="claims">{"".join(map(_claim_item, doubted))}</ol>')
    if supported:
        items = "".join(f"<li><q>{escape(claim['text'])}</q>{_source(claim)}</li>" for claim in supported)
        summary = f"{counted(len(supported), 'statement')} supported by a field"
        parts.append(f"<details><summary>{summary}</summary><ul>{items}</ul></details>")
    return "".join(parts)


def _claim_item(claim: Mapping[str, Any]) -> str:
    claim_id, text, verdict = escape(claim["id"]), escape(claim["text"]), claim["verdict"]
    sign = "≠" if verdict == "contradicted" else "?"
    fill = escape(claim.get("fill") or "")
    fill_button = (
        f'<button type="button" data-do="fill" data-at="{claim_id}">Use “{fill}”{_source(claim)}</button>'
        if fill
        else ""
    )
    return (
        f'<li class="{escape(verdict)}" data-claim="{claim_id}"><div class="claim">'
        f'<button type="button" class="find" data-do="find" data-at="{claim_id}" aria-label="Show in the text: {text}">'
        f"<q>{text}</q></button>"
        f'<button type="button" data-do="remove" data-at="{claim_id}" aria-label="Remove: {text}">Remove</button>'
        f'</div><p><b><span aria-hidden="true">{sign}</span> {VERDICTS.get(verdict, "")}.</b> '
        f"{escape(claim['why'])}</p>{fill_button}</li>"
    )


def _source(claim: Mapping[str, Any]) -> str:
    return f" from {escape(claim['field'])}" if claim.get("field") else ""


def columns(headers: Sequence[tuple[str, str, str]], texts: Sequence[str], statuses: Sequence[str]) -> str:
    """Returns replies side by side. A header is (name, subtitle, CSS class); a status says how far the reply is."""
    articles = []
    for (name, subtitle, kind), text, status in zip(headers, texts, statuses, strict=True):
        body = escape(text) if text.strip() else f'<i class="soft">{escape(status or "nothing yet")}</i>'
        footer = f'<p class="soft">{escape(status)}</p>' if text.strip() and status else ""
        articles.append(
            f'<article class="{escape(kind)}" aria-label="{escape(name)}"><h3>{escape(name)}</h3>'
            f'<p class="soft">{escape(subtitle)}</p><div class="text">{body}</div>{footer}</article>'
        )
    return f'<div class="columns">{"".join(articles)}</div>'


def code(text: str, name: str) -> str:
    """Returns a command with a copy button; `name` is its id on the page."""
    attribute = ' class="lines"' if "\n" in text else ""
    return (
        f'<div class="code"><pre tabindex="0"{attribute}><code id="{escape(name)}">{escape(text)}</code></pre>'
        f'<button type="button" data-copy="{escape(name)}" aria-label="Copy the command">Copy</button></div>'
    )
