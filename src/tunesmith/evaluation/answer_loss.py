"""A model's loss on given answers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from tunesmith.data.conversation import Conversation
from tunesmith.generation.from_weights import FromWeights
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example, Learn, encode_all
from tunesmith.training.loss import summed_loss


def losses(text: FromWeights, rows: Sequence[Conversation], *, learn: str) -> list[float]:
    """Nats a token of each row's own answers, under the base or the tuned model.

    The template's opening of an answer does not count. Where the template rewrites earlier turns, each answer is read
    as the last one of its conversation.
    """
    wanted: Learn = "everything" if learn == "everything" else "answer"
    examples, rows_of = list[Example](), list[int]()
    for place, row in enumerate(rows):
        parts = [example.scored for _, example in encode_all(row, text.template, wanted, "auto")]
        examples += parts
        rows_of += [place] * len(parts)
    weights = [sum(example.learnt[1:]) for example in examples]
    totals, tokens = [0.0] * len(rows), [0] * len(rows)
    for place, weight, nats in zip(rows_of, weights, _each(text, examples), strict=True):
        totals[place] += weight * nats
        tokens[place] += weight
    return [total / count for total, count in zip(totals, tokens, strict=True)]


def _each(text: FromWeights, examples: Sequence[Example]) -> list[float]:
    """Nats a token of each example, read alone."""
    text.model.network.eval()
    decoder = text.decoder()
    if decoder is not None:
        return decoder.losses(examples, text.pad, tuned=text.tuned)
    off = contextlib.nullcontext() if text.tuned else text.model.base()
    losses = []
    with torch.no_grad(), off:
        for example in examples:
            batch = pack.collate([example], text.pad)
            losses.append(summed_loss(text.model, batch).item() / batch.learnt)
    return losses
