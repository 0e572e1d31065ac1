"""Curves of a training as SVG: no script, nothing fetched, readable in light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
MOST = 400  # points of a line: more cannot be told apart at this width


def curve(
    title: str,
    line: Points,
    *,
    other: Points = (),
    now: str = "",
    across: str = "step",
    unit: str = "",
    names: str = "",
) -> str:
    """A figure with one line, and with `other` a second one with dots; `now` is the newest value in words.

    Points that are no numbers are left out. `across` and `unit` stand around a place
    on the axis; `names` says which line is which, where there are two.
    """
    line, other = _thin(_finite(line)), _thin(_finite(other))
    every = [*line, *other]
    head = f"<figcaption>{html.escape(title)}<span>{html.escape(now)}</span></figcaption>"
    if not every:
        return f'<figure>{head}<p class="soft">Nothing yet</p></figure>'
    xs, ys = [x for x, _ in every], [y for _, y in every]
    low, high = _span(min(ys), max(ys))
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - point[1]) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return x, y

    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']
    heights = (low, (low + high) / 2, high)
    parts += [_label(LEFT - 5, at((first, value))[1] + 4, "end", short(value)) for value in heights]
    for value, anchor in ((first, "start"), (last, "end")):
        parts.append(_label(at((value, low))[0], HEIGHT - 6, anchor, f"{across} {short(value)} {unit}".strip()))
    for points, kind in ((line, "line"), (other, "other")):
        if points:
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, points))
            parts.append(f'<polyline class="{kind}" points="{places}"/>')
    for x, y in map(at, other if len(other) < 40 else ()):
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>')
    end = now or short((line or other)[-1][1])
    told = f"{title}: {names + '; ' if names else ''}from {short(every[0][1])} to {end}"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(told)}">{"".join(parts)}</svg>'
    legend = f'<p class="soft">{html.escape(names)}</p>' if names else ""
    return f"<figure>{head}{svg}{legend}</figure>"


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def short(value: float) -> str:
    """A number in few signs: 0.0002, 12.5, 3.4k."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.4g}" if size >= 100 else f"{value:.3g}"


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST of the points, evenly, the last among them."""
    every = max(1, -(-len(points) // MOST))
    return points if every == 1 else [*points[:-1:every], points[-1]]


def _span(low: float, high: float) -> tuple[float, float]:
    """The ends of the axis: a little beyond the values; zero where they are near it."""
    if low == high:
        return low - abs(low or 1) * 0.5, high + abs(high or 1) * 0.5
    room = (high - low) * 0.06
    return (0.0 if 0 <= low < (high - low) * 0.5 else low - room), high + room
