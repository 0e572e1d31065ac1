"""Loss of a model on the answers of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from tunesmith.data.conversation import Conversation
from tunesmith.generation.from_weights import WeightsModel
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example, Learn, encode_expanded
from tunesmith.training.autograd_step import sum_cross_entropy


def answer_losses(model: WeightsModel, rows: Sequence[Conversation], *, learn: str) -> list[float]:
    """Returns the mean loss of each row's own answers in nats per token, for the base or the tuned model.

    Tokens that the template puts before an answer do not count. If the template rewrites earlier turns, each answer is
    scored as the last one of its conversation.
    """
    loss_on: Learn = "everything" if learn == "everything" else "answer"
    examples, row_indices = list[Example](), list[int]()
    for index, row in enumerate(rows):
        parts = [example.scored for _, example in encode_expanded(row, model.template, loss_on, "auto")]
        examples += parts
        row_indices += [index] * len(parts)
    weights = [sum(example.loss_mask[1:]) for example in examples]
    totals, tokens = [0.0] * len(rows), [0] * len(rows)
    for index, weight, nats in zip(row_indices, weights, _loss_per_token(model, examples), strict=True):
        totals[index] += weight * nats
        tokens[index] += weight
    return [total / count for total, count in zip(totals, tokens, strict=True)]


def _loss_per_token(text_model: WeightsModel, examples: Sequence[Example]) -> list[float]:
    """Returns the loss of each example in nats per token, one example at a time."""
    text_model.model.network.eval()
    decoder = text_model.decoder()
    if decoder is not None:
        return decoder.losses(examples, text_model.pad, tuned=text_model.tuned)
    adapter_context = contextlib.nullcontext() if text_model.tuned else text_model.model.base()
    losses = []
    with torch.no_grad(), adapter_context:
        for example in examples:
            batch = pack.collate([example], text_model.pad)
            losses.append(sum_cross_entropy(text_model.model, batch).item() / batch.loss_tokens)
    return losses
