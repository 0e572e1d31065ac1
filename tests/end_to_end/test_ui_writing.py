"""The pages Write, Compare, Review and Export in a browser: main paths, hostile texts, two widths."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ui_runs import FIELDS, SAID, Scripted, finished

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from Gradio's use of pandas
]
MODEL = Scripted(SAID)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Serves the pages for a finished run; only the models are scripted."""
    from gradio import renderable

    from tunesmith.commands.side_by_side import ReplyGenerator
    from tunesmith.commands.writer import Writer
    from tunesmith.ui import write_page
    from tunesmith.ui.app import serve_ui

    folder = tmp_path_factory.mktemp("ui")
    _, run = finished(folder)

    @contextlib.contextmanager
    def scripted(recipe: Any, run: Any) -> Iterator[Writer]:
        yield Writer(recipe, MODEL, "a script")

    def stream(self: Any, name: str, turns: Any, *, max_new_tokens: int) -> Iterator[str]:
        yield from Scripted(f"{name} answers: {SAID}").stream(turns, max_new_tokens=max_new_tokens)

    draws: list[Any] = []
    apply = renderable.Renderable.apply

    def counted(self: Any, *values: Any) -> None:
        draws.append(values)
        apply(self, *values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renderable.Renderable, "apply", counted)
        patch.setattr(write_page, "open_writer", scripted)
        patch.setattr(ReplyGenerator, "stream", stream)
        with serve_ui(folder / "runs", run="letters", here=folder) as served:
            yield SimpleNamespace(url=served.url, run=run, draws=draws)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield instance
        instance.close()


@pytest.fixture(scope="module")
def page(browser: Any, ui: Any) -> Iterator[Any]:
    """One page for all tests of this file; console errors fail the tests."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    new_page = context.new_page()
    new_page.set_default_timeout(30_000)
    sync_api.expect.set_options(timeout=30_000)
    troubles: list[str] = []
    new_page.on("pageerror", lambda error: troubles.append(str(error)))
    new_page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)

    def dismiss(dialog: Any) -> None:
        troubles.append(dialog.message)
        dialog.dismiss()

    new_page.on("dialog", dismiss)
    urls: list[str] = []
    new_page.on("request", lambda request: urls.append(request.url))
    new_page.goto(ui.url)
    new_page.wait_for_url(lambda url: "token" not in url)
    new_page.get_by_role("tab", name="Write", exact=True).wait_for()
    settle(new_page)
    yield new_page
    assert new_page.evaluate("window.pwned") is None
    context.close()
    assert troubles == []
    assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in urls)


def settle(page: Any) -> None:
    """Waits until the DOM has not changed for 0.4 s, at most 10 s."""
    page.evaluate(
        """() => new Promise((resolve) => {
            let quiet = setTimeout(resolve, 400);
            setTimeout(resolve, 10000);
            new MutationObserver(() => {
                clearTimeout(quiet);
                quiet = setTimeout(resolve, 400);
            }).observe(document.body, { childList: true, subtree: true });
        })"""
    )


def test_every_page_is_drawn_once(page: Any, ui: Any) -> None:
    """What is clicked while a page is drawn again is lost."""
    until = time.monotonic() + 20
    while len(ui.draws) < 4 and time.monotonic() < until:  # Write, Compare, Review, Export
        page.wait_for_timeout(50)
    settle(page)
    assert len(ui.draws) == len(set(ui.draws)) == 4
    assert all(value.startswith("letters\n") for (value,) in ui.draws)


def tab(page: Any, name: str) -> Any:
    page.get_by_role("tab", name=name, exact=True).click()
    settle(page)
    return page.get_by_role("tabpanel", name=name)


def unnamed(page: Any) -> list[str]:
    """Returns visible controls without an accessible name."""
    names: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, a, progress")]
            .filter((control) => control.checkVisibility() && !(control.innerText?.trim()
              || control.getAttribute("aria-label") || control.title || control.labels?.length
              || control.getAttribute("aria-labelledby")))
            .map((control) => control.outerHTML.slice(0, 120))"""
    )
    return names


def test_a_letter_is_written_fixed_edited_and_downloaded(page: Any) -> None:
    expect = sync_api.expect
    tab(page, "Write")
    page.get_by_role("button", name="Fill in the example").click()
    expect(page.get_by_label("Applicant Name", exact=True)).to_have_value(FIELDS["Applicant Name"])
    page.get_by_role("button", name="Write", exact=True).click()
    text, status = page.get_by_label("The text, editable"), page.locator("#letter .status")
    expect(status).to_contain_text("to review")
    letter = text.input_value()
    assert letter.startswith("Dear Zellington Clothing team,")
    assert "<script>alert(1)</script>" in letter
    marks = page.locator("#letter mark")
    assert {"12 years", "Kubernetes"} <= set(marks.all_inner_texts())
    assert page.locator("#letter .marks").inner_text().rstrip("\n") == letter  # the highlights match the text
    assert "wavy" in page.locator("#letter mark.contradicted").first.evaluate("e => getComputedStyle(e).textDecoration")

    page.get_by_role("button", name="Show in the text: Kubernetes").click()
    selected = "e => e.value.slice(e.selectionStart, e.selectionEnd)"
    assert text.evaluate(selected) == "Kubernetes"
    page.get_by_role("button", name="Use “3 years”").click()
    expect(text).to_have_value(letter.replace("12 years", "3 years"))
    page.get_by_role("button", name="Remove: Kubernetes").click()
    expect(text).to_have_value(letter.replace("12 years", "3 years").replace("Kubernetes and embroidery", "embroidery"))

    text.press("Control+End")
    page.keyboard.type(" I have 77 years of experience.")
    expect(page.get_by_role("button", name="Remove: 77 years")).to_be_visible()
    expect(status).to_contain_text("Checked again.")
    assert "77 years" in marks.all_inner_texts()
    assert text.input_value().endswith("I have 77 years of experience.")
    for name, ending in (("plain text", ".txt"), ("Word", ".docx"), ("PDF", ".pdf")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        assert download.value.suggested_filename == f"letters{ending}"
        assert download.value.path().stat().st_size > 100
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(status).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == text.input_value()
    assert page.locator("#letter script, #letter img, #letter a").count() == 0


def test_stop_and_form_errors(page: Any) -> None:
    expect = sync_api.expect
    tab(page, "Write")
    MODEL.wait = 0.05
    try:
        page.get_by_role("button", name="Write", exact=True).click()
        expect(page.get_by_label("The text, editable")).to_have_value(re.compile("I was a"))
        page.get_by_role("button", name="Stop").locator("visible=true").click()
        expect(page.locator("#letter .status")).to_contain_text("Stopped")
    finally:
        MODEL.wait = 0.0
    assert MODEL.closed
    page.get_by_label("Applicant Name", exact=True).fill("")
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("Applicant Name is missing")


def test_replies_side_by_side_and_to_held_out_rows(page: Any) -> None:
    expect = sync_api.expect
    tab(page, "Compare")
    page.get_by_role("button", name="Ask all").click()
    expect(page.get_by_text("All models have replied.")).to_be_visible()
    replies = page.get_by_role("region", name="Replies side by side")
    assert [article.get_attribute("aria-label") for article in replies.get_by_role("article").all()] == [
        "base", "tuned", "q4_k_m",
    ]  # fmt: skip
    assert replies.get_by_text("<script>alert(1)</script>").count() == 3
    page.get_by_role("radio", name="unsupported statements").check()
    row_replies = page.get_by_role("region", name="The row's replies")
    expect(row_replies).to_contain_text("Row 1,")
    page.get_by_role("button", name="Next row").click()
    expect(row_replies).to_contain_text("Row 2,")
    assert row_replies.locator("script, img, a").count() == 0


def test_pairs_are_judged_in_a_new_tab(page: Any, ui: Any) -> None:
    expect = sync_api.expect
    tab(page, "Review")
    page.get_by_label("Reviewer").fill("ann")
    with page.context.expect_page() as popup:
        page.get_by_role("button", name="Start or resume").click()
    pairs = popup.value
    expect(pairs.locator("#place")).to_contain_text("Pair 1 of 6")
    for key in ("x", "1", "Enter"):
        pairs.keyboard.press(key)
    expect(pairs.locator("#place")).to_contain_text("Pair 2 of 6")
    expect(page.get_by_text("has judged 1 of 6 pairs")).to_be_visible()  # refreshed automatically
    page.get_by_role("button", name="Finish and summarize").click()
    expect(page.get_by_role("region", name="Results")).to_contain_text("1 decided pair")
    assert ui.run.read_json("reviews.json")["reviewers"] == {"ann": 1}
    pairs.close()


def test_states_and_commands_of_exported_files(page: Any, ui: Any) -> None:
    expect = sync_api.expect
    tab(page, "Export")
    targets = page.get_by_role("region", name="Targets")
    expect(targets).to_contain_text("NOT VERIFIED")
    expect(targets).to_contain_text("5 of 6 prompts are other tokens")
    page.get_by_role("region", name="Commands").get_by_role("button", name="Copy the command").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"llama-server -m {ui.run / 'export/gguf/letters.q4_k_m.gguf'} --temp 0"


@pytest.mark.slow
def test_a_failed_export_is_reported(page: Any, ui: Any) -> None:
    tab(page, "Export")
    page.get_by_role("button", name="Export and verify").click()
    failed = page.get_by_role("region", name="Progress")
    sync_api.expect(failed).to_contain_text("Failed", timeout=120_000)  # there is no base called someone/base


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_and_every_control_has_a_name(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("Write", "Compare", "Review", "Export"):
        tab(page, name)
        page.wait_for_timeout(150)
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], name
        unlabeled = [control for control in unnamed(page) if "toolbar" not in control]
        assert unlabeled == [], name


def test_keyboard_only_with_markup_in_a_field(page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    tab(page, "Write")
    evil = "<img src=x onerror=window.pwned=4> ${window.pwned=5}"
    page.get_by_label("Applicant Name", exact=True).fill(evil)
    page.get_by_role("button", name="Write", exact=True).focus()
    page.keyboard.press("Enter")
    status = page.locator("#letter .status")
    sync_api.expect(status).to_contain_text("to review")
    page.get_by_role("button", name="Remove: Kubernetes").focus()
    page.keyboard.press("Enter")
    text = page.get_by_label("The text, editable")
    sync_api.expect(text).not_to_have_value(re.compile("Kubernetes"))
    page.get_by_role("button", name="Use “3 years”").focus()
    page.keyboard.press("Enter")
    sync_api.expect(text).to_have_value(re.compile("3 years"))
    assert evil in str(MODEL.prompts[-1])  # the model gets the field's text unchanged
    assert page.get_by_role("tabpanel", name="Write").locator("img, script, b[onclick]").count() == 0
