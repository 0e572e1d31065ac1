"""Tokenizes conversations with a loss mask that covers each answer and its end-of-turn token."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.template import RenderedAnswer, Template, unknown_token

Learn = Literal["answer", "everything"]
Expand = Literal["auto", "never"]


class RewrittenTurnError(DataError):
    """The template writes an earlier answer differently if another turn follows."""


class SpecialTokenError(DataError):
    """A row's text contains a special token of the model; only an edit of the row repairs that."""


@dataclass(frozen=True)
class Example:
    """One tokenized conversation: `ids`, and the loss mask `loss_mask` of the same length.

    `row_mask` is the loss mask without the template's opening of an answer (a header, an empty thought). `stop` is the
    end-of-turn token of the last answer, `answers` the number of answers.
    """

    row: str
    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    stop: int
    row_mask: tuple[bool, ...] = ()
    answers: int = 1

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> Example:
        """The example with loss on the row's own tokens only."""
        return replace(self, loss_mask=self.row_mask) if self.row_mask else self


@dataclass(frozen=True)
class _Span:
    """Token range of one answer: `start` after the generation prompt, `text` where the row's text starts, `end`."""

    start: int
    text: int
    end: int


def encode(row: Conversation, template: Template, learn: Learn = "answer") -> Example:
    """Tokenizes the conversation, with loss on each answer whose turn has `learn` and on its end-of-turn token.

    Turns after the last such answer are left out. Each answer is checked: the tokens with loss contain its whole text
    and end with the first special token after it. Raises DataError for a row that cannot be trained on
    (RewrittenTurnError where `expand` helps), ModelError for a template under which no row can.
    """
    try:
        return _encode(row, template, learn)
    except DataError as error:
        raise type(error)(error.what, where=error.where or str(row.origin), next=error.next) from error


def expand(row: Conversation, template: Template, mode: Expand = "auto") -> list[Conversation]:
    """Returns the row, or one row per answer if the template rewrites earlier turns.

    In these only the last answer carries loss; group and origin are the row's. Raises what `encode` raises.
    """
    return [part for part, _ in encode_expanded(row, template, "answer", mode)]


def encode_expanded(
    row: Conversation, template: Template, learn: Learn, mode: Expand
) -> list[tuple[Conversation, Example]]:
    """Returns the rows of `expand` with their tokens. Raises what `encode` raises."""
    try:
        return [(row, encode(row, template, learn))]
    except RewrittenTurnError:
        if mode == "never":
            raise
    return [(part, encode(part, template, learn)) for part in split_answers(row)]


def split_answers(row: Conversation) -> list[Conversation]:
    """Returns one row per answer with loss, in which earlier answers are context only."""
    rows = []
    for number, index in enumerate(_trained_turns(row), start=1):
        context = [replace(turn, learn=False) if turn.role == "assistant" else turn for turn in row.turns[:index]]
        rows.append(replace(row, id=f"{row.id}.{number}", turns=(*context, row.turns[index])))
    return rows


def encode_prompt(turns: Sequence[Turn], template: Template) -> list[int]:
    """Returns the tokens up to where the assistant's answer begins."""
    text = template.render(turns, generate=True)
    return list(template.tokenizer(text, add_special_tokens=False)["input_ids"])


def count_tokens(row: Conversation, template: Template) -> int:
    """Returns the number of tokens of the rendered conversation, without the checks of `encode`.

    It differs from `encode`'s by one if the tokenizer merges the line break before an answer with one that begins it.
    """
    return len(template.tokenizer(template.render(row.turns), add_special_tokens=False)["input_ids"])


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Returns the ids of special tokens (end of turn, end of text, …) without the one for unknown text."""
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = unknown_token(tokenizer)
    excluded = {tokenizer.unk_token_id} if unknown else set()
    return frozenset((marked | set(tokenizer.all_special_ids)) - excluded)


def stop_ids(template: Template) -> list[int]:
    """Returns the tokens that end a reply: the template's end of an answer, then the tokenizer's end of text."""
    probe = Conversation("probe", (Turn("user", "Hello?"), Turn("assistant", "Hello.")), Origin("", 0))
    ids = [encode(probe, template).stop]
    eos = template.tokenizer.eos_token_id
    return ids if eos is None or eos in ids else [*ids, int(eos)]


def _encode(row: Conversation, template: Template, learn: Learn) -> Example:
    _check_text(row, template)
    indices = _trained_turns(row)
    answers = [template.answer(row.turns[: index + 1]) for index in indices]
    text = answers[-1].through_end + answers[-1].trailing
    _check_context(row.turns[: indices[-1]], text)
    for number, answer in enumerate(answers[:-1], start=1):
        if not text.startswith(answer.through_end):
            raise _rewritten(number, len(answers))
    ids, offsets, last = _tokens(text, answers[-1].prompt, template.tokenizer)
    spans = []
    for number, (index, answer) in enumerate(zip(indices, answers, strict=True), start=1):
        start = last
        if number < len(answers):
            prompt_ids = list(template.tokenizer(answer.prompt, add_special_tokens=False)["input_ids"])
            if (
                ids[: len(prompt_ids)] != prompt_ids
            ):  # the tokenizer merges the prompt's end with the answer's beginning
                raise _rewritten(number, len(answers))
            start = len(prompt_ids)
        spans.append(_span(ids, offsets, start, answer, template))
        _check_reply(row.turns[index], answer, template)
    _check_start(ids, template)
    loss_mask, row_mask = [False] * len(ids), [False] * len(ids)
    for span in spans:
        loss_mask[span.start : span.end] = [True] * (span.end - span.start)
        row_mask[span.text : span.end] = [True] * (span.end - span.text)
    if learn == "everything":
        loss_mask = row_mask = _mask_everything(row.turns[: indices[-1]], text, offsets, spans)
    return Example(row.id, tuple(ids), tuple(loss_mask), ids[spans[-1].end - 1], tuple(row_mask), len(spans))


def _mask_everything(
    turns: Sequence[Turn], text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[_Span]
) -> list[bool]:
    """Returns a mask of all tokens up to the last answer's end, without answers that are context only."""
    loss_mask = [index < spans[-1].end for index in range(len(offsets))]
    end = 0
    for turn in turns:
        begin = text.find(turn.text.strip(), end)
        end = begin + len(turn.text.strip())
        if turn.role == "assistant" and not turn.learn:
            loss_mask = [
                has_loss and not (first_char < end and last_char > begin)
                for has_loss, (first_char, last_char) in zip(loss_mask, offsets, strict=True)
            ]
    return loss_mask


def _check_context(turns: Sequence[Turn], text: str) -> None:
    """Raises DataError if the template leaves out or changes a turn's text, apart from whitespace around it."""
    for turn in turns:
        if turn.text.strip() not in text:
            raise DataError(
                f"the chat template leaves out or changes the {turn.role}'s text",
                next="Use a prompt.template that writes it, or remove the turn from the row",
            )


def _check_reply(turn: Turn, answer: RenderedAnswer, template: Template) -> None:
    """Raises DataError if the answer could not be recovered from the model's output by ReplyFormat.split."""
    reasoning = turn.reasoning.strip() if template.reasoning == "learn" else ""
    if template.form.split(answer.opening + answer.thought + answer.text) != (reasoning, turn.text.strip()):
        raise DataError(
            "a reply with this text would be read as a thought or as part of the template",
            next="Remove thought tags, such as <think>, from the beginning of the answer",
        )


def _trained_turns(row: Conversation) -> list[int]:
    """Returns the indices of the turns with loss. Raises DataError if there is none."""
    indices = [index for index, turn in enumerate(row.turns) if turn.role == "assistant" and turn.learn]
    if not indices:
        raise DataError("no answer of the row carries loss", next="Give at least one answer a weight above 0")
    return indices


def _rewritten(number: int, of: int) -> RewrittenTurnError:
    return RewrittenTurnError(
        f"the chat template or the tokenizer changes answer {number} of {of} when another turn follows",
        next="Set prompt.expand to auto: each answer then becomes its own row",
    )


def _tokens(text: str, prompt: str, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]], int]:
    """Returns the tokens of `text`, their character ranges, and how many of them are those of its prefix `prompt`.

    If the tokenizer merges the line break before an answer with one that begins it, prompt and answer are tokenized
    separately, as when the model generates.
    """
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(before["input_ids"]), list(before["offset_mapping"])
    if list(whole["input_ids"][: len(ids)]) == ids:
        return list(whole["input_ids"]), list(whole["offset_mapping"]), len(ids)
    answer = tokenizer(text[len(prompt) :], add_special_tokens=False, return_offsets_mapping=True)
    shifted = [
        (first_char + len(prompt), last_char + len(prompt)) for first_char, last_char in answer["offset_mapping"]
    ]
    return ids + list(answer["input_ids"]), offsets + shifted, len(ids)


def _span(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, answer: RenderedAnswer, template: Template
) -> _Span:
    """Returns the range of the answer's tokens after the `start` tokens of its prompt.

    Checks that they decode to the whole answer and end with its end-of-turn token, the first special token after it.
    """
    tokenizer, special = template.tokenizer, template.special_ids
    text_start = len(answer.prompt) + len(answer.opening)
    text_end = text_start + len(answer.thought) + len(answer.text)
    first = max(start, next((index for index, (_, right) in enumerate(offsets) if right > text_start), len(ids)))
    stop = next(
        (index for index in range(first, len(ids)) if ids[index] in special and offsets[index][1] > text_end), -1
    )
    match = template.specials.search(answer.ending)
    if stop < 0 or match is None or ids[stop] != tokenizer.convert_tokens_to_ids(match[0]):
        raise ModelError(
            "the end of an answer is not a single token",
            where=template.source,
            next="Use a prompt.template that ends each answer with {{ eos_token }}",
        )
    decoded = tokenizer.decode(list(ids[start:stop]), clean_up_tokenization_spaces=False)
    expected = answer.opening + answer.thought + answer.text + answer.ending[: match.start()]
    if _normalized(decoded) != _normalized(expected):
        raise DataError(
            f"the tokenizer cannot represent the answer, which decodes to {_excerpt(decoded, expected)!r}",
            next="Choose a base.model whose tokenizer has these characters",
        )
    return _Span(start, first, stop + 1)


def _normalized(text: str) -> str:
    """Returns the text in Unicode's NFC form, without whitespace, which tokenizers may move."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _excerpt(decoded: str, expected: str) -> str:
    """Returns the decoded text around its first difference."""
    place = next((n for n, (a, b) in enumerate(zip(decoded, expected, strict=False)) if a != b), 0)
    return decoded[max(0, place - 10) : place + 20]


def _check_text(row: Conversation, template: Template) -> None:
    """Raises SpecialTokenError for one in a row's text, which would end the turn there, in training and in use."""
    for turn in row.turns:
        if match := template.specials.search(turn.reasoning) or template.specials.search(turn.text):
            raise SpecialTokenError(
                f"the {turn.role}'s text contains the special token {match[0]!r}",
                where=str(row.origin),
                next="Remove it from the text: the model would read it as the end of a turn",
            )


def _check_start(ids: list[int], template: Template) -> None:
    bos = template.tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        raise ModelError(
            "the rendered text begins with two start tokens", where=template.source, next="Remove one from the template"
        )


def loss_pieces(example: Example, template: Template) -> list[tuple[str, bool]]:
    """Returns the example's text as pieces (text, whether it carries loss), as the model sees it."""
    pieces: list[tuple[list[int], bool]] = []
    for index, has_loss in zip(example.ids, example.loss_mask, strict=True):
        if not pieces or pieces[-1][1] != has_loss:
            pieces.append(([], has_loss))
        pieces[-1][0].append(index)
    return [(template.tokenizer.decode(ids, clean_up_tokenization_spaces=False), has_loss) for ids, has_loss in pieces]
