"""What an audit's folder tells, as pieces of a page. Rows are foreign text: it is shown, never obeyed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.ui import text_html

PROPOSED = "proposed"  # the folder, inside an audit's, in which mending is tried
TAKEN_BACK = "taken-back"
SHOWN = 8  # examples of a check
CHANGES = 60  # changes of a diff that are shown; the file has all
WISH = {"drop": "leave out", "quarantine": "set aside", "repair": "mend", "keep": "look at"}


def account(folder: Path) -> dict[str, Any] | None:
    """What the audit wrote, or None while there is nothing (or nothing that can be read)."""
    try:
        found = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "checks" in found else None


def summary(told: dict[str, Any]) -> str:
    """The figures as tiles."""
    dropped, aside = sum(told["dropped"].values()), sum(told["quarantined"].values())
    found = sum(1 for facts in told["checks"].values() if facts["found"])
    return text_html.tiles(
        [
            (f"{told['read']:,}", "rows read"),
            (f"{told.get('kept', 0):,}", "to keep"),
            (f"{dropped:,}", "better left out"),
            (f"{aside:,}", "want a reader"),
            (f"{found} of {len(told['checks'])}", "checks found something"),
        ]
    )


def findings(told: dict[str, Any]) -> str:
    """Each check that found something, the gravest first: why it hurts, what to do, examples with their places."""
    grave = list(WISH)
    found = [(name, facts) for name, facts in told["checks"].items() if facts["found"]]
    found.sort(key=lambda each: (min(map(grave.index, each[1]["proposals"])), -each[1]["rows"]))
    if not found:
        return text_html.paragraph("Nothing was found.", "good")
    files = {source["file"] for source in told["sources"]}
    alone = next(iter(files)) if len(files) == 1 else ""
    return "".join(_check(name, facts, alone, opened=place == 0) for place, (name, facts) in enumerate(found))


def _check(name: str, facts: dict[str, Any], alone: str, *, opened: bool) -> str:
    from tunesmith.config.recipe import CHECKS
    from tunesmith.config.registry import entries
    from tunesmith.evaluation.comparison import plural
    from tunesmith.reporting.audit_page import check_page

    wish = ", ".join(
        WISH[each] for each in sorted(facts["proposals"], key=list(WISH).index) if facts["proposals"][each]
    )
    title = escape(name.replace("_", " ").capitalize())
    many = f"{facts['rows']:,} {plural('row', facts['rows'])}: {wish}" if facts["rows"] else wish
    head = f"<summary><strong>{title}</strong> <span class='soft'>{escape(many)}</span></summary>"
    about = check_page(name) if name in entries(CHECKS) else None
    said = (
        [text_html.paragraph(about.what), text_html.paragraph(f"What to do: {about.advice}", "soft")] if about else []
    )
    lines = "".join(_example(each, alone) for each in facts["examples"][:SHOWN])
    more = facts["found"] - min(SHOWN, len(facts["examples"]))
    rest = (
        text_html.paragraph(f"{more:,} more stand in findings.jsonl and on the audit's own page.", "soft")
        if more > 0
        else ""
    )
    opens = " open" if opened else ""
    return f"<details{opens}>{head}{''.join(said)}<table><tbody>{lines}</tbody></table>{rest}</details>"


def _example(each: dict[str, Any], alone: str) -> str:
    """A finding with its place; of the only file, `alone`, the name is not said again."""
    file = "" if each["file"] == alone else f"{Path(each['file']).name} "
    place = f"{file}{each['unit']} {each['line']}" if each["line"] else "the whole table"
    message = each["message"].replace(f"{alone} ", "") if alone else each["message"]
    shown = "".join(
        f"<mark>{escape(text)}</mark>" if odd % 2 else escape(text)
        for odd, text in enumerate(re.split("[⟦⟧]", each["excerpt"]))
    )
    words_of = f'<br><span class="text soft">{shown}</span>' if each["excerpt"] else ""
    return f'<tr><td class="where">{escape(place)}</td><td>{escape(message)}{words_of}</td></tr>'


# --- mending -----------------------------------------------------------------------------------------------


def diffs(folder: Path) -> list[Path]:
    """The diffs of cleaned files in a folder."""
    return sorted(folder.glob("*.cleaned.diff.jsonl")) if folder.is_dir() else []


def changes(diff: Path) -> str:
    """What a diff says: the edits, was and is, then the rows that are left out and why."""
    edits: list[str] = []
    gone: list[str] = []
    end: dict[str, Any] = {}
    for line in _lines(diff):
        where = re.sub(r"^.*/", "", str(line.get("where", "")))
        if "end" in line:
            end = line["end"]
        elif "fate" in line:
            fate = "left out" if line["fate"] == "drop" else "set aside"
            gone.append(
                _row(where, f"{fate}: {_named(line.get('check'))}", escape(_first_words(line.get("values", {}))))
            )
        else:
            for change in line.get("changes", []):
                place = f"{where}, {' / '.join(map(str, change.get('path', [])))}"
                edits += [_row(place, _named(edit[4]), _edit(edit[2], edit[3])) for edit in change.get("edits", [])]
    told = text_html.tiles(
        [
            (f"{end.get('kept', 0):,}", "rows kept"),
            (f"{end.get('changed', 0):,}", "of them mended"),
            (f"{end.get('left_out', 0):,}", "left out"),
        ]
    )
    return told + _listed("What is mended", edits) + _listed("What is left out", gone)


def _row(where: str, why: str, text: str) -> str:
    """A line of a table: place and reason as text, `text` as HTML."""
    place = f'<td class="where">{escape(where)}</td>'
    return f'<tr>{place}<td><span class="soft">{escape(why)}</span><br><span class="text">{text}</span></td></tr>'


def _edit(old: Any, new: Any) -> str:
    return f"<del>{_seen(old)}</del> → <ins>{_seen(new)}</ins>"


def _named(name: Any) -> str:
    return str(name).replace("_", " ")


def accept(folder: Path) -> list[Path]:
    """Takes over what was proposed: cleaned files and diffs; returns the files. Raises DataError where none is."""
    found = diffs(folder / PROPOSED)
    if not found:
        raise DataError("there is nothing to accept", where=str(folder), next="See what mending would change first")
    kept = []
    for diff in found:
        for line in _lines(diff):
            if name := line.get("end", {}).get("cleaned"):
                file = folder / Path(name).name
                shutil.move(diff.with_name(file.name), file)
                kept.append(file)
        shutil.move(diff, folder / diff.name)
    return kept


def take_back(folder: Path) -> list[tuple[Path, int]]:
    """Takes an accepted cleaning back: the rows as they were, in files of their own, and their numbers.

    The cleaned files go into taken-back/. Raises DataError where none was accepted or one was changed since.
    """
    import tunesmith

    found = diffs(folder)
    if not found:
        raise DataError("no cleaning was accepted here", where=str(folder), next="Nothing has to be taken back")
    aside = folder / TAKEN_BACK
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    made = []
    for diff in found:
        end = [line["end"] for line in _lines(diff) if "end" in line][-1]
        cleaned = diff.with_name(Path(end["cleaned"]).name)
        restored = folder / cleaned.name.replace(".cleaned", ".restored")
        made.append((restored, tunesmith.undo(diff, restored)))
        for file in (cleaned, diff):
            shutil.move(file, aside / file.name)
    return made


def _lines(diff: Path) -> Iterator[dict[str, Any]]:
    try:
        with diff.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise DataError(f"the diff cannot be read ({error})", where=str(diff), next="Look at the rows again") from error


def _listed(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    more = (
        text_html.paragraph(f"{len(lines) - CHANGES:,} more stand in the diff.", "soft") if len(lines) > CHANGES else ""
    )
    body = "".join(lines[:CHANGES])
    head = f"<summary><strong>{escape(title)}</strong></summary>"
    return f"<details open>{head}<table><tbody>{body}</tbody></table>{more}</details>"


def _first_words(values: Any) -> str:
    """The beginning of a row, for a person to know it again."""
    text = " · ".join(str(value) for value in values.values() if value) if isinstance(values, dict) else str(values)
    return text if len(text) <= 160 else f"{text[:160]}…"


def _seen(text: Any) -> str:
    """A piece of text with its blanks to be seen."""
    shown = str(text).replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    return escape(shown if shown.strip() else shown.replace(" ", "·")) or "nothing"
