"""The page about the data: what was read, what was found and why it matters, what became of every row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.config.recipe import CHECKS, Data
from tunesmith.config.registry import entries
from tunesmith.data.load import remarks
from tunesmith.data.messages import Notes
from tunesmith.evaluation.comparison import plural
from tunesmith.reporting import plots
from tunesmith.reporting.html_page import render

SHOWN = 12  # examples of a check; findings.jsonl has all
SHOWN_MENDED = 10
PROPOSED = {"drop": "leave out", "quarantine": "set aside", "repair": "mend", "keep": "look at"}
DONE = {"drop": "left out", "quarantine": "set aside", "repair": "not mended", "keep": "kept"}
LANGUAGES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "nl": "Dutch",
    "pl": "Polish",
}
UNITS = {
    "prompt_characters": "characters in the prompt",
    "answer_characters": "characters in the answer",
    "prompt_words": "words in the prompt",
    "answer_words": "words in the answer",
    "tokens": "tokens in the row",
}


@dataclass(frozen=True)
class Page:
    """What a check's page says, by paragraph."""

    what: str
    why: str
    example: str
    advice: str


def check_page(name: str) -> Page:
    """The page of a check: the first words of its file."""
    import importlib

    words = importlib.import_module(f"{CHECKS}.{name}").__doc__ or ""
    paragraphs = [" ".join(text.split()) for text in words.split("\n\n")]
    told = {key: text for text in paragraphs for key, _, text in [text.partition(": ")]}
    return Page(paragraphs[0], told["Why it hurts"], told["Example"], told["What to do"])


def audit_page(
    name: str,
    data: Data,
    audit: dict[str, Any],
    *,
    limit: int | None = None,
    example: Sequence[tuple[str, bool]] = (),
    stop: str = "",
    template: str = "",
) -> str:
    """The page of an account as `data.prepare` makes it: split (with `parts`), or only looked at.

    `limit` is prompt.max_tokens; `example` a row as the model sees it, in pieces (text, learnt).
    """
    profile = audit["profile"]
    kind = str(data.format.options.get("group") or "group")
    split = "parts" in audit
    words = DONE if split else PROPOSED
    short = _shorten([source["file"] for source in audit["sources"]])
    found = [_told(check, facts, words, short) for check, facts in audit["checks"].items() if facts["found"]]
    order = {"drop": 0, "quarantine": 1, "repair": 2, "keep": 3}
    found.sort(key=lambda each: (order[each["strongest"]], -each["rows"]))
    opened = [each["check"] for each in found if each["examples"][0]["excerpt"]][:3]
    return render(
        "audit.html",
        name=name,
        audit=audit,
        kind=kind,
        split=split,
        summary=_summary(audit, found),
        found=found,
        opened=opened,
        silent=[check for check, facts in audit["checks"].items() if not facts["found"]],
        pages={check: check_page(check) for check in audit["checks"] if check in entries(CHECKS)},
        mended=[
            {**each, "where": short(each["where"]), "was": _visible(each["before"]), "now": _visible(each["after"])}
            for each in _mended(audit)
        ],
        example=example,
        stop=stop,
        template=template,
        units=UNITS,
        plots=_plots(profile),
        limit=limit,
        fields=profile["fields"],
        languages=_languages(profile["languages"]),
        remarks=_remarks(audit),
    )


def _remarks(audit: dict[str, Any]) -> list[str]:
    """What to know of the rows as they were read, a line for each kind."""
    notes = Notes(Counter(audit.get("unused", {})), Counter(audit.get("turns", {})))
    said = remarks(notes, audit.get("left_out", {}), audit.get("unread_because", {}), audit["read"])
    if dropped := audit.get("reasoning_left_out"):
        said.append(f"the reasoning of {dropped:,} {plural('row', dropped)} is left out (prompt.reasoning: drop)")
    return said


def _shorten(files: Sequence[str]) -> Callable[[str], str]:
    """Takes the files' folders out of a text; of a single file its name too: the page says it once."""
    folders = sorted({file[: file.rfind("/") + 1] for file in files} - {""}, key=len, reverse=True)

    def short(text: str) -> str:
        for part in [f"{files[0]} "] if len(files) == 1 else folders:
            text = text.replace(part, "")
        return text

    return short


def _told(check: str, facts: dict[str, Any], words: dict[str, str], short: Callable[[str], str]) -> dict[str, Any]:
    proposals = sorted(facts["proposals"], key=list(words).index)
    return {
        "check": check,
        "found": facts["found"],
        "rows": facts["rows"],
        "wish": ", ".join(words[each] for each in proposals),
        "strongest": proposals[0],
        "examples": [
            {
                **each,
                "where": short(f"{each['file']} {each['unit']} {each['line']}") if each["line"] else "the whole table",
                "message": short(each["message"]),
                "pieces": list(_pieces(each["excerpt"])),
            }
            for each in facts["examples"][:SHOWN]
        ],
    }


def _pieces(excerpt: str) -> Iterator[tuple[str, bool]]:
    """An excerpt in pieces: (text, whether it is the place itself)."""
    for place, text in enumerate(re.split("[⟦⟧]", excerpt)):
        if text:
            yield text, place % 2 == 1


def _mended(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """The first examples of each kind of repair in turn, so that the commonest kind does not fill the page."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for each in audit["mended"]["examples"]:
        by_kind.setdefault(each["kind"], []).append(each)
    turns = max((len(members) for members in by_kind.values()), default=0)
    return [members[turn] for turn in range(turns) for members in by_kind.values() if turn < len(members)][
        :SHOWN_MENDED
    ]


def _visible(text: str) -> str:
    signs = {"\r": "␍", "\n": "⏎\n", "\t": "⇥", "\x0b": "␋", "\x0c": "␌", "\ufeff": "␣", "\xa0": "⍽"}
    shown = "".join(signs.get(each, "·" if each == " " and not text.strip() else each) for each in text)
    return re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]", "�", shown) or "(nothing)"


def _summary(audit: dict[str, Any], found: Sequence[dict[str, Any]]) -> str:
    """One sentence for a person in a hurry."""
    read = audit["read"]
    aside, dropped = sum(audit["quarantined"].values()), sum(audit["dropped"].values())
    rows = f"{read:,} {plural('row', read)} read"
    expanded = _expanded(audit.get("expanded") or {"conversations": 0})
    if not found and not audit["mended"]["rows"]:
        return " ".join(filter(None, (f"{rows}. Nothing was found.", expanded)))
    verbs = ("were left out", "set aside for a person to read") if "parts" in audit else ("should go", "want a reader")
    said = [f"{dropped:,} {verbs[0]}" if dropped else "", f"{aside:,} {verbs[1]}" if aside else ""]
    if mended := audit["mended"]["rows"]:
        said.append(f"{mended:,} were mended")
    told = ", ".join(text for text in said if text) or "some are worth a look, none has to go"
    return " ".join(filter(None, (f"{rows}: {told}.", _largest(found), expanded)))


def _expanded(counts: Mapping[str, int]) -> str:
    """Conversations of which each answer is learned in a row of its own."""
    if not counts["conversations"]:
        return ""
    became = "conversation became" if counts["conversations"] == 1 else "conversations became"
    return f"{counts['conversations']:,} {became} {counts['rows']:,} rows, one for each answer."


def _languages(found: dict[str, int]) -> dict[str, int]:
    return {LANGUAGES.get(name, name): count for name, count in found.items()}


def _largest(found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return ""
    most = max(found, key=lambda each: each["rows"])
    if not most["rows"]:
        return ""
    return f"Most often: {most['check'].replace('_', ' ')} ({most['rows']:,} {plural('row', most['rows'])})."


def _plots(profile: dict[str, Any]) -> dict[str, str]:
    lengths = profile["lengths"]
    groups = sorted(((name, count) for name, count in profile["groups"].items() if name), key=lambda item: -item[1])
    shown = [name for name in ("prompt_words", "answer_words", "tokens") if lengths.get(name)]
    if "tokens" not in shown and "answer_characters" in lengths:
        shown.append("answer_characters")
    return {
        "lengths": "".join(plots.histogram(lengths[n]["edges"], lengths[n]["counts"], UNITS[n]) for n in shown),
        "groups": plots.bars(groups[:40], "rows") if groups else "",
        "prompt_ngrams": plots.bars(profile["prompt_ngrams"], "prompts") if profile["prompt_ngrams"] else "",
        "answer_ngrams": plots.bars(profile["answer_ngrams"], "answers") if profile["answer_ngrams"] else "",
    }
