"""Compare: one prompt answered by base, tuned and each exported file; what they scored; what they replied."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from tunesmith.commands.side_by_side import Answers, Beside, Voice, answers, prompt_of, voices
from tunesmith.config.recipe import Recipe
from tunesmith.errors import TunesmithError
from tunesmith.reporting.html_page import number
from tunesmith.reporting.replies import title
from tunesmith.runs.run import Run
from tunesmith.ui.components import first_line, pane, stamp
from tunesmith.ui.html import columns, note, plain, table, trouble
from tunesmith.ui.state import QUIET, State

EVERY = 0.08  # seconds between two drawings of a reply that is being written
SHORT = 90  # characters of a row that the list of rows shows
OWN = "— a prompt of my own —"


def page(state: State) -> None:
    """The page Compare."""
    desk = Desk()

    drawn = stamp(state, ["train", "evaluate"], ["export.json"])

    @gr.render(inputs=[drawn], show_progress="hidden")  # type: ignore[untyped-decorator, unused-ignore]
    def room(seen: str | None) -> None:
        try:
            recipe, run = state.opened(first_line(seen))
            speakers = voices(recipe, run)
        except TunesmithError as error:
            pane(trouble(error))
            return
        try:
            found: Answers | None = answers(recipe, run)
        except TunesmithError:
            found = None  # trained, but not evaluated
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                controls = _controls(speakers, found)
            with gr.Column(scale=3, min_width=300):
                pane(scores_of(found), label="Scores of this run")
        _asking(desk, recipe, run, speakers, found, controls)
        if found:
            _browsing(found)


class Desk:
    """The models of the run that is compared now: those of another run are let go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: tuple[Any, Beside] | None = None
        self.stops: dict[str, threading.Event] = {}  # by browser session

    def beside(self, recipe: Recipe, run: Run) -> Beside:
        """Who can be asked of this run, by its adapter as it is now."""
        key = (run.path, run.fingerprint("train"))
        with self._lock:
            before = self._open
            if before and before[0] == key:
                return before[1]
            self._open = (key, Beside(recipe, run))
            found = self._open[1]
        if before:
            before[1].close()
        return found


def asking(
    beside: Beside, prompt: str, row: Any, chosen: Sequence[Voice], limit: int, stop: threading.Event
) -> Iterator[tuple[str, str]]:
    """Markup of the columns and a line about them, as the replies are written one after another."""
    heads = [head(voice) for voice in chosen]
    texts, states = [""] * len(chosen), ["waits for its turn"] * len(chosen)
    turns = prompt_of(beside.recipe, prompt, row)
    for place, voice in enumerate(chosen):
        if stop.is_set():
            break
        began, drawn, pieces = time.monotonic(), 0.0, 0
        states[place] = "is read in and begins"
        yield columns(heads, texts, states), f"{voice.name} writes."
        try:
            for piece in beside.stream(voice.name, turns, max_new_tokens=limit):
                texts[place] += piece
                pieces += 1
                if stop.is_set():
                    break
                if time.monotonic() - drawn > EVERY:
                    states[place], drawn = "writes …", time.monotonic()
                    yield columns(heads, texts, states), f"{voice.name} writes."
            states[place] = "stopped here" if stop.is_set() else f"{time.monotonic() - began:.1f} s"
        except TunesmithError as error:
            states[place] = f"could not reply. {error}"
    if stop.is_set():
        states = ["was not asked" if state == "waits for its turn" else state for state in states]
    yield columns(heads, texts, states), "Stopped." if stop.is_set() else "All have replied."


def head(voice: Voice) -> tuple[str, str, str]:
    """A column's name, the line below it, and its kind."""
    if voice.verified is None:
        return voice.name, voice.about, voice.name
    return voice.name, f"{voice.about}, {'verified' if voice.verified else 'NOT VERIFIED'}", "file"


def scores_of(found: Answers | None) -> str:
    """The verdict and the scores of base and tuned."""
    if found is None:
        return note("This run has no scores yet: its held-out rows were not asked. The page Train does it.")
    scores = found.scores
    part, first = next(iter(scores["sections"].items()))
    rows = [
        [
            plain(name.replace("_", " ")) + (" <b>(primary)</b>" if name == scores["primary"] else ""),
            _figure(each["base"]),
            _figure(each["tuned"]),
            plain(each["verdict"]) + _ends(each),
        ]
        for name, each in sorted(first.items(), key=lambda item: item[0] != scores["primary"])
    ]
    top, rest = rows[:1], rows[1:]
    names = ("score", "base", "tuned", "verdict")
    more = f"<details><summary>{len(rest)} more scores</summary>{table(names, rest, 'The other scores')}</details>"
    told = table(names, top, f"Means over {title(part, scores['kind'])}")
    return f'<p class="big">{plain(scores["verdict"])}</p>{told}{more if rest else ""}'


def _figure(value: float | None) -> str:
    return f'<span class="figure">{number(value)}</span>'


def _ends(each: dict[str, Any]) -> str:
    if each.get("low") is None:
        return ""
    low, high = (f"{'+' if each[end] > 0 else ''}{number(each[end])}" for end in ("low", "high"))
    return f'<br><span class="soft">by {low} to {high}</span>'


def row_of(found: Answers, place: int) -> str:
    """One held-out row: what was asked, each one's reply, what the row itself says, and the scores of the replies."""
    item, row, part = found.items[place], found.rows[place], found.parts[place]
    primary = found.scores["primary"].replace("_", " ")
    heads, texts, states = [], [], []
    for which in ("base", "tuned"):
        side = item[which]
        mark = side["scores"].get(found.scores["primary"])
        heads.append((which, "" if mark is None else f"{primary}: {number(mark)}", which))
        texts.append(side["text"])
        states.append("" if side["stopped"] else "broke off at the limit")
    same = []
    for name, replies in found.files.items():
        text = replies.get((part, row.id))
        if text is not None and text == item["tuned"]["text"]:
            same.append(name)
        elif text is not None:
            heads.append((name, "exported file", "file"))
            texts.append(text)
            states.append("")
    if same:
        states[1] = ". ".join(filter(None, [states[1], f"Word for word the same: {', '.join(same)}"]))
    if item["wanted"]:
        heads.append((item["wanted_title"], "", "wanted"))
        texts.append(item["wanted"])
        states.append("")
    words = ", ".join([f"Row {item['number']}", title(part, found.scores["kind"]), *item["signs"]])
    asked = f'<p class="soft">{plain(words)}</p><div class="text">{plain(row.question)}</div>'
    return f"{asked}{columns(heads, texts, states)}{doubts(item)}"


def doubts(item: dict[str, Any]) -> str:
    """What the two replies state that the row's fields do not bear out."""
    found = [(which, each) for which in ("base", "tuned") for each in item[which]["doubted"]]
    lines = "".join(
        f"<li>{which}: <q>{plain(each.text)}</q> {plain(each.word)}. {plain(each.reason)}</li>" for which, each in found
    )
    return f"<details><summary>Statements in doubt: {len(found)}</summary><ul>{lines}</ul></details>" if found else ""


def choices(found: Answers, sieve: str) -> list[tuple[str, int]]:
    """The rows that a sieve lets through, for a dropdown: their first words and their place."""
    places = found.worst if sieve == "worst" else range(len(found.items))
    kept = [place for place in places if sieve in ("all", "worst") or sieve in found.items[place]["signs"]]
    return [(label(found, place), place) for place in kept]


def label(found: Answers, place: int) -> str:
    """A row's number and first words."""
    words = found.items[place]["heading"]
    return f"{place + 1}. {words if len(words) <= SHORT else words[: SHORT - 1] + '…'}"


def _controls(speakers: Sequence[Voice], found: Answers | None) -> list[Any]:
    """What is asked and who answers: row, prompt, who, go, stop."""
    first = [voice.name for voice in speakers if voice.verified][:1]
    rows = [(OWN, -1), *(choices(found, "all") if found else [])]
    begin = found.rows[0].question if found and found.rows else ""
    return [
        gr.Dropdown(rows, value=rows[min(1, len(rows) - 1)][1], label="Ask a held-out row, or write your own prompt",
                    interactive=True),
        gr.Textbox(begin, label="Prompt", lines=3, max_lines=12, max_length=20_000, interactive=True),
        gr.CheckboxGroup(
            [(f"{v.name}{'' if v.verified is not False else ' (not verified)'}", v.name) for v in speakers],
            value=["base", "tuned", *first], label="Who answers", interactive=True,
            info="One after another: they share this machine. Asked anew, 16-bit numbers may round to another word.",
        ),
        *_buttons(),
    ]  # fmt: skip


def _buttons() -> list[Any]:
    with gr.Row():
        return [
            gr.Button("Ask them all", variant="primary", min_width=120),
            gr.Button("Stop", interactive=False, min_width=90),
        ]


def _asking(
    desk: Desk,
    recipe: Recipe,
    run: Run,
    speakers: Sequence[Voice],
    found: Answers | None,
    controls: Sequence[Any],
) -> None:
    row, prompt, who, go, stop = controls
    told = pane(live=True, label="State")
    shown = pane(label="Replies side by side")

    def fill(place: int) -> Any:
        return gr.skip() if place < 0 or found is None else found.rows[place].question

    def ask(request: gr.Request, text: str, place: int, chosen: list[str]) -> Iterator[Any]:
        if not text.strip() or not chosen:
            yield "", note("Write a prompt and choose at least one to answer it.", "bad"), gr.skip(), gr.skip()
            return
        flag = desk.stops[str(request.session_hash)] = threading.Event()
        asked = [voice for voice in speakers if voice.name in chosen]
        line = found.rows[place] if found and place >= 0 else None
        yield "", "", gr.Button(interactive=False), gr.Button(interactive=True)
        try:
            limit = recipe.evaluate.max_new_tokens
            for markup, words in asking(desk.beside(recipe, run), text, line, asked, limit, flag):
                yield markup, note(words), gr.skip(), gr.skip()
        finally:
            flag.set()
        yield gr.skip(), gr.skip(), gr.Button(interactive=True), gr.Button(interactive=False)

    def halt(request: gr.Request) -> None:
        if flag := desk.stops.get(str(request.session_hash)):
            flag.set()

    row.input(fill, row, prompt, **QUIET)
    go.click(ask, [prompt, row, who], [shown, told, go, stop], **QUIET)
    stop.click(halt, queue=False, **QUIET)


def _browsing(found: Answers) -> None:
    kinds = [(f"{each['label']} ({each['count']})", each["key"]) for each in found.sieves if each["count"]]
    if found.worst:
        kinds.insert(1, (f"worst, the greatest loss first ({len(found.worst)})", "worst"))
    pane("<h3>What they replied to the held-out rows</h3>")
    sieve = gr.Radio(kinds, value="all", label="Which rows", interactive=True)
    rows = choices(found, "all")
    chosen = gr.Dropdown(rows, value=rows[0][1], label="Row", interactive=True)
    with gr.Row():
        back = gr.Button("← Row before", min_width=120)
        on = gr.Button("Next row →", min_width=120)
    shown = pane(row_of(found, rows[0][1]), label="The row's replies")

    def sift(kind: str) -> tuple[Any, str]:
        left = choices(found, kind)
        return gr.Dropdown(left, value=left[0][1]), row_of(found, left[0][1])

    def step(by: int, kind: str, place: int) -> tuple[int, str]:
        places = [each for _, each in choices(found, kind)]
        at = places[(places.index(place) + by) % len(places)] if place in places else places[0]
        return at, row_of(found, at)

    sieve.change(sift, sieve, [chosen, shown], **QUIET)
    chosen.input(lambda place: row_of(found, place), chosen, shown, **QUIET)
    back.click(lambda kind, place: step(-1, kind, place), [sieve, chosen], [chosen, shown], **QUIET)
    on.click(lambda kind, place: step(1, kind, place), [sieve, chosen], [chosen, shown], **QUIET)
