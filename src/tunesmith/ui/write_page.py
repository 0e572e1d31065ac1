"""Write: the recipe's own form; the text as it comes, its statements held against the fields; edit, mend, download."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import gradio as gr

from tunesmith.commands.writer import Drafting, drafting, exported
from tunesmith.config.recipe import Recipe
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.comparison import plural
from tunesmith.runs.run import Run
from tunesmith.ui.components import blank, first_line, letter, pane, stamp
from tunesmith.ui.html import claim_list, note, plain, trouble
from tunesmith.ui.state import QUIET, State
from tunesmith.writing.events import Claimed, Done, Event, Text

EVERY = 0.06  # seconds between two drawings of the text while it is written
LONGEST = 100_000  # characters of an edited text
SHORT = 240  # characters of what was left out, in the notes
KINDS = {
    "txt": "text/plain;charset=utf-8",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "pdf": "application/pdf",
}


def page(state: State) -> None:
    """The page Write."""
    desk = Desk()

    drawn = stamp(state, ["train"])

    @gr.render(inputs=[drawn], show_progress="hidden")  # type: ignore[untyped-decorator, unused-ignore]
    def room(seen: str | None) -> None:
        try:
            recipe, run = state.opened(first_line(seen))
            run.fingerprint("train")
            paper = Drafting(recipe, None, "")  # the form and what is done with a text need no model
        except TunesmithError as error:
            pane(trouble(error))
            return
        _room(desk, recipe, run, paper)


class Desk:
    """The model that writes now, opened when it is first asked; that of another run is closed first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: tuple[Any, Drafting, contextlib.ExitStack] | None = None
        self.stops: dict[str, threading.Event] = {}  # by browser session

    def writer(self, recipe: Recipe, run: Run) -> Drafting:
        """The writer of a run, opened anew where its adapter or its file is another now. Raises what opening does."""
        key = (run.path, exported(run), run.fingerprint("train"))
        with self._lock:
            if self._open and self._open[0] == key:
                return self._open[1]
            if self._open:
                self._open[2].close()
                self._open = None
            stack = contextlib.ExitStack()
            self._open = (key, stack.enter_context(drafting(recipe, run)), stack)
            return self._open[1]


def writing(
    draft: Drafting, values: Mapping[str, str], system: str, version: int, stop: threading.Event
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]] | None, str]]:
    """The letter's value, its claims where they are others than before, and notes, as the text is written."""
    sheet = Sheet(values, version)
    yield sheet.value("Reading what you gave.", busy=True), [], ""
    events = cast("Generator[Event]", draft.write(values, system, None))
    drawn, notes = 0.0, ""
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Done):
                sheet, notes = Sheet(values, version, event.text, event.claims), left_out(event)
                break
            fresh = sheet.take(event)
            if stop.is_set():  # the sentence that was begun is judged as it stands
                sheet = Sheet(values, version, sheet.text, draft.judged(sheet.text, values))
                break
            if fresh or time.monotonic() - drawn > EVERY:
                drawn = time.monotonic()
                yield sheet.value("Writing.", busy=True), sheet.listed() if fresh else None, notes
    notes += note(f"Written by {draft.about}.")
    said = "Stopped. What is there can be edited." if stop.is_set() else _ended(sheet)
    yield sheet.value(said, busy=False), sheet.mendable(draft), notes


class Sheet:
    """A text and its claims, as the letter and the list beside it take them."""

    def __init__(self, values: Mapping[str, str], version: int, text: str = "", claims: Sequence[Claimed] = ()) -> None:
        self.values, self.version, self.text = dict(values), version, text
        self.claims = {(each.start, each.end): each for each in claims}

    def take(self, event: Any) -> bool:
        """One event of the gate; True when the claims are others now."""
        if isinstance(event, Text):
            self.text += event.text
        elif isinstance(event, Claimed):
            self.claims[event.start, event.end] = event
        return isinstance(event, Claimed)

    def listed(self) -> list[dict[str, Any]]:
        """The claims in the text's order."""
        return [_plain(self.claims[place]) for place in sorted(self.claims)]

    def mendable(self, draft: Drafting) -> list[dict[str, Any]]:
        """The same, with the words that a field would put in a claim's place."""
        found = self.listed()
        for each, place in zip(found, sorted(self.claims), strict=True):
            if each["verdict"] != "supported":
                each["fill"] = draft.filling(self.text, self.claims[place], self.values) or ""
        return found

    def doubts(self) -> str:
        """How many statements no field bears out, as a sentence; '' for none."""
        count = sum(each.verdict != "supported" for each in self.claims.values())
        return f"{count} {plural('statement', count)} to look at." if count else ""

    def value(self, say: str, *, busy: bool) -> dict[str, Any]:
        """What the letter shows."""
        return {"text": self.text, "claims": self.listed(), "version": self.version, "busy": busy, "say": say}


def sheet_of(given: Any, values: Mapping[str, str]) -> Sheet:
    """The letter as the browser sends it. What is no claim of this text is left out; a text too long is cut."""
    told = given if isinstance(given, dict) else {}
    text = str(told.get("text") or "")[:LONGEST]
    version = told.get("version") if isinstance(told.get("version"), int) else 0
    claims = []
    for each in told.get("claims") or []:
        if not isinstance(each, dict):
            continue
        start, end = each.get("start"), each.get("end")
        if isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text):
            field = each.get("field")
            claims.append(
                Claimed(start, end, text[start:end], each.get("kind", "name"), each.get("verdict", "unsupported"),
                        str(each.get("why", "")), str(field) if field else None)
            )  # fmt: skip
    return Sheet(values, int(version or 0), text, claims)


def left_out(done: Done) -> str:
    """What the gate kept from the reader, told; never more than its beginning."""
    parts = []
    if done.prefix.strip():
        parts.append(_removed("The model began with chatter, which was left out.", done.prefix))
    if done.cut:
        parts.append(_removed(f"The model ran on, so the text was ended. {done.cut.why}", done.cut.removed))
    if not done.stopped and not done.cut:
        parts.append(note("The text broke off at the longest length. Its last sentence may be incomplete."))
    return "".join(parts)


def _removed(why: str, words: str) -> str:
    short = words.strip()[:SHORT] + ("…" if len(words.strip()) > SHORT else "")
    said = why if why.endswith(".") else f"{why}."
    return f'<details class="note"><summary>{plain(said)}</summary><div class="text">{plain(short)}</div></details>'


def _ended(sheet: Sheet) -> str:
    return f"Done. {sheet.doubts()}".strip() if sheet.text.strip() else "The model wrote nothing."


def _plain(claim: Claimed) -> dict[str, Any]:
    return {
        "id": f"c{claim.start}-{claim.end}", "start": claim.start, "end": claim.end, "text": claim.text,
        "kind": claim.kind, "verdict": claim.verdict, "why": claim.why, "field": claim.field, "fill": "",
    }  # fmt: skip


def document_of(draft: Drafting, asked: Any) -> dict[str, str]:
    """A file of the text, for the browser: {"name", "type", "data" in base64}, or {"error"}."""
    try:
        kind, text = asked
        if kind not in KINDS or not isinstance(text, str) or len(text) > LONGEST:
            return {"error": "This cannot be made into a file."}
        made = draft.document(text, draft.form.name, kind)
    except TunesmithError as error:
        return {"error": str(error)}
    except (ValueError, TypeError):
        return {"error": "This cannot be made into a file."}
    return {"name": f"{draft.form.name}.{kind}", "type": KINDS[kind], "data": base64.b64encode(made).decode()}


def _room(desk: Desk, recipe: Recipe, run: Run, draft: Drafting) -> None:
    form = draft.form
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            about = f"<p>{plain(form.about)}</p>" if form.about else ""
            head = pane(about, live=True)
            with gr.Row():
                go = gr.Button("Write", variant="primary", min_width=110)
                stop = gr.Button("Stop", interactive=False, min_width=80)
                example = gr.Button("Fill in the example", interactive=bool(form.example), min_width=140)
            boxes = [_box(field) for field in _headed(form.fields)]
            with gr.Accordion("System message", open=False):
                system = gr.Textbox(form.system or "", label="Put in front of every request", lines=3, max_lines=10,
                                    max_length=8000,
                                    info="Wishes that are no field, a tone say, go here. Empty: none")  # fmt: skip
        with gr.Column(scale=6, min_width=300):
            sheet = letter(lambda asked: document_of(draft, asked))
            notes = pane(label="What was left out")
        with gr.Column(scale=4, min_width=280):
            claims = pane(claim_list([], form.checked), label="Statements")

    def values_of(given: Sequence[Any]) -> dict[str, str]:
        return {field.name: str(text or "") for field, text in zip(form.fields, given, strict=True)}

    def write(request: gr.Request, now: Any, message: str, *given: Any) -> Iterator[list[Any]]:
        flag = desk.stops[str(request.session_hash)] = threading.Event()
        busy = [gr.Button(interactive=False), gr.Button(interactive=True)]
        free = [gr.Button(interactive=True), gr.Button(interactive=False)]
        version = sheet_of(now, {}).version + 1
        yield [gr.skip(), gr.skip(), gr.skip(), about, *busy]
        try:
            writer = desk.writer(recipe, run)
            for value, listed, told in writing(writer, values_of(given), message, version, flag):
                shown = gr.skip() if listed is None else claim_list(listed, form.checked)
                yield [value, shown, told, gr.skip(), gr.skip(), gr.skip()]
        except TunesmithError as error:
            yield [{**blank(), "version": version}, claim_list([], form.checked), "", about + trouble(error), *free]
            return
        finally:
            flag.set()
        yield [gr.skip(), gr.skip(), gr.skip(), gr.skip(), *free]

    def halt(request: gr.Request) -> None:
        if flag := desk.stops.get(str(request.session_hash)):
            flag.set()

    def checked(now: Any, *given: Any) -> list[Any]:
        before = sheet_of(now, values_of(given))
        return _shown(draft, before.text, before, "Checked again.")

    def mend(event: gr.EventData, now: Any, *given: Any) -> list[Any]:
        before = sheet_of(now, values_of(given))
        asked = event._data if isinstance(event._data, dict) else {}
        return mended(draft, before, str(asked.get("do")), str(asked.get("at")))

    go.click(write, [sheet, system, *boxes], [sheet, claims, notes, head, go, stop], **QUIET)
    stop.click(halt, queue=False, **QUIET)
    example.click(lambda: [form.example.get(field.name, "") for field in form.fields], None, boxes, **QUIET)
    sheet.edited(checked, [sheet, *boxes], [sheet, claims], **QUIET)
    claims.asked(mend, [sheet, *boxes], [sheet, claims], **QUIET)


def mended(draft: Drafting, before: Sheet, do: str, at: str) -> list[Any]:
    """The letter and the list after one statement was removed, or filled from its field."""
    claim = next((each for each in before.claims.values() if _plain(each)["id"] == at), None)
    if claim is None:
        return _shown(draft, before.text, before, "This statement was edited meanwhile.")
    if do == "fill":
        text = draft.filled(before.text, claim, before.values)
        if text is None:
            return _shown(draft, before.text, before, "No field fits in its place.")
        return _shown(draft, text, before, f"Filled from {claim.field}." if claim.field else "Filled from a field.")
    return _shown(draft, draft.without(before.text, claim), before, "Removed.")


def _shown(draft: Drafting, text: str, before: Sheet, say: str) -> list[Any]:
    sheet = Sheet(before.values, before.version, text, draft.judged(text, before.values))
    value = sheet.value(f"{say} {sheet.doubts()}".strip(), busy=False)
    return [value, claim_list(sheet.mendable(draft), draft.form.checked)]


def _headed(fields: Sequence[Any]) -> Iterator[Any]:
    """The fields in the recipe's order; what several in a row have to say is said once, above them."""
    said = ""
    for field in fields:
        help = field.help.removesuffix(" Several lines are read as one.")
        if help != said:
            pane(f'<p class="soft">{plain(help)}</p>')
        said = help
        yield field


def _box(field: Any) -> Any:
    lines = 1 if field.kind == "text" else 2
    most = 1 if field.kind == "text" else 7
    label = field.label if field.required else f"{field.label} (if any)"
    return gr.Textbox(label=label, lines=lines, max_lines=most, max_length=field.longest)
