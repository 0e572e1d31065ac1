"""A conversation as tokens, and which of them carry loss. The end-of-turn token of each answer is among those."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.template import Answer, Template, unknown_token

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
    return [(each, encode(each, template, learn)) for each in apart(row)]


def apart(row: Conversation) -> list[Conversation]:
    """A row for each answer that carries loss, the answers before it being context only."""
    rows = []
    for number, place in enumerate(_learned(row), start=1):
        before = [replace(turn, learn=False) if turn.role == "assistant" else turn for turn in row.turns[:place]]
        rows.append(replace(row, id=f"{row.id}.{number}", turns=(*before, row.turns[place])))
    return rows


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
    unknown = unknown_token(tokenizer)
    left = {tokenizer.unk_token_id} if unknown else set()
    return frozenset((added | set(tokenizer.all_special_ids)) - left)


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
    _check_context(row.turns[: places[-1]], text)
    for number, answer in enumerate(answers[:-1], start=1):
        if not text.startswith(answer.through):
            raise _rewritten(number, len(answers))
    ids, offsets, last = _tokens(text, answers[-1].prompt, template.tokenizer)
    spans = []
    for number, (place, answer) in enumerate(zip(places, answers, strict=True), start=1):
        start = last
        if number < len(answers):
            alone = list(template.tokenizer(answer.prompt, add_special_tokens=False)["input_ids"])
            if ids[: len(alone)] != alone:  # a tokenizer that joins the prompt's end with the answer's beginning
                raise _rewritten(number, len(answers))
            start = len(alone)
        spans.append(_span(ids, offsets, start, answer, template))
        _check_reply(row.turns[place], answer, template)
    _check_start(ids, template)
    learnt, own = [False] * len(ids), [False] * len(ids)
    for span in spans:
        learnt[span.start : span.end] = [True] * (span.end - span.start)
        own[span.own : span.end] = [True] * (span.end - span.own)
    if learn == "everything":
        learnt = own = _everything(row.turns[: places[-1]], text, offsets, spans)
    return Example(row.id, tuple(ids), tuple(learnt), ids[spans[-1].end - 1], tuple(own), len(spans))


def _everything(
    turns: Sequence[Turn], text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[_Span]
) -> list[bool]:
    """Loss on all tokens up to the last answer's end, but for the text of answers that are context only."""
    learned = [index < spans[-1].end for index in range(len(offsets))]
    at = 0
    for turn in turns:
        begin = text.find(turn.text.strip(), at)
        at = begin + len(turn.text.strip())
        if turn.role == "assistant" and not turn.learn:
            learned = [
                on and not (left < at and right > begin) for on, (left, right) in zip(learned, offsets, strict=True)
            ]
    return learned


def _check_context(turns: Sequence[Turn], text: str) -> None:
    """Refuses a row of which the template leaves something out or changes it, besides blanks around a turn."""
    for turn in turns:
        if turn.text.strip() not in text:
            raise DataError(
                f"the chat template leaves out or changes the {turn.role}'s text",
                next="Give a prompt.template that writes it, or remove the turn from the row",
            )


def _check_reply(turn: Turn, answer: Answer, template: Template) -> None:
    """Refuses an answer that would not be read back from the model's own output as it is written."""
    reasoning = turn.reasoning.strip() if template.reasoning == "learn" else ""
    if template.form.split(answer.opening + answer.thought + answer.text) != (reasoning, turn.text.strip()):
        raise DataError(
            "a reply with this text would be taken for a thought, or for the template's own words",
            next="Remove the mark of a thought, such as <think>, from the beginning of the answer",
        )


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


def _tokens(text: str, prompt: str, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]], int]:
    """Tokens, their places in `text`, and how many are those of `prompt`, its beginning, as it gives them alone.

    They differ where a tokenizer joins the line break before an answer with one that begins it.
    """
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(before["input_ids"]), list(before["offset_mapping"])
    if list(whole["input_ids"][: len(ids)]) == ids:
        return list(whole["input_ids"]), list(whole["offset_mapping"]), len(ids)
    rest = tokenizer(text[len(prompt) :], add_special_tokens=False, return_offsets_mapping=True)
    moved = [(left + len(prompt), right + len(prompt)) for left, right in rest["offset_mapping"]]
    return ids + list(rest["input_ids"]), offsets + moved, len(ids)


def _span(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, answer: Answer, template: Template
) -> _Span:
    """Where the answer's tokens lie behind the `start` tokens of its prompt.

    Proves that they stand for the whole answer and end with its end-of-turn token, the first special one behind it.
    """
    tokenizer, special = template.tokenizer, template.special_ids
    own = len(answer.prompt) + len(answer.opening)
    text_end = own + len(answer.thought) + len(answer.text)
    first = max(start, next((place for place, (_, right) in enumerate(offsets) if right > own), len(ids)))
    stop = next((at for at in range(first, len(ids)) if ids[at] in special and offsets[at][1] > text_end), -1)
    match = template.specials.search(answer.ending)
    if stop < 0 or match is None or ids[stop] != tokenizer.convert_tokens_to_ids(match[0]):
        raise ModelError(
            "the end of an answer is not one token",
            where=template.source,
            next="Give another prompt.template, one that ends each answer with {{ eos_token }}",
        )
    written = tokenizer.decode(list(ids[start:stop]), clean_up_tokenization_spaces=False)
    wanted = answer.opening + answer.thought + answer.text + answer.ending[: match.start()]
    if _letters(written) != _letters(wanted):
        raise DataError(
            f"the tokenizer cannot write the answer: it makes {_excerpt(written, wanted)!r} of it",
            next="Choose a base.model whose tokenizer knows these characters",
        )
    return _Span(start, first, stop + 1)


def _letters(text: str) -> str:
    """The text without blanks, which tokenizers move, in one of Unicode's spellings."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _excerpt(written: str, wanted: str) -> str:
    """What was written from the first difference on."""
    place = next((n for n, (a, b) in enumerate(zip(written, wanted, strict=False)) if a != b), 0)
    return written[max(0, place - 10) : place + 20]


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
