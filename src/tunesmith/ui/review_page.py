"""Page Review: starts blind pairwise reviews, shows their progress and the results.

The pairs are judged in the page that `tunesmith review` serves, in its own tab: it uses the whole window and single
keys, survives a lost connection, and does not know which model wrote which reply.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from tunesmith.commands.review import FOLDER, RunningReview, review_pairs, serve_review, write_summary
from tunesmith.config.recipe import Recipe
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.review import QUESTIONS, check_reviewer, read_reviews
from tunesmith.reporting.replies import part_title
from tunesmith.runs.run import Run
from tunesmith.ui.components import draw_for_run, pane
from tunesmith.ui.html import error_note, escape, note, table
from tunesmith.ui.state import QUIET, State
from tunesmith.wording import counted

REFRESH_SECONDS = 2.0  # while a review is open
KEYS = (
    (
        "q w e r",
        "answer the four questions about the left reply: once for yes, twice for no, three times for cannot say",
    ),
    ("u i o p", "the same for the right reply"),
    ("1 · 0 · 2", "left is better, tie, right is better"),
    ("Enter", "save and go to the next pair"),
    ("?", "show all keys"),
)
# Opens the reviewer's pairs as soon as their link is drawn. A browser takes it for the user's click for 5 s.
OPEN_LINK_JS = """(reviewer) => {
  const until = Date.now() + 5000;
  const open = () => {
    const links = [...document.querySelectorAll("#review-now a.open")];
    const link = links.find((each) => each.dataset.reviewer === reviewer.trim());
    if (link) link.click();
    else if (Date.now() < until) setTimeout(open, 50);
  };
  open();
}"""


def page(state: State) -> None:
    """Builds the page Review."""
    open_reviews = OpenReviews()

    def build(recipe: Recipe, run: Run) -> None:
        pairs, equal = review_pairs(recipe, run)
        _build(open_reviews, recipe, run, len(pairs), equal)

    draw_for_run(state, build, ["evaluate"])


@dataclass
class OpenReview:
    """A review being served. One thread opens and closes it, because that thread holds the reviewer's lock."""

    served: RunningReview
    stop: threading.Event
    thread: threading.Thread

    def close(self) -> None:
        """Stops the server and waits until the lock is released."""
        self.stop.set()
        self.thread.join()


@dataclass
class OpenReviews:
    """The reviews that this app serves, by run and reviewer; a reloaded page finds them again."""

    reviews_by_key: dict[tuple[str, str], OpenReview] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, recipe: Recipe, run: Run, reviewer: str) -> RunningReview:
        """Returns the reviewer's review, started if it is not open. Raises what the command `review` raises."""
        key = str(run.path), check_reviewer(reviewer)
        with self.lock:
            if key in self.reviews_by_key and self.reviews_by_key[key].thread.is_alive():
                return self.reviews_by_key[key].served
            outcome: queue.Queue[RunningReview | Exception] = queue.Queue()
            stop = threading.Event()
            thread = threading.Thread(target=_serve_review, args=(recipe, run, reviewer, outcome, stop), daemon=True)
            thread.start()
            started = outcome.get()
            if isinstance(started, Exception):
                thread.join()
                raise started
            self.reviews_by_key[key] = OpenReview(started, stop, thread)
            return started

    def served(self, run: Run) -> dict[str, RunningReview]:
        """Returns the open reviews of a run by reviewer."""
        with self.lock:
            reviews = dict(self.reviews_by_key)
        return {reviewer: review.served for (path, reviewer), review in reviews.items() if path == str(run.path)}

    def close(self, run: Run) -> None:
        """Closes all reviews of a run."""
        with self.lock:
            keys = [key for key in self.reviews_by_key if key[0] == str(run.path)]
            reviews = [self.reviews_by_key.pop(key) for key in keys]
        for review in reviews:
            review.close()


def _serve_review(recipe: Recipe, run: Run, reviewer: str, outcome: Any, stop: threading.Event) -> None:
    try:
        with serve_review(recipe, run, reviewer) as served:
            outcome.put(served)
            stop.wait()
    except Exception as error:  # passed on to `start`, which waits for it
        outcome.put(error)


def _build(open_reviews: OpenReviews, recipe: Recipe, run: Run, pairs: int, equal: int) -> None:
    kind = str(run.read_json("scores.json")["kind"])
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            pane(_intro_html(pairs, equal), label="About reviews")
            reviewer_name = gr.Textbox(
                "reviewer", label="Reviewer", info="Lowercase letters, digits, hyphens", max_length=32, interactive=True
            )
            with gr.Row():
                start_button = gr.Button("Start or resume", variant="primary", interactive=pairs > 0, min_width=150)
                finish_button = gr.Button("Finish and summarize", min_width=150)
            status = pane(live=True)
            progress = pane(open_reviews_html(open_reviews, run, pairs), label="Open reviews", elem_id="review-now")
        with gr.Column(scale=2, min_width=300):
            pane(_keys_html(), label="Questions and keys")
    results = pane(results_html(_read_summary(run), kind), label="Results")
    timer = gr.Timer(REFRESH_SECONDS, active=bool(open_reviews.served(run)))

    def start(reviewer: str) -> list[Any]:
        try:
            open_reviews.start(recipe, run, reviewer.strip())
        except TunesmithError as error:
            return [error_note(error), open_reviews_html(open_reviews, run, pairs), gr.skip()]
        return ["", open_reviews_html(open_reviews, run, pairs), gr.Timer(active=True)]

    def finish() -> list[Any]:
        open_reviews.close(run)
        try:
            write_summary(recipe, run)
        except TunesmithError as error:
            return [error_note(error), open_reviews_html(open_reviews, run, pairs), gr.skip(), gr.Timer(active=False)]
        return [
            "",
            open_reviews_html(open_reviews, run, pairs),
            results_html(_read_summary(run), kind),
            gr.Timer(active=False),
        ]

    started = start_button.click(start, reviewer_name, [status, progress, timer], **QUIET)
    started.then(None, reviewer_name, js=OPEN_LINK_JS, **QUIET)
    finish_button.click(finish, None, [status, progress, results, timer], **QUIET)
    timer.tick(lambda: open_reviews_html(open_reviews, run, pairs), None, progress, queue=False, **QUIET)


def _intro_html(pairs: int, equal: int) -> str:
    equal_note = f" {equal} more rows with identical replies are left out." if equal else ""
    text = "Nothing to judge: both models gave identical replies." if not pairs else (
        f"{pairs} pairs of replies from the base and the tuned model are ready for blind review: sides are random, and "
        f"models are not named.{equal_note}"
    )  # fmt: skip
    return (
        f"<h3>Which replies do people prefer?</h3><p>{escape(text)}</p>"
        '<p class="soft">The pairs open in a new tab. Every judgment is saved at once; use the same name to resume. '
        "Judge before you open the page Compare, which shows which model wrote which reply.</p>"
    )


def _keys_html() -> str:
    questions = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in QUESTIONS.items())
    keys = "".join(f"<dt><kbd>{escape(key)}</kbd></dt><dd>{escape(text)}</dd>" for key, text in KEYS)
    return f"<h3>Questions about each reply</h3><dl>{questions}</dl><h3>Keyboard</h3><dl>{keys}</dl>"


def open_reviews_html(open_reviews: OpenReviews, run: Run, pairs: int) -> str:
    """Returns the open reviews with links, and the progress of every reviewer."""
    served = open_reviews.served(run)
    try:
        judged = {name: len(judgments) for name, judgments in read_reviews(run / FOLDER).items()}
    except TunesmithError as error:
        return error_note(error)
    parts = []
    for name in sorted({*judged, *served}):
        count = min(len(served[name].reviews.judgments) if name in served else judged[name], pairs)
        link = (
            f'<p><a class="open" data-reviewer="{escape(name)}" href="{escape(served[name].url)}" target="_blank" '
            f'rel="noopener">Open the pairs of {escape(name)}</a></p>'
            if name in served
            else ""
        )
        closed = "" if name in served else " (closed)"
        parts.append(
            f"<p><b>{escape(name)}</b> has judged {count} of {pairs} pairs{closed}</p>"
            f'<progress max="{max(pairs, 1)}" value="{count}" aria-label="Judged by {escape(name)}"></progress>{link}'
        )
    return "".join(parts)


def results_html(summary: dict[str, Any] | None, kind: str) -> str:
    """Returns the summary of all judgments with 95 % Wilson intervals."""
    if not summary:
        return note("No results yet. Click “Finish and summarize”; you can do so repeatedly.")
    parts = [f'<h3>Results</h3><p class="big">{escape(summary["verdict"])}</p>']
    tables: list[str] = []
    for part, section in summary["sections"].items():
        rows = [["<b>preferred</b>", _share_cell(section["tuned"], base=True), _share_cell(section["tuned"])]]
        rows += [
            [escape(name), _share_cell(shares["base"]), _share_cell(shares["tuned"])]
            for name, shares in section["questions"].items()
        ]
        name, count = part_title(part, kind), section["pairs"]
        caption = f"{name[:1].upper()}{name[1:]}: {counted(count, 'pair')} judged"
        tables.append(table(("", "base", "tuned"), rows, caption))
    more = f"<details><summary>By part</summary>{''.join(tables[1:])}</details>" if tables[1:] else ""
    parts += [*tables[:1], more]
    parts.append(note(_side_note(summary)))
    agreement = _agreement_note(summary.get("agreement", {}).get("preference", []))
    if summary.get("stale"):
        parts.append(note(f"{summary['stale']} judgments of earlier replies are left out."))
    return "".join(parts) + (note(agreement) if agreement else "")


def _share_cell(share: dict[str, Any], *, base: bool = False) -> str:
    """Returns count, share and interval; with `base`, those of the complement, for the preference of the base model."""
    if not share["of"]:
        return "–"
    count, part, low, high = share["count"], share["share"], share["low"], share["high"]
    if base:
        count, part, low, high = share["of"] - count, 1 - part, 1 - high, 1 - low
    percentages = f"{100 * part:.0f} %, {100 * low:.0f} to {100 * high:.0f} %"
    return f'{count} of {share["of"]}<br><span class="soft">{percentages}</span>'


def _side_note(summary: dict[str, Any]) -> str:
    left = summary["left"]
    if not left["of"]:
        return ""
    sentence = f"The left reply was preferred in {left['count']} of {left['of']} decisions."
    return f"{sentence} A share far from a half would mean that the side decided, and not the reply."


def _agreement_note(agreements: Sequence[dict[str, Any]]) -> str:
    sentences = [
        f"{' and '.join(pair['reviewers'])} agreed in {100 * pair['equal']:.0f} % of {pair['items']} pairs"
        + ("" if pair["kappa"] is None else f" (kappa {pair['kappa']:.2f})")
        for pair in agreements
    ]
    return "; ".join(sentences) + "." if sentences else ""


def _read_summary(run: Run) -> dict[str, Any] | None:
    try:
        summary: dict[str, Any] = run.read_json("reviews.json")
    except TunesmithError:
        return None
    return summary if summary.get("sections") else None
