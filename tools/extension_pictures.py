"""Makes the pictures of docs/extension.md and of the store listing: the panel beside a page of tests/extension/pages.

    python -m tools.extension_pictures

The letters come from the server of tests/scripted_letters.py, which says the same each time.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "extension"
PANEL, HIGH, WIDE = 400, 800, 1280
SHOW_DEFAULT_PORT = """(address) => {
    const shown = "http://127.0.0.1:8765";
    for (const box of document.querySelectorAll("input")) box.value = box.value.replace(address, shown);
    const told = document.querySelector("#server-told");
    told.textContent = told.textContent.replace(address, shown);
}"""
PROFILE = {
    "name": "Vesna Pebble",
    "current": "Letting Assistant at Elmsgarth Estates since 2022; 12 viewings a week",
    "past": "Office Junior at Ashquern Properties (2016-2022): renewed 22 leases a year",
    "skills": "tenant relations\nrent accounting\nlease renewals",
    "qualifications": "Diploma in Residential Lettings",
}
LETTER = (
    "Dear Greymantle Lettings team,\n\nGood tenants stay where small repairs are taken seriously. I would like to be "
    "your Letting Agent.\n\nSince 2022 I have worked at Elmsgarth Estates, where I open the door for 12 viewings a "
    "week. Before that I renewed 40 leases a year at Ashquern Properties. I speak Dutch and know my way around rent "
    "accounting.\n\nWarm regards,\nVesna Pebble"
)
SAID = [  # what the claims engine says of such words
    ("12", "supported", "Current Working Experience states it.", "Current Working Experience"),
    ("40", "contradicted", "Past Working Experience says '22'.", "Past Working Experience"),
    ("Dutch", "unsupported", "No field names Dutch.", ""),
    ("rent accounting", "supported", "Skillsets states it.", "Skillsets"),
]
CLAIMS = [
    {"start": LETTER.index(said), "end": LETTER.index(said) + len(said), "text": said, "kind": "", "verdict": verdict,
     "why": why, "field": field}
    for said, verdict, why, field in SAID
]  # fmt: skip


def beside(page: Any, panel: Any, name: str) -> None:
    """One picture of the page on the left and the panel on the right, as Chrome lays them out."""
    page.set_viewport_size({"width": WIDE - PANEL - 1, "height": HIGH})
    panel.set_viewport_size({"width": PANEL, "height": HIGH})
    whole = Image.new("RGB", (WIDE, HIGH), "#888888")
    for made, left in ((page, 0), (panel, WIDE - PANEL)):
        made.bring_to_front()
        whole.paste(Image.open(io.BytesIO(made.screenshot())), (left, 0))
    whole.save(FOLDER / f"{name}.png", optimize=True)


def top(panel: Any, selector: str) -> None:
    """Scrolls the panel so that this stands at its top."""
    panel.locator(selector).evaluate("e => scrollTo(0, e.getBoundingClientRect().top + scrollY - 12)")


def main() -> None:
    """Writes the PNG files, 1280 by 800."""
    sys.path.insert(0, str(ROOT / "tests"))
    from extension_browser import browsing
    from scripted_letters import TOKEN, events, scripted

    FOLDER.mkdir(parents=True, exist_ok=True)
    with scripted() as letters, browsing(Path(tempfile.mkdtemp())) as browser:
        letters.events = events(LETTER, CLAIMS)
        browser.keep(server={"address": letters.address, "token": TOKEN}, profile=PROFILE)
        page, panel = browser.open("plain.html"), browser.own("panel.html", PANEL)
        panel.locator("#health.good").wait_for()
        browser.click(page)
        panel.locator("#advert-form[open]").wait_for()
        panel.wait_for_timeout(300)
        beside(page, panel, "read")
        top(panel, "section:has(#fields)")
        beside(page, panel, "fields")
        panel.locator("#write").click()
        panel.locator("#use:not([hidden])").wait_for()
        top(panel, "section:has(#letter)")
        beside(page, panel, "letter")
        panel.locator("#insert").click()
        panel.locator("#places:not([hidden])").wait_for()
        panel.locator("#place").click()
        panel.locator("#used:not(:empty)").wait_for()
        page.locator("#cover").scroll_into_view_if_needed()
        for made in (page, panel):
            made.emulate_media(color_scheme="dark")
        panel.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(2200)  # the ring around the field fades
        beside(page, panel, "inserted-dark")
        settings = browser.own("options.html", WIDE)
        settings.set_viewport_size({"width": WIDE, "height": HIGH})
        settings.locator("#server-told:not(:empty)").wait_for()
        settings.evaluate(SHOW_DEFAULT_PORT, letters.address)
        settings.screenshot(path=FOLDER / "settings.png")


if __name__ == "__main__":
    main()
