"""A conversation as tokens, and which of them carry loss. The end-of-turn token of each answer is among those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.template import Answer, Template

Learn = Literal["answer", "everything"]
Expand = Literal["auto", "never"]


class Rewritten(DataError):
    """The template writes an earlier answer otherwise once the conversation goes on."""


class SpecialToken(DataError):
    """A row's own text holds a special token of the model: only a change of the row mends that."""


@dataclass(frozen=True)
class Example:
    """Tokens of one conversation: `ids` and, of equal length, whether each is `learnt` (carries loss).

    `own` of equal length says the same without the template's opening of an answer (a header, an empty thought): the
    tokens that the row itself decides. `stop` is the end-of-turn token of the last answer, `answers` counts answers.
    """

    row: str
    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    stop: int
    own: tuple[bool, ...] = ()
    answers: int = 1

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> Example:
        """The same example with loss on the row's own tokens only."""
        return replace(self, learnt=self.own) if self.own else self


@dataclass(frozen=True)
class _Span:
    """Places of tokens of one answer: from the generation prompt's end, from the row's own text, to the end token."""

    start: int
    own: int
    end: int


def encode(row: Conversation, template: Template, learn: Learn = "answer") -> Example:
    """The conversation's tokens, with loss on every answer whose turn says `learn`, its end-of-turn token included.

    Turns behind the last such answer are left out. Each answer is checked: its whole text lies in tokens with loss,
    and the first special token behind it is the last of them. Raises DataError for a row that cannot be learned as it
    is written (Rewritten where `expand` helps), ModelError for a template under which no row can.
    """
    try:
        return _encode(row, template, learn)
    except DataError as error:
        raise type(error)(error.what, where=error.where or str(row.origin), next=error.next) from error


def expand(row: Conversation, template: Template, wanted: Expand = "auto") -> list[Conversation]:
    """The row, or a row for each of its answers where the template rewrites earlier turns.

    In such a row only the last answer carries loss; its group and origin are the row's. Raises what `encode` raises.
    """
    return [each for each, _ in encode_all(row, template, "answer", wanted)]


def encode_all(
    row: Conversation, template: Template, learn: Learn, wanted: Expand
) -> list[tuple[Conversation, Example]]:
    """The rows of `expand`, each with its tokens. Raises what `encode` raises."""
    try:
        return [(row, encode(row, template, learn))]
    except Rewritten:
        if wanted == "never":
            raise
    rows = []
    for number, place in enumerate(_learned(row), start=1):
        before = [replace(turn, learn=False) if turn.role == "assistant" else turn for turn in row.turns[:place]]
        rows.append(replace(row, id=f"{row.id}.{number}", turns=(*before, row.turns[place])))
    return [(each, encode(each, template, learn)) for each in rows]


def encode_prompt(turns: Sequence[Turn], template: Template) -> list[int]:
    """Tokens up to the point where the assistant begins."""
    text = template.render(turns, generate=True)
    return list(template.tokenizer(text, add_special_tokens=False)["input_ids"])


def count(row: Conversation, template: Template) -> int:
    """How many tokens the rendered conversation has, without the pains that `encode` takes; the two differ by one

    where a tokenizer joins the line break before an answer with one that begins it.
    """
    return len(template.tokenizer(template.render(row.turns), add_special_tokens=False)["input_ids"])


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that stand for no text: end of turn, end of text and the like; the token for unknown text is not one."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset((added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id})


def stop_ids(template: Template) -> list[int]:
    """Every token that ends a reply: the template's end of answer first, then the tokenizer's end of text."""
    probe = Conversation("probe", (Turn("user", "Hello?"), Turn("assistant", "Hello.")), _NOWHERE)
    found = [encode(probe, template).stop]
    end = template.tokenizer.eos_token_id
    return found if end is None or end in found else [*found, int(end)]


def _encode(row: Conversation, template: Template, learn: Learn) -> Example:
    _check_text(row, template)
    places = _learned(row)
    answers = [template.answer(row.turns[: place + 1]) for place in places]
    text = answers[-1].through + answers[-1].rest
    for number, answer in enumerate(answers[:-1], start=1):
        if not text.startswith(answer.through):
            raise _rewritten(number, len(answers))
    ids, offsets = _tokens(text, answers[-1].prompt, template.tokenizer)
    special = special_ids(template.tokenizer)
    spans = [_span(ids, offsets, answer, special, template) for answer in answers]
    for number, (answer, span) in enumerate(zip(answers[:-1], spans[:-1], strict=True), start=1):
        alone = template.tokenizer(answer.prompt, add_special_tokens=False)["input_ids"]
        if ids[: span.start] != list(alone):  # a tokenizer that joins the prompt's end with the answer's beginning
            raise _rewritten(number, len(answers))
    _check_start(ids, template)
    learnt, own = [False] * len(ids), [False] * len(ids)
    for span in spans:
        learnt[span.start : span.end] = [True] * (span.end - span.start)
        own[span.own : span.end] = [True] * (span.end - span.own)
    if learn == "everything":
        learnt = own = [index < spans[-1].end for index in range(len(ids))]
    return Example(row.id, tuple(ids), tuple(learnt), ids[spans[-1].end - 1], tuple(own), len(spans))


def _learned(row: Conversation) -> list[int]:
    """Places of the turns that carry loss. Raises DataError when there is none."""
    places = [place for place, turn in enumerate(row.turns) if turn.role == "assistant" and turn.learn]
    if not places:
        raise DataError("has no answer to learn from", next="Give at least one answer a weight above 0")
    return places


def _rewritten(number: int, of: int) -> Rewritten:
    return Rewritten(
        f"the chat template or the tokenizer changes answer {number} of {of} when the conversation goes on",
        next="Set prompt.expand to auto: each answer then becomes a row of its own",
    )


def _tokens(text: str, prompt: str, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens and their places in `text`; those of `prompt`, its beginning, are the ones that it gives standing alone.

    They differ where a tokenizer joins the line break before an answer with one that begins it.
    """
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(before["input_ids"]), list(before["offset_mapping"])
    if list(whole["input_ids"][: len(ids)]) == ids:
        return list(whole["input_ids"]), list(whole["offset_mapping"])
    rest = tokenizer(text[len(prompt) :], add_special_tokens=False, return_offsets_mapping=True)
    moved = [(left + len(prompt), right + len(prompt)) for left, right in rest["offset_mapping"]]
    return ids + list(rest["input_ids"]), offsets + moved


def _span(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    answer: Answer,
    special: frozenset[int],
    template: Template,
) -> _Span:
    """Where the answer's tokens lie; proves that they hold its whole text and end with its end-of-turn token."""
    begin, own = len(answer.prompt), len(answer.prompt) + len(answer.opening)
    text_end = own + len(answer.thought) + len(answer.text)
    start = next((place for place, (_, right) in enumerate(offsets) if right > begin), len(ids))
    first = next((place for place, (_, right) in enumerate(offsets) if right > own), len(ids))
    stop = next((at for at in range(first, len(ids)) if ids[at] in special and offsets[at][0] >= text_end), -1)
    covered = start < len(ids) and not _text_between(answer, begin, offsets[start][0])
    if stop < 0 or not covered or offsets[stop][1] < len(answer.through.rstrip()):
        raise ModelError(
            "an answer's text does not lie inside the tokens with loss",
            where=template.source,
            next="Give another prompt.template, one that ends each answer with {{ eos_token }}",
        )
    return _Span(start, first, stop + 1)


def _text_between(answer: Answer, left: int, right: int) -> str:
    """What of the conversation stands between two places, blanks apart: some tokenizers give them no place."""
    return answer.through[left:right].strip()


def _check_text(row: Conversation, template: Template) -> None:
    """A special token inside a row's own text would end the turn there, in training and in use."""
    for turn in row.turns:
        if found := template.specials.search(turn.reasoning) or template.specials.search(turn.text):
            raise SpecialToken(
                f"the {turn.role}'s text holds the special token {found[0]!r}",
                where=str(row.origin),
                next="Remove it from the text: the model would take it for the end of a turn",
            )


def _check_start(ids: list[int], template: Template) -> None:
    begin = template.tokenizer.bos_token_id
    if begin is not None and len(ids) > 1 and ids[0] == ids[1] == begin:
        raise ModelError(
            "the text begins with two start tokens", where=template.source, next="Remove one from the template"
        )


def show(example: Example, template: Template) -> list[tuple[str, bool]]:
    """The example's text in pieces: (text, learnt), as the model will see it."""
    pieces: list[tuple[list[int], bool]] = []
    for index, learnt in zip(example.ids, example.learnt, strict=True):
        if not pieces or pieces[-1][1] != learnt:
            pieces.append(([], learnt))
        pieces[-1][0].append(index)
    return [(template.tokenizer.decode(ids, clean_up_tokenization_spaces=False), learnt) for ids, learnt in pieces]


def _nowhere() -> Any:
    from tunesmith.data.conversation import Origin

    return Origin("", 0)


_NOWHERE = _nowhere()
