"""The audit page: what was read, what the checks found and why it matters, and the decision on every row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.config.recipe import CHECKS, Data
from tunesmith.config.registry import entry_module
from tunesmith.data.load import summarize_notes
from tunesmith.data.messages import ReadNotes
from tunesmith.data.mix_in import describe as describe_mixed
from tunesmith.errors import RecipeError
from tunesmith.reporting import plots
from tunesmith.reporting.html_page import render_page
from tunesmith.wording import counted

SHOWN = 12  # examples per check; findings.jsonl has all
SHOWN_REPAIRS = 10
PROPOSED = {"drop": "drop", "quarantine": "quarantine", "repair": "repair", "keep": "review"}
DONE = {"drop": "dropped", "quarantine": "quarantined", "repair": "not repaired", "keep": "kept"}
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
class CheckDocumentation:
    """The paragraphs of a check's documentation."""

    what: str
    why: str
    example: str
    advice: str


def check_documentation(name: str) -> CheckDocumentation | None:
    """Reads a check's documentation from the docstring of its module; None if the check is not installed."""
    try:
        docstring = entry_module(CHECKS, name).__doc__ or name
    except RecipeError:
        return None
    paragraphs = [" ".join(text.split()) for text in docstring.split("\n\n")]
    sections = {key: text for text in paragraphs for key, _, text in [text.partition(": ")]}
    return CheckDocumentation(
        paragraphs[0], *(sections.get(key, "") for key in ("Why it hurts", "Example", "What to do"))
    )


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
    """Renders the audit page; `audit` is the content of audit.json, with `parts` if the rows were also split.

    `limit` is prompt.max_tokens; `example` is a row as the model sees it, in pieces (text, whether it is trained on).
    """
    profile = audit["profile"]
    kind = str(data.format.options.get("group") or "group")
    split = "parts" in audit
    labels = DONE if split else PROPOSED
    shorten = _shorten([source["file"] for source in audit["sources"]])
    findings = [
        _check_findings(check, facts, labels, shorten) for check, facts in audit["checks"].items() if facts["found"]
    ]
    severity = {"drop": 0, "quarantine": 1, "repair": 2, "keep": 3}
    findings.sort(key=lambda entry: (severity[entry["strongest"]], -entry["rows"]))
    open_checks = [entry["check"] for entry in findings if entry["examples"][0]["excerpt"]][:3]
    return render_page(
        "audit.html",
        name=name,
        audit=audit,
        kind=kind,
        split=split,
        summary=_summary(audit, findings),
        findings=findings,
        open_checks=open_checks,
        without_findings=[check for check, facts in audit["checks"].items() if not facts["found"]],
        pages={check: page for check in audit["checks"] if (page := check_documentation(check))},
        repairs=[
            {
                **entry,
                "where": shorten(entry["where"]),
                "was": _show_control_characters(entry["before"]),
                "now": _show_control_characters(entry["after"]),
            }
            for entry in _repair_examples(audit)
        ],
        example=example,
        stop=stop,
        template=template,
        units=UNITS,
        plots=_plots(profile),
        limit=limit,
        fields=profile["fields"],
        languages=_language_names(profile["languages"]),
        remarks=_remarks(audit),
        mixed_in=describe_mixed(audit["mixed_in"], audit["parts"]["train"]) if "mixed_in" in audit else "",
    )


def _remarks(audit: dict[str, Any]) -> list[str]:
    """Returns a line for each kind of unused, changed or left-out content."""
    notes = ReadNotes(Counter(audit.get("unused", {})), Counter(audit.get("turns", {})))
    lines = summarize_notes(notes, audit.get("left_out", {}), audit.get("unread_because", {}), audit["read"])
    if dropped := audit.get("reasoning_left_out"):
        lines.append(f"the reasoning of {counted(dropped, 'row')} is left out (prompt.reasoning: drop)")
    return lines


def _shorten(files: Sequence[str]) -> Callable[[str], str]:
    """Returns a function that removes the files' folders from a text, and the name of a single file."""
    folders = sorted({file[: file.rfind("/") + 1] for file in files} - {""}, key=len, reverse=True)

    def short(text: str) -> str:
        for part in [f"{files[0]} "] if len(files) == 1 else folders:
            text = text.replace(part, "")
        return text

    return short


def _check_findings(
    check: str, facts: dict[str, Any], labels: dict[str, str], shorten: Callable[[str], str]
) -> dict[str, Any]:
    proposals = sorted(facts["proposals"], key=list(labels).index)
    return {
        "check": check,
        "found": facts["found"],
        "rows": facts["rows"],
        "wish": ", ".join(labels[proposal] for proposal in proposals),
        "strongest": proposals[0],
        "examples": [
            {
                **proposal,
                "where": shorten(f"{proposal['file']} {proposal['unit']} {proposal['line']}")
                if proposal["line"]
                else "the whole table",
                "message": shorten(proposal["message"]),
                "pieces": list(_pieces(proposal["excerpt"])),
            }
            for proposal in facts["examples"][:SHOWN]
        ],
    }


def _pieces(excerpt: str) -> Iterator[tuple[str, bool]]:
    """Splits an excerpt into (text, whether it is highlighted)."""
    for place, text in enumerate(re.split("[⟦⟧]", excerpt)):
        if text:
            yield text, place % 2 == 1


def _repair_examples(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns examples of repairs, taking turns between kinds so that the most frequent one does not fill the page."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for example in audit["repaired"]["examples"]:
        by_kind.setdefault(example["kind"], []).append(example)
    turns = max((len(members) for members in by_kind.values()), default=0)
    return [members[turn] for turn in range(turns) for members in by_kind.values() if turn < len(members)][
        :SHOWN_REPAIRS
    ]


def _show_control_characters(text: str) -> str:
    symbols = {"\r": "␍", "\n": "⏎\n", "\t": "⇥", "\x0b": "␋", "\x0c": "␌", "\ufeff": "␣", "\xa0": "⍽"}
    visible = "".join(symbols.get(letter, "·" if letter == " " and not text.strip() else letter) for letter in text)
    return re.sub(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]", "�", visible) or "(nothing)"


def _summary(audit: dict[str, Any], findings: Sequence[dict[str, Any]]) -> str:
    """Returns the audit as one or two sentences."""
    read = audit["read"]
    quarantined, dropped = sum(audit["quarantined"].values()), sum(audit["dropped"].values())
    rows = f"{counted(read, 'row')} read"
    expanded = _expanded_sentence(audit.get("expanded") or {"conversations": 0})
    if not findings and not audit["repaired"]["rows"]:
        return " ".join(filter(None, (f"{rows}. Nothing was found.", expanded)))
    verbs = ("were dropped", "were quarantined") if "parts" in audit else ("should be dropped", "should be quarantined")
    parts = [f"{dropped:,} {verbs[0]}" if dropped else "", f"{quarantined:,} {verbs[1]}" if quarantined else ""]
    if repaired := audit["repaired"]["rows"]:
        parts.append(f"{repaired:,} were repaired")
    changes = ", ".join(text for text in parts if text) or "some should be reviewed, none has to be left out"
    return " ".join(filter(None, (f"{rows}: {changes}.", _most_frequent(findings), expanded)))


def _expanded_sentence(counts: Mapping[str, int]) -> str:
    """Says how many conversations became one row for each answer; '' for none."""
    if not counts["conversations"]:
        return ""
    became = "conversation became" if counts["conversations"] == 1 else "conversations became"
    return f"{counts['conversations']:,} {became} {counts['rows']:,} rows, one for each answer."


def _language_names(counts: dict[str, int]) -> dict[str, int]:
    return {LANGUAGES.get(name, name): count for name, count in counts.items()}


def _most_frequent(findings: Sequence[dict[str, Any]]) -> str:
    if not findings:
        return ""
    most = max(findings, key=lambda finding: finding["rows"])
    if not most["rows"]:
        return ""
    return f"Most frequent: {most['check'].replace('_', ' ')} ({counted(most['rows'], 'row')})."


def _plots(profile: dict[str, Any]) -> dict[str, str]:
    lengths = profile["lengths"]
    groups = sorted(((name, count) for name, count in profile["groups"].items() if name), key=lambda item: -item[1])
    measures = [name for name in ("prompt_words", "answer_words", "tokens") if lengths.get(name)]
    if "tokens" not in measures and "answer_characters" in lengths:
        measures.append("answer_characters")
    return {
        "lengths": "".join(plots.histogram(lengths[n]["edges"], lengths[n]["counts"], UNITS[n]) for n in measures),
        "groups": plots.bar_chart(groups[:40], "rows") if groups else "",
        "prompt_ngrams": plots.bar_chart(profile["prompt_ngrams"], "prompts") if profile["prompt_ngrams"] else "",
        "answer_ngrams": plots.bar_chart(profile["answer_ngrams"], "answers") if profile["answer_ngrams"] else "",
    }
