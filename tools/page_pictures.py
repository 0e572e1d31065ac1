"""Makes the pictures of the pages in docs: docs/ui, docs/images/review.png, docs/audit.png and docs/report.png.

    tunesmith run shopsphere --small --set train.samples=2
    python -m tools.page_pictures runs/shopsphere-small [NAME …]

The run is copied and stays as it is. NAME is a picture, for example `write`; without one all are made. The replies are
those of the run's models. Only the letter on the page Write is a recorded one, of a `cover-letter --small` run: it is
streamed to the page, where its statements are checked against the form.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DEMO, LETTERS = "shopsphere-small", "cover-letter-small"
WIDTH = 1280
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 300_000  # milliseconds for a model's reply on a busy machine
SHOWN_FOLDER = "/home/me"  # stands in pictures for the temporary folder
LETTER = """Dear selection panel,

Windlecombe Tailors is the place where I hold the work I enjoy. I hold the post of Alterations Tailor for 4 years at \
Windlecombe Tailors, and I cut 13 suits a month.

I sew 36 veils, and I have been a Sewing Machinist since Tarnleigh Theatre Works opened its doors. I have a Diploma in \
Pattern Cutting.

I would like to be considered for the job of Alterations Tailor.

I would also like to be asked to come in for a trial run.

With best wishes,
Kofi Jigsaw"""
POSTSCRIPT = "P.S. I led a team of 12 at Windlecombe Tailors for 9 years and hold a Certificate in Corsetry."
SETTLE_JS = """() => new Promise((resolve) => {
    let quiet = setTimeout(resolve, 600);
    setTimeout(resolve, 15000);
    new MutationObserver(() => {
        clearTimeout(quiet);
        quiet = setTimeout(resolve, 600);
    }).observe(document.body, { childList: true, subtree: true });
})"""
REPLACE_JS = """(pairs) => {
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        for (const [path, shown] of pairs) walk.currentNode.data = walk.currentNode.data.replaceAll(path, shown);
    }
}"""


class RecordedModel:
    """A TextModel that streams LETTER."""

    def stream(self, prompt: Any, *, max_new_tokens: int) -> Iterator[str]:
        """Yields the letter in pieces of a few characters."""
        yield from (LETTER[start : start + 8] for start in range(0, len(LETTER), 8))


@contextlib.contextmanager
def open_recorded_writer(recipe: Any, run: Any) -> Iterator[Any]:
    """Stands in for `commands.writer.open_writer`."""
    from tunesmith.commands.writer import Writer

    yield Writer(recipe, RecordedModel(), f"the model of {recipe.name}")


class Camera:
    """The pages of a copy of the runs in a browser. Each method makes the pictures of one page."""

    def __init__(self, page: Any, url: str, folder: Path) -> None:
        self.page, self.url, self.folder = page, url, folder

    def save(self, path: str, height: int, *, page: Any = None, width: int = WIDTH, whole: bool = True) -> None:
        """Writes docs/`path` with 256 colors; `height` is that of the window and, unless `whole`, of the picture."""
        shown = page or self.page
        shown.set_viewport_size({"width": width, "height": height})
        shown.evaluate("scrollTo(0, 0)")
        shown.evaluate(REPLACE_JS, [[str(self.folder), SHOWN_FOLDER], [f"{ROOT}/", ""]])
        shown.mouse.move(0, 0)
        shown.wait_for_timeout(500)  # for transitions
        picture = Image.open(io.BytesIO(shown.screenshot(full_page=whole, animations="disabled"))).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(DOCS / path, optimize=True)
        sys.stdout.write(f"docs/{path}: {picture.width} x {picture.height}, {(DOCS / path).stat().st_size:,} bytes\n")

    def open(self, tab: str, run: str = DEMO) -> None:
        """Opens a tab with a run chosen."""
        self.page.goto(self.url)
        self.page.wait_for_url(lambda url: "token" not in url)
        self.page.get_by_role("tab", name=tab, exact=True).wait_for()
        self.page.evaluate(SETTLE_JS)
        choice = self.page.locator("#chosen-run input").first
        if choice.input_value() != run:
            choice.click()
            self.page.get_by_role("option", name=run, exact=True).click()
        self.page.get_by_role("tab", name=tab, exact=True).click()
        self.page.evaluate(SETTLE_JS)

    def button(self, name: str) -> Any:
        """Returns a visible button."""
        return self.page.get_by_role("button", name=name, exact=True).locator("visible=true")

    def start(self) -> None:
        """The demo run, finished, and the list of runs."""
        self.open("Start")
        self.save("ui/start.png", 900)

    def data(self) -> None:
        """The audit of the sample of letters with the proposed repairs, and its own page."""
        self.open("Data")
        self.page.locator("#data-upload input[type=file]").set_input_files(ROOT / "recipes/samples/cover_letter.csv")
        self.page.wait_for_function("document.querySelector('#data-what input').value.includes('cover_letter')")
        self.button("Audit the rows").click()
        self.button("Preview repairs").click(timeout=PATIENCE)
        self.button("Accept: write the cleaned rows").wait_for(timeout=PATIENCE)
        self.page.evaluate(SETTLE_JS)
        self.save("ui/data.png", 1300, whole=False)
        with self.page.expect_popup() as popup:
            self.page.locator("#data-summary").get_by_role("link").click()
        self.save("audit.png", 1300, page=popup.value, width=1000, whole=False)
        popup.value.close()

    def recipe(self) -> None:
        """The form of the letters' recipe with its plan."""
        self.open("Recipe")
        choice = self.page.locator("#recipe-which input").first
        choice.click()
        choice.fill("cover-letter --small")
        self.page.get_by_role("option", name="cover-letter --small", exact=True).click()
        self.page.get_by_text("Rows as the model sees them").wait_for(timeout=PATIENCE)
        self.page.evaluate(SETTLE_JS)
        self.save("ui/recipe.png", 1240, whole=False)

    def train(self) -> None:
        """The curves of the demo's training, and its sample replies."""
        self.open("Train")
        self.save("ui/train.png", 900)

    def compare(self) -> None:
        """The replies of base, adapter and file to one held-out row, and those of the evaluation."""
        self.open("Compare")
        self.button("Ask all").click()
        self.page.get_by_text("All models have replied.").wait_for(timeout=PATIENCE)
        self.page.evaluate(SETTLE_JS)
        self.save("ui/compare.png", 900)

    def write(self) -> None:
        """The letter that the model writes for the example, with a postscript typed by hand."""
        make_letters_run(self.folder / "runs" / LETTERS)
        self.open("Write", LETTERS)
        self.button("Fill in the example").click()
        self.page.evaluate(SETTLE_JS)
        self.button("Write").click()
        self.page.get_by_text("Written by").wait_for(timeout=PATIENCE)
        self.page.evaluate(SETTLE_JS)
        text = self.page.get_by_label("The text, editable")
        text.press("Control+End")
        self.page.keyboard.insert_text(f"\n\n{POSTSCRIPT}")
        self.page.get_by_text("Checked again.").wait_for()
        self.page.evaluate(SETTLE_JS)
        self.save("ui/write.png", 900)
        shutil.rmtree(self.folder / "runs" / LETTERS)

    def review(self) -> None:
        """The page Review while pairs are judged, and the pair that is judged next."""
        self.open("Review")
        self.page.get_by_label("Reviewer").fill("reviewer-1")
        with self.page.context.expect_page() as popup:
            self.button("Start or resume").click()
        pairs = popup.value
        for number in range(1, 13):
            pairs.locator("#place", has_text=f"Pair {number} of").wait_for()
            for key in ("x", "1", "Enter"):
                pairs.keyboard.press(key)
        pairs.locator("#place", has_text="Pair 13 of").wait_for()
        for key in ("q", "q", "w", "e", "r", "u", "u", "i", "i", "o", "p", "1"):
            pairs.keyboard.press(key)
        pairs.set_viewport_size({"width": 1200, "height": 760})
        height = pairs.evaluate("document.documentElement.scrollHeight")
        self.save("images/review.png", height, page=pairs, width=1200, whole=False)
        self.page.bring_to_front()
        self.page.get_by_text("has judged 12 of").wait_for()
        self.save("ui/review.png", 680, whole=False)

    def export(self) -> None:
        """The exported files, their state and the commands that use them."""
        self.open("Export")
        self.save("ui/export.png", 900)

    def report(self) -> None:
        """The report of the demo run."""
        self.open("Start")
        with self.page.expect_popup() as popup:
            self.page.locator("#demo-progress").get_by_role("link", name="Read the report").click()
        self.save("report.png", 1420, page=popup.value, width=1100, whole=False)
        popup.value.close()


def make_letters_run(folder: Path) -> None:
    """Writes a run of the recipe cover-letter that has only what the page Write reads."""
    sys.path.insert(0, str(ROOT / "tests"))
    from finished_runs import finish
    from tunesmith.config.recipe import read_recipe

    finish(read_recipe("cover-letter", small=True), folder, until="train")
    (folder / ".lock").touch()


def main(arguments: list[str]) -> int:
    """Writes the PNG files that are named, or all."""
    from playwright.sync_api import sync_playwright

    from tunesmith.ui.app import serve_ui

    pictures: dict[str, Callable[[Camera], None]] = {
        "start": Camera.start, "data": Camera.data, "recipe": Camera.recipe, "train": Camera.train,
        "compare": Camera.compare, "write": Camera.write, "review": Camera.review, "export": Camera.export,
        "report": Camera.report,
    }  # fmt: skip
    if not arguments or not set(arguments[1:]) <= set(pictures):
        sys.stderr.write(f"{(__doc__ or '').strip()}\n\nPictures: {', '.join(pictures)}\n")
        return 2
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        runs = folder / "runs"
        ignored = shutil.ignore_patterns("checkpoints", "old")
        shutil.copytree(Path(arguments[0]), runs / DEMO, ignore=ignored, symlinks=True)
        os.chdir(folder)  # for short paths on the pages
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with (
            mock.patch("tunesmith.ui.write_page.open_writer", open_recorded_writer),
            serve_ui(runs, run=DEMO, here=folder) as served,
        ):
            for name in arguments[1:] or pictures:
                context = browser.new_context(viewport={"width": WIDTH, "height": 900}, locale="en-US")
                page = context.new_page()
                page.set_default_timeout(60_000)
                pictures[name](Camera(page, served.url, folder))
                context.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
