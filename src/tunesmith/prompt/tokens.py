"""A conversation as tokens, and which of them are learnt. The stop token is part of what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.template import Template

Learn = Literal["answer", "everything"]


@dataclass(frozen=True)
class Example:
    """Tokens of one conversation: `ids` and, of equal length, whether each is `learnt`."""

    row: str
    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    stop: int

    def __len__(self) -> int:
        return len(self.ids)


def encode(row: Conversation, template: Template, learn: Learn = "answer") -> Example:
    """The conversation's tokens, the template's end-of-answer token learnt after every answer.

    Raises DataError when a turn's own text holds a special token, ModelError when the template puts no stop token
    behind an answer, or renders a conversation so that its beginning changes when a turn is added.
    """
    text = template.render(row.turns)
    _check_text(row, template)
    spans = _answers(row.turns, template, text)
    ids, offsets = _tokens(text, spans[-1][0], template.tokenizer)
    special = special_ids(template.tokenizer)
    learnt, stop = [False] * len(ids), -1
    for start, end in spans:
        stop = _mark(ids, offsets, start, end, special, learnt, template)
    if learn == "everything":
        last = max(index for index, wanted in enumerate(learnt) if wanted)
        learnt = [index <= last for index in range(len(ids))]
    _check_start(ids, template)
    return Example(row.id, tuple(ids), tuple(learnt), stop)


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


def _answers(turns: Sequence[Turn], template: Template, text: str) -> list[tuple[int, int]]:
    spans = []
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = template.render(turns[:index], generate=True)
        through = template.render(turns[: index + 1])
        shared = _shared(text, through)  # not all of `through`: phi-3 puts eos_token behind the last turn
        is_last = index == len(turns) - 1
        if text.startswith(before) and (is_last or turn.text.strip() in text[len(before) : shared]):
            spans.append((len(before), shared))
        elif is_last:
            raise ModelError(
                "the template's text before the answer differs between training and use",
                where=template.source,
                next="Give a prompt.template in which every turn only adds text",
            )
    if not spans:  # templates that rewrite earlier turns (thinking removed) still teach the last answer
        raise ModelError("no answer can be found in the rendered text", where=template.source)
    return spans


def _shared(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _tokens(text: str, answer: int, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens and their places in `text`; those before `answer` are the ones that a prompt gives when it stands alone.

    They differ where a tokenizer joins the line break before an answer with one that begins it.
    """
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    prompt = tokenizer(text[:answer], add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(prompt["input_ids"]), list(prompt["offset_mapping"])
    if list(whole["input_ids"][: len(ids)]) == ids:
        return list(whole["input_ids"]), list(whole["offset_mapping"])
    rest = tokenizer(text[answer:], add_special_tokens=False, return_offsets_mapping=True)
    moved = [(left + answer, right + answer) for left, right in rest["offset_mapping"]]
    return ids + list(rest["input_ids"]), offsets + moved


def _mark(
    ids: list[int],
    offsets: list[tuple[int, int]],
    start: int,
    end: int,
    special: frozenset[int],
    learnt: list[bool],
    template: Template,
) -> int:
    for index, (_, right) in enumerate(offsets):
        if right <= start or right > end:
            continue
        learnt[index] = True
        if ids[index] in special:
            return ids[index]
    raise ModelError(
        "no stop token follows the answer, so the model would never learn to stop",
        where=template.source,
        next="End each answer with {{ eos_token }} in prompt.template",
    )


def _check_text(row: Conversation, template: Template) -> None:
    """A special token inside a row's own text would end the turn there, in training and in use."""
    for turn in row.turns:
        if found := template.specials.search(turn.text):
            raise DataError(
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
