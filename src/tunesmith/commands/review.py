"""The verb review: people judge blind pairs of replies in the browser."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from tunesmith.commands.evaluate import asked
from tunesmith.commands.shared import Say, silent
from tunesmith.config.recipe import Recipe
from tunesmith.errors import RunError
from tunesmith.evaluation.review import (
    Pair,
    Reviews,
    Summary,
    check_reviewer,
    draw,
    pair_up,
    read_replies,
    read_reviews,
    summarise,
)
from tunesmith.runs.run import Run

FOLDER = "reviews"
SUMMARY_SECONDS = 10.0  # writing reviews.json takes milliseconds


@dataclass(frozen=True)
class Served:
    """A review that runs: the address with its token, the pairs and the reviewer's judgements, the server's thread."""

    url: str
    pairs: int
    reviews: Reviews
    thread: Thread


def review(recipe: Recipe, run: Run, reviewer: str, say: Say = silent, *, port: int = 0) -> Path:
    """Serves the pairs until Ctrl-C, then writes what all reviewers said to reviews.json.

    `port` 0 is any free one. Raises RunError when evaluate has not run, the two models said the same throughout,
    `reviewer` is no slug or already judges; ResourceError when the port is taken.
    """
    with contextlib.suppress(KeyboardInterrupt), reviewing(recipe, run, reviewer, say, port=port) as served:
        say(f"review: open {served.url}")
        say("review: every judgement is saved at once; Ctrl-C ends the review")
        while served.thread.is_alive():
            served.thread.join(0.5)
    summary = conclude(recipe, run)
    for name, count in summary.reviewers.items():
        say(f"review: {name} has judged {count} of {summary.pairs} pairs")
    if summary.stale:
        say(f"review: {summary.stale} judgements are of replies that the models have since given anew; left out")
    say(f"review: {summary.verdict}")
    return run / "reviews.json"


@contextlib.contextmanager
def reviewing(recipe: Recipe, run: Run, reviewer: str, say: Say = silent, *, port: int = 0) -> Iterator[Served]:
    """Inside the block the reviewer's pairs are served; raises what `review` raises."""
    from tunesmith.serve.review_app import review_app
    from tunesmith.web.local_server import LOOPBACK, listening, serving

    pairs, equal = pairs_of(recipe, run)
    if not pairs:
        advice = "There is nothing to judge: train longer, or look at scores.json"
        raise RunError(f"the two models gave equal replies to all {equal} rows", where=str(run.path), next=advice)
    taken, going_on = f"{reviewer} is judging already", "Go on in its page, or choose another name"
    with _locked(run, f".{check_reviewer(reviewer)}.lock", taken, going_on), listening(port) as own:
        reviews = Reviews.open(run / FOLDER, reviewer)
        if reviews.torn:
            say(f"review: the last judgement in {reviews.path.name} was torn off in writing; its pair comes again")
        if equal:
            say(f"review: {equal} of {equal + len(pairs)} rows have two equal replies and are left out")
        token, number = secrets.token_urlsafe(32), own.getsockname()[1]
        hosts = (f"{LOOPBACK}:{number}", f"localhost:{number}")
        shown = draw(pairs, recipe.seed, reviewer)
        app = review_app(shown, equal, reviews, name=recipe.name, token=token, hosts=hosts)
        with serving(app, own) as thread:
            yield Served(f"http://{LOOPBACK}:{number}/#{token}", len(pairs), reviews, thread)


def conclude(recipe: Recipe, run: Run) -> Summary:
    """What all reviewers said so far, written to reviews.json and sealed. Raises RunError when evaluate has not run."""
    pairs, equal = pairs_of(recipe, run)
    with _locked(run, ".summary.lock", "another process writes reviews.json", "Try again", seconds=SUMMARY_SECONDS):
        summary = summarise(pairs, equal, read_reviews(run / FOLDER))
        run.write_json("reviews.json", summary.describe())
        run.seal("review", {"evaluate": run.fingerprint("evaluate")}, ["reviews.json"])
    return summary


def pairs_of(recipe: Recipe, run: Run) -> tuple[list[Pair], int]:
    """The run's pairs and the count of equal ones. Raises RunError when evaluate has not run or is of other rows."""
    run.fingerprint("evaluate")
    return pair_up(asked(recipe, run), *(read_replies(run / f"replies/{which}.jsonl") for which in ("base", "tuned")))


@contextlib.contextmanager
def _locked(run: Run, name: str, taken: str, advice: str, *, seconds: float = 0) -> Iterator[None]:
    """One process a reviewer, and one that writes the summary; several reviewers may judge the same run at once."""
    from filelock import FileLock, Timeout

    (run / FOLDER).mkdir(exist_ok=True)
    lock = FileLock(run / FOLDER / name, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(taken, where=str(run.path), next=advice) from error
    try:
        yield
    finally:
        lock.release()
