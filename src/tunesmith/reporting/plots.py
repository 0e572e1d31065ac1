"""Plots as inline SVG, readable without color."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

WIDTH = 9.0  # inches at 96 pixels: the width of a card on the page
INK, GRAY, FIRST, SECOND, PAPER = "#1f2933", "#7b8794", "#0b5cad", "#b44d12", "#ffffff"
VARIABLES = {
    INK: "--ink",
    GRAY: "--soft",
    FIRST: "--first",
    SECOND: "--second",
    PAPER: "--paper",
}  # CSS variables of the page


def loss_curves(train: Sequence[tuple[int, float]], valid: Sequence[tuple[int, float]], best: int | None) -> str:
    """Plots training and validation loss over steps, and marks the step that was kept."""
    figure, axes = _axes(WIDTH, 3.0)
    if train:
        axes.plot(*zip(*train, strict=True), color=FIRST, linewidth=1.3, label="training rows")
    if valid:
        axes.plot(
            *zip(*valid, strict=True), color=SECOND, linestyle="--", marker="o", markersize=4, label="validation rows"
        )
    if best:
        axes.axvline(best, color=GRAY, linewidth=1, linestyle=":")
        axes.annotate(f"kept: step {best}", (best, axes.get_ylim()[1]), ha="right", va="top", fontsize=8, color=INK)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure, "Loss falling over training steps")


def histogram(edges: Sequence[float], counts: Sequence[int], label: str) -> str:
    """Plots a histogram; `edges` has one element more than `counts`."""
    figure, axes = _axes(WIDTH / 3 - 0.12, 2.1)
    axes.stairs(counts, edges, fill=True, color=FIRST, edgecolor=PAPER, linewidth=0.6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("rows")
    return _svg(figure, f"Histogram of {label}")


def bar_chart(items: Sequence[tuple[str, int]], label: str) -> str:
    """Plots one horizontal bar per name, the first on top."""
    figure, axes = _axes(WIDTH, 0.45 + 0.21 * max(2, len(items)))
    names, counts = [name for name, _ in items][::-1], [count for _, count in items][::-1]
    axes.barh(range(len(names)), counts, color=FIRST, height=0.7)
    axes.set_yticks(range(len(names)), [_label(name) for name in names], fontsize=8)
    for index, count in enumerate(counts):
        axes.annotate(
            str(count), (count, index), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7, color=INK
        )
    axes.set_xlabel(label)
    axes.margins(x=0.08, y=0.01)
    return _svg(figure, f"Bars of {label}")


def interval_plot(items: Sequence[tuple[str, float, float, float]], *, axis: str = "tuned minus base") -> str:
    """Plots differences with intervals against zero; items are (name, low, middle, high), `axis` is the label."""
    figure, axes = _axes(WIDTH, 0.6 + 0.3 * len(items))
    for index, (_, low, middle, high) in enumerate(reversed(items)):
        axes.plot([low, high], [index, index], color=FIRST, linewidth=2)
        axes.plot([middle], [index], marker="D", color=FIRST, markersize=5)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(items)), [_label(name) for name, *_ in reversed(items)], fontsize=8)
    axes.set_ylim(-0.6, len(items) - 0.4)
    axes.set_xlabel(_label(axis))
    return _svg(figure, "Differences with 95 % intervals")


def _label(text: str) -> str:
    line = " ".join(text.split())
    return (line if len(line) < 48 else line[:45] + "…").replace("$", r"\$")  # a bare $ would start a formula


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[:].set_edgecolor(INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(8)
        label.set_color(INK)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text, drawn with the reader's fonts
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = re.sub('<g id="[^"]*"', "<g", buffer.getvalue())  # ids such as figure_1 would repeat in a page
    svg = re.sub("<[a-z][^<>]*>", lambda tag: _with_page_colors(tag[0]), svg)
    start = svg.index("<svg")
    tag_end = svg.index(">", start)
    return f'{svg[start:tag_end]} role="img" aria-label="{title}">{svg[tag_end + 1 :]}'


def _with_page_colors(tag: str) -> str:
    """Replaces colors in a tag by CSS variables, which follow the light or dark theme; the color is the fallback."""
    for color, name in VARIABLES.items():
        tag = tag.replace(color, f"var({name}, {color})")
    return tag
