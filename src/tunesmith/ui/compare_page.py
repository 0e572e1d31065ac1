"""Page Compare: one prompt answered by the base, tuned and exported models; scores; replies to held-out rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from tunesmith.commands.side_by_side import (
    EvaluatedReplies,
    ReplyGenerator,
    ReplyModel,
    evaluated_replies,
    prompt_turns,
    reply_models,
)
from tunesmith.config.recipe import Recipe
from tunesmith.errors import TunesmithError
from tunesmith.reporting.html_page import format_number
from tunesmith.reporting.replies import part_title
from tunesmith.runs.run import Run
from tunesmith.ui.components import draw_for_run, pane
from tunesmith.ui.html import columns, escape, note, table
from tunesmith.ui.state import QUIET, State

UPDATE_SECONDS = 0.08  # between two updates of a reply while it is generated
LABEL_LENGTH = 90  # characters of a row in the list of rows
OWN_PROMPT = "— my own prompt —"


def page(state: State) -> None:
    """Builds the page Compare."""
    open_models = OpenModels()

    def build(recipe: Recipe, run: Run) -> None:
        models = reply_models(recipe, run)
        try:
            results: EvaluatedReplies | None = evaluated_replies(recipe, run)
        except TunesmithError:
            results = None  # trained, but not evaluated
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                controls = _prompt_controls(models, results)
            with gr.Column(scale=3, min_width=300):
                pane(scores_html(results), label="Scores of this run")
        _connect_prompt(open_models, recipe, run, models, results, controls)
        if results:
            _replies_browser(results)

    draw_for_run(state, build, ["train", "evaluate"], ["export.json"])


class OpenModels:
    """The models of the run being compared; those of another run are closed first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: tuple[Any, ReplyGenerator] | None = None
        self.stop_events: dict[str, threading.Event] = {}  # by browser session

    def side_by_side(self, recipe: Recipe, run: Run) -> ReplyGenerator:
        """Returns the models of the run with its current adapter."""
        key = (run.path, run.fingerprint("train"))
        with self._lock:
            previous = self._open
            if previous and previous[0] == key:
                return previous[1]
            self._open = (key, ReplyGenerator(recipe, run))
            opened = self._open[1]
        if previous:
            previous[1].close()
        return opened


def stream_replies(
    side_by_side: ReplyGenerator, prompt: str, row: Any, models: Sequence[ReplyModel], limit: int, stop: threading.Event
) -> Iterator[tuple[str, str]]:
    """Yields the columns as HTML and a status line while the models reply one after another."""
    headers = [column_header(model) for model in models]
    texts, statuses = [""] * len(models), ["waiting"] * len(models)
    turns = prompt_turns(side_by_side.recipe, prompt, row)
    for index, model in enumerate(models):
        if stop.is_set():
            break
        started, updated = time.monotonic(), 0.0
        statuses[index] = "loading"
        yield columns(headers, texts, statuses), f"{model.name} is writing."
        try:
            for piece in side_by_side.stream(model.name, turns, max_new_tokens=limit):
                texts[index] += piece
                if stop.is_set():
                    break
                if time.monotonic() - updated > UPDATE_SECONDS:
                    statuses[index], updated = "writing …", time.monotonic()
                    yield columns(headers, texts, statuses), f"{model.name} is writing."
            statuses[index] = "stopped" if stop.is_set() else f"{time.monotonic() - started:.1f} s"
        except TunesmithError as error:
            statuses[index] = f"Failed: {error}"
    if stop.is_set():
        statuses = ["not asked" if status == "waiting" else status for status in statuses]
    yield columns(headers, texts, statuses), "Stopped." if stop.is_set() else "All models have replied."


def column_header(model: ReplyModel) -> tuple[str, str, str]:
    """Returns a column's title, subtitle and CSS class."""
    if model.verified is None:
        return model.name, model.about, model.name
    return model.name, f"{model.about}, {'verified' if model.verified else 'NOT VERIFIED'}", "file"


def scores_html(results: EvaluatedReplies | None) -> str:
    """Returns the verdict and the scores of base and tuned model."""
    if results is None:
        return note("This run has no scores yet. Run “evaluate only” on the page Train.")
    scores = results.scores
    part, metrics = next(iter(scores["sections"].items()))
    rows = [
        [
            escape(name.replace("_", " ")) + (" <b>(primary)</b>" if name == scores["primary"] else ""),
            _figure(metric["base"]),
            _figure(metric["tuned"]),
            escape(metric["verdict"]) + _interval(metric),
        ]
        for name, metric in sorted(metrics.items(), key=lambda item: item[0] != scores["primary"])
    ]
    primary, others = rows[:1], rows[1:]
    header = ("score", "base", "tuned", "verdict")
    more_scores = (
        f"<details><summary>{len(others)} more scores</summary>{table(header, others, 'Other scores')}</details>"
    )
    primary_table = table(header, primary, f"Means over {part_title(part, scores['kind'])}")
    but = "".join(f'<p class="warn">{escape(sentence)}</p>' for sentence in scores.get("but", ()))
    return f'<p class="big">{escape(scores["verdict"])}</p>{but}{primary_table}{more_scores if others else ""}'


def _figure(value: float | None) -> str:
    return f'<span class="figure">{format_number(value)}</span>'


def _interval(metric: dict[str, Any]) -> str:
    if metric.get("low") is None:
        return ""
    low, high = (f"{'+' if metric[end] > 0 else ''}{format_number(metric[end])}" for end in ("low", "high"))
    return f'<br><span class="soft">by {low} to {high}</span>'


def row_html(results: EvaluatedReplies, index: int) -> str:
    """Returns a held-out row: its question, every model's reply with its score, and the row's own answer."""
    item, row, part = results.items[index], results.rows[index], results.parts[index]
    primary = results.scores["primary"].replace("_", " ")
    headers, texts, statuses = [], [], []
    for model in ("base", "tuned"):
        reply = item[model]
        score = reply["scores"].get(results.scores["primary"])
        headers.append((model, "" if score is None else f"{primary}: {format_number(score)}", model))
        texts.append(reply["text"])
        statuses.append("" if reply["stopped"] else "cut off at the token limit")
    identical = []
    for name, replies in results.files.items():
        text = replies.get((part, row.id))
        if text is not None and text == item["tuned"]["text"]:
            identical.append(name)
        elif text is not None:
            headers.append((name, "exported file", "file"))
            texts.append(text)
            statuses.append("")
    if identical:
        statuses[1] = ". ".join(filter(None, [statuses[1], f"Identical: {', '.join(identical)}"]))
    if item["wanted"]:
        headers.append((item["wanted_title"], "", "wanted"))
        texts.append(item["wanted"])
        statuses.append("")
    caption = ", ".join([f"Row {item['number']}", part_title(part, results.scores["kind"]), *item["signs"]])
    question_html = f'<p class="soft">{escape(caption)}</p><div class="text">{escape(row.question)}</div>'
    return f"{question_html}{columns(headers, texts, statuses)}{doubted_claims_html(item)}"


def doubted_claims_html(item: dict[str, Any]) -> str:
    """Returns the statements of both replies that the row's fields do not support."""
    claims = [(model, claim) for model in ("base", "tuned") for claim in item[model]["doubted"]]
    lines = "".join(
        f"<li>{model}: <q>{escape(claim.text)}</q> {escape(claim.word)}. {escape(claim.reason)}</li>"
        for model, claim in claims
    )
    return f"<details><summary>Statements in doubt: {len(claims)}</summary><ul>{lines}</ul></details>" if claims else ""


def row_choices(results: EvaluatedReplies, row_filter: str) -> list[tuple[str, int]]:
    """Returns the rows that match a filter as dropdown choices: their first words and their index."""
    candidates = results.worst if row_filter == "worst" else range(len(results.items))
    indices = [
        index for index in candidates if row_filter in ("all", "worst") or row_filter in results.items[index]["signs"]
    ]
    return [(row_label(results, index), index) for index in indices]


def row_label(results: EvaluatedReplies, index: int) -> str:
    """Returns a row's number and first words."""
    heading = results.items[index]["heading"]
    return f"{index + 1}. {heading if len(heading) <= LABEL_LENGTH else heading[: LABEL_LENGTH - 1] + '…'}"


def _prompt_controls(models: Sequence[ReplyModel], results: EvaluatedReplies | None) -> list[Any]:
    """Returns the controls: row, prompt, models, ask and stop button."""
    verified_file = [model.name for model in models if model.verified][:1]
    rows = [(OWN_PROMPT, -1), *(row_choices(results, "all") if results else [])]
    question_text = results.rows[0].question if results and results.rows else ""
    return [
        gr.Dropdown(rows, value=rows[min(1, len(rows) - 1)][1], label="Pick a held-out row or write your own prompt",
                    interactive=True),
        gr.Textbox(question_text, label="Prompt", lines=3, max_lines=12, max_length=20_000, interactive=True),
        gr.CheckboxGroup(
            [(f"{m.name}{'' if m.verified is not False else ' (not verified)'}", m.name) for m in models],
            value=["base", "tuned", *verified_file], label="Models", interactive=True,
            info="They reply one after another. Rounding of 16-bit numbers can change a word of an evaluated reply.",
        ),
        *_buttons(),
    ]  # fmt: skip


def _buttons() -> list[Any]:
    with gr.Row():
        return [
            gr.Button("Ask all", variant="primary", min_width=120),
            gr.Button("Stop", interactive=False, min_width=90),
        ]


def _connect_prompt(
    open_models: OpenModels,
    recipe: Recipe,
    run: Run,
    models: Sequence[ReplyModel],
    results: EvaluatedReplies | None,
    controls: Sequence[Any],
) -> None:
    row_choice, prompt, model_choice, ask_button, stop_button = controls
    status = pane(live=True, label="State")
    replies = pane(label="Replies side by side")

    def fill(index: int) -> Any:
        return gr.skip() if index < 0 or results is None else results.rows[index].question

    def ask(request: gr.Request, text: str, index: int, names: list[str]) -> Iterator[Any]:
        if not text.strip() or not names:
            yield "", note("Write a prompt and choose at least one model.", "bad"), gr.skip(), gr.skip()
            return
        stop_event = open_models.stop_events[str(request.session_hash)] = threading.Event()
        selected = [model for model in models if model.name in names]
        row = results.rows[index] if results and index >= 0 else None
        yield "", "", gr.Button(interactive=False), gr.Button(interactive=True)
        try:
            limit = recipe.evaluate.max_new_tokens
            for markup, message in stream_replies(
                open_models.side_by_side(recipe, run), text, row, selected, limit, stop_event
            ):
                yield markup, note(message), gr.skip(), gr.skip()
        finally:
            stop_event.set()
        yield gr.skip(), gr.skip(), gr.Button(interactive=True), gr.Button(interactive=False)

    def stop(request: gr.Request) -> None:
        if stop_event := open_models.stop_events.get(str(request.session_hash)):
            stop_event.set()

    row_choice.input(fill, row_choice, prompt, **QUIET)
    ask_button.click(ask, [prompt, row_choice, model_choice], [replies, status, ask_button, stop_button], **QUIET)
    stop_button.click(stop, queue=False, **QUIET)


def _replies_browser(results: EvaluatedReplies) -> None:
    filters = [(f"{item['label']} ({item['count']})", item["key"]) for item in results.sieves if item["count"]]
    if results.worst:
        filters.insert(1, (f"worst, largest loss first ({len(results.worst)})", "worst"))
    pane("<h3>Replies to the held-out rows</h3>")
    filter_choice = gr.Radio(filters, value="all", label="Which rows", interactive=True)
    rows = row_choices(results, "all")
    row_choice = gr.Dropdown(rows, value=rows[0][1], label="Row", interactive=True)
    with gr.Row():
        previous_button = gr.Button("← Previous row", min_width=120)
        next_button = gr.Button("Next row →", min_width=120)
    replies = pane(row_html(results, rows[0][1]), label="The row's replies")

    def apply_filter(row_filter: str) -> tuple[Any, str]:
        matching = row_choices(results, row_filter)
        return gr.Dropdown(matching, value=matching[0][1]), row_html(results, matching[0][1])

    def step(offset: int, row_filter: str, current: int) -> tuple[int, str]:
        indices = [index for _, index in row_choices(results, row_filter)]
        position = (indices.index(current) + offset) % len(indices) if current in indices else 0
        return indices[position], row_html(results, indices[position])

    filter_choice.change(apply_filter, filter_choice, [row_choice, replies], **QUIET)
    row_choice.input(lambda index: row_html(results, index), row_choice, replies, **QUIET)
    for button, offset in ((previous_button, -1), (next_button, 1)):
        button.click(partial(step, offset), [filter_choice, row_choice], [row_choice, replies], **QUIET)
