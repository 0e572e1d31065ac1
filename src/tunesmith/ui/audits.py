"""An audit's folder as HTML, and accepting or undoing its repairs. Rows are untrusted text and always escaped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.ui import html
from tunesmith.wording import counted

PROPOSED = "proposed"  # subfolder of an audit in which repairs are tried
UNDONE = "taken-back"
MAX_EXAMPLES = 8  # shown for each check
MAX_CHANGES = 60  # shown of a diff; the file has all
ACTIONS = {"drop": "drop", "quarantine": "quarantine", "repair": "repair", "keep": "review"}


def read_audit(folder: Path) -> dict[str, Any] | None:
    """Returns the contents of audit.json, or None if it does not exist or cannot be read."""
    try:
        audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return audit if isinstance(audit, dict) and "checks" in audit else None


def summary_tiles(audit: dict[str, Any]) -> str:
    """Returns the counts of the audit as tiles."""
    dropped, quarantined = sum(audit["dropped"].values()), sum(audit["quarantined"].values())
    with_findings = sum(1 for result in audit["checks"].values() if result["found"])
    return html.tiles(
        [
            (f"{audit['read']:,}", "rows read"),
            (f"{audit.get('kept', 0):,}", "to keep"),
            (f"{dropped:,}", "to drop"),
            (f"{quarantined:,}", "to quarantine"),
            (f"{with_findings} of {len(audit['checks'])}", "checks with findings"),
        ]
    )


def findings_html(audit: dict[str, Any]) -> str:
    """Returns the checks with findings, most severe first: why they matter, what to do, and examples."""
    severity = list(ACTIONS)
    results = [(name, result) for name, result in audit["checks"].items() if result["found"]]
    results.sort(key=lambda item: (min(map(severity.index, item[1]["proposals"])), -item[1]["rows"]))
    if not results:
        return html.paragraph("No findings.", "good")
    files = {source["file"] for source in audit["sources"]}
    only_file = next(iter(files)) if len(files) == 1 else ""
    return "".join(
        _check_section(name, result, only_file, is_open=position == 0)
        for position, (name, result) in enumerate(results)
    )


def _check_section(name: str, result: dict[str, Any], only_file: str, *, is_open: bool) -> str:
    from tunesmith.reporting.audit_page import check_documentation

    actions = ", ".join(
        ACTIONS[item] for item in sorted(result["proposals"], key=list(ACTIONS).index) if result["proposals"][item]
    )
    title = name.replace("_", " ").capitalize()
    count = f"{counted(result['rows'], 'row')}: {actions}" if result["rows"] else actions
    help_text = check_documentation(name)
    intro = html.paragraph(help_text.what) if help_text else ""
    if help_text and help_text.advice:
        intro += html.paragraph(f"What to do: {help_text.advice}", "soft")
    rows = [_example_row(item, only_file) for item in result["examples"][:MAX_EXAMPLES]]
    more = f"{result['found'] - len(rows):,} more in findings.jsonl and in the audit report."
    hint = more if result["found"] > len(rows) else ""
    return _details(title, rows, hint, note=count, intro=intro, is_open=is_open)


def _details(title: str, rows: list[str], hint: str, *, note: str = "", intro: str = "", is_open: bool = True) -> str:
    """Returns a table of `rows` that opens below `title` and `note`; `rows` and `intro` are HTML."""
    head = f"<strong>{html.escape(title)}</strong>" + (
        f" <span class='soft'>{html.escape(note)}</span>" if note else ""
    )
    table = f"<table><tbody>{''.join(rows)}</tbody></table>{html.paragraph(hint, 'soft') if hint else ''}"
    return f"<details{' open' if is_open else ''}><summary>{head}</summary>{intro}{table}</details>"


def _example_row(finding: dict[str, Any], only_file: str) -> str:
    """Returns a finding with its location; the name of the only file is left out."""
    file = "" if finding["file"] == only_file else f"{Path(finding['file']).name} "
    place = f"{file}{finding['unit']} {finding['line']}" if finding["line"] else "the whole table"
    message = finding["message"].replace(f"{only_file} ", "") if only_file else finding["message"]
    excerpt = "".join(
        f"<mark>{html.escape(text)}</mark>" if index % 2 else html.escape(text)
        for index, text in enumerate(re.split("[⟦⟧]", finding["excerpt"]))
    )
    excerpt_line = f'<br><span class="text soft">{excerpt}</span>' if finding["excerpt"] else ""
    return _table_row(place, html.escape(message) + excerpt_line)


# --- repairs -----------------------------------------------------------------------------------------------


def find_diffs(folder: Path) -> list[Path]:
    """Returns the diffs of cleaned files in a folder."""
    return sorted(folder.glob("*.cleaned.diff.jsonl")) if folder.is_dir() else []


def diff_html(diff: Path) -> str:
    """Returns a diff as HTML: the edits, then the removed rows with the reason."""
    edits: list[str] = []
    removed_rows: list[str] = []
    footer: dict[str, Any] = {}
    for line in _read_diff(diff):
        where = re.sub(r"^.*/", "", str(line.get("where", "")))
        if "end" in line:
            footer = line["end"]
        elif "decision" in line:
            decision = "dropped" if line["decision"] == "drop" else "quarantined"
            removed_rows.append(
                _change_row(
                    where,
                    f"{decision}: {_readable(line.get('check'))}",
                    html.escape(_row_preview(line.get("values", {}))),
                )
            )
        else:
            for change in line.get("changes", []):
                place = f"{where}, {' / '.join(map(str, change.get('path', [])))}"
                edits += [
                    _change_row(place, _readable(edit[4]), _edit_html(edit[2], edit[3]))
                    for edit in change.get("edits", [])
                ]
    counts = html.tiles(
        [
            (f"{footer.get('kept', 0):,}", "rows kept"),
            (f"{footer.get('changed', 0):,}", "of them repaired"),
            (f"{footer.get('left_out', 0):,}", "left out"),
        ]
    )
    return counts + _change_table("Edits", edits) + _change_table("Removed rows", removed_rows)


def _change_row(where: str, why: str, text: str) -> str:
    """Returns a table row; `where` and `why` are text, `text` is HTML."""
    return _table_row(where, f'<span class="soft">{html.escape(why)}</span><br><span class="text">{text}</span>')


def _table_row(where: str, cell: str) -> str:
    """Returns a table row; `where` is text, `cell` is HTML."""
    return f'<tr><td class="where">{html.escape(where)}</td><td>{cell}</td></tr>'


def _edit_html(old: Any, new: Any) -> str:
    return f"<del>{_visible_html(old)}</del> → <ins>{_visible_html(new)}</ins>"


def _readable(name: Any) -> str:
    return str(name).replace("_", " ")


def accept_repair(folder: Path) -> list[Path]:
    """Moves the proposed cleaned files and diffs into the audit's folder and returns the files. Raises DataError."""
    diff_files = find_diffs(folder / PROPOSED)
    if not diff_files:
        raise DataError("no repairs were proposed", where=str(folder), next="Click 'Preview repairs' first")
    cleaned_files = []
    for diff in diff_files:
        for line in _read_diff(diff):
            if name := line.get("end", {}).get("cleaned"):
                file = folder / Path(name).name
                shutil.move(diff.with_name(file.name), file)
                cleaned_files.append(file)
        shutil.move(diff, folder / diff.name)
    return cleaned_files


def undo_repair(folder: Path) -> list[tuple[Path, int]]:
    """Undoes an accepted repair: writes the original rows into new files; returns the files and their row counts.

    The cleaned files move to taken-back/. Raises DataError if none was accepted or one was changed since.
    """
    import tunesmith

    diff_files = find_diffs(folder)
    if not diff_files:
        raise DataError("no repair was accepted here", where=str(folder), next="There is nothing to undo")
    undone = folder / UNDONE
    shutil.rmtree(undone, ignore_errors=True)
    undone.mkdir()
    results = []
    for diff in diff_files:
        footer = [line["end"] for line in _read_diff(diff) if "end" in line][-1]
        cleaned = diff.with_name(Path(footer["cleaned"]).name)
        restored = folder / cleaned.name.replace(".cleaned", ".restored")
        results.append((restored, tunesmith.undo(diff, restored)))
        for file in (cleaned, diff):
            shutil.move(file, undone / file.name)
    return results


def _read_diff(diff: Path) -> Iterator[dict[str, Any]]:
    try:
        with diff.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise DataError(f"the diff cannot be read ({error})", where=str(diff), next="Audit the rows again") from error


def _change_table(title: str, rows: list[str]) -> str:
    if not rows:
        return ""
    hint = f"{len(rows) - MAX_CHANGES:,} more in the diff file." if len(rows) > MAX_CHANGES else ""
    return _details(title, rows[:MAX_CHANGES], hint)


def _row_preview(values: Any) -> str:
    """Returns the beginning of a row, enough to recognize it."""
    text = " · ".join(str(value) for value in values.values() if value) if isinstance(values, dict) else str(values)
    return text if len(text) <= 160 else f"{text[:160]}…"


def _visible_html(text: Any) -> str:
    """Returns a text as HTML with visible whitespace."""
    visible = str(text).replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    return html.escape(visible if visible.strip() else visible.replace(" ", "·")) or "nothing"
