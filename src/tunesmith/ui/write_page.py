"""Page Write: the recipe's form, the streamed text with its statements checked against the fields, edits, downloads."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import gradio as gr

from tunesmith.commands.writer import Writer, best_gguf, open_writer
from tunesmith.config.recipe import Recipe
from tunesmith.errors import TunesmithError
from tunesmith.runs.run import Run
from tunesmith.ui.components import draw_for_run, empty_text, pane, text_editor
from tunesmith.ui.html import claim_list, error_note, escape, note
from tunesmith.ui.state import QUIET, State
from tunesmith.wording import counted
from tunesmith.writing.events import ClaimEvent, DoneEvent, Event, TextEvent

UPDATE_SECONDS = 0.06  # between two updates of the text while it is generated
MAX_TEXT = 100_000  # characters of an edited text
MAX_REMOVED = 240  # characters shown of removed text
MIME_TYPES = {
    "txt": "text/plain;charset=utf-8",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "pdf": "application/pdf",
}


def page(state: State) -> None:
    """Builds the page Write."""
    open_writer = OpenWriter()

    def build(recipe: Recipe, run: Run) -> None:
        run.fingerprint("train")
        _build(open_writer, recipe, run, Writer(recipe, None, ""))  # form and checks need no model

    draw_for_run(state, build, ["train"])


class OpenWriter:
    """The model used for writing, opened on first use; that of another run is closed first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: tuple[Any, Writer, contextlib.ExitStack] | None = None
        self.stop_events: dict[str, threading.Event] = {}  # by browser session

    def writer(self, recipe: Recipe, run: Run) -> Writer:
        """Returns the writer of a run, reopened if its adapter or exported file changed. Raises TunesmithError."""
        key = (run.path, best_gguf(run), run.fingerprint("train"))
        with self._lock:
            if self._open and self._open[0] == key:
                return self._open[1]
            if self._open:
                self._open[2].close()
                self._open = None
            stack = contextlib.ExitStack()
            self._open = (key, stack.enter_context(open_writer(recipe, run)), stack)
            return self._open[1]


def stream_text(
    draft: Writer, values: Mapping[str, str], system: str, version: int, stop: threading.Event
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]] | None, str]]:
    """Yields the editor's value, the claims if they changed (else None), and notes while the text is generated."""
    checked = CheckedText(values, version)
    yield checked.value("Reading the prompt.", busy=True), [], ""
    events = cast("Generator[Event]", draft.write(values, system, None))
    updated, notes = 0.0, ""
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, DoneEvent):
                checked, notes = CheckedText(values, version, event.text, event.claims), removed_notes(event)
                break
            changed = checked.add(event)
            if stop.is_set():  # the unfinished sentence is checked as it stands
                checked = CheckedText(values, version, checked.text, draft.judged(checked.text, values))
                break
            if changed or time.monotonic() - updated > UPDATE_SECONDS:
                updated = time.monotonic()
                yield checked.value("Writing.", busy=True), checked.claim_dicts() if changed else None, notes
    notes += note(f"Written by {draft.about}.")
    status = "Stopped. You can edit the text." if stop.is_set() else _final_status(checked)
    yield checked.value(status, busy=False), checked.fixable_claims(draft), notes


class CheckedText:
    """A text with its claims, as the editor and the list of claims need them."""

    def __init__(
        self, values: Mapping[str, str], version: int, text: str = "", claims: Sequence[ClaimEvent] = ()
    ) -> None:
        self.values, self.version, self.text = dict(values), version, text
        self.claims = {(claim.start, claim.end): claim for claim in claims}

    def add(self, event: Any) -> bool:
        """Adds one event of the text stream; returns whether the claims changed."""
        if isinstance(event, TextEvent):
            self.text += event.text
        elif isinstance(event, ClaimEvent):
            self.claims[event.start, event.end] = event
        return isinstance(event, ClaimEvent)

    def claim_dicts(self) -> list[dict[str, Any]]:
        """Returns the claims in text order."""
        return [_claim_dict(self.claims[span]) for span in sorted(self.claims)]

    def fixable_claims(self, draft: Writer) -> list[dict[str, Any]]:
        """Returns the claims in text order with the replacement from a field, if there is one."""
        rows = self.claim_dicts()
        for row, span in zip(rows, sorted(self.claims), strict=True):
            if row["verdict"] != "supported":
                row["fill"] = draft.filling(self.text, self.claims[span], self.values) or ""
        return rows

    def doubt_count(self) -> str:
        """Returns how many statements no field supports, as a sentence; '' for none."""
        count = sum(claim.verdict != "supported" for claim in self.claims.values())
        return f"{counted(count, 'statement')} to review." if count else ""

    def value(self, status: str, *, busy: bool) -> dict[str, Any]:
        """Returns the editor's value."""
        return {
            "text": self.text,
            "claims": self.claim_dicts(),
            "version": self.version,
            "busy": busy,
            "status": status,
        }


def text_from_browser(value: Any, values: Mapping[str, str]) -> CheckedText:
    """Parses the editor's value from the browser. Invalid claims are dropped; a text that is too long is truncated."""
    sent = value if isinstance(value, dict) else {}
    text = str(sent.get("text") or "")[:MAX_TEXT]
    version = sent.get("version") if isinstance(sent.get("version"), int) else 0
    claims = []
    for claim in sent.get("claims") or []:
        if not isinstance(claim, dict):
            continue
        start, end = claim.get("start"), claim.get("end")
        if isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text):
            field = claim.get("field")
            claims.append(
                ClaimEvent(start, end, text[start:end], claim.get("kind", "name"), claim.get("verdict", "unsupported"),
                        str(claim.get("why", "")), str(field) if field else None)
            )  # fmt: skip
    return CheckedText(values, int(version or 0), text, claims)


def removed_notes(done_event: DoneEvent) -> str:
    """Returns notes about text that the stream filter removed, with the beginning of each removed text."""
    parts = []
    if done_event.prefix.strip():
        parts.append(_removed_note("The model started with chatter, which was removed.", done_event.prefix))
    if done_event.cut:
        parts.append(
            _removed_note(f"The model did not stop, so the text was cut. {done_event.cut.why}", done_event.cut.removed)
        )
    if not done_event.stopped and not done_event.cut:
        parts.append(note("The text was cut off at the maximum length. Its last sentence may be incomplete."))
    return "".join(parts)


def _removed_note(why: str, removed: str) -> str:
    excerpt = removed.strip()[:MAX_REMOVED] + ("…" if len(removed.strip()) > MAX_REMOVED else "")
    sentence = why if why.endswith(".") else f"{why}."
    body = f'<div class="text">{escape(excerpt)}</div>'
    return f'<details class="note"><summary>{escape(sentence)}</summary>{body}</details>'


def _final_status(checked: CheckedText) -> str:
    return f"Done. {checked.doubt_count()}".strip() if checked.text.strip() else "The model wrote nothing."


def _claim_dict(claim: ClaimEvent) -> dict[str, Any]:
    return {
        "id": f"c{claim.start}-{claim.end}", "start": claim.start, "end": claim.end, "text": claim.text,
        "kind": claim.kind, "verdict": claim.verdict, "why": claim.why, "field": claim.field, "fill": "",
    }  # fmt: skip


def make_document(draft: Writer, request: Any) -> dict[str, str]:
    """Returns the text as a file for the browser: {"name", "type", "data" in base64}, or {"error"}."""
    try:
        kind, text = request
        if kind not in MIME_TYPES or not isinstance(text, str) or len(text) > MAX_TEXT:
            return {"error": "The text cannot be converted to a file."}
        content = draft.document(text, draft.form.name, kind)
    except TunesmithError as error:
        return {"error": str(error)}
    except (ValueError, TypeError):
        return {"error": "The text cannot be converted to a file."}
    return {"name": f"{draft.form.name}.{kind}", "type": MIME_TYPES[kind], "data": base64.b64encode(content).decode()}


def _build(open_writer: OpenWriter, recipe: Recipe, run: Run, draft: Writer) -> None:
    form = draft.form
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            about = f"<p>{escape(form.about)}</p>" if form.about else ""
            header = pane(about, live=True)
            with gr.Row():
                write_button = gr.Button("Write", variant="primary", min_width=110)
                stop_button = gr.Button("Stop", interactive=False, min_width=80)
                example_button = gr.Button("Fill in the example", interactive=bool(form.example), min_width=140)
            boxes = [_field_box(field) for field in _with_help(form.fields)]
            with gr.Accordion("System message", open=False):
                system = gr.Textbox(form.system or "", label="Sent before every request", lines=3, max_lines=10,
                                    max_length=8000,
                                    info="Instructions that have no field, such as the tone. Empty: none")  # fmt: skip
        with gr.Column(scale=6, min_width=300):
            editor = text_editor(lambda action: make_document(draft, action))
            notes = pane(label="Notes")
        with gr.Column(scale=4, min_width=280):
            claims = pane(claim_list([], form.checked), label="Statements")

    def values_of(field_values: Sequence[Any]) -> dict[str, str]:
        return {field.name: str(text or "") for field, text in zip(form.fields, field_values, strict=True)}

    def write(request: gr.Request, editor_value: Any, message: str, *field_values: Any) -> Iterator[list[Any]]:
        stop_event = open_writer.stop_events[str(request.session_hash)] = threading.Event()
        busy = [gr.Button(interactive=False), gr.Button(interactive=True)]
        free = [gr.Button(interactive=True), gr.Button(interactive=False)]
        version = text_from_browser(editor_value, {}).version + 1
        yield [gr.skip(), gr.skip(), gr.skip(), about, *busy]
        try:
            writer = open_writer.writer(recipe, run)
            for value, claim_rows, notes_html in stream_text(
                writer, values_of(field_values), message, version, stop_event
            ):
                claims_html = gr.skip() if claim_rows is None else claim_list(claim_rows, form.checked)
                yield [value, claims_html, notes_html, gr.skip(), gr.skip(), gr.skip()]
        except TunesmithError as error:
            yield [
                {**empty_text(), "version": version},
                claim_list([], form.checked),
                "",
                about + error_note(error),
                *free,
            ]
            return
        finally:
            stop_event.set()
        yield [gr.skip(), gr.skip(), gr.skip(), gr.skip(), *free]

    def stop(request: gr.Request) -> None:
        if stop_event := open_writer.stop_events.get(str(request.session_hash)):
            stop_event.set()

    def recheck(editor_value: Any, *field_values: Any) -> list[Any]:
        before = text_from_browser(editor_value, values_of(field_values))
        return _recheck(draft, before.text, before, "Checked again.")

    def fix_claim(event: gr.EventData, editor_value: Any, *field_values: Any) -> list[Any]:
        before = text_from_browser(editor_value, values_of(field_values))
        action = event._data if isinstance(event._data, dict) else {}
        return apply_fix(draft, before, str(action.get("do")), str(action.get("at")))

    write_button.click(
        write, [editor, system, *boxes], [editor, claims, notes, header, write_button, stop_button], **QUIET
    )
    stop_button.click(stop, queue=False, **QUIET)
    example_button.click(lambda: [form.example.get(field.name, "") for field in form.fields], None, boxes, **QUIET)
    editor.edited(recheck, [editor, *boxes], [editor, claims], **QUIET)
    claims.action(fix_claim, [editor, *boxes], [editor, claims], **QUIET)


def apply_fix(draft: Writer, before: CheckedText, action: str, claim_id: str) -> list[Any]:
    """Returns editor and claim list after a statement was removed or filled from its field."""
    claim = next((item for item in before.claims.values() if _claim_dict(item)["id"] == claim_id), None)
    if claim is None:
        return _recheck(draft, before.text, before, "This statement was edited in the meantime.")
    if action == "fill":
        text = draft.filled(before.text, claim, before.values)
        if text is None:
            return _recheck(draft, before.text, before, "No field can replace it.")
        return _recheck(draft, text, before, f"Filled from {claim.field}." if claim.field else "Filled from a field.")
    return _recheck(draft, draft.without(before.text, claim), before, "Removed.")


def _recheck(draft: Writer, text: str, before: CheckedText, status: str) -> list[Any]:
    after = CheckedText(before.values, before.version, text, draft.judged(text, before.values))
    value = after.value(f"{status} {after.doubt_count()}".strip(), busy=False)
    return [value, claim_list(after.fixable_claims(draft), draft.form.checked)]


def _with_help(fields: Sequence[Any]) -> Iterator[Any]:
    """Yields the fields in order; help that consecutive fields share is shown once above them."""
    last_help = ""
    for field in fields:
        help_text = field.help.removesuffix(" Several lines are read as one.")
        if help_text != last_help:
            pane(f'<p class="soft">{escape(help_text)}</p>')
        last_help = help_text
        yield field


def _field_box(field: Any) -> Any:
    lines = 1 if field.kind == "text" else 2
    most = 1 if field.kind == "text" else 7
    label = field.label if field.required else f"{field.label} (optional)"
    return gr.Textbox(label=label, lines=lines, max_lines=most, max_length=field.longest)
