"""Review: blind pairs of replies, judged in a tab of their own; how far the judges are, and what it adds up to.

The pairs are shown by the page that `tunesmith review` serves, not drawn here a second time: it has the whole window,
works by single keys, keeps a judgement over a lost connection, and knows nothing of whose reply is whose.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from tunesmith.commands.review import FOLDER, Served, conclude, pairs_of, reviewing
from tunesmith.config.recipe import Recipe
from tunesmith.errors import TunesmithError
from tunesmith.evaluation.comparison import plural
from tunesmith.evaluation.review import QUESTIONS, check_reviewer, read_reviews
from tunesmith.reporting.replies import title
from tunesmith.runs.run import Run
from tunesmith.ui.components import first_line, pane, stamp
from tunesmith.ui.html import note, plain, table, trouble
from tunesmith.ui.state import QUIET, State

LOOK = 2.0  # seconds between two looks at how many are judged
KEYS = (
    ("q w e r", "the four questions about the left reply: once yes, twice no, three times cannot say"),
    ("u i o p", "the same about the right reply"),
    ("1 · 0 · 2", "left is better, tie, right is better"),
    ("Enter", "save, and on to the next pair"),
    ("?", "every key"),
)
OPEN = "() => { setTimeout(() => document.querySelector('#review-now a.open')?.click(), 300); }"


def page(state: State) -> None:
    """The page Review."""
    house = House()

    drawn = stamp(state, ["evaluate"])

    @gr.render(inputs=[drawn], show_progress="hidden")  # type: ignore[untyped-decorator, unused-ignore]
    def room(seen: str | None) -> None:
        try:
            recipe, run = state.opened(first_line(seen))
            pairs, equal = pairs_of(recipe, run)
        except TunesmithError as error:
            pane(trouble(error))
            return
        _room(house, recipe, run, len(pairs), equal)


@dataclass
class Sitting:
    """A review that is being served: it is begun and ended in one thread, which holds the reviewer's lock."""

    served: Served
    leave: threading.Event
    thread: threading.Thread

    def end(self) -> None:
        """Closes the door and waits until the lock is given back."""
        self.leave.set()
        self.thread.join()


@dataclass
class House:
    """The reviews that this app serves, by run and reviewer: a page that is loaded again finds them."""

    sittings: dict[tuple[str, str], Sitting] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, recipe: Recipe, run: Run, reviewer: str) -> Served:
        """The reviewer's review, begun or found. Raises what the verb `review` raises."""
        key = str(run.path), check_reviewer(reviewer)
        with self.lock:
            if key in self.sittings and self.sittings[key].thread.is_alive():
                return self.sittings[key].served
            said: queue.Queue[Served | Exception] = queue.Queue()
            leave = threading.Event()
            thread = threading.Thread(target=_sit, args=(recipe, run, reviewer, said, leave), daemon=True)
            thread.start()
            first = said.get()
            if isinstance(first, Exception):
                thread.join()
                raise first
            self.sittings[key] = Sitting(first, leave, thread)
            return first

    def of(self, run: Run) -> dict[str, Served]:
        """The reviews of a run that are open, by reviewer."""
        with self.lock:
            found = dict(self.sittings)
        return {who: each.served for (path, who), each in found.items() if path == str(run.path)}

    def end(self, run: Run) -> None:
        """Ends all reviews of a run."""
        with self.lock:
            own = [key for key in self.sittings if key[0] == str(run.path)]
            ended = [self.sittings.pop(key) for key in own]
        for each in ended:
            each.end()


def _sit(recipe: Recipe, run: Run, reviewer: str, said: Any, leave: threading.Event) -> None:
    try:
        with reviewing(recipe, run, reviewer) as served:
            said.put(served)
            leave.wait()
    except Exception as error:  # told to who waits, whatever it is
        said.put(error)


def _room(house: House, recipe: Recipe, run: Run, pairs: int, equal: int) -> None:
    kind = str(run.read_json("scores.json")["kind"])
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            pane(_about(pairs, equal), label="What a review is")
            who = gr.Textbox(
                "reviewer", label="Who judges", info="Small letters, digits, hyphens", max_length=32, interactive=True
            )
            with gr.Row():
                go = gr.Button("Begin, or go on", variant="primary", interactive=pairs > 0, min_width=150)
                end = gr.Button("End and count up", min_width=150)
            told = pane(live=True)
            now = pane(open_now(house, run, pairs), label="Open reviews", within="review-now")
        with gr.Column(scale=2, min_width=300):
            pane(_keys(), label="Questions and keys")
    results = pane(results_of(_summary(run), kind), label="Results")
    clock = gr.Timer(LOOK, active=bool(house.of(run)))

    def begin(reviewer: str) -> list[Any]:
        try:
            house.begin(recipe, run, reviewer.strip())
        except TunesmithError as error:
            return [trouble(error), open_now(house, run, pairs), gr.skip()]
        return ["", open_now(house, run, pairs), gr.Timer(active=True)]

    def finish() -> list[Any]:
        house.end(run)
        try:
            conclude(recipe, run)
        except TunesmithError as error:
            return [trouble(error), open_now(house, run, pairs), gr.skip(), gr.Timer(active=False)]
        return ["", open_now(house, run, pairs), results_of(_summary(run), kind), gr.Timer(active=False)]

    begun = go.click(begin, who, [told, now, clock], **QUIET)
    begun.then(None, js=OPEN, **QUIET)
    end.click(finish, None, [told, now, results, clock], **QUIET)
    clock.tick(lambda: open_now(house, run, pairs), None, now, queue=False, **QUIET)


def _about(pairs: int, equal: int) -> str:
    left = f" {equal} more rows have two equal replies and are left out." if equal else ""
    said = "There is nothing to judge: the two models gave equal replies." if not pairs else (
        f"{pairs} pairs of replies, base and tuned, wait to be judged blind: which stands left was drawn by lot, and "
        f"nothing says whose is whose.{left}"
    )  # fmt: skip
    return (
        f"<h3>Which replies do people prefer?</h3><p>{plain(said)}</p>"
        '<p class="soft">The pairs open in a tab of their own. Every judgement is saved at once; whoever comes back '
        "under the same name goes on where they left. Judge before you look at the page Compare: it shows whose is "
        "whose.</p>"
    )


def _keys() -> str:
    asked = "".join(f"<dt>{plain(name)}</dt><dd>{plain(text)}</dd>" for name, text in QUESTIONS.items())
    keys = "".join(f"<dt><kbd>{plain(key)}</kbd></dt><dd>{plain(text)}</dd>" for key, text in KEYS)
    return f"<h3>What is asked of each reply</h3><dl>{asked}</dl><h3>By keyboard</h3><dl>{keys}</dl>"


def open_now(house: House, run: Run, pairs: int) -> str:
    """The open reviews with their links, and how far every reviewer is."""
    served = house.of(run)
    try:
        judged = {name: len(own) for name, own in read_reviews(run / FOLDER).items()}
    except TunesmithError as error:
        return trouble(error)
    parts = []
    for name in sorted({*judged, *served}):
        done = min(len(served[name].reviews.judgements) if name in served else judged[name], pairs)
        link = (
            f'<p><a class="open" href="{plain(served[name].url)}" target="_blank" rel="noopener">'
            f"Open the pairs of {plain(name)}</a></p>"
            if name in served
            else ""
        )
        closed = "" if name in served else " (not open now)"
        parts.append(
            f"<p><b>{plain(name)}</b> has judged {done} of {pairs} pairs{closed}</p>"
            f'<progress max="{max(pairs, 1)}" value="{done}" aria-label="Judged by {plain(name)}"></progress>{link}'
        )
    return "".join(parts)


def results_of(found: dict[str, Any] | None, kind: str) -> str:
    """What the judgements add up to, with 95 % intervals after Wilson."""
    if not found:
        return note("Nothing is counted up yet: “End and count up” does it, as often as you like.")
    parts = [f'<h3>What it adds up to</h3><p class="big">{plain(found["verdict"])}</p>']
    tables: list[str] = []
    for part, section in found["sections"].items():
        rows = [[f"<b>{plain('preferred')}</b>", _share(section["tuned"], base=True), _share(section["tuned"])]]
        rows += [[plain(name), _share(of["base"]), _share(of["tuned"])] for name, of in section["questions"].items()]
        told = title(part, kind)
        caption = f"{told[:1].upper()}{told[1:]}: {section['pairs']} {plural('pair', section['pairs'])} judged"
        tables.append(table(("", "base", "tuned"), rows, caption))
    more = f"<details><summary>By part</summary>{''.join(tables[1:])}</details>" if tables[1:] else ""
    parts += [*tables[:1], more]
    parts.append(note(_side(found)))
    agreed = _agreement(found.get("agreement", {}).get("preference", []))
    if found.get("stale"):
        parts.append(note(f"{found['stale']} judgements are of earlier replies and left out."))
    return "".join(parts) + (note(agreed) if agreed else "")


def _share(share: dict[str, Any], *, base: bool = False) -> str:
    """Count, share and interval; of the preference `base` has what tuned has not."""
    if not share["of"]:
        return "–"
    count, part, low, high = share["count"], share["share"], share["low"], share["high"]
    if base:
        count, part, low, high = share["of"] - count, 1 - part, 1 - high, 1 - low
    ends = f"{100 * part:.0f} %, {100 * low:.0f} to {100 * high:.0f} %"
    return f'{count} of {share["of"]}<br><span class="soft">{ends}</span>'


def _side(found: dict[str, Any]) -> str:
    left = found["left"]
    if not left["of"]:
        return ""
    said = f"The left reply was preferred in {left['count']} of {left['of']} decisions."
    return f"{said} A share far from a half would mean that the side decided, and not the reply."


def _agreement(found: Sequence[dict[str, Any]]) -> str:
    told = [
        f"{' and '.join(each['reviewers'])} preferred the same in {100 * each['equal']:.0f} % of {each['items']} pairs"
        + ("" if each["kappa"] is None else f" (kappa {each['kappa']:.2f})")
        for each in found
    ]
    return "; ".join(told) + "." if told else ""


def _summary(run: Run) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = run.read_json("reviews.json")
    except TunesmithError:
        return None
    return found if found.get("sections") else None
