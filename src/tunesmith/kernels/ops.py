"""The parts of a decoder block on a CPU: RMSNorm, rotary embedding, gated MLP; and cross-entropy in chunks.

RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) and losses are computed in float32 or wider.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def rms(x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Tensor:
    """Returns RMSNorm of `x` (... x width) times `weight + offset` (Gemma 1 to 3 store weights around zero)."""
    normed, _ = _normed(x, eps)
    return (normed if weight is None else normed.mul_(_widened(weight) + offset)).to(x.dtype)


def rms_back(dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Tensor:
    """Returns the gradient of `x`: r (g - n mean(g n)) with n = r x, g = dy (weight + offset), r the inverse root."""
    normed, inverse = _normed(x, eps)
    return _backward(dy, normed, inverse, None if weight is None else _widened(weight) + offset)


def rms_with_saved(
    x: Tensor, weight: Tensor, eps: float, offset: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Returns `rms` of `x` and what `rms_backward_from_saved` needs to avoid repeating the work."""
    normed, inverse = _normed(x, eps)
    wide = _widened(weight) + offset
    return (normed * wide).to(x.dtype), (normed, inverse, wide)


def rms_backward_from_saved(dy: Tensor, saved: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Returns the gradient as `rms_back` does, from what `rms_with_saved` returned."""
    return _backward(dy, *saved)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns x over its root mean square in a new tensor, and the inverse root (... x 1).

    Works in place: on a CPU, allocating a tensor of some MB costs more than the arithmetic.
    """
    wide = x.to(_accumulation_dtype(x), copy=True)
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide.mul_(inverse), inverse


def _backward(dy: Tensor, normed: Tensor, inverse: Tensor, weight: Tensor | None) -> Tensor:
    scaled = dy.to(normed.dtype, copy=True)
    scaled = scaled if weight is None else scaled.mul_(weight)
    mean = torch.linalg.vecdot(scaled, normed)[..., None].div_(-scaled.shape[-1])
    return scaled.addcmul_(normed, mean).mul_(inverse).to(dy.dtype)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _widened(x: Tensor) -> Tensor:
    return x.to(_accumulation_dtype(x))


class RopeTable(NamedTuple):
    """cos and sin by position (rows x rotated width).

    With a `switch` (LongRoPE, Ding et al. 2024, arXiv:2402.13753) the tables have two halves: texts of at most `switch`
    tokens use the first half, longer ones the second. With 0 all texts use the same rows.
    """

    cos: Tensor
    sin: Tensor
    switch: int = 0

    @property
    def half(self) -> int:
        """The first row of the second half."""
        return len(self.cos) // 2

    def packed_rows(self, positions: Tensor, starts: Tensor) -> Tensor:
        """Returns each token's row for packed texts that begin at `starts` (texts + 1, int32)."""
        if not self.switch:
            return positions
        token = torch.arange(len(positions), dtype=starts.dtype, device=starts.device)
        text = torch.searchsorted(starts, token, right=True) - 1
        return positions + self.half * (starts.diff()[text] > self.switch)

    def next_rows(self, positions: Tensor) -> Tensor:
        """Returns the rows of tokens at `positions`, each the last of its text so far."""
        return positions + self.half * (positions >= self.switch) if self.switch else positions

    def text(self, length: int) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of one text of `length` tokens."""
        first = self.half if 0 < self.switch < length else 0
        return self.cos[first : first + length], self.sin[first : first + length]


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first columns of `x` (tokens x heads x head) in place by `cos` and `sin` (tokens x rotated width).

    (x1, x2) becomes (x1 cos - x2 sin, x2 cos + x1 sin).
    """
    (first, second), (sin_1, sin_2) = _halves(x, cos), sin[:, None].chunk(2, dim=-1)
    return _rotate_halves(x, cos, first, second, second * sin_1, first * sin_2)


def rotate_backward_(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the gradient of `rotate_`'s output into that of its input, in place: the inverse rotation."""
    (first, second), (sin_1, sin_2) = _halves(dy, cos), sin[:, None].chunk(2, dim=-1)
    return _rotate_halves(dy, cos, second, first, first * sin_1, second * sin_2)


def _halves(x: Tensor, cos: Tensor) -> tuple[Tensor, ...]:
    return x[..., : cos.shape[-1]].chunk(2, dim=-1)


def _rotate_halves(
    x: Tensor, cos: Tensor, first_out: Tensor, second_out: Tensor, subtrahend: Tensor, addend: Tensor
) -> Tensor:
    torch.mul(x[..., : cos.shape[-1]], cos[:, None], out=x[..., : cos.shape[-1]])
    first_out.sub_(subtrahend)
    second_out.add_(addend)
    return x


ACTIVATIONS = ("silu", "gelu_tanh")
_aten: Any = torch.ops.aten


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """Returns activation(gate) times up (tokens x inner); `gate_up` is tokens x 2 inner, gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _activation(gate, activation).mul_(up)


def gated_backward(dy: Tensor, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Returns the gradient of `gate_up` and `gated`'s output; overwrites `dy` (tokens x inner)."""
    gate, up = gate_up.chunk(2, dim=-1)
    dgate_up = torch.empty_like(gate_up)
    dgate, dup = dgate_up.chunk(2, dim=-1)
    value = _activation(gate, activation)
    torch.mul(dy, value, out=dup)
    dy.mul_(up)
    if activation == "silu":
        _aten.silu_backward.grad_input(dy, gate, grad_input=dgate)
    else:
        _aten.gelu_backward.grad_input(dy, gate, approximate="tanh", grad_input=dgate)
    return dgate_up, value.mul_(up)


def _activation(gate: Tensor, activation: str) -> Tensor:
    return functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")


IGNORED = -100
ROWS = 32  # tokens whose logits are converted to float32 at a time: about a cache's size at a vocabulary of 50,000


def loss(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> Tensor:
    """Returns the cross-entropy in nats of `hidden` (tokens x width), summed over targets that are not -100."""
    logits = functional.linear(hidden, weight, bias)
    parts = zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True)
    return torch.stack(
        [_token_losses(_softcap(part.to(_accumulation_dtype(part)), cap)[0], target).sum() for part, target in parts]
    ).sum()


def loss_and_gradient(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the loss and `scale` times its gradient with respect to `hidden`.

    With logits z = h Wᵀ, capped as c tanh(z / c) if the model does so, dL/dz = softmax - onehot. It overwrites the
    logits.
    """
    logits = functional.linear(hidden, weight, bias)
    totals = []
    for part, target in zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True):
        wide, slope = _softcap(part.to(_accumulation_dtype(part)), cap)
        gradient = torch.softmax(wide, dim=-1)
        totals.append(_token_losses(wide, target, gradient).sum())
        gradient.scatter_add_(1, target.clamp(min=0)[:, None], torch.full_like(gradient[:, :1], -1.0))
        part.copy_(gradient if slope is None else gradient.mul_(slope))
    dhidden = logits @ weight
    factor = ((targets != IGNORED) * scale).to(_accumulation_dtype(dhidden))[:, None]
    return torch.stack(totals).sum(), (dhidden * factor).to(hidden.dtype)


def _token_losses(logits: Tensor, targets: Tensor, probs: Tensor | None = None) -> Tensor:
    """Returns log(sum(exp(z))) - z[target]; given the softmax, the sum is exp(max z) / max prob."""
    target_logits = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    norm = torch.logsumexp(logits, dim=-1) if probs is None else logits.amax(-1) - probs.amax(-1).log()
    return torch.where(targets != IGNORED, norm - target_logits, 0.0)


def _softcap(logits: Tensor, cap: float) -> tuple[Tensor, Tensor | None]:
    """Returns the capped logits and the derivative of the cap (None without a cap)."""
    if not cap:
        return logits, None
    squashed = torch.tanh(logits / cap)
    return squashed * cap, 1 - squashed * squashed
