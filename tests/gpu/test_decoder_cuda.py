"""The decoder of many replies on a GPU: the families' own numbers, and the same reply alone and in company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from greedy import never, slowly
from tunesmith.generation.decoder import Decoder
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.fused_config import FUSED_FAMILIES
from tunesmith.models.weights import fetch_weights

pytestmark = pytest.mark.gpu
PROMPTS = [[(31 * n + 5 * place) % 250 + 5 for place in range(4 + 7 * n % 40)] for n in range(40)]
FACTORS = {
    "type": "longrope",
    "short_factor": [1.0 + place for place in range(16)],
    "long_factor": [4.0 + 9 * place for place in range(16)],
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral with a window": ("mistral", {"sliding_window": 16}),
    "gemma 3 with windows": ("gemma3_text", {"sliding_window": 16, "head_dim": 64}),
    "gemma 3 with heads of 256": ("gemma3_text", {"sliding_window": 16, "head_dim": 256}),
    "smollm 3": ("smollm3", {}),
    "phi 4 mini": (  # most replies grow beyond 30 tokens, where the factors change
        "phi3",
        {
            "partial_rotary_factor": 0.5, "rope_scaling": FACTORS,
            "max_position_embeddings": 512, "original_max_position_embeddings": 30,
        },
    ),
}  # fmt: skip


def loaded(folder: Path, precision: str) -> Model:
    model = load_model(fetch_weights(str(folder)), bits=4, device="cuda", precision=precision)
    add_adapter(model, rank=4, alpha=8, layers="all", dropout=0, seed=1)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in model.lora.values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=source) * 0.3)
    model.network.eval()
    return model


@pytest.mark.parametrize("family", FUSED_FAMILIES)
def test_every_family_writes_what_its_own_layers_write(tiny: Callable[..., Path], family: str) -> None:
    model = loaded(tiny(family), "float32")
    expected = {n: slowly(model, prompt, 20) for n, prompt in enumerate(PROMPTS[:6])}
    assert dict(Decoder(model).write(PROMPTS[:6], 20, 16, never, tuned=True)) == expected


@pytest.mark.parametrize("config", CONFIGS)
def test_a_reply_is_the_same_alone_and_in_company(tiny: Callable[..., Path], config: str) -> None:
    family, changes = CONFIGS[config]
    decoder = Decoder(loaded(tiny(family, hidden_size=256, intermediate_size=512, **changes), "bfloat16"))
    assert decoder.fused.own_kernels
    together = dict(decoder.write(PROMPTS, 24, 16, never, tuned=True))
    for n, prompt in enumerate(PROMPTS):
        assert dict(decoder.write([prompt], 24, 1, never, tuned=True))[0] == together[n]
    assert len({tuple(ids) for ids in together.values()}) > 10


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_cached_is_what_would_be_read(tiny: Callable[..., Path], config: str) -> None:
    """Token by token over the cache, or the whole text read at once: the same next token, but for ties in 16 bits."""
    family, changes = CONFIGS[config]
    decoder = Decoder(loaded(tiny(family, hidden_size=256, intermediate_size=512, **changes), "bfloat16"))
    written = dict(decoder.write(PROMPTS, 24, 16, never, tuned=True))
    texts = [[*prompt, *written[n][:length]] for n, prompt in enumerate(PROMPTS) for length in (5, 12, 23)]
    again = dict(decoder.write(texts, 1, 16, never, tuned=True))
    following = [written[n][length] for n in range(len(PROMPTS)) for length in (5, 12, 23)]
    same = sum(again[place] == [token] for place, token in enumerate(following))
    assert same > 0.9 * len(texts)
