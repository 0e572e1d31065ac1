"""Detects a table's format from many rows: which columns are the answer, the question and the group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from tunesmith.data.formats import DetectedFormat, detect_row_format, is_preference_pair
from tunesmith.data.messages import are_labels, label_column, message_list, uses_tools
from tunesmith.errors import DataError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The usual last words of column names. Among answers, a more certain name wins over a longer text.
ANSWERS = (
    _words("answer response completion output reply solution"),
    _words("letter quote line summary poem story essay caption headline slogan translation ref reference target"),
    _words("text content body document article description message review"),
)
QUESTIONS = _words("question prompt instruction query ask request input user problem")
CONTEXTS = _words("context background passage about me profile history situation notes facts mr")
GROUPS: tuple[str, ...] = (
    "topic",
    "intent",
    "category",
    "theme",
    "subject",
    "label",
    "class",
    "domain",
    "genre",
    "section",
)
GROUPS += ("department", "group", "cluster", "kind", "character")
LABELS = _words("intent label class cluster group")  # groups that are unknown until the answer is written
IDENTIFIERS = _words("id ids uid uuid guid hash index idx key")
ADDRESSES = _words("url urls uri link href path file filename")
ABOUT_ROWS = _words(
    "split fold partition subset score rating stars votes confidence license licence lang language timestamp created "
    "updated offset annotator worker version source label labels"
)
PARTS = _words("train training test valid validation val dev eval")

REPEATS_ANSWER = "a copy of the answer"
MARKS = "it labels good and bad answers: rows labeled bad are left out"
MIN_WORDS = 8  # words: a column of shorter texts is an answer only by its name
RIVAL_LENGTH = 2 / 3  # of the answer's length: a column this long might be the answer instead
REPEATED = 0.95  # of a group column's rows have a value that another row has too
FILLED = 0.98  # of the rows: a template with emptier columns would have gaps


def detect_format(rows: Sequence[Mapping[str, Any]]) -> DetectedFormat:
    """Detects the format of a table; about 200 rows from all over it are enough.

    If half of the rows show a known format (messages, Alpaca, a pair of columns), it is that one. Otherwise the names
    and contents of the columns decide which is the answer, the question or the fields, and the group. Raises DataError
    if nothing fits or most rows cannot be trained on.
    """
    if not rows:
        raise DataError("there are no rows", next="Check the file")
    table = _Columns(rows)
    known_format = _majority(rows)
    if known_format and known_format.name != "columns":
        return _known_format(known_format, table, rows)
    if known_format:
        prompt, answer_name = known_format.options["prompt"], known_format.options["answer"]
        why = f"the columns {prompt} and {answer_name} are a pair by their names"
        return _question_format(table, prompt, answer_name, why, {"answer": "named like an answer"})
    answer, reason, alternatives = _answer(table)
    inputs = [column for column in table.usable(answer.name) if column.name != answer.name]
    questions = [column for column in inputs if column.word in QUESTIONS]
    if questions:
        why = f"'{questions[0].name}' is named like a question, '{answer.name}' is the answer"
        return _question_format(table, questions[0].name, answer.name, why, {"answer": reason}, alternatives)
    return _field_format(table, answer, inputs, reason, alternatives)


@dataclass(frozen=True)
class Column:
    """A column of a table: its cells as text, '' if empty, and the types of its values."""

    name: str
    cells: tuple[str, ...]
    kinds: frozenset[str]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The words of its name in lower case: 'modelResponse' is model, response."""
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", self.name)
        return tuple(spaced.casefold().split())

    @property
    def word(self) -> str:
        """The last word of its name, in the singular if known: 'quotes' gives quote."""
        last = self.parts[-1] if self.parts else ""
        single = last.removesuffix("s")
        return single if any(single in words for words in (*ANSWERS, QUESTIONS, GROUPS)) else last

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The nonempty cells."""
        return tuple(cell for cell in self.cells if cell)

    @cached_property
    def counts(self) -> Counter[str]:
        """The number of rows with each value."""
        return Counter(self.values)

    @cached_property
    def words(self) -> float:
        """The median number of words; a text without spaces counts one word per 30 characters."""
        return median(max(len(value.split()), len(value) / 30) for value in self.values) if self.values else 0.0

    @property
    def filled(self) -> float:
        """The share of rows with a value."""
        return len(self.values) / len(self.cells)

    @property
    def is_text(self) -> bool:
        """Whether it holds texts other than numbers."""
        return self.kinds == {"text"} and not all(_is_number(value) for value in self.counts)


class _Columns:
    """The columns of a table, in order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        self.rows = len(rows)
        label = label_column(dict.fromkeys(names))
        self.label, self.labels = label, [row.get(label) for row in rows]
        self.all = {name: _column(name, [row.get(name) for row in rows]) for name in names}

    def usable(self, answer: str) -> list[Column]:
        """The columns with information about their row."""
        return [column for column in self.all.values() if not self.why_not(column, answer)]

    def why_not(self, column: Column, answer: str = "") -> str:
        """Why a column is not usable; '' if it may be."""
        if column.name == answer:
            return ""
        if column.name == self.label and are_labels(self.labels, "columns") and "bool" in column.kinds:
            return MARKS
        other_types = column.kinds - {"text", "number"}
        if other_types:
            return f"{' and '.join(sorted(other_types))} values, not text"
        if not column.values:
            return "always empty"
        if len(column.counts) == 1 and self.rows > 1:
            return f"always '{_short(column.values[0])}'" + (" or empty" if column.filled < 1 else "")
        is_unnamed = not column.parts or column.parts[0] == "unnamed"  # how pandas names the index column
        if (is_unnamed and not column.is_text) or column.word in IDENTIFIERS:
            return "only identifies rows"
        links = sum(value.startswith(("http://", "https://")) for value in column.values)
        if column.word in ADDRESSES or links > 0.8 * len(column.values):
            return "addresses"
        if column.word in ABOUT_ROWS or {value.casefold() for value in column.counts} <= PARTS:
            return "describes the row, not its content"
        return REPEATS_ANSWER if answer and self._repeats(column, self.all[answer]) else ""

    def _repeats(self, column: Column, answer: Column) -> bool:
        """Whether a column contains the answers; short answers are not judged, a passage may contain them."""
        pairs = [
            (answer_text, cell)
            for answer_text, cell in zip(answer.cells, column.cells, strict=True)
            if answer_text and cell
        ]
        if answer.words < MIN_WORDS or 2 * len(pairs) < len(answer.values):
            return False
        return sum(_letters(answer_text) in _letters(cell) for answer_text, cell in pairs) >= 0.8 * len(pairs)


def _column(name: str, cells: Sequence[Any]) -> Column:
    texts = tuple("" if cell is None else str(cell).strip() for cell in cells)
    return Column(name, texts, frozenset(_kind(cell) for cell in cells if cell is not None))


def _kind(cell: Any) -> str:
    if isinstance(cell, bool | bytes | dict | list):
        return type(cell).__name__
    return "number" if isinstance(cell, int | float) else "text"


def _majority(rows: Sequence[Mapping[str, Any]]) -> DetectedFormat | None:
    """The format that at least half the rows show. Raises DataError if at least half are preference pairs."""
    detected: list[DetectedFormat] = []
    refused: Counter[tuple[str, str]] = Counter()
    for row in rows:
        try:
            detected.append(detect_row_format(row))
        except DataError as error:
            if is_preference_pair(row):
                refused[error.what, error.next] += 1
    if 2 * refused.total() >= len(rows):
        raise _preference_error(refused, len(rows))
    counts = Counter((row_format.name, tuple(row_format.options.items())) for row_format in detected)
    [(format_key, count)] = counts.most_common(1) or [(("", ()), 0)]
    return next(
        (
            row_format
            for row_format in detected
            if (row_format.name, tuple(row_format.options.items())) == format_key and 2 * count >= len(rows)
        ),
        None,
    )


def _preference_error(refused: Counter[tuple[str, str]], rows: int) -> DataError:
    """The error for a table of preference pairs, with the number of rows of each form."""
    kinds = [f"{count} in which {message.partition(': ')[2]}" for (message, _), count in refused.most_common()]
    advice = " ".join(dict.fromkeys(f"{next}." for _, next in refused)) if len(refused) == 1 else ""
    return DataError(
        f"{refused.total()} of {rows} sampled rows are preference pairs: {'; '.join(kinds)}",
        next=advice.rstrip(".") or "Training on preference pairs is not supported here: give rows with one answer each",
    )


def _known_format(row_format: DetectedFormat, table: _Columns, rows: Sequence[Mapping[str, Any]]) -> DetectedFormat:
    """A format that single rows show, completed by the group and the unused columns."""
    default_columns = {
        "alpaca": ("instruction", "input", "output"),
        "chat": ("messages",),
        "sharegpt": ("conversations",),
    }
    used_columns = [row_format.options.get(name, name) for name in default_columns[row_format.name]]
    used_columns += [row_format.options["completion"]] if "completion" in row_format.options else []
    notes: tuple[str, ...] = ()
    if row_format.name in ("chat", "sharegpt"):
        tool_rows = sum(any(map(uses_tools, _messages(row, used_columns))) for row in rows)
        if tool_rows == len(rows):
            advice = "Training on tool calls is not supported; give rows of plain conversation"
            raise DataError(f"all {tool_rows} sampled rows are tool calls", next=advice)
        notes = (f"{tool_rows} of {len(rows)} rows are tool calls, which cannot be trained on",) if tool_rows else ()
    group, reason, other_groups = _group(table, used_columns, name_only=True, format="chat")
    options = {**row_format.options, **({"group": group.name} if group else {})}
    reasons = {"group": reason} if group else {}
    unused = _unused_columns(
        table, [*used_columns, *([group.name] if group else [])], used_columns[-1], "not part of this format"
    )
    return DetectedFormat(row_format.name, options, row_format.why, reasons, unused, (*notes, *other_groups))


def _messages(row: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    return [message for name in columns for message in message_list(row.get(name)) or ()]


def _answer(table: _Columns) -> tuple[Column, str, tuple[str, ...]]:
    """The answer column, why, and notes on other candidates. Raises DataError if there is none."""
    candidates = [
        column
        for column in table.all.values()
        if not table.why_not(column) and column.filled > 0.5 and column.word not in QUESTIONS
    ]
    certain = [column for column in candidates if column.word in ANSWERS[0]]
    candidates = [column for column in candidates if column.is_text]
    for words in ANSWERS:
        matching = certain or [c for c in candidates if c.word in words and c.words >= MIN_WORDS / 2 and _varies(c)]
        if matching:
            best = max(matching, key=lambda column: column.words)
            return best, f"named like an answer; {_describe(best)}", _other_candidates(best, candidates)
    long_columns = [
        column for column in candidates if column.words >= MIN_WORDS and column.word not in CONTEXTS and _varies(column)
    ]
    if not long_columns:
        has = ", ".join(map(_short, table.all)) or "nothing"
        raise DataError(
            f"no column has texts that could be answers. It has: {has}",
            next="Write data.format yourself, such as {columns: {prompt: …, answer: …}}",
        )
    best = max(long_columns, key=lambda column: column.words)
    return best, f"the longest texts; {_describe(best)}", _other_candidates(best, candidates)


def _varies(column: Column) -> bool:
    return len(column.counts) >= 0.3 * len(column.values)


def _other_candidates(answer: Column, candidates: Sequence[Column]) -> tuple[str, ...]:
    similar = [
        c
        for c in candidates
        if c is not answer and c.words >= max(MIN_WORDS, RIVAL_LENGTH * answer.words) and _varies(c)
    ]
    return tuple(f"'{_short(c.name)}' might be the answer instead: {_describe(c)}" for c in similar)


def _question_format(
    table: _Columns,
    prompt: str,
    answer: str,
    why: str,
    reasons: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> DetectedFormat:
    """A question, its answer, and the columns that the question is about."""
    group, reason, other_groups = _group(table, [prompt, answer], name_only=False, format="columns")
    group_name = group.name if group else ""
    contexts = [
        column
        for column in table.usable(answer)
        if column.name not in (prompt, answer, group_name) and column.is_text and _is_context(column)
    ]
    option_reasons = {**reasons, **({"group": reason} if group else {})}
    prompt_columns = [*(column.name for column in contexts), prompt]
    notes = (*notes, *other_groups)
    group_option = {"group": group_name} if group else {}
    unused = _unused_columns(
        table, [*prompt_columns, answer, group_name], answer, "too short or too similar to be part of the question"
    )
    if not contexts:
        option_reasons["prompt"] = "the question"
        return DetectedFormat(
            "columns", {"prompt": prompt, "answer": answer, **group_option}, why, option_reasons, unused, notes
        )
    names = _name_list([column.name for column in contexts])
    why = f"{why}; {names} {'is' if len(contexts) == 1 else 'are'} its context"
    all_filled = all(table.all[name].filled >= FILLED for name in prompt_columns)
    if all_filled and not any(mark in name for name in prompt_columns for mark in "{}:!["):
        template = "\n\n".join(f"{{{name}}}" for name in prompt_columns)
        option_reasons["prompt"] = "the context, then the question"
        return DetectedFormat(
            "columns", {"prompt": template, "answer": answer, **group_option}, why, option_reasons, unused, notes
        )
    option_reasons["fields"] = "an empty field is omitted from the row's prompt"
    return DetectedFormat(
        "fields", {"fields": prompt_columns, "answer": answer, **group_option}, why, option_reasons, unused, notes
    )


def _is_context(column: Column) -> bool:
    """Whether a column beside a question is context: by its name or length, and with many different values."""
    has_context_name = bool(CONTEXTS.intersection(column.parts))
    return (has_context_name or column.words >= 4) and len(column.counts) > 0.1 * len(column.values)


def _field_format(
    table: _Columns, answer: Column, inputs: Sequence[Column], reason: str, notes: tuple[str, ...]
) -> DetectedFormat:
    """An answer without a question: written from one text, from several fields, or standalone."""
    group, group_reason, other_groups = _group(table, [answer.name], name_only=len(inputs) != 1, format="fields")
    notes = (*notes, *other_groups)
    options = {"group": group.name} if group else {}
    option_reasons = {"answer": reason, **({"group": group_reason} if group else {})}
    fields = [c for c in inputs if group is None or c.name != group.name or (len(inputs) > 2 and c.word not in LABELS)]
    unused = _unused_columns(table, [answer.name, *(c.name for c in inputs)], answer.name, "not needed")
    if not fields:
        option_reasons["line"] = option_reasons.pop("answer")
        option_reasons["ask"] = "no column is a question: replace these with what users would say"
        asks = ["Say something.", "What do you think?", "Go on."]
        why = f"'{answer.name}' is the only text, so its rows are standalone lines"
        return DetectedFormat(
            "lines", {"line": answer.name, "ask": asks, **options}, why, option_reasons, unused, notes
        )
    if len(fields) == 1 and fields[0].is_text and (fields[0].words >= 3 or fields[0].word in CONTEXTS):
        option_reasons["prompt"] = f"the only other text; {_describe(fields[0])}"
        why = f"'{answer.name}' is written from '{fields[0].name}'"
        return DetectedFormat(
            "columns", {"prompt": fields[0].name, "answer": answer.name, **options}, why, option_reasons, unused, notes
        )
    names = [column.name for column in fields]
    option_reasons["fields"] = f"{len(names)} short column{'s' if len(names) > 1 else ''} that differ from row to row"
    option_reasons["instruction"] = "precedes the fields of each row: say what to write"
    noun = " ".join(answer.parts) or "text"
    format_options = {
        "fields": names,
        "answer": answer.name,
        "instruction": f"Write the {noun} from these fields.",
        **options,
    }
    why = (
        f"'{_short(answer.name)}' is written from {_name_list(names)}"
        if len(names) < 3
        else f"'{_short(answer.name)}' is written from {len(names)} other columns"
    )
    return DetectedFormat("fields", format_options, why, option_reasons, unused, notes)


def _group(
    table: _Columns, used_columns: Sequence[str], *, name_only: bool, format: str
) -> tuple[Column | None, str, tuple[str, ...]]:
    """The column that groups the rows, why, and notes on other candidates; with `name_only` its name must say so."""
    excluded = {*used_columns, *([table.label] if are_labels(table.labels, format) else [])}
    candidates = [column for column in table.all.values() if column.name not in excluded and _is_group(column)]
    by_name = sorted((c for c in candidates if c.word in GROUPS), key=lambda column: GROUPS.index(column.word))
    by_values = [c for c in candidates if c.is_text and c.word not in GROUPS and c.words <= 2 and not table.why_not(c)]
    best = by_name or ([] if name_only else sorted(by_values, key=lambda column: -len(column.counts)))
    if not best:
        return None, "", ()
    source = "named like a group" if by_name else "few values, each in many rows"
    alternatives = tuple(f"'{_short(c.name)}' ({len(c.counts)} values) could group the rows too" for c in by_name[1:])
    return best[0], f"{source}; {len(best[0].counts)} values in {len(best[0].cells)} rows", alternatives


def _is_group(column: Column) -> bool:
    """Whether a column is filled in every row and has few values, each in several rows."""
    single_values = sum(count == 1 for count in column.counts.values())
    few_values = 2 <= len(column.counts) <= len(column.cells) / 4 and column.words <= 4
    return (
        few_values
        and column.filled == 1
        and single_values <= (1 - REPEATED) * len(column.cells)
        and column.kinds <= {"text", "number"}
    )


def _unused_columns(table: _Columns, used_columns: Sequence[str], answer: str, default_reason: str) -> dict[str, str]:
    """The unused columns, each with the reason."""
    return {
        column.name: table.why_not(column, answer) or default_reason
        for column in table.all.values()
        if column.name not in used_columns
    }


def _describe(column: Column) -> str:
    return f"median {column.words:.0f} words, {len(column.counts)} different in {len(column.values)} rows"


def _name_list(names: Sequence[str]) -> str:
    quoted = [f"'{_short(name)}'" for name in names[:4]]
    remainder = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (
        ", ".join(quoted) + remainder if remainder or len(quoted) < 2 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
    )


def _short(text: str) -> str:
    """The text on one line, cut to 40 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:37]}…"


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[\d.,]+%?", text))
