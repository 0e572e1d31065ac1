"""The decoder of many replies on a card: the families' own numbers, and the same reply alone and in company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from greedy import never, slowly
from tunesmith.generate.decoder import Decoder
from tunesmith.model.build import Model, add_adapter, load
from tunesmith.model.fused_config import FAMILIES
from tunesmith.model.weights import fetch

pytestmark = pytest.mark.gpu
PROMPTS = [[(31 * n + 5 * place) % 250 + 5 for place in range(4 + 7 * n % 40)] for n in range(40)]


def loaded(folder: Path, precision: str) -> Model:
    model = load(fetch(str(folder)), bits=4, device="cuda", precision=precision)
    add_adapter(model, rank=4, alpha=8, layers="all", dropout=0, seed=1)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in model.lora.values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=source) * 0.3)
    model.network.eval()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_its_own_layers_write(tiny: Callable[..., Path], family: str) -> None:
    model = loaded(tiny(family), "float32")
    expected = {n: slowly(model, prompt, 20) for n, prompt in enumerate(PROMPTS[:6])}
    assert dict(Decoder(model).write(PROMPTS[:6], 20, 16, never, tuned=True)) == expected


def test_a_reply_is_the_same_alone_and_in_company(tiny: Callable[..., Path]) -> None:
    decoder = Decoder(loaded(tiny("llama", hidden_size=256, intermediate_size=512), "bfloat16"))
    together = dict(decoder.write(PROMPTS, 24, 16, never, tuned=True))
    for n, prompt in enumerate(PROMPTS):
        assert dict(decoder.write([prompt], 24, 1, never, tuned=True))[0] == together[n]
    assert len({tuple(ids) for ids in together.values()}) > 10
