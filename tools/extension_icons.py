"""Draws the extension's icons: a tuning fork on a blue tile.

python -m tools.extension_icons
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parents[1] / "extension" / "icons"
SIZES = (16, 32, 48, 128)
FINE = 8  # drawn larger and made smaller, for smooth edges
TILE, FORK = "#0b5cad", "#ffffff"


def icon(size: int) -> Image.Image:
    """The icon, `size` pixels wide and high, with transparent corners."""
    wide = size * FINE
    drawn = Image.new("RGBA", (wide, wide), (0, 0, 0, 0))
    pen = ImageDraw.Draw(drawn)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return left * wide, top * wide, right * wide, bottom * wide

    pen.rounded_rectangle(box(0, 0, 1, 1), radius=0.2 * wide, fill=TILE)
    thick = 0.11
    for left in (0.25, 0.75 - thick):  # the prongs
        pen.rounded_rectangle(box(left, 0.14, left + thick, 0.5), radius=thick / 2 * wide, fill=FORK)
    pen.arc(box(0.25, 0.19, 0.75, 0.69), 0, 180, fill=FORK, width=round(thick * wide))
    pen.rounded_rectangle(box(0.5 - thick / 2, 0.6, 0.5 + thick / 2, 0.88), radius=thick / 2 * wide, fill=FORK)
    return drawn.resize((size, size), Image.Resampling.LANCZOS)


def main() -> None:
    """Writes extension/icons/SIZE.png."""
    FOLDER.mkdir(exist_ok=True)
    for size in SIZES:
        icon(size).save(FOLDER / f"{size}.png", optimize=True)


if __name__ == "__main__":
    main()
