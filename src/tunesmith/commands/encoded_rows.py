"""Tokenizes rows for check and prepare: lengths, rows that cannot be trained on, and settings that keep rows."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext
from tunesmith.data.load import LoadedRows
from tunesmith.errors import DataError, ModelError, TunesmithError
from tunesmith.evaluation.comparison import plural

if TYPE_CHECKING:
    from tunesmith.prompt.template import Template


ROUND = 64  # tokens: suggested limits are multiples of it


@dataclass
class RowEncoder:
    """Tokenizes each row once; keeps its length, or why it cannot be trained on."""

    template: Template
    recipe: Recipe
    lengths: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    faulty: dict[str, DataError] = field(default_factory=dict)  # rows whose text must be changed
    answers: dict[str, int] = field(default_factory=dict)  # answers with loss
    expanded: dict[str, int] = field(default_factory=dict)  # rows that a conversation is split into, if more than one
    highest: int = -1  # highest token id in the rows

    def length(self, row: Conversation) -> int:
        """Returns the row's length in tokens; of the longest part if the row is split into several."""
        if row.id not in self.lengths:
            self.lengths[row.id] = self._measure(row)
        return self.lengths[row.id]

    def refusal(self, row: Conversation) -> str:
        """Returns why the row cannot be trained on with this template, or ''."""
        self.length(row)
        return self.refusals.get(row.id, "")

    def _measure(self, row: Conversation) -> int:
        from tunesmith.prompt.tokens import SpecialTokenError, count_tokens, encode_expanded

        prompt = self.recipe.prompt
        try:
            examples = [example for _, example in encode_expanded(row, self.template, prompt.learn, prompt.expand)]
        except SpecialTokenError as error:
            self.faulty[row.id] = error
        except DataError as error:
            self.refusals[row.id] = f"{error.what}. {error.next}"
        except ModelError as error:
            self.template.plain_answer  # noqa: B018  (raises if no row can be trained on: then the template is wrong)
            self.refusals[row.id] = f"{error.what}. {error.next}"
        else:
            self.answers[row.id] = sum(example.answers for example in examples)
            self.highest = max(self.highest, *(max(example.ids) for example in examples))
            if len(examples) > 1:
                self.expanded[row.id] = len(examples)
            return max(map(len, examples))
        with contextlib.suppress(TunesmithError):
            return count_tokens(row, self.template)
        return 0


def check_context(encoder: RowEncoder, loaded: LoadedRows, recipe: Recipe) -> CheckContext:
    """Returns what the checks need to know about the loaded rows."""
    return CheckContext(
        encoder.length,
        recipe.prompt.max_tokens,
        {},
        loaded.broken,
        loaded.left_out,
        specials=encoder.template.specials,
        refusal=encoder.refusal,
    )


def keep_advice(reasons: dict[str, int], lengths: Sequence[int], recipe: Recipe, encoder: RowEncoder) -> str:
    """Returns the settings that keep the dropped rows, the most frequent reason first."""
    sentences = []
    for name, _ in sorted(reasons.items(), key=lambda item: -item[1]):
        if name == "too_long":
            sentences.append(_limits(lengths, recipe.prompt.max_tokens))
        elif name == "unlearnable":
            why = Counter(encoder.refusals.values()).most_common()
            listed = "; ".join(f"{count} × {reason}" if len(why) > 1 else reason for reason, count in why)
            sentences.append(f"'unlearnable' means: {listed}")
        elif name == "broken":
            sentences.append("'broken' rows do not match data.format")
        elif name == "bad_answer":
            sentences.append(
                "'bad_answer' rows have a label for bad answers; rename the column if it means something else"
            )
        else:
            sentences.append(f"To keep the rows of '{name}', write {{{name}: {{do: keep}}}} in data.checks")
    return ". ".join(text[:1].upper() + text[1:] for text in sentences)


def _limits(lengths: Sequence[int], limit: int) -> str:
    """Returns the values of prompt.max_tokens that keep 95 % of the rows and all of them."""
    ascending = sorted(lengths)
    most = ascending[max(0, -(-95 * len(ascending) // 100) - 1)]
    nearly, every = (-(-length // ROUND) * ROUND for length in (most, ascending[-1]))
    options = f"prompt.max_tokens: {every} keeps all of them"
    if limit < nearly < every:
        options = f"prompt.max_tokens: {nearly} keeps 95 % of the rows, {options}"
    return f"the limit is {limit} tokens and the longest row has {ascending[-1]}; {options}"


def special_token_errors(encoder: RowEncoder, row_ids: Iterable[str]) -> list[TunesmithError]:
    """Returns errors for the rows (by id) that contain a special token of the model."""
    errors = [encoder.faulty[row] for row in row_ids if row in encoder.faulty] if encoder.faulty else []
    if not errors:
        return []
    advice = "Change their text, or add special_token to data.checks"
    return [*errors[:20], DataError(f"{len(errors)} rows cannot be trained on", next=advice)]


def describe_expanded(counts: Iterable[int], source: str) -> str:
    """Says how many conversations become how many rows; `source` names the chat template."""
    sizes = list(counts)
    become = "conversation becomes" if len(sizes) == 1 else "conversations become"
    return (
        f"{len(sizes)} {become} {sum(sizes)} rows, one for each answer, because the chat template "
        f"({source}) renders an earlier answer differently from the last one"
    )


def count_reasoning(rows: Iterable[Conversation]) -> int:
    """Returns the number of rows with reasoning."""
    return sum(any(turn.reasoning for turn in row.turns) for row in rows)


def reasoning_hints(template: Template, reasoned: int) -> list[str]:
    """Returns hints about reasoning in the rows, of which `reasoned` have some."""
    from tunesmith.prompt.template import OPEN_THOUGHT

    if reasoned and template.reasoning == "drop":
        rows = f"{reasoned:,} {plural('row', reasoned)}"
        return [f"the reasoning of {rows} is dropped, because prompt.reasoning is drop"]
    if not reasoned and OPEN_THOUGHT.search(template.plain_answer.prompt):
        hint = "the generation prompt opens a thought, but no row has reasoning: the model learns an empty thought"
        has_switch = "enable_thinking" in template.text
        return [f"{hint}{' (prompt.template_options: {enable_thinking: false} prevents it)' * has_switch}"]
    return []
