"""Lets people compare pairs of replies in the browser without knowing which model wrote which."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from tunesmith.commands.shared import Reporter, evaluation_rows, silent
from tunesmith.config.recipe import Recipe
from tunesmith.errors import RunError
from tunesmith.evaluation.review import (
    ReviewPair,
    Reviews,
    ReviewSummary,
    check_reviewer,
    pair_replies,
    read_replies,
    read_reviews,
    shuffle_for_reviewer,
    summarize,
)
from tunesmith.runs.run import Run

FOLDER = "reviews"
LOCK_TIMEOUT = 10.0  # seconds; writing reviews.json takes milliseconds


@dataclass(frozen=True)
class RunningReview:
    """A running review server: its URL with the token, the number of pairs, the judgments, and the thread."""

    url: str
    pairs: int
    reviews: Reviews
    thread: Thread


def review(recipe: Recipe, run: Run, reviewer: str, log: Reporter = silent, *, port: int = 0) -> Path:
    """Serves the pairs until Ctrl-C, then writes the judgments of all reviewers to reviews.json.

    `port` 0 takes any free port. Raises RunError if the run is not evaluated, all replies are equal, or `reviewer` is
    not a valid name or is already judging; ResourceError if the port is in use.
    """
    with contextlib.suppress(KeyboardInterrupt), serve_review(recipe, run, reviewer, log, port=port) as served:
        log(f"review: open {served.url}")
        log("review: every judgment is saved at once; Ctrl-C ends the review")
        while served.thread.is_alive():
            served.thread.join(0.5)
    summary = write_summary(recipe, run)
    for name, count in summary.reviewers.items():
        log(f"review: {name} has judged {count} of {summary.pairs} pairs")
    if summary.stale:
        log(f"review: {summary.stale} judgments of older replies are not counted")
    log(f"review: {summary.verdict}")
    return run / "reviews.json"


@contextlib.contextmanager
def serve_review(
    recipe: Recipe, run: Run, reviewer: str, log: Reporter = silent, *, port: int = 0
) -> Iterator[RunningReview]:
    """Serves the reviewer's pairs inside the block; raises what `review` raises."""
    from tunesmith.serve.review_app import review_app
    from tunesmith.web.server import LOOPBACK, listen, serve_in_thread

    pairs, equal = review_pairs(recipe, run)
    if not pairs:
        advice = "There is nothing to judge. Train longer, or see scores.json"
        raise RunError(f"the two models gave equal replies to all {equal} rows", where=str(run.path), next=advice)
    problem, hint = f"{reviewer} is already judging", "Continue on the open page, or use another name with --as"
    with _locked(run, f".{check_reviewer(reviewer)}.lock", problem, hint), listen(port) as listener:
        reviews = Reviews.open(run / FOLDER, reviewer)
        if reviews.torn:
            log(f"review: the last judgment in {reviews.path.name} is incomplete; its pair is shown again")
        if equal:
            log(f"review: {equal} of {equal + len(pairs)} rows have two equal replies and are not shown")
        token, number = secrets.token_urlsafe(32), listener.getsockname()[1]
        hosts = (f"{LOOPBACK}:{number}", f"localhost:{number}")
        order = shuffle_for_reviewer(pairs, recipe.seed, reviewer)
        app = review_app(order, equal, reviews, name=recipe.name, token=token, hosts=hosts)
        with serve_in_thread(app, listener) as thread:
            yield RunningReview(f"http://{LOOPBACK}:{number}/#{token}", len(pairs), reviews, thread)


def write_summary(recipe: Recipe, run: Run) -> ReviewSummary:
    """Writes the judgments of all reviewers so far to reviews.json. Raises RunError if the run is not evaluated."""
    pairs, equal = review_pairs(recipe, run)
    with _locked(run, ".summary.lock", "another process is writing reviews.json", "Try again", seconds=LOCK_TIMEOUT):
        summary = summarize(pairs, equal, read_reviews(run / FOLDER))
        run.write_json("reviews.json", summary.describe())
        run.write_fingerprints("review", {"evaluate": run.fingerprint("evaluate")}, ["reviews.json"])
    return summary


def review_pairs(recipe: Recipe, run: Run) -> tuple[list[ReviewPair], int]:
    """Returns the pairs of different replies, and the number of equal ones. Raises RunError if not evaluated."""
    run.fingerprint("evaluate")
    return pair_replies(
        evaluation_rows(recipe, run), *(read_replies(run / f"replies/{which}.jsonl") for which in ("base", "tuned"))
    )


@contextlib.contextmanager
def _locked(run: Run, name: str, problem: str, advice: str, *, seconds: float = 0) -> Iterator[None]:
    """Holds a lock: one process for each reviewer, and one that writes the summary."""
    from filelock import FileLock, Timeout

    (run / FOLDER).mkdir(exist_ok=True)
    lock = FileLock(run / FOLDER / name, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(problem, where=str(run.path), next=advice) from error
    try:
        yield
    finally:
        lock.release()
