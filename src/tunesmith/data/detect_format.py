"""What a table's format is, judged by many of its rows: which column is the answer, what is asked, what is a group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from tunesmith.data.detect_row import Recognised, is_preference_pair, recognise
from tunesmith.data.labels import are_marks, label_column
from tunesmith.data.messages import message_list, uses_tools
from tunesmith.errors import DataError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The last word of a column's name, as people call such columns. Of answers a surer name goes before a longer text.
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
LABELS = _words("intent label class cluster group")  # groups that nobody knows before the answer is written
IDENTIFIERS = _words("id ids uid uuid guid hash index idx key")
ADDRESSES = _words("url urls uri link href path file filename")
ABOUT_ROWS = _words(
    "split fold partition subset score rating stars votes confidence license licence lang language timestamp created "
    "updated offset annotator worker version source label labels"
)
PARTS = _words("train training test valid validation val dev eval")

REPEATS = "a copy of the answer"
MARKS = "it marks good and bad answers: rows marked bad are left out"
LONG = 8  # words: a column of shorter texts is no answer unless its name says so
NEAR = 2 / 3  # of the answer's length: a column so long might have been the answer
REPEATED = 0.95  # of a group column's rows have a value that another row has too
FILLED = 0.98  # of the rows: a template with emptier columns would leave holes


def guess(rows: Sequence[Mapping[str, Any]]) -> Recognised:
    """The format of a table by its rows: some 200, drawn from all over it, tell enough.

    A kind that most rows show by themselves (messages, Alpaca, a known pair) is taken; otherwise the columns are judged
    by their names and contents: the answer, what is asked or the fields it is written from, and a group.
    Raises DataError when nothing fits, or when most rows are of a kind that cannot be learnt.
    """
    if not rows:
        raise DataError("there are no rows", next="Check the file")
    table = _Columns(rows)
    known = _majority(rows)
    if known and known.name != "columns":
        return _of_kind(known, table, rows)
    if known:
        why = f"the columns {known.options['prompt']} and {known.options['answer']} are a pair by their names"
        return _asked(table, known.options["prompt"], known.options["answer"], why, {"answer": "named like an answer"})
    answer, reason, near = _answer(table)
    inputs = [column for column in table.usable(answer.name) if column.name != answer.name]
    asked = [column for column in inputs if column.word in QUESTIONS]
    if asked:
        why = f"'{asked[0].name}' is named like a question, '{answer.name}' holds the answer"
        return _asked(table, asked[0].name, answer.name, why, {"answer": reason}, near)
    return _written(table, answer, inputs, reason, near)


@dataclass(frozen=True)
class Column:
    """A table's column: its cells as texts, '' where there is nothing, and the kinds of value in it."""

    name: str
    cells: tuple[str, ...]
    kinds: frozenset[str]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The words of its name, in small letters: 'modelResponse' is model, response."""
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", self.name)
        return tuple(spaced.casefold().split())

    @property
    def word(self) -> str:
        """The last word of its name, which mostly says what it is; of 'quotes' it is quote."""
        last = self.parts[-1] if self.parts else ""
        single = last.removesuffix("s")
        return single if any(single in words for words in (*ANSWERS, QUESTIONS, GROUPS)) else last

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The cells that hold something."""
        return tuple(cell for cell in self.cells if cell)

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value stands."""
        return Counter(self.values)

    @cached_property
    def words(self) -> float:
        """The median value's number of words; a text without spaces counts a word for six characters."""
        return median(max(len(value.split()), len(value) / 30) for value in self.values) if self.values else 0.0

    @property
    def filled(self) -> float:
        """The share of rows that hold something."""
        return len(self.values) / len(self.cells)

    @property
    def is_text(self) -> bool:
        """Whether it holds texts that are no numbers."""
        return self.kinds == {"text"} and not all(_is_number(value) for value in self.counts)


class _Columns:
    """The columns of a table, in its order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        self.rows = len(rows)
        label = label_column(dict.fromkeys(names))
        self.label, self.labels = label, [row.get(label) for row in rows]
        self.all = {name: _column(name, [row.get(name) for row in rows]) for name in names}

    def usable(self, answer: str) -> list[Column]:
        """Those that say something about their row."""
        return [column for column in self.all.values() if not self.why_not(column, answer)]

    def why_not(self, column: Column, answer: str = "") -> str:
        """Why a column is no use; '' for one that may be."""
        if column.name == answer:
            return ""
        if column.name == self.label and are_marks(self.labels, "columns") and "bool" in column.kinds:
            return MARKS
        strange = column.kinds - {"text", "number"}
        if strange:
            return f"of type {' and '.join(sorted(strange))}, not text"
        if not column.values:
            return "always empty"
        if len(column.counts) == 1 and self.rows > 1:
            return f"always '{_short(column.values[0])}'" + (" or empty" if column.filled < 1 else "")
        unnamed = not column.parts or column.parts[0] == "unnamed"  # as tables name the column of row numbers
        if (unnamed and not column.is_text) or column.word in IDENTIFIERS:
            return "only to tell rows apart"
        links = sum(value.startswith(("http://", "https://")) for value in column.values)
        if column.word in ADDRESSES or links > 0.8 * len(column.values):
            return "addresses"
        if column.word in ABOUT_ROWS or {value.casefold() for value in column.counts} <= PARTS:
            return "about the row, not what to write"
        return REPEATS if answer and self._repeats(column, self.all[answer]) else ""

    def _repeats(self, column: Column, answer: Column) -> bool:
        """Whether a column holds the answers; a short answer may well be found in a passage."""
        pairs = [(one, two) for one, two in zip(answer.cells, column.cells, strict=True) if one and two]
        if answer.words < LONG or 2 * len(pairs) < len(answer.values):
            return False
        return sum(_letters(one) in _letters(two) for one, two in pairs) >= 0.8 * len(pairs)


def _column(name: str, cells: Sequence[Any]) -> Column:
    texts = tuple("" if cell is None else str(cell).strip() for cell in cells)
    return Column(name, texts, frozenset(_kind(cell) for cell in cells if cell is not None))


def _kind(cell: Any) -> str:
    if isinstance(cell, bool | bytes | dict | list):
        return type(cell).__name__
    return "number" if isinstance(cell, int | float) else "text"


def _majority(rows: Sequence[Mapping[str, Any]]) -> Recognised | None:
    """The kind that at least half the rows show. Raises DataError when at least half are preference pairs."""
    found: list[Recognised] = []
    refused: Counter[tuple[str, str]] = Counter()
    for row in rows:
        try:
            found.append(recognise(row))
        except DataError as error:
            if is_preference_pair(row):
                refused[error.what, error.next] += 1
    if 2 * refused.total() >= len(rows):
        raise _preferences(refused, len(rows))
    counts = Counter((each.name, tuple(each.options.items())) for each in found)
    [(kind, times)] = counts.most_common(1) or [(("", ()), 0)]
    return next(
        (each for each in found if (each.name, tuple(each.options.items())) == kind and 2 * times >= len(rows)), None
    )


def _preferences(refused: Counter[tuple[str, str]], rows: int) -> DataError:
    """The refusal of a table of preference pairs, each form with its number of rows."""
    kinds = [f"{count} in which {what.partition(': ')[2]}" for (what, _), count in refused.most_common()]
    advice = " ".join(dict.fromkeys(f"{next}." for _, next in refused)) if len(refused) == 1 else ""
    return DataError(
        f"{refused.total()} of {rows} rows looked at are preference pairs: {'; '.join(kinds)}",
        next=advice.rstrip(".") or "Preferences cannot be learned here: give rows with one answer each",
    )


def _of_kind(known: Recognised, table: _Columns, rows: Sequence[Mapping[str, Any]]) -> Recognised:
    """A kind that a row shows by itself, with a group, and what is left out."""
    used = {"alpaca": ("instruction", "input", "output"), "chat": ("messages",), "sharegpt": ("conversations",)}
    taken = [known.options.get(name, name) for name in used[known.name]]
    taken += [known.options["completion"]] if "completion" in known.options else []
    near: tuple[str, ...] = ()
    if known.name in ("chat", "sharegpt"):
        calls = sum(any(map(uses_tools, _messages(row, taken))) for row in rows)
        if calls == len(rows):
            advice = "Tool use cannot be learned yet; give rows of plain conversation"
            raise DataError(f"all {calls} rows looked at are tool calls", next=advice)
        near = (f"{calls} of {len(rows)} rows are tool calls, which cannot be learned",) if calls else ()
    group, reason, coarser = _group(table, taken, named=True, format="chat")
    options = {**known.options, **({"group": group.name} if group else {})}
    reasons = {"group": reason} if group else {}
    left = _left(table, [*taken, *([group.name] if group else [])], taken[-1], "not part of this format")
    return Recognised(known.name, options, known.why, reasons, left, (*near, *coarser))


def _messages(row: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    return [message for name in columns for message in message_list(row.get(name)) or ()]


def _answer(table: _Columns) -> tuple[Column, str, tuple[str, ...]]:
    """The column to be learnt, why, and others that might be meant. Raises DataError when there is none."""
    able = [
        column
        for column in table.all.values()
        if not table.why_not(column) and column.filled > 0.5 and column.word not in QUESTIONS
    ]
    sure = [column for column in able if column.word in ANSWERS[0]]
    able = [column for column in able if column.is_text]
    for words in ANSWERS:
        named = sure or [c for c in able if c.word in words and c.words >= LONG / 2 and _varies(c)]
        if named:
            best = max(named, key=lambda column: column.words)
            return best, f"named like an answer; {_told(best)}", _rivals(best, able)
    long = [column for column in able if column.words >= LONG and column.word not in CONTEXTS and _varies(column)]
    if not long:
        has = ", ".join(map(_short, table.all)) or "nothing"
        raise DataError(
            f"no column holds texts that could be learnt. It has: {has}",
            next="Write data.format yourself, such as {columns: {prompt: …, answer: …}}",
        )
    best = max(long, key=lambda column: column.words)
    return best, f"the longest texts; {_told(best)}", _rivals(best, able)


def _varies(column: Column) -> bool:
    return len(column.counts) >= 0.3 * len(column.values)


def _rivals(best: Column, able: Sequence[Column]) -> tuple[str, ...]:
    near = [c for c in able if c is not best and c.words >= max(LONG, NEAR * best.words) and _varies(c)]
    return tuple(f"'{_short(c.name)}' might be the answer too: {_told(c)}" for c in near)


def _asked(
    table: _Columns,
    prompt: str,
    answer: str,
    why: str,
    reasons: Mapping[str, str],
    near: tuple[str, ...] = (),
) -> Recognised:
    """A question, its answer, and the columns without which the question cannot be answered."""
    group, reason, coarser = _group(table, [prompt, answer], named=False, format="columns")
    own = group.name if group else ""
    contexts = [
        column
        for column in table.usable(answer)
        if column.name not in (prompt, answer, own) and column.is_text and _is_context(column)
    ]
    told = {**reasons, **({"group": reason} if group else {})}
    taken = [*(column.name for column in contexts), prompt]
    near = (*near, *coarser)
    grouped = {"group": own} if group else {}
    left = _left(table, [*taken, answer, own], answer, "too short or too alike to be part of the question")
    if not contexts:
        told["prompt"] = "what is asked"
        return Recognised("columns", {"prompt": prompt, "answer": answer, **grouped}, why, told, left, near)
    names = _list([column.name for column in contexts])
    why = f"{why}; {names} {'says' if len(contexts) == 1 else 'say'} what it is about"
    whole = all(table.all[name].filled >= FILLED for name in taken)
    if whole and not any(mark in name for name in taken for mark in "{}:!["):
        template = "\n\n".join(f"{{{name}}}" for name in taken)
        told["prompt"] = "the question last, what it is about before it"
        return Recognised("columns", {"prompt": template, "answer": answer, **grouped}, why, told, left, near)
    told["fields"] = "a field that is empty in a row is left out of its prompt"
    return Recognised("fields", {"fields": taken, "answer": answer, **grouped}, why, told, left, near)


def _is_context(column: Column) -> bool:
    """Whether a column beside a question is text of its own: named so, or longer than a label, and not a few values."""
    named = bool(CONTEXTS.intersection(column.parts))
    return (named or column.words >= 4) and len(column.counts) > 0.1 * len(column.values)


def _written(
    table: _Columns, answer: Column, inputs: Sequence[Column], reason: str, near: tuple[str, ...]
) -> Recognised:
    """An answer without a question: written from one text, from several fields, or said on its own."""
    group, grouped_by, coarser = _group(table, [answer.name], named=len(inputs) != 1, format="fields")
    near = (*near, *coarser)
    options = {"group": group.name} if group else {}
    told = {"answer": reason, **({"group": grouped_by} if group else {})}
    fields = [c for c in inputs if group is None or c.name != group.name or (len(inputs) > 2 and c.word not in LABELS)]
    left = _left(table, [answer.name, *(c.name for c in inputs)], answer.name, "not needed")
    if not fields:
        told["line"] = told.pop("answer")
        told["ask"] = "no column asks: replace these with what users would say"
        asks = ["Say something.", "What do you think?", "Go on."]
        why = f"'{answer.name}' is the only text, so its rows are lines that stand alone"
        return Recognised("lines", {"line": answer.name, "ask": asks, **options}, why, told, left, near)
    if len(fields) == 1 and fields[0].is_text and (fields[0].words >= 3 or fields[0].word in CONTEXTS):
        told["prompt"] = f"the only other text; {_told(fields[0])}"
        why = f"'{answer.name}' is written from '{fields[0].name}'"
        return Recognised(
            "columns", {"prompt": fields[0].name, "answer": answer.name, **options}, why, told, left, near
        )
    names = [column.name for column in fields]
    told["fields"] = f"{len(names)} short column{'s' if len(names) > 1 else ''} that differ from row to row"
    told["instruction"] = "stands before each row's fields: say what is wanted"
    noun = " ".join(answer.parts) or "text"
    given = {"fields": names, "answer": answer.name, "instruction": f"Write the {noun} from these fields.", **options}
    why = (
        f"'{_short(answer.name)}' is written from {_list(names)}"
        if len(names) < 3
        else f"'{_short(answer.name)}' is written from {len(names)} other columns"
    )
    return Recognised("fields", given, why, told, left, near)


def _group(
    table: _Columns, taken: Sequence[str], *, named: bool, format: str
) -> tuple[Column | None, str, tuple[str, ...]]:
    """The column that sorts the rows into groups, why, and others that could. `named`: its name must say so."""
    used = {*taken, *([table.label] if are_marks(table.labels, format) else [])}
    able = [column for column in table.all.values() if column.name not in used and _sorts(column)]
    telling = sorted((c for c in able if c.word in GROUPS), key=lambda column: GROUPS.index(column.word))
    plain = [c for c in able if c.is_text and c.word not in GROUPS and c.words <= 2 and not table.why_not(c)]
    found = telling or ([] if named else sorted(plain, key=lambda column: -len(column.counts)))
    if not found:
        return None, "", ()
    how = "named like a group" if telling else "few values, each in many rows"
    near = tuple(f"'{_short(c.name)}' ({len(c.counts)} values) would group the rows too" for c in telling[1:])
    return found[0], f"{how}; {len(found[0].counts)} values in {len(found[0].cells)} rows", near


def _sorts(column: Column) -> bool:
    """Whether a column has few values, each in several rows, and one in every row."""
    alone = sum(times == 1 for times in column.counts.values())
    few = 2 <= len(column.counts) <= len(column.cells) / 4 and column.words <= 4
    return (
        few
        and column.filled == 1
        and alone <= (1 - REPEATED) * len(column.cells)
        and column.kinds <= {"text", "number"}
    )


def _left(table: _Columns, taken: Sequence[str], answer: str, otherwise: str) -> dict[str, str]:
    """The columns that are not used, each with the reason."""
    return {
        column.name: table.why_not(column, answer) or otherwise
        for column in table.all.values()
        if column.name not in taken
    }


def _told(column: Column) -> str:
    return f"median {column.words:.0f} words, {len(column.counts)} different in {len(column.values)} rows"


def _list(names: Sequence[str]) -> str:
    quoted = [f"'{_short(name)}'" for name in names[:4]]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(quoted) + more if more or len(quoted) < 2 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _short(text: str) -> str:
    """A text on one line, of at most 40 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:37]}…"


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[\d.,]+%?", text))
