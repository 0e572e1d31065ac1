"""Checks, splits and samples rows, accounts for every one of them, and measures the prepared table."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.config.recipe import CHECKS, Data, NamedSetting, Sample
from tunesmith.config.registry import entry_constant
from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import CheckContext, Finding, RowDecisions, prompt_key
from tunesmith.data.language import Language
from tunesmith.data.load import LoadedRows
from tunesmith.data.run_checks import run_checks
from tunesmith.data.split import PARTS, overlap, split
from tunesmith.data.table import Table
from tunesmith.errors import DataError

BINS = 30
NGRAM_SAMPLE = 20_000  # rows for counting n-grams, at even steps: a row of 60 words has 58
LANGUAGE_SAMPLE = 5_000  # answers whose language is detected, at even steps
_NUMBER = re.compile(r"^\s*\d+[.)]\s*")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def profile(
    rows: Sequence[Conversation], count_tokens: Callable[[Conversation], int] | None = None, *, top: int = 15
) -> dict[str, Any]:
    """Returns the profile as plain values.

    `lengths`: of prompt and answer in characters and words, and of the row in tokens, each as `spread` returns it.
    `groups`: rows by group. `fields`: rows with each field, and with the field blank. `languages`: rows by script and
    language. `distinct`: numbers of distinct prompts, answers, pairs. `exchanges`: rows by number of answers.
    """
    lengths: dict[str, array[int]] = {}
    groups: Counter[str] = Counter()
    exchanges: Counter[int] = Counter()
    languages: Counter[str] = Counter()
    filled: Counter[str] = Counter()
    blank: Counter[str] = Counter()
    distinct: dict[str, set[int]] = {"prompts": set(), "answers": set(), "pairs": set()}
    sampled: tuple[list[str], list[str]] = [], []
    ngram_step, language_step = max(1, len(rows) // NGRAM_SAMPLE), max(1, len(rows) // LANGUAGE_SAMPLE)
    for index, row in enumerate(rows):
        _measure(lengths, row, count_tokens)
        groups[row.group] += 1
        exchanges[sum(turn.role == "assistant" for turn in row.turns)] += 1
        for name, value in row.fields.items():
            (filled if str(value).strip() else blank)[name] += 1
        prompt, answer = hash(prompt_key(row)), hash(normalize(row.answer))
        distinct["prompts"].add(prompt)
        distinct["answers"].add(answer)
        distinct["pairs"].add(hash((prompt, answer)))
        if index % ngram_step == 0:
            sampled[0].append(row.question)
            sampled[1].append(row.answer)
        if index % language_step == 0:
            languages[_language(row.answer)] += 1
    return {
        "rows": len(rows),
        "lengths": {name: distribution(values) for name, values in lengths.items()},
        "groups": dict(sorted(groups.items())),
        "exchanges": {str(number): count for number, count in sorted(exchanges.items())},
        "fields": {
            name: {"filled": filled[name], "blank": blank[name], "missing": len(rows) - filled[name] - blank[name]}
            for name in dict.fromkeys([*filled, *blank])
        },
        "languages": dict(languages.most_common()),
        "distinct": {name: len(members) for name, members in distinct.items()},
        "read": {"ngrams": len(sampled[0]), "languages": languages.total()},
        "prompt_ngrams": frequent_ngrams(sampled[0], 3, top),
        "answer_ngrams": frequent_ngrams(sampled[1], 3, top),
    }


def distribution(values: Iterable[int]) -> dict[str, Any]:
    """Minimum, 5 %, median, mean, 95 %, maximum, and a histogram of at most 30 bins (edges, counts)."""
    numbers = np.fromiter(values, dtype=np.int64)
    if not len(numbers):
        return {}
    low, middle, high = np.quantile(numbers, [0.05, 0.5, 0.95])
    bins = min(BINS, max(1, int(numbers.max() - numbers.min())))
    counts, edges = np.histogram(numbers, bins=bins)
    return {
        "min": int(numbers.min()),
        "p5": round(float(low), 1),
        "median": round(float(middle), 1),
        "mean": round(float(numbers.mean()), 1),
        "p95": round(float(high), 1),
        "max": int(numbers.max()),
        "edges": [round(float(edge), 2) for edge in edges],
        "counts": counts.tolist(),
    }


def frequent_ngrams(texts: Sequence[str], size: int, top: int) -> list[tuple[str, int]]:
    """The `top` most frequent word n-grams of `size`, counted once per text and not across lines: (words, texts)."""
    counts: Counter[str] = Counter()
    for text in texts:
        lines = [_WORD.findall(_NUMBER.sub("", line).casefold()) for line in text.splitlines()]
        counts.update({" ".join(words[i : i + size]) for words in lines for i in range(len(words) - size + 1)})
    return [item for item in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if item[1] > 1][:top]


def _measure(
    lengths: dict[str, array[int]], row: Conversation, count_tokens: Callable[[Conversation], int] | None
) -> None:
    for name, text in (("prompt", row.question), ("answer", row.answer)):
        lengths.setdefault(f"{name}_characters", array("q")).append(len(text))
        lengths.setdefault(f"{name}_words", array("q")).append(len(_WORD.findall(text)))
    if count_tokens:
        lengths.setdefault("tokens", array("q")).append(count_tokens(row))


def _language(text: str) -> str:
    language = Language.detect(text)
    if language is None:
        return "too short to tell"
    return language.code or ("Latin script, language not clear" if language.script == "Latin" else language.script)


Sink = Callable[[Finding], None]
REQUIRED_CHECKS = (NamedSetting("bad_answer", {}), NamedSetting("unlearnable", {}))


class NoRowsLeft(DataError):
    """The checks leave no row; `audit` has their findings, as the function `audit` returns them."""

    def __init__(self, what: str, *, where: str = "", next: str = "", audit: dict[str, Any] | None = None) -> None:
        """See TunesmithError."""
        super().__init__(what, where=where, next=next)
        self.audit = audit or {}


@dataclass(frozen=True)
class Prepared:
    """The rows of each part of the split, the quarantined rows, and the account for audit.json."""

    parts: Mapping[str, Table]
    quarantined: Table
    audit: dict[str, Any]


def audit(
    loaded: LoadedRows,
    checks: Sequence[NamedSetting],
    context: CheckContext,
    *,
    sink: Sink | None = None,
    processes: int = 1,
) -> tuple[RowDecisions, dict[str, Any]]:
    """Checks the rows without splitting or dropping any; returns the decisions and plain values for the page."""
    ledger = RowDecisions([check.name for check in checks if _scope(check) != "split"], sink)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as executor:  # profiles in this process while others check
        profile_future = executor.submit(profile, _Stoppable(loaded.rows, stop), context.count_tokens)
        try:
            ledger.add(
                run_checks(loaded.rows, _with_required(checks), context, scopes=("row", "table"), processes=processes)
            )
        except BaseException:  # also Ctrl-C: stop the profile
            stop.set()
            raise
    return ledger, {**_audit_counts(loaded, ledger), "profile": profile_future.result()}


def _audit_counts(loaded: LoadedRows, ledger: RowDecisions) -> dict[str, Any]:
    """The numbers of rows read and kept, and the findings."""
    return {
        "read": loaded.count,
        "unread": len(loaded.broken),
        "kept": sum(ledger.keeps(row.id) for row in loaded.rows),
        **_summary(ledger, loaded),
    }


def check_rows(
    loaded: LoadedRows,
    checks: Sequence[NamedSetting],
    context: CheckContext,
    *,
    sink: Sink | None = None,
    processes: int = 1,
) -> RowDecisions:
    """Runs the checks on rows and on the whole table. Rows that cannot be trained on are always found."""
    ledger = RowDecisions([check.name for check in checks], sink)
    scopes = ("row", "table")
    ledger.add(run_checks(loaded.rows, _with_required(checks), context, scopes=scopes, processes=processes))
    return ledger


def _with_required(checks: Sequence[NamedSetting]) -> list[NamedSetting]:
    """The checks and those that always run."""
    names = {check.name for check in checks}
    return [*checks, *(check for check in REQUIRED_CHECKS if check.name not in names)]


def drop_reasons(ledger: RowDecisions) -> str:
    """The checks that leave rows out and their numbers of rows, largest first."""
    reasons = ledger.counts("drop") | {f"{name} (quarantined)": n for name, n in ledger.counts("quarantine").items()}
    return ", ".join(f"{name} {count}" for name, count in sorted(reasons.items(), key=lambda item: -item[1]))


def prepare(
    loaded: LoadedRows, data: Data, seed: int, context: CheckContext, *, sink: Sink | None = None, processes: int = 1
) -> Prepared:
    """Checks the rows, drops or quarantines as proposed, splits the others, and accounts for every row."""
    rows = loaded.rows
    ledger = check_rows(loaded, data.checks, context, sink=sink, processes=processes)
    kept_rows = rows_kept(rows, ledger)
    if not len(kept_rows):
        raise NoRowsLeft(
            f"the checks leave no row of {loaded.count}: {drop_reasons(ledger)}",
            next="Read audit.html, or ask for fewer checks in data.checks",
            audit={**_audit_counts(loaded, ledger), "profile": profile(rows, context.count_tokens)},
        )
    kept_rows, sampled = split_rows(kept_rows, data, seed, context, ledger)
    quarantined = rows.take(index for index, row in enumerate(rows) if ledger.decision(row.id) == "quarantine")
    account = _account(loaded, kept_rows, sampled, quarantined, ledger)
    account |= {
        "leaks": overlap(sampled, together=data.split.together),
        "profile": profile(_joined_parts(sampled, rows), context.count_tokens),
    }
    return Prepared(sampled, quarantined, account)


def split_rows(
    kept_rows: Table, data: Data, seed: int, context: CheckContext, ledger: RowDecisions
) -> tuple[Table, dict[str, Table]]:
    """Splits rows that the checks kept; returns those that the checks of the split keep too, and each part's sample.

    Raises DataError if the rows cannot be split, no training row is left, or a part has fewer rows than
    `data.sample` asks for.
    """
    parts = split(kept_rows, seed=seed, **data.split.model_dump())
    ledger.add(run_checks(kept_rows, data.checks, replace(context, parts=parts), scopes=("split",)))
    kept_rows = rows_kept(kept_rows, ledger)
    names = [parts[row.id] for row in kept_rows]
    by_part = {part: kept_rows.take(index for index, name in enumerate(names) if name == part) for part in PARTS}
    if not len(by_part["train"]):
        raise DataError("every training row leaks into the test", next="Split by group, or remove repeated prompts")
    return kept_rows, {part: _sample(part_rows, data.sample, part, seed) for part, part_rows in by_part.items()}


class _Stoppable(Sequence[Conversation]):
    """Rows whose iteration ends when `stop` is set."""

    def __init__(self, rows: Table, stop: threading.Event) -> None:
        self._rows, self._stop = rows, stop

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Conversation]:
        return itertools.takewhile(lambda _: not self._stop.is_set(), self._rows)


def _scope(check: NamedSetting) -> str:
    return str(entry_constant(CHECKS, check.name, "SCOPE"))


def rows_kept(rows: Table, ledger: RowDecisions) -> Table:
    """Returns the rows that no check leaves out."""
    return rows.take(index for index, row in enumerate(rows) if ledger.keeps(row.id))


def _joined_parts(parts: Mapping[str, Table], rows: Table) -> Table:
    """The rows of all parts as one table."""
    return Table(rows.path, np.sort(np.concatenate([members.indices for members in parts.values()])))


def _sample(rows: Table, sample: Sample, part: str, seed: int) -> Table:
    """The number of rows that the recipe asks for, sampled by seed and content, in their original order."""
    count: int | None = getattr(sample, part)
    if count is None:
        return rows
    if len(rows) < count:
        raise DataError(
            f"data.sample.{part} asks for {count} rows, but the split has {len(rows)}",
            next="Ask for fewer, or change data.split",
        )
    order = [hashlib.sha256(f"{seed}/sample/{row.id}".encode()).digest() for row in rows]
    return rows.take(sorted(sorted(range(len(rows)), key=order.__getitem__)[:count]))


def _account(
    loaded: LoadedRows, kept_rows: Table, parts: Mapping[str, Table], quarantined: Table, ledger: RowDecisions
) -> dict[str, Any]:
    dropped = ledger.counts("drop")
    total = loaded.count
    if len(kept_rows) + len(quarantined) + sum(dropped.values()) != total:
        raise AssertionError(
            f"{total} rows came in: {len(kept_rows)} kept, {len(quarantined)} quarantined, {dropped} dropped"
        )
    return {
        "read": total,
        **_summary(ledger, loaded),
        "not_drawn": len(kept_rows) - sum(map(len, parts.values())),
        "parts": {part: len(members) for part, members in parts.items()},
        "groups": {part: sorted({row.group for row in members}) for part, members in parts.items()},
    }


def _summary(ledger: RowDecisions, loaded: LoadedRows) -> dict[str, Any]:
    """Findings, decisions, repairs and sources as plain values."""
    repairs = loaded.repairs
    repaired = {"rows": repairs.rows, "pseudonyms": repairs.pseudonym_count, "kinds": dict(repairs.kinds)}
    return {
        "dropped": ledger.counts("drop"),
        "quarantined": ledger.counts("quarantine"),
        "repaired": {**repaired, "examples": repairs.examples},
        "checks": ledger.describe(),
        "sources": loaded.sources,
        **loaded.account(),
    }
