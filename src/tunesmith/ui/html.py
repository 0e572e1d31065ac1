"""Markup that pages are made of. Whatever a model, a row or a field says goes through `plain` and stays text.

gr.HTML reads `{{…}}` and `${…}` in its templates, never in the value that stands for `${value}`: texts are handed over
as the value alone (with `{{name}}` in a template, a `${…}` in a text would run as script).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tunesmith.errors import Several, TunesmithError

VERDICTS = {
    "contradicted": "Contradicted",
    "unsupported": "Unsupported",
    "supported": "Supported",
}
DELEGATE = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button) return;
  const { do: what, at = "" } = button.dataset;
  if (what === "find") document.dispatchEvent(new CustomEvent("tunesmith-claim", { detail: at }));
  else trigger("asked", { do: what, at });
});
"""
COPY = """
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const words = element.querySelector("#" + CSS.escape(button.dataset.copy));
  try { await navigator.clipboard.writeText(words.textContent); } catch {
    getSelection().selectAllChildren(words);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
"""


def plain(text: object) -> str:
    """`text` as HTML that shows it as it is."""
    return escape(str(text), quote=True)


def note(text: str, kind: str = "soft") -> str:
    """A sentence on its own; `kind` is soft, good or bad."""
    return f'<p class="note {kind}"{" role=alert" if kind == "bad" else ""}>{plain(text)}</p>' if text else ""


def trouble(error: TunesmithError) -> str:
    """What is wrong, where, and what to do next."""
    errors = error.errors if isinstance(error, Several) else [error]
    said = "".join(
        f"<p><b>{plain(each.what[:1].upper() + each.what[1:])}.</b> {plain(each.next + '.' if each.next else '')}"
        + (f'<br><span class="soft">{plain(each.where)}</span>' if each.where else "")
        + "</p>"
        for each in errors
    )
    return f'<div class="note bad" role="alert">{said}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table whose first cell of a row is its heading. Cells are HTML already; narrow screens show a card a row."""
    cells = "".join(f'<th scope="col">{plain(each)}</th>' for each in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(
            f'<td data-label="{plain(name)}"><div>{cell}</div></td>'
            for name, cell in zip(head[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><caption>{plain(caption)}</caption><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def claim_list(claims: Sequence[Mapping[str, Any]], checked: bool) -> str:
    """The statements of a letter beside it: those to look at, each with what can be done; then those that hold.

    A claim has id, text, verdict, why, field and `fill`, the words that would take its place ('' where none fit).
    `checked` False: this recipe has no fields that a statement could be held against.
    """
    if not checked:
        return note("This recipe has no fields of facts, so statements are not checked.")
    doubted = [each for each in claims if each["verdict"] != "supported"]
    held = [each for each in claims if each["verdict"] == "supported"]
    if not claims:
        return note("No statements were found yet. Each is checked as soon as its sentence is complete.")
    told = f"{_count(len(doubted), 'statement')} to look at" if doubted else "Every statement is borne out by a field"
    parts = [f"<h3>{told}</h3>"]
    if doubted:
        parts.append(f'<ol class="claims">{"".join(map(_claim, doubted))}</ol>')
    if held:
        items = "".join(f"<li><q>{plain(each['text'])}</q> {plain(_from(each))}</li>" for each in held)
        borne = f"{_count(len(held), 'statement')} that a field bears out"
        parts.append(f"<details><summary>{borne}</summary><ul>{items}</ul></details>")
    return "".join(parts)


def _claim(claim: Mapping[str, Any]) -> str:
    at, words, verdict = plain(claim["id"]), plain(claim["text"]), claim["verdict"]
    sign = "≠" if verdict == "contradicted" else "?"
    fill = plain(claim.get("fill") or "")
    use = f'<button type="button" data-do="fill" data-at="{at}">Use “{fill}”{_where(claim)}</button>' if fill else ""
    return (
        f'<li class="{plain(verdict)}" data-claim="{at}"><div class="said">'
        f'<button type="button" class="find" data-do="find" data-at="{at}" aria-label="Show in the text: {words}">'
        f'<q>{words}</q></button><button type="button" data-do="remove" data-at="{at}" aria-label="Remove: {words}">'
        f'Remove</button></div><p><b><span aria-hidden="true">{sign}</span> {VERDICTS.get(verdict, "")}.</b> '
        f"{plain(claim['why'])}</p>{use}</li>"
    )


def _where(claim: Mapping[str, Any]) -> str:
    return f" from {plain(claim['field'])}" if claim.get("field") else ""


def _from(claim: Mapping[str, Any]) -> str:
    return f"from {claim['field']}" if claim.get("field") else ""


def columns(heads: Sequence[tuple[str, str, str]], texts: Sequence[str], states: Sequence[str]) -> str:
    """Replies side by side: of each column its name, a line below it and its kind, its text, and how far it is."""
    made = []
    for (name, below, kind), text, state in zip(heads, texts, states, strict=True):
        shown = plain(text) if text.strip() else f'<i class="soft">{plain(state or "nothing yet")}</i>'
        after = f'<p class="soft">{plain(state)}</p>' if text.strip() and state else ""
        made.append(
            f'<article class="{plain(kind)}" aria-label="{plain(name)}"><h3>{plain(name)}</h3>'
            f'<p class="soft">{plain(below)}</p><div class="text">{shown}</div>{after}</article>'
        )
    return f'<div class="columns">{"".join(made)}</div>'


def code(text: str, name: str) -> str:
    """A command with a button that copies it; `name` tells it from others on the page."""
    several = ' class="lines"' if "\n" in text else ""
    return (
        f'<div class="code"><pre tabindex="0"{several}><code id="{plain(name)}">{plain(text)}</code></pre>'
        f'<button type="button" data-copy="{plain(name)}" aria-label="Copy the command">Copy</button></div>'
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
