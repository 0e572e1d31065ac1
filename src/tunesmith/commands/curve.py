"""Trains on growing shares of the rows, to find out whether more rows, or cleaning, would help.

Each share is a run of its own in the recipe's run, under curve/. It is prepared here, then trained and evaluated like
any other run, so it can be resumed, and a finished one is reused. 100 % is the recipe's own run.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.commands.prepare import prepare
from tunesmith.commands.read_rows import row_loader
from tunesmith.commands.shared import (
    SPLIT_PARTS,
    Reporter,
    evaluated_groups,
    is_up_to_date,
    load_recipe_template,
    load_weights,
    require_same_rows,
    silent,
)
from tunesmith.commands.sub_runs import (
    ROW_FILES,
    OnProgress,
    SubRuns,
    Watch,
    copy_template,
    row_inputs,
    sub_run_recipe_text,
    sub_runs,
    train_and_evaluate,
    with_prefix,
)
from tunesmith.config.recipe import NamedSetting, Recipe
from tunesmith.data.conversation import Conversation, conversation_to_dict, normalize, read_rows
from tunesmith.data.finding import dialog_text, prompt_key
from tunesmith.data.mix_in import drawn_from, is_mixed_in
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.reporting.curve_page import RAW, Point, curve_lines, curve_page, curve_values
from tunesmith.runs.run import Run, hash_json

SHARES = (25, 50, 100)
MIN_ROWS = 8  # of a share: one step of the default batch
GOLDEN = 0.6180339887498949  # fractional parts of its multiples fill 0 to 1 evenly (Knuth, volume 3, section 6.4)
DROP_REASONS = (
    "unreadable",
    "bad_answer",
    "unseen_group",
    "leaking",
    "too_long",
    "unfit",
)  # of raw rows


def curve(
    recipe: Recipe,
    run: Run,
    log: Reporter = silent,
    watch: Watch | None = None,
    on_progress: OnProgress | None = None,
    *,
    shares: Sequence[int] = SHARES,
    raw: bool = False,
    again: bool = False,
    command: str = "",
) -> Path:
    """Trains the recipe on nested `shares` (percent) of its training rows; writes curve.json and curve.html.

    With `raw` also on the raw rows, without repairs and checks. All models reply to the same held-out rows;
    the base model only once. An interrupted curve is resumed. With `again`, points with other settings are trained
    again and the old ones kept in old/. Raises RecipeError for invalid shares, DataError if a share has too few rows,
    RunError if a point has other settings or another process is using it.
    """
    _check_shares(shares)
    work = sub_runs(recipe, run, watch, on_progress, again=again)
    if not again:
        require_same_rows(work.recipe, run)
    prepare(work.recipe, run, log)
    rows = read_rows(run / "data/train.jsonl")
    rows_of_share = nested_shares(rows, [share for share in shares if share < 100], recipe.seed)
    _check_sizes(rows_of_share, len(rows))
    log(f"curve: the recipe's own run is 100 % of the rows, {len(rows):,}")
    train_and_evaluate(work, run, with_prefix(log, "100 %"))
    points = [
        _train_share(work, share, members, with_prefix(log, f"{share} %")) for share, members in rows_of_share.items()
    ]
    points.append(_point(run, ".", 100))
    counts = None
    if raw:
        point, counts = _train_raw(work, with_prefix(log, "raw rows"))
        points.append(point)
    inputs = {point.run: Run(run / point.run).fingerprint("evaluate") for point in points}
    if not is_up_to_date(run, "curve", inputs, log):
        _write(work, points, counts, inputs, command)
    for line in curve_lines(run.read_json("curve.json")):
        log(f"curve: {line}")
    log(f"curve: see {run / 'curve.html'}")
    return run / "curve.html"


def parse_shares(text: str) -> tuple[int, ...]:
    """Parses shares such as `25,50,100`. Raises RecipeError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        advice = "Give whole percentages separated by commas, such as 25,50,100"
        raise RecipeError(f"'{text}' is not a list of shares", where="--shares", next=advice) from error


def _write(
    work: SubRuns, points: Sequence[Point], counts: dict[str, int] | None, inputs: Mapping[str, str], command: str
) -> None:
    recipe, run = work.recipe, work.run
    groups = evaluated_groups(recipe, run)
    plain = {"name": recipe.name, **curve_values(points, groups, seed=recipe.seed, raw=counts)}
    run.write_json("curve.json", plain)
    run.write("curve.html", curve_page(recipe.name, plain, command=command))
    run.write_fingerprints("curve", inputs, ["curve.json", "curve.html"])


def nested_shares(rows: Sequence[Conversation], shares: Sequence[int], seed: int) -> dict[int, list[Conversation]]:
    """Returns the rows of each share (percent), smallest first, in their original order; each share contains the last.

    The size of a share is rounded to the nearest row, and each group is represented in proportion, within a row or
    two: systematic sampling (Cochran 1977, chapter 8) over the groups' rows in the order of a seeded hash. The choice
    depends only on the seed and the content.
    """
    order = _order(rows, seed)
    counts = {share: (share * len(rows) + 50) // 100 for share in sorted(shares)}
    return {share: [rows[place] for place in sorted(order[:count])] for share, count in counts.items()}


def _order(rows: Sequence[Conversation], seed: int) -> list[int]:
    """Returns indices of rows in an order of which every prefix represents the groups in proportion."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        members[row.group].append(place)
    turn: dict[int, tuple[float, str]] = {}
    for number, group in enumerate(sorted(members, key=lambda group: _hash(seed, "group", group))):
        places = members[group]
        keys = {place: _hash(seed, "row", rows[place].id) for place in places}
        start = (
            number * GOLDEN % 1
        )  # offset of the group in its first interval: otherwise all small groups would come late
        for rank, place in enumerate(sorted(places, key=keys.__getitem__)):
            turn[place] = (rank + start) / len(places), keys[place]
    return sorted(range(len(rows)), key=turn.__getitem__)


def _hash(seed: int, *texts: str) -> str:
    return hashlib.sha256("\x1f".join((str(seed), "curve", *texts)).encode("utf-8", "surrogatepass")).hexdigest()


def _check_shares(shares: Sequence[int]) -> None:
    text = ",".join(map(str, shares))
    if any(not 1 <= share <= 100 for share in shares) or len(set(shares)) < len(shares):
        raise RecipeError(
            f"'{text}' is not a list of shares", where="--shares", next="Give different percentages, such as 25,50,100"
        )
    if 100 not in shares or len(shares) < 2:
        advice = "Give 100, which is all rows, and a smaller share, such as 50,100"
        raise RecipeError(f"'{text}' is not enough for a curve", where="--shares", next=advice)


def _check_sizes(rows_of_share: Mapping[int, Sequence[Conversation]], count: int) -> None:
    share, rows = next(iter(rows_of_share.items()))
    if len(rows) >= MIN_ROWS:
        return
    enough = next((larger for larger, members in rows_of_share.items() if len(members) >= MIN_ROWS), None)
    advice = f"Give shares of {enough} % or more" if enough else "Give larger shares, or add rows"
    problem = f"{share} % of {count:,} training rows are {len(rows)}, but a share needs {MIN_ROWS} or more"
    raise DataError(problem, where="--shares", next=advice)


# --- one point ---------------------------------------------------------------------------------------------


def _train_share(work: SubRuns, share: int, rows: Sequence[Conversation], log: Reporter) -> Point:
    """Prepares, trains and evaluates a share of the rows in its own folder."""
    part = Run(work.run / f"curve/{share}")
    with part.lock():
        inputs = {**row_inputs(work.run), "rows drawn": hash_json([row.id for row in rows])}
        if not is_up_to_date(part, "prepare", inputs, log):
            _write_point(work, part, rows, inputs, {})
            log(f"prepare: {len(rows):,} training rows")
        train_and_evaluate(work, part, log)
        return _point(part, f"curve/{share}", share)


def _write_point(
    work: SubRuns, part: Run, rows: Sequence[Conversation], inputs: Mapping[str, str], notes: Mapping[str, Any]
) -> None:
    """Writes a point's rows as `prepare` would: its own training rows, and the held-out rows of the whole run."""
    from tunesmith.data.split import overlap

    start = time.time()
    copied = copy_template(work.run, part)
    parts = {name: read_rows(work.run / f"data/{name}.jsonl") for name in SPLIT_PARTS} | {"train": list(rows)}
    for name, members in parts.items():
        with part.lines(f"data/{name}.jsonl") as write:
            for row in members:
                write(conversation_to_dict(row))
    whole = {key: value for key, value in work.run.read_json("audit.json").items() if key not in ("profile", "checks")}
    account = {
        **whole,
        "checks": {},  # shown in the whole run's audit.html
        **notes,
        "parts": {name: len(members) for name, members in parts.items()},
        "groups": {name: sorted({row.group for row in members}) for name, members in parts.items()},
        "leaks": overlap(parts, together=work.recipe.data.split.together),
    }
    usable = account["read"] - sum(account["dropped"].values()) - sum(account["quarantined"].values())
    if "mixed_in" in account:
        account["mixed_in"] = drawn_from(account["mixed_in"], parts["train"])
        usable += account["mixed_in"]["drawn"]
    part.write_json("audit.json", {**account, "not_drawn": usable - sum(account["parts"].values())})
    part.write("recipe.yaml", sub_run_recipe_text(work.recipe, part))
    part.write_fingerprints("prepare", inputs, [*ROW_FILES, *copied], seconds=round(time.time() - start, 1))


def _point(part: Run, folder: str, share: int | None) -> Point:
    summary = (part.read_fingerprints("train") or {})["summary"]
    return Point(
        share=share,
        run=folder,
        rows=part.read_json("audit.json")["parts"]["train"],
        tokens=summary["tokens"],
        steps=summary["steps"],
        seconds=summary["seconds"],
        scores=part.read_json("scores.json"),
    )


# --- raw rows --------------------------------------------------------------------------------------


def _train_raw(work: SubRuns, log: Reporter) -> tuple[Point, dict[str, int]]:
    """Trains and evaluates on the raw rows; also returns how many rows were dropped, by reason."""
    part = Run(work.run / f"curve/{RAW}")
    with part.lock():
        inputs = {**row_inputs(work.run), "rows drawn": "as they came"}
        if not is_up_to_date(part, "prepare", inputs, log):
            rows, counts, repairs = _raw_rows(work)
            dropped = {why: counts[why] for why in DROP_REASONS if counts[why]}
            account = {"read": counts["read"], "dropped": dropped, "quarantined": {}, "repaired": repairs}
            _write_point(work, part, rows, inputs, {**account, "raw": counts})
            left_out = counts["read"] - counts["rows"]
            log(f"prepare: {counts['read']:,} rows read, {left_out:,} left out, {len(rows):,} training rows")
            if work.recipe.data.pseudonyms:
                log("prepare: personal data is replaced in these rows too")
        train_and_evaluate(work, part, log)
        return _point(part, f"curve/{RAW}", None), part.read_json("audit.json")["raw"]


def _raw_rows(work: SubRuns) -> tuple[list[Conversation], dict[str, int], dict[str, Any]]:
    """Returns training rows without repairs and checks, how many were left out by reason, and the pseudonyms used.

    Rows are left out that cannot be trained on, that are held out, or that are close to a held-out row. Personal data
    stays replaced. Raises DataError if no rows remain.
    """
    recipe, counts = work.recipe, Counter[str]()
    broken = [] if any(check.name == "broken" for check in recipe.data.checks) else [NamedSetting("broken", {})]
    data = recipe.data.model_copy(update={"repair": False, "checks": [*recipe.data.checks, *broken]})
    held_out = [row for name in SPLIT_PARTS[1:] for row in read_rows(work.run / f"data/{name}.jsonl")]
    unseen = {normalize(row.group) for row in read_rows(work.run / "data/unseen.jsonl")} - {""}
    places = {row.origin for row in held_out}
    with row_loader(data, recipe.folder, recipe.prompt.system) as read_all:
        loaded = read_all()
        all_rows = list(loaded.rows)
    replaced = {"rows": loaded.repairs.rows, "pseudonyms": loaded.repairs.pseudonym_count, "kinds": {}, "examples": []}
    counts["unreadable"], counts["bad_answer"] = len(loaded.broken), len(loaded.left_out)
    read = loaded.count
    rows = [row for row in all_rows if row.origin not in places]
    counts["held_out"] = len(all_rows) - len(rows)
    same_groups = [row for row in rows if normalize(row.group) not in unseen]
    counts["unseen_group"] = len(rows) - len(same_groups)
    unlike = _without_leaks(
        same_groups, [*held_out, *(row for row in all_rows if row.origin in places)], recipe.data.split.together
    )
    counts["leaking"] = len(same_groups) - len(unlike)
    usable, answers_of = _trainable(work, unlike, counts)
    row_count = recipe.data.sample.train or len(usable)
    drawn_rows = [usable[place] for place in sorted(_order(usable, recipe.seed)[:row_count])]
    counts["not_drawn"] = len(usable) - len(drawn_rows)
    if counts.total() + len(drawn_rows) != read:
        raise AssertionError(f"{read} rows read: {len(drawn_rows)} training rows, left out {dict(counts)}")
    if not drawn_rows:
        raise DataError("no raw rows remain to train on", next="Omit --raw")
    reasons = {why: counts[why] for why in (*DROP_REASONS, "held_out", "not_drawn")}
    row_counts = {"read": read, "rows": len(drawn_rows), **reasons}
    mixed = [row for row in read_rows(work.run / "data/train.jsonl") if is_mixed_in(row)]  # as in the cleaned rows
    return [*(answer for row in drawn_rows for answer in answers_of[row.id]), *mixed], row_counts, replaced


def _without_leaks(
    rows: Sequence[Conversation], held_out: Sequence[Conversation], together: float | None
) -> Sequence[Conversation]:
    """Returns the rows whose prompt is not the same or nearly the same as a held-out row's."""
    from tunesmith.data.duplicates import leaks

    prompts = {prompt_key(row) for row in held_out}
    rows_left = [row for row in rows if prompt_key(row) not in prompts]
    if together is None or not held_out:
        return rows_left
    pairs = leaks(
        [dialog_text(row.prompt) for row in rows_left],
        [dialog_text(row.prompt) for row in held_out],
        threshold=together,
    )
    near = {pair.first for pair in pairs}
    return [row for place, row in enumerate(rows_left) if place not in near]


def _trainable(
    work: SubRuns, rows: Sequence[Conversation], counts: Counter[str]
) -> tuple[list[Conversation], dict[str, list[Conversation]]]:
    """Returns the rows that can be trained on, and each split into one row for each answer if necessary.

    Counts the other rows in `counts`.
    """
    from tunesmith.prompt.tokens import encode_expanded

    recipe = work.recipe
    template = load_recipe_template(recipe, load_weights(recipe, silent), work.run)
    usable, answers_of = [], {}
    for row in rows:
        try:
            answers = encode_expanded(row, template, recipe.prompt.learn, recipe.prompt.expand)
            long = max(len(example) for _, example in answers) > recipe.prompt.max_tokens
        except (DataError, ModelError):  # a template may refuse single rows
            counts["unfit"] += 1
            continue
        counts["too_long"] += long
        if not long:
            usable.append(row)
            answers_of[row.id] = [answer for answer, _ in answers]
    return usable, answers_of
