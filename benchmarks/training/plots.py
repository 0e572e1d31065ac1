"""Tokens a second against peak memory, one SVG a shape, readable without color."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from benchmarks.training.table import Row

INK, GRAY = "#1f2933", "#9aa5b1"
STYLES = {  # colors by Okabe and Ito, which the common kinds of color blindness tell apart; a mark of its own each
    "native": ("#0072b2", "o"),
    "native-fast": ("#d55e00", "D"),
    "unsloth": ("#009e73", "s"),
    "trl-liger": ("#cc79a7", "^"),
    "trl": ("#7b5c00", "v"),
    "peft": ("#56b4e9", "P"),
}
TICKS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 140)  # GiB
PLACES = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]


def plot(shape: str, rows: Sequence[Row]) -> str:
    """The SVG of one shape's rows; hollow marks recompute activations, lines join what nothing else beats."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    points = []
    for engine in [name for name in STYLES if any(row.engine == name for row in rows)]:
        points += _series(axes, engine, _distinct([row for row in rows if row.engine == engine]))
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.09, y=0.12)
    _ticks(axes)
    axes.set_xlabel("peak memory that torch allocated (GiB)", fontsize=9)
    axes.set_ylabel("tokens a second", fontsize=9)
    axes.tick_params(labelsize=8, colors=INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(
        f"{shape}: labels are rows x tokens of a step; hollow: activations recomputed", fontsize=9, loc="left"
    )
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    canvas.draw()
    _label(axes, canvas.get_renderer(), points)
    sink = io.StringIO()
    title = f"Tokens a second against peak memory, {shape}"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """One row a plan: budgets that led to the same plan share a point."""
    kept = {(row.batch, row.length, row.checkpointing, row.note, row.tokens_s): row for row in rows}
    return list(kept.values())


def recomputed(row: Row) -> bool:
    """Whether activations are computed twice."""
    return row.checkpointing in ("yes", "unsloth") or "recomputed" in row.note


def _series(axes: Any, engine: str, rows: Sequence[Row]) -> list[tuple[float, float, str, str]]:
    color, mark = STYLES[engine]
    points = sorted((float(row.peak_gib), float(row.tokens_s), row) for row in rows)
    front: list[tuple[float, float]] = []
    for memory, speed, _ in points:
        if not front or speed > front[-1][1]:
            front.append((memory, speed))
    axes.plot(*zip(*front, strict=True), color=color, linewidth=1.2, alpha=0.7, zorder=2)
    axes.plot([], [], linestyle="", marker=mark, color=color, markersize=6.5, label=engine)
    for memory, speed, row in points:
        axes.plot(
            [memory],
            [speed],
            linestyle="",
            marker=mark,
            color=color,
            markerfacecolor="white" if recomputed(row) else color,
            markersize=6.5,
            zorder=3,
        )
    return [(memory, speed, f"{row.batch}×{row.length}", color) for memory, speed, row in points]


def _ticks(axes: Any) -> None:
    low, high = axes.get_xlim()
    shown = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(shown, [str(tick) for tick in shown])
    axes.set_xticks([], minor=True)


def _label(axes: Any, renderer: Any, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Puts each label at the nearest place where it covers no mark, label or edge; leaves out one that has none."""
    pixels = axes.transData.transform([(memory, speed) for memory, speed, *_ in points]) if points else []
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    frame = axes.get_window_extent(renderer)
    for (memory, speed, text, color), (x, y) in zip(points, pixels, strict=True):
        found = axes.annotate(text, (memory, speed), fontsize=7, color=color, annotation_clip=False)
        extent = found.get_window_extent(renderer)
        wide, high = extent.width, extent.height
        found.remove()
        box = _free(x, y, wide, high, taken, (frame.x0, frame.y0, frame.x1, frame.y1))
        if box is None:
            continue
        taken.append(box)
        where = ((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y)
        far = max(abs(where[0]) - wide / 2, abs(where[1]) - high / 2) > 14
        points_a_pixel = 72 / axes.figure.dpi
        axes.annotate(
            text,
            (memory, speed),
            xytext=(where[0] * points_a_pixel, where[1] * points_a_pixel),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            color=color,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
            arrowprops={"arrowstyle": "-", "color": GRAY, "linewidth": 0.5} if far else None,
        )


Box = tuple[float, float, float, float]


def _free(x: float, y: float, wide: float, high: float, taken: Sequence[Box], frame: Box) -> Box | None:
    for distance in (3, 9, 16, 26, 38, 52):
        for right, up in PLACES:
            middle = (x + right * (wide / 2 + 5 + distance), y + up * (high / 2 + 5 + distance))
            box = (middle[0] - wide / 2, middle[1] - high / 2, middle[0] + wide / 2, middle[1] + high / 2)
            inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
            if inside and not any(_meet(box, other) for other in taken):
                return box
    return None


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
