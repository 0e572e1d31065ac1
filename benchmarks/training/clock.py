"""Steps timed one by one, and the memory they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunesmith.hardware import peak_memory

WARM = 3  # steps before the first that counts: allocator, autotuning, compilation
STEPS, SECONDS, LEAST = 10, 5.0, 3  # ten steps, or as many as five seconds hold, at least three
CLIP = 1.0
RATE = 2e-4


@dataclass(frozen=True)
class Timed:
    """What one setting took: seconds of each step, tokens a step, bytes at the peak and bytes reserved."""

    seconds: tuple[float, ...]
    tokens: int
    peak: int
    reserved: int

    @property
    def rates(self) -> tuple[float, float, float]:
        """Tokens a second: the lowest quintile, the median, the highest quintile."""
        low, middle, high = (quantile(self.seconds, share) for share in (0.8, 0.5, 0.2))
        return self.tokens / low, self.tokens / middle, self.tokens / high


def timed(step: Callable[[], None], tokens: int, device: str, *, reset: bool = True) -> Timed:
    """Runs whole optimizer steps and times those after the third. Without `reset` the peak counts from before."""
    if reset:
        reset_peak(device)
    taken: list[float] = []
    for number in range(WARM + STEPS):
        began = time.perf_counter()
        step()
        synchronize(device)
        if number >= WARM:
            taken.append(time.perf_counter() - began)
        if len(taken) >= LEAST and sum(taken) >= SECONDS:
            break
    return Timed(tuple(taken), tokens, *peaks(device))


def random_ids(batch: int, length: int, vocabulary: int, device: str) -> Callable[[], torch.Tensor]:
    """A maker of token ids, batch x length, new ones at each call and the same for every engine on a device."""
    generator = torch.Generator(device).manual_seed(1)

    def draw() -> torch.Tensor:
        return torch.randint(0, vocabulary, (batch, length), device=device, generator=generator)

    return draw


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lies, between neighbors by proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def synchronize(device: str) -> None:
    """Waits for the card."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """The peak is counted from here (a processor's resident peak cannot be reset)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks(device: str) -> tuple[int, int]:
    """Bytes at the peak and bytes reserved: torch's counts on a card, the resident size on a processor."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return peak_memory(), peak_memory()
