"""A model's loss on given answers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from tunesmith.data.conversation import Conversation
from tunesmith.generate.from_weights import FromWeights
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import encode
from tunesmith.train.loss import summed_loss


def losses(text: FromWeights, rows: Sequence[Conversation], *, learn: str) -> list[float]:
    """Nats a learnt token for each row's answer, under the base or the tuned model."""
    examples = [encode(row, text.template, "everything" if learn == "everything" else "answer") for row in rows]
    text.model.network.eval()
    decoder = text.decoder()
    if decoder is not None:
        return decoder.losses(examples, text.pad, tuned=text.tuned)
    off = contextlib.nullcontext() if text.tuned else text.model.base()
    found = []
    with torch.no_grad(), off:
        for example in examples:
            batch = pack.collate([example], text.pad)
            found.append(summed_loss(text.model, batch).item() / batch.learnt)
    return found
