"""Head and loss in chunks against float64 autograd, and against the model's own loss in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from adapters import grad_of
from tiny import FAMILIES
from tunesmith.errors import ModelError
from tunesmith.models.build import add_adapter, load_model
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt.pack import Batch
from tunesmith.training import autograd_step
from tunesmith.training.autograd_step import _HeadLoss, _trained_head_loss, check_head, sum_cross_entropy


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("tokens", [1, 5, 8, 13])
def test_against_float64(monkeypatch: pytest.MonkeyPatch, cap: float, tokens: int) -> None:
    monkeypatch.setattr(autograd_step, "CHUNK", 4)
    torch.manual_seed(tokens)
    hidden, weight = torch.randn(tokens, 12), torch.randn(37, 12)
    bias, targets = torch.randn(37), torch.randint(0, 37, (tokens,))
    exact = hidden.double().requires_grad_()
    logits = functional.linear(exact, weight.double(), bias.double())
    if cap:
        logits = torch.tanh(logits / cap) * cap
    wanted = functional.cross_entropy(logits, targets, reduction="sum")
    (wanted * 0.7).backward()
    ours = hidden.clone().requires_grad_()
    got = _HeadLoss.apply(ours, targets, weight, bias, cap)  # type: ignore[no-untyped-call]  # torch has no type for it
    (got * 0.7).backward()
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (grad_of(ours).double() - grad_of(exact)).norm() <= 1e-5 * grad_of(exact).norm()


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("tokens", [1, 8, 13])
def test_a_trained_heads_gradients_against_float64(monkeypatch: pytest.MonkeyPatch, cap: float, tokens: int) -> None:
    monkeypatch.setattr(autograd_step, "CHUNK", 4)
    torch.manual_seed(tokens)
    given = torch.randn(tokens, 12), torch.randn(37, 12), torch.randn(37)
    targets = torch.randint(0, 37, (tokens,))
    hidden, weight, bias = exact = [part.double().requires_grad_() for part in given]
    logits = functional.linear(hidden, weight, bias)
    wanted = functional.cross_entropy(torch.tanh(logits / cap) * cap if cap else logits, targets, reduction="sum")
    (wanted * 0.7).backward()
    ours = [part.clone().requires_grad_() for part in given]
    got = _trained_head_loss(ours[0], targets, ours[1], ours[2], cap)
    (got * 0.7).backward()
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    for mine, right in zip(ours, exact, strict=True):
        assert (grad_of(mine).double() - grad_of(right)).norm() <= 1e-5 * grad_of(right).norm()


BATCH = Batch(
    [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]],
    [[1] * 6, [1] * 4 + [0] * 2],
    [[-100, -100, 7, 8, 9, 10], [-100, -100, 13, 14, -100, -100]],
)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_models_own_loss(tiny: Callable[..., Path], family: str) -> None:
    model = load_model(fetch_weights(str(tiny(family))), bits=4, device="cpu", precision="float32")
    with torch.no_grad():
        own = model.network(
            input_ids=torch.tensor(BATCH.ids),
            attention_mask=torch.tensor(BATCH.mask),
            labels=torch.tensor(BATCH.labels),
        ).loss
        assert sum_cross_entropy(model, BATCH).item() / BATCH.loss_tokens == pytest.approx(own.item(), rel=1e-5)
    check_head(model, BATCH)


@pytest.mark.parametrize(
    ("family", "tied", "also"),
    [
        ("llama", False, ["head"]),
        ("llama", True, ["embeddings", "head"]),
        ("llama", False, ["embeddings"]),
        ("gemma2", True, ["embeddings", "head"]),  # its logits are capped
        ("gpt2", True, ["embeddings", "head"]),
    ],
)
def test_a_trained_head_learns_as_through_the_models_own_loss(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, family: str, tied: bool, also: list[str]
) -> None:
    monkeypatch.setattr(autograd_step, "CHUNK", 3)
    folder = tiny(family) if tied else tiny(family, tie_word_embeddings=False)
    model = load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision="float32")
    add_adapter(model, rank=2, alpha=4, layers="all", dropout=0, seed=1, train_also=also)
    trained = model.trainable()

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: value.grad.clone() for name, value in trained.items() if value.grad is not None}
        for value in trained.values():
            value.grad = None
        return found

    (sum_cross_entropy(model, BATCH) / BATCH.loss_tokens).backward()
    ours = gradients()
    ids, mask, labels = (torch.tensor(part) for part in (BATCH.ids, BATCH.mask, BATCH.labels))
    model.network(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    theirs = gradients()
    assert ours.keys() == theirs.keys() == trained.keys()
    assert all(theirs[model.outer_module_name(which)].any() for which in also if not (tied and which == "head"))
    for name, wanted in theirs.items():
        assert (ours[name] - wanted).norm() <= 1e-5 * wanted.norm() + 1e-9, name


def test_a_head_that_is_not_understood_is_refused(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(fetch_weights(str(tiny("gemma2"))), bits=4, device="cpu", precision="float32")
    check_head(model, BATCH)
    head = model.network.get_output_embeddings()
    real = head.forward
    monkeypatch.setattr(head, "forward", lambda x: real(x) * 5)  # as a family that scales its logits would
    with pytest.raises(ModelError, match="differs from the model's own"):
        check_head(model, BATCH)
