"""Training curves as static SVG for light and dark mode."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
MAX_POINTS = 400  # of a line; more cannot be distinguished at this width


def curve(
    title: str,
    line: Points,
    *,
    dots: Points = (),
    latest: str = "",
    x_label: str = "step",
    x_unit: str = "",
    legend: str = "",
) -> str:
    """Returns a figure with a line, and with `dots` a second one with markers; `latest` is the newest value as text.

    Points that are not finite are left out. `x_label` and `x_unit` surround the values on the x axis.
    """
    line, dots = _downsample(_finite(line)), _downsample(_finite(dots))
    all_points = [*line, *dots]
    head = f"<figcaption>{html.escape(title)}<span>{html.escape(latest)}</span></figcaption>"
    if not all_points:
        return f'<figure>{head}<p class="soft">Nothing yet</p></figure>'
    xs, ys = [x for x, _ in all_points], [y for _, y in all_points]
    y_min, y_max = _axis_range(min(ys), max(ys))
    x_min, x_max = min(xs), max(max(xs), min(xs) + 1)

    def to_pixels(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - x_min) / (x_max - x_min) * (WIDTH - LEFT - RIGHT)
        y = TOP + (y_max - point[1]) / (y_max - y_min) * (HEIGHT - TOP - BOTTOM)
        return x, y

    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']
    ticks = (y_min, (y_min + y_max) / 2, y_max)
    parts += [_label(LEFT - 5, to_pixels((x_min, value))[1] + 4, "end", short_number(value)) for value in ticks]
    for value, anchor in ((x_min, "start"), (x_max, "end")):
        parts.append(
            _label(
                to_pixels((value, y_min))[0], HEIGHT - 6, anchor, f"{x_label} {short_number(value)} {x_unit}".strip()
            )
        )
    for points, kind in ((line, "line"), (dots, "dots")):
        if points:
            coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(to_pixels, points))
            parts.append(f'<polyline class="{kind}" points="{coordinates}"/>')
    for x, y in map(to_pixels, dots if len(dots) < 40 else ()):
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>')
    end = latest or short_number((line or dots)[-1][1])
    description = f"{title}: {legend + '; ' if legend else ''}from {short_number(all_points[0][1])} to {end}"
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(description)}">{"".join(parts)}</svg>'
    )
    legend_html = f'<p class="soft">{html.escape(legend)}</p>' if legend else ""
    return f"<figure>{head}{svg}{legend_html}</figure>"


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def short_number(value: float) -> str:
    """Formats a number in a few characters: 2.0e-4, 12.5, 34.6k."""
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


def _downsample(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most MAX_POINTS evenly spaced points and the last one."""
    stride = max(1, -(-len(points) // MAX_POINTS))
    return points if stride == 1 else [*points[:-1:stride], points[-1]]


def _axis_range(low: float, high: float) -> tuple[float, float]:
    """Returns the axis limits: the values with a margin, from zero if they come near it."""
    if low == high:
        return low - abs(low or 1) * 0.5, high + abs(high or 1) * 0.5
    margin = (high - low) * 0.06
    return (0.0 if 0 <= low < (high - low) * 0.5 else low - margin), high + margin
