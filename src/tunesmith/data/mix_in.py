"""Draws rows of another table for the training (data.mix_in) and accounts for every one of them.

Rows are drawn in the order of a seeded hash of their content, and checked as they are drawn, so that of a large table
only as many are checked as are needed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.config.recipe import MixIn, NamedSetting
from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import CheckContext, RowDecisions, dialog_text, prompt_key, turns_key
from tunesmith.data.load import LoadedRows
from tunesmith.data.prepare import Sink
from tunesmith.data.run_checks import run_checks
from tunesmith.errors import DataError
from tunesmith.wording import counted

GROUP = "mixed in"
NEAR = 0.8  # similarity of prompts from which a row is left out, if data.split.together sets none
CHECKS = (
    NamedSetting("empty", {}),
    NamedSetting("broken_turns", {}),
    NamedSetting("special_token", {"do": "drop"}),
    NamedSetting("too_long", {}),
    NamedSetting("unlearnable", {}),
)
PRIVACY_CHECKS = ("personal", "secrets")  # of the recipe's own checks, those that hold for any rows
REASONS = {
    "bad_answer": "labeled as a bad answer",
    "held_out_prompt": "the prompt of a held-out row, or nearly",
    "ability_prompt": "a shipped prompt on general abilities, or nearly",
}
_ID_PREFIX = "mixed-"  # ids of other rows are hexadecimal
_MIN_BATCH = 64  # rows checked together


def mark(row: Conversation) -> Conversation:
    """Returns the row in the group "mixed in", with an id that no row of data.source has."""
    return replace(row, id=f"{_ID_PREFIX}{row.id}", group=GROUP)


def is_mixed_in(row: Conversation) -> bool:
    """Whether a training row came from data.mix_in."""
    return row.id.startswith(_ID_PREFIX)


@dataclass(frozen=True)
class HeldOut:
    """The prompts that no mixed-in row may have: of the rows held out, and of the shipped prompts on abilities."""

    rows: Sequence[Conversation]
    abilities: Sequence[Conversation]
    together: float | None = None


@dataclass(frozen=True)
class MixedRows:
    """The rows drawn, and their account for audit.json.

    `asked` is data.mix_in.rows; of the rows `read`, those `drawn`, those in `left_out` by reason, and those `not_drawn`
    because enough had been found are all.
    """

    rows: list[Conversation]
    audit: dict[str, Any]


def draw(
    loaded: LoadedRows,
    mix_in: MixIn,
    held_out: HeldOut,
    context: CheckContext,
    seed: int,
    *,
    checks: Sequence[NamedSetting] = (),
    sink: Sink | None = None,
) -> MixedRows:
    """Draws up to `mix_in.rows` rows that can be trained on and whose prompt is not asked in an evaluation.

    `checks` are those of the recipe; of them only `personal` and `secrets` apply. Raises DataError if no row is left.
    """
    left_out = Counter({"unreadable": len(loaded.broken), "bad_answer": len(loaded.left_out)})
    ledger = RowDecisions((), sink)
    ledger.add([*loaded.broken, *loaded.left_out])
    selected = [*CHECKS, *(check for check in checks if check.name in PRIVACY_CHECKS)]
    order = _order(loaded.rows, seed)
    row_by_index: dict[int, Conversation] = {}
    contents: set[tuple[str, ...]] = set()
    examined = 0
    while examined < len(order) and len(row_by_index) < mix_in.rows:
        size = max(mix_in.rows - len(row_by_index), _MIN_BATCH)
        indices = order[examined : examined + size]
        batch = loaded.rows.take(indices)
        ledger.add(run_checks(batch, selected, context, scopes=("row", "table")))
        usable = [row for row in batch if ledger.keeps(row.id)]
        leaking = _asked_elsewhere(usable, held_out)
        for index, row in zip(indices, batch, strict=True):
            if len(row_by_index) == mix_in.rows:
                break
            examined += 1
            if not ledger.keeps(row.id):
                left_out[ledger.reason(row.id)] += 1
            elif reason := leaking.get(row.id):
                left_out[reason] += 1
            elif (key := turns_key(row.turns)) in contents:
                left_out["duplicate"] += 1
            else:
                contents.add(key)
                row_by_index[index] = row
    account: dict[str, Any] = {
        "asked": mix_in.rows,
        "read": loaded.count,
        "drawn": len(row_by_index),
        "not_drawn": len(order) - examined,
        "left_out": {reason: count for reason, count in left_out.most_common() if count},
        "pseudonyms": loaded.repairs.pseudonym_count,
        "sources": loaded.sources,
    }
    if loaded.count != len(row_by_index) + account["not_drawn"] + left_out.total():
        raise AssertionError(f"{loaded.count} rows to mix in were read, but the account is {account}")
    if not row_by_index:
        raise DataError(
            f"no row can be mixed in: {_reasons(account['left_out'])}",
            where=", ".join(source["file"] for source in loaded.sources),
            next="Give other rows in data.mix_in.source, or set it to null",
        )
    return MixedRows([row_by_index[index] for index in sorted(row_by_index)], account)


def add_to_account(
    account: Mapping[str, Any], mixed: MixedRows | None, held_out: Sequence[Conversation]
) -> dict[str, Any]:
    """Returns the account of `prepare` with the mixed-in rows counted among the training rows."""
    if mixed is None:
        return dict(account)
    answers = {normalize(row.answer) for row in held_out}
    same_answers = sum(normalize(row.answer) in answers for row in mixed.rows)
    return {
        **account,
        "mixed_in": mixed.audit,
        "parts": {**account["parts"], "train": account["parts"]["train"] + len(mixed.rows)},
        "groups": {**account["groups"], "train": sorted({*account["groups"]["train"], GROUP})},
        "leaks": {**account["leaks"], "answers": account["leaks"]["answers"] + same_answers},
    }


def drawn_from(whole: Mapping[str, Any], rows: Sequence[Conversation]) -> dict[str, Any]:
    """Returns the account `whole` of mixed-in rows for a selection `rows` of the training rows."""
    count = sum(map(is_mixed_in, rows))
    return {**whole, "drawn": count, "not_drawn": max(0, whole["not_drawn"] + whole["drawn"] - count)}


def describe(account: Mapping[str, Any], training_rows: int | None = None) -> str:
    """Returns what was mixed in, as sentences; `account` is the part `mixed_in` of audit.json.

    Without `training_rows`, the number of all training rows, it says what can be mixed in.
    """
    if training_rows is None:
        sentence = f"{counted(account['drawn'], 'row')} can be mixed in (data.mix_in)"
    else:
        sentence = f"{account['drawn']:,} of the {training_rows:,} training rows are mixed in (data.mix_in)"
    facts = [f"{counted(account['read'], 'row')} were read"]
    if account["not_drawn"]:
        facts.append(f"{account['not_drawn']:,} were not drawn")
    if count := sum(account["left_out"].values()):
        facts.append(f"{count:,} {'was' if count == 1 else 'were'} left out ({_reasons(account['left_out'])})")
    missing = too_few(account)
    return f"{sentence}; {', '.join(facts)}.{' ' * bool(missing)}{missing}"


def too_few(account: Mapping[str, Any]) -> str:
    """Returns that fewer rows could be used than data.mix_in.rows asks for, or ''."""
    if account["not_drawn"] or account["drawn"] >= account["asked"]:
        return ""
    return f"data.mix_in.rows asks for {account['asked']:,} rows, but only {account['drawn']:,} can be used."


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(
        f"{REASONS.get(reason, reason.replace('_', ' '))}: {count:,}" for reason, count in left_out.items()
    )


def _order(rows: Sequence[Conversation], seed: int) -> list[int]:
    """Returns the indices of the rows in the order of a hash of seed and content."""
    keys = [hashlib.sha256(f"{seed}/mix_in/{row.id}".encode()).digest() for row in rows]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _asked_elsewhere(rows: Sequence[Conversation], held_out: HeldOut) -> dict[str, str]:
    """Returns the reason by row id for rows whose prompt is that of a held-out row or an ability, or nearly."""
    from tunesmith.data.duplicates import leaks

    texts = [dialog_text(row.prompt) for row in rows]
    reasons: dict[str, str] = {}
    for reason, others in (("ability_prompt", held_out.abilities), ("held_out_prompt", held_out.rows)):
        prompts = {prompt_key(row) for row in others}
        reasons |= {row.id: reason for row in rows if prompt_key(row) in prompts}
        if others:
            other_texts = [dialog_text(row.prompt) for row in others]
            near = leaks(texts, other_texts, threshold=held_out.together or NEAR)
            reasons |= {rows[pair.first].id: reason for pair in near}
    return reasons
