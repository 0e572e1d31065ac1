"""The verb that draws a learning curve: would more rows help, and did cleaning help?

Each share of the training rows is a run of its own in the recipe's run, under curve/, prepared by this verb and then
trained and evaluated by the same verbs as any run: so it goes on where it was stopped, and a finished one is kept. The
whole of the rows is the recipe's own run.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.commands.evaluate import asked, evaluate
from tunesmith.commands.prepare import prepare
from tunesmith.commands.read_rows import loading
from tunesmith.commands.shared import (
    DATE,
    PARTS,
    TEMPLATE,
    Say,
    is_fresh,
    load_template_of,
    load_weights,
    refuse_parting,
    silent,
)
from tunesmith.commands.train import train
from tunesmith.config.recipe import Judge, Named, Recipe
from tunesmith.data.conversation import Conversation, normalise, read_rows, to_plain
from tunesmith.data.finding import prompt_key, spoken
from tunesmith.errors import DataError, ModelError, RecipeError, RunError
from tunesmith.reporting.curve_page import RAW, Point, curve_lines, curve_page, curve_values
from tunesmith.runs.run import Run, hash_plain

SHARES = (25, 50, 100)
FEWEST = 8  # rows of the smallest share: one step of the default batch
GOLDEN = 0.6180339887498949  # its multiples, less their whole parts, fill 0 to 1 evenly (Knuth, volume 3, section 6.4)
FILES = [*(f"data/{part}.jsonl" for part in PARTS), "audit.json"]
DROPPED = (
    "unreadable",
    "bad_answer",
    "unseen_group",
    "leaking",
    "too_long",
    "unfit",
)  # why rows as they came are left out
Watch = Callable[[dict[str, Any]], None]
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Work:
    """What every point is made with: the recipe, its own run, and who hears of it."""

    recipe: Recipe
    run: Run
    watch: Watch | None
    tell: Tell | None
    again: bool


def curve(
    recipe: Recipe,
    run: Run,
    say: Say = silent,
    watch: Watch | None = None,
    tell: Tell | None = None,
    *,
    shares: Sequence[int] = SHARES,
    raw: bool = False,
    again: bool = False,
    command: str = "",
) -> Path:
    """Trains the recipe on nested `shares` (percent) of its training rows; writes curve.json and curve.html.

    With `raw` also on the rows as they came, without repairs and checks. All are asked the same held-out rows, and the
    base answers once. Stopped, it goes on; what is finished is kept. `again` trains anew what was trained with
    something else, the old kept aside. Raises RecipeError for shares that make no curve, DataError for a share of too
    few rows, RunError when a point was trained with something else or another process works on it.
    """
    _refuse_shares(shares)
    apart = recipe.evaluate.model_copy(update={"judge": Judge.model_validate({})})  # a judge is asked by evaluate alone
    work = _Work(recipe.model_copy(update={"evaluate": apart}), run, watch, tell, again)
    if not again:
        refuse_parting(work.recipe, run)
    prepare(work.recipe, run, say)
    rows = read_rows(run / "data/train.jsonl")
    drawn = nested(rows, [share for share in shares if share < 100], recipe.seed)
    _refuse_few(drawn, len(rows))
    say(f"curve: 100 % of the rows, {len(rows):,}, is the recipe's own run")
    _evaluated(work, run, _heard(say, "100 %"))
    points = [_share(work, share, members, _heard(say, f"{share} %")) for share, members in drawn.items()]
    points.append(_point(run, ".", 100))
    counts = None
    if raw:
        point, counts = _raw(work, _heard(say, "rows as they came"))
        points.append(point)
    made_from = {point.run: Run(run / point.run).fingerprint("evaluate") for point in points}
    if not is_fresh(run, "curve", made_from, say):
        _write(work, points, counts, made_from, command)
    for line in curve_lines(run.read_json("curve.json")):
        say(f"curve: {line}")
    say(f"curve: see {run / 'curve.html'}")
    return run / "curve.html"


def to_shares(text: str) -> tuple[int, ...]:
    """`25,50,100` as numbers. Raises RecipeError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        advice = "Give whole percents with commas between: 25,50,100"
        raise RecipeError(f"'{text}' are no shares", where="--shares", next=advice) from error


def _write(
    work: _Work, points: Sequence[Point], counts: dict[str, int] | None, made_from: Mapping[str, str], command: str
) -> None:
    recipe, run = work.recipe, work.run
    groups = {(part, row.id): row.group for part, members in asked(recipe, run).items() for row in members}
    plain = {"name": recipe.name, **curve_values(points, groups, seed=recipe.seed, raw=counts)}
    run.write_json("curve.json", plain)
    run.write("curve.html", curve_page(recipe.name, plain, command=command))
    run.seal("curve", made_from, ["curve.json", "curve.html"])


def nested(rows: Sequence[Conversation], shares: Sequence[int], seed: int) -> dict[int, list[Conversation]]:
    """The rows of each share (percent), smallest first, each share inside the next, in the order they came.

    A share has the nearest whole number to its part of all rows, and within a row or two its part of each group:
    systematic sampling (Cochran 1977, chapter 8) over the groups' rows in the order of a seeded hash. Which rows these
    are depends on seed and content alone.
    """
    order = _order(rows, seed)
    counts = {share: (share * len(rows) + 50) // 100 for share in sorted(shares)}
    return {share: [rows[place] for place in sorted(order[:count])] for share, count in counts.items()}


def _order(rows: Sequence[Conversation], seed: int) -> list[int]:
    """The rows' places in an order of which every beginning is drawn evenly over groups."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        members[row.group].append(place)
    turn: dict[int, tuple[float, str]] = {}
    for number, group in enumerate(sorted(members, key=lambda group: _hash(seed, "group", group))):
        places = members[group]
        keys = {place: _hash(seed, "row", rows[place].id) for place in places}
        start = number * GOLDEN % 1  # where in its first interval a group begins: else small groups would all come late
        for rank, place in enumerate(sorted(places, key=keys.__getitem__)):
            turn[place] = (rank + start) / len(places), keys[place]
    return sorted(range(len(rows)), key=turn.__getitem__)


def _hash(seed: int, *texts: str) -> str:
    return hashlib.sha256("\x1f".join((str(seed), "curve", *texts)).encode("utf-8", "surrogatepass")).hexdigest()


def _refuse_shares(shares: Sequence[int]) -> None:
    given = ",".join(map(str, shares))
    if any(not 1 <= share <= 100 for share in shares) or len(set(shares)) < len(shares):
        raise RecipeError(f"'{given}' are no shares", where="--shares", next="Give each once, in percent: 25,50,100")
    if 100 not in shares or len(shares) < 2:
        advice = "Give 100, which is all rows, and a smaller share: 50,100"
        raise RecipeError(f"'{given}' make no curve", where="--shares", next=advice)


def _refuse_few(drawn: Mapping[int, Sequence[Conversation]], count: int) -> None:
    share, rows = next(iter(drawn.items()))
    if len(rows) >= FEWEST:
        return
    enough = next((each for each, members in drawn.items() if len(members) >= FEWEST), None)
    advice = f"Leave out what is below {enough} %" if enough else "Give larger shares, or add rows"
    few = f"{share} % of {count:,} training rows are {len(rows)}, and a share needs {FEWEST} or more"
    raise DataError(few, where="--shares", next=advice)


def _heard(say: Say, point: str) -> Say:
    return lambda text: say(f"{point}: {text}")


# --- one point ---------------------------------------------------------------------------------------------


def _share(work: _Work, share: int, rows: Sequence[Conversation], say: Say) -> Point:
    """A share of the rows, prepared, trained and evaluated in its own folder."""
    part = Run(work.run / f"curve/{share}")
    with part.lock():
        made_from = {**_whole(work.run), "rows drawn": hash_plain([row.id for row in rows])}
        if not is_fresh(part, "prepare", made_from, say):
            _lay_down(work, part, rows, made_from, {})
            say(f"prepare: {len(rows):,} rows to learn from")
        _evaluated(work, part, say)
        return _point(part, f"curve/{share}", share)


def _whole(run: Run) -> dict[str, str]:
    """What the whole run's rows were made from, and what they are."""
    return {**(run.read_seal("prepare") or {})["made_from"], "the whole run's rows": run.fingerprint("prepare")}


def _lay_down(
    work: _Work, part: Run, rows: Sequence[Conversation], made_from: Mapping[str, str], notes: Mapping[str, Any]
) -> None:
    """A point's rows as `prepare` would leave them: its own to learn from, the whole run's held-out ones."""
    from tunesmith.data.overlap import overlap

    began, recipe = time.time(), work.recipe
    with_template = [name for name in (DATE, TEMPLATE) if (work.run / name).is_file()]
    for name in with_template:
        part.write(name, (work.run / name).read_bytes())
    parts = {name: read_rows(work.run / f"data/{name}.jsonl") for name in PARTS} | {"train": list(rows)}
    for name, members in parts.items():
        with part.lines(f"data/{name}.jsonl") as write:
            for row in members:
                write(to_plain(row))
    whole = {key: value for key, value in work.run.read_json("audit.json").items() if key not in ("profile", "checks")}
    account = {
        **whole,
        "checks": {},  # those are told in the whole run's audit.html
        **notes,
        "parts": {name: len(members) for name, members in parts.items()},
        "groups": {name: sorted({row.group for row in members}) for name, members in parts.items()},
        "leaks": overlap(parts, together=recipe.data.split.together),
    }
    kept = account["read"] - sum(account["dropped"].values()) - sum(account["quarantined"].values())
    part.write_json("audit.json", {**account, "not_drawn": kept - sum(account["parts"].values())})
    plain = recipe.dump() | {"name": f"{recipe.name}-{part.path.name}"}
    part.write("recipe.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    part.seal("prepare", made_from, [*FILES, *with_template], seconds=round(time.time() - began, 1))


def _evaluated(work: _Work, part: Run, say: Say) -> None:
    """Trains and evaluates a point where that is not done; but for the whole run it gets the base's replies."""
    try:
        train(work.recipe, part, say, work.watch)
    except RunError:
        if not work.again:
            raise
        train(work.recipe, part, say, work.watch, again=True)
    if part is not work.run:
        _pass_on(work.run, part)
    evaluate(work.recipe, part, say, work.tell)


def _pass_on(run: Run, part: Run) -> None:
    """Lays the base's replies in the whole run where the point's evaluation looks for those of one that stopped."""
    from tunesmith.evaluation.comparison import read_answered
    from tunesmith.evaluation.reply_log import Kept

    whole = (run.read_seal("evaluate") or {})["made_from"]
    made_from = whole | {"adapter": part.fingerprint("train"), "data": part.fingerprint("prepare")}
    if part.changed("evaluate", made_from) == []:
        return
    for which in ("base", "base-disturbed"):
        if (run / f"replies/{which}.jsonl").exists():
            kept = Kept(part / f"replies/{which}.part", made_from)
            for item in read_answered(run / f"replies/{which}.jsonl"):
                if (item.part, item.id) not in kept.replies:
                    kept.add(item.part, item.id, item.reply)
            kept.close()


def _point(part: Run, folder: str, share: int | None) -> Point:
    summary = (part.read_seal("train") or {})["summary"]
    return Point(
        share=share,
        run=folder,
        rows=part.read_json("audit.json")["parts"]["train"],
        tokens=summary["tokens"],
        steps=summary["steps"],
        seconds=summary["seconds"],
        scores=part.read_json("scores.json"),
    )


# --- the rows as they came ---------------------------------------------------------------------------------


def _raw(work: _Work, say: Say) -> tuple[Point, dict[str, int]]:
    """The rows without repairs and checks, and what became of each that was read."""
    part = Run(work.run / f"curve/{RAW}")
    with part.lock():
        made_from = {**_whole(work.run), "rows drawn": "as they came"}
        if not is_fresh(part, "prepare", made_from, say):
            rows, counts, mended = _as_they_came(work)
            dropped = {why: counts[why] for why in DROPPED if counts[why]}
            account = {"read": counts["read"], "dropped": dropped, "quarantined": {}, "mended": mended}
            _lay_down(work, part, rows, made_from, {**account, "raw": counts})
            left_out = counts["read"] - counts["rows"]
            say(f"prepare: {counts['read']:,} rows read, {left_out:,} left out, {len(rows):,} to learn from")
            if work.recipe.data.pseudonyms:
                say("prepare: personal data is replaced here too")
        _evaluated(work, part, say)
        return _point(part, f"curve/{RAW}", None), part.read_json("audit.json")["raw"]


def _as_they_came(work: _Work) -> tuple[list[Conversation], dict[str, int], dict[str, Any]]:
    """The rows to learn from without repairs and checks, how many were left out by reason, and the stand-ins given.

    Left out is what cannot be trained on and what the held-out rows know. Stand-ins for personal data are kept. Raises
    DataError when nothing is left.
    """
    recipe, counts = work.recipe, Counter[str]()
    broken = [] if any(check.name == "broken" for check in recipe.data.checks) else [Named("broken", {})]
    data = recipe.data.model_copy(update={"repair": False, "checks": [*recipe.data.checks, *broken]})
    held = [row for name in PARTS[1:] for row in read_rows(work.run / f"data/{name}.jsonl")]
    unseen = {normalise(row.group) for row in read_rows(work.run / "data/unseen.jsonl")} - {""}
    places = {row.origin for row in held}
    with loading(data, recipe.folder, recipe.prompt.system) as reading:
        loaded = reading()
        all_rows = list(loaded.rows)
    mended = {"rows": loaded.repairs.rows, "stand_ins": loaded.repairs.stand_ins, "kinds": {}, "examples": []}
    counts["unreadable"], counts["bad_answer"] = len(loaded.broken), len(loaded.left_out)
    read = loaded.count
    rows = [row for row in all_rows if row.origin not in places]
    counts["held_out"] = len(all_rows) - len(rows)
    known = [row for row in rows if normalise(row.group) not in unseen]
    counts["unseen_group"] = len(rows) - len(known)
    apart = _apart(known, [*held, *(row for row in all_rows if row.origin in places)], recipe.data.split.together)
    counts["leaking"] = len(known) - len(apart)
    fit, taken = _fit(work, apart, counts)
    wanted = recipe.data.sample.train or len(fit)
    chosen = [fit[place] for place in sorted(_order(fit, recipe.seed)[:wanted])]
    counts["not_drawn"] = len(fit) - len(chosen)
    if counts.total() + len(chosen) != read:
        raise AssertionError(f"{read} rows came in: {len(chosen)} to learn from, left out {dict(counts)}")
    if not chosen:
        raise DataError("the rows as they came leave none to learn from", next="Leave --raw out")
    told = {why: counts[why] for why in (*DROPPED, "held_out", "not_drawn")}
    counted = {"read": read, "rows": len(chosen), **told}
    return [each for row in chosen for each in taken[row.id]], counted, mended


def _apart(
    rows: Sequence[Conversation], held: Sequence[Conversation], together: float | None
) -> Sequence[Conversation]:
    """The rows whose prompt is none of the held-out rows', nor nearly."""
    from tunesmith.data.duplicates import leaks

    prompts = {prompt_key(row) for row in held}
    left = [row for row in rows if prompt_key(row) not in prompts]
    if together is None or not held:
        return left
    found = leaks([spoken(row.prompt) for row in left], [spoken(row.prompt) for row in held], threshold=together)
    near = {pair.first for pair in found}
    return [row for place, row in enumerate(left) if place not in near]


def _fit(
    work: _Work, rows: Sequence[Conversation], counts: Counter[str]
) -> tuple[list[Conversation], dict[str, list[Conversation]]]:
    """The rows that can be trained on, and each as training takes it: a row for each answer where that is needed.

    Counts the others.
    """
    from tunesmith.prompt.tokens import encode_all

    recipe = work.recipe
    template = load_template_of(recipe, load_weights(recipe, silent), work.run)
    fit, taken = [], {}
    for row in rows:
        try:
            answers = encode_all(row, template, recipe.prompt.learn, recipe.prompt.expand)
            long = max(len(example) for _, example in answers) > recipe.prompt.max_tokens
        except (DataError, ModelError):  # a template may refuse single rows; the others were prepared under it
            counts["unfit"] += 1
            continue
        counts["too_long"] += long
        if not long:
            fit.append(row)
            taken[row.id] = [each for each, _ in answers]
    return fit, taken
