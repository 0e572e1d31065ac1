"""The batched decoder: it matches each family's own layers, and a reply is the same alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from greedy import never, slowly
from tunesmith.generation.decoder import CACHE_BLOCK, Decoder, unsupported_reasons
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.fused_config import FUSED_FAMILIES
from tunesmith.models.weights import fetch_weights

PROMPTS = [
    [(7 * n + 3 * place * place) % 250 + 5 for place in range(length)] for n, length in enumerate((3, 40, 17, 1, 29))
]
SLIDING = ("mistral", "ministral", "gemma2", "gemma3_text", "gemma4_text", "phi3")
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {"sliding_window": 16} if family in SLIDING else {}) for family in FUSED_FAMILIES},
    "qwen3 with windows": (
        "qwen3", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "head_dim": 24}
    ),
    "phi 4 mini": (  # replies that grow beyond 35 tokens are rotated by other factors
        "phi3",
        {
            "hidden_size": 64, "partial_rotary_factor": 0.5,
            "max_position_embeddings": 512, "original_max_position_embeddings": 35,
            "rope_scaling": {
                "type": "longrope", "short_factor": [1.0, 1.3, 2.0, 3.0], "long_factor": [4.0, 9.0, 20.0, 90.0]
            },
        },
    ),
}  # fmt: skip


def loaded(folder: Path, precision: str, **adapter: Any) -> Model:
    model = load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision=precision)
    settings = {"rank": 4, "alpha": 8, "layers": "all", "dropout": 0.1, "seed": 1, **adapter}
    add_adapter(model, **settings)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in model.lora.values():
            layer.lora_B.normal_(std=0.3, generator=source)
    model.network.eval()
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_every_family_writes_what_its_own_layers_write(tiny: Callable[..., Path], config: str) -> None:
    family, changes = CONFIGS[config]
    model = loaded(tiny(family, **changes), "float32")
    expected = [slowly(model, prompt, 30) for prompt in PROMPTS]
    with model.base():
        base = [slowly(model, prompt, 30) for prompt in PROMPTS]
    decoder = Decoder(model)
    for expected_ids, tuned in ((expected, True), (base, False), (expected, True)):
        assert [ids for _, ids in sorted(decoder.write(PROMPTS, 30, 4, never, tuned=tuned))] == expected_ids
    assert expected != base


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", ["llama", "gemma3_text", "gemma4_text", "phi 4 mini"])
def test_a_reply_is_the_same_alone_and_in_company(tiny: Callable[..., Path], config: str, precision: str) -> None:
    family, changes = CONFIGS[config]
    model = loaded(tiny(family, **{"hidden_size": 96, "intermediate_size": 160, **changes}), precision)
    decoder = Decoder(model)
    prompts = [[(31 * n + 5 * place) % 250 + 5 for place in range(4 + n % 19)] for n in range(40)]
    together = dict(decoder.write(prompts, 24, 16, never, tuned=True))
    alone = {
        n: next(ids for _, ids in decoder.write([prompt], 24, 1, never, tuned=True)) for n, prompt in enumerate(prompts)
    }
    backwards = dict(decoder.write(prompts[::-1], 24, 16, never, tuned=True))
    assert together == alone == {len(prompts) - 1 - n: ids for n, ids in backwards.items()}
    assert len({tuple(ids) for ids in together.values()}) > 10


def test_a_slot_takes_the_next_prompt_and_each_ends_where_it_should(tiny: Callable[..., Path]) -> None:
    model = loaded(tiny("llama"), "float32")
    prompts = [[n + 5, 9, 11] for n in range(50)]  # more than there are slots
    free = {n: slowly(model, prompt, 12) for n, prompt in enumerate(prompts)}
    stop = max({token for ids in free.values() for token in ids}, key=lambda t: sum(t in ids for ids in free.values()))
    result = dict(Decoder(model).write(prompts, 12, 16, lambda ids: ids[-1] == stop, tuned=True))
    assert result == {n: ids[: ids.index(stop) + 1] if stop in ids else ids for n, ids in free.items()}
    assert {len(ids) for ids in result.values()} > {12}


def test_long_prompts_have_caches_of_their_own(tiny: Callable[..., Path]) -> None:
    model = loaded(tiny("llama"), "float32")
    prompts = [[n % 250 + 5 for n in range(CACHE_BLOCK + 20)], [7, 8, 9]]
    result = dict(Decoder(model).write(prompts, 5, 16, never, tuned=True))
    assert result == {n: slowly(model, prompt, 5) for n, prompt in enumerate(prompts)}


def test_what_the_adapter_was_trained_on_since_is_used(tiny: Callable[..., Path]) -> None:
    model = loaded(tiny("llama"), "float32")
    decoder = Decoder(model)
    before = dict(decoder.write(PROMPTS, 10, 16, never, tuned=True))
    with torch.no_grad():
        for layer in model.lora.values():
            layer.lora_B.mul_(-2)
    after = dict(decoder.write(PROMPTS, 10, 16, never, tuned=True))
    assert after == {n: slowly(model, prompt, 10) for n, prompt in enumerate(PROMPTS)} != before


def test_what_is_left_to_transformers_is_said(tiny: Callable[..., Path]) -> None:
    assert unsupported_reasons(loaded(tiny("llama"), "float32")) == []
    assert "magnitudes" in unsupported_reasons(loaded(tiny("llama"), "float32", dora=True))[0]
    assert "embeddings" in unsupported_reasons(loaded(tiny("llama"), "float32", train_also=["embeddings", "head"]))[0]
    assert (
        "gpt2"
        in unsupported_reasons(load_model(fetch_weights(str(tiny("gpt2"))), bits=4, device="cpu", precision="float32"))[
            0
        ]
    )
