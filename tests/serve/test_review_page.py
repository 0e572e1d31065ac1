"""The review page in a browser: with the keyboard alone, replies shown as text, and a server that restarts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.test_review_app import write_run
from strict_pages import EVIL
from tunesmith.commands.review import serve_review
from tunesmith.evaluation.review import QUESTIONS, read_reviews

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install chromium")


SAME = dict.fromkeys(QUESTIONS, "yes")
OTHERS = {"key": "gone", "left": SAME, "right": SAME, "preference": "tie", "seconds": 1, "note": ""}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test for whatever it complains of, requests to others included."""
    context = browser.new_context()
    tab = context.new_page()
    tab.set_default_timeout(8000)
    troubles: list[str] = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda console: troubles.append(console.text) if console.type == "error" else None)
    requested: list[str] = []
    tab.on("request", lambda request: requested.append(request.url))
    tab.troubles, tab.asked = troubles, requested
    yield tab
    context.close()
    assert all(url.startswith(("http://127.0.0.1:", "data:,")) for url in requested)


def press(page: Any, keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


def at_pair(page: Any, number: int, of: int = 3) -> None:
    sync_api.expect(page.locator("#place")).to_contain_text(f"Pair {number} of {of}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_three_pairs_by_keyboard_alone(page: Any, tmp_path: Path) -> None:
    recipe, run = write_run(tmp_path)
    with serve_review(recipe, run, "r1") as served:
        page.goto(served.url)
        at_pair(page, 1)
        assert page.evaluate("location.hash") == ""  # the token is not left in the address
        left, right = (page.locator(f"#text-{side}").evaluate("e => e.textContent") for side in ("left", "right"))
        assert EVIL in left  # markup is text, whole and with its line breaks
        assert EVIL in right
        assert {"\n\n" in left, "\n\n" in right} == {True, False}
        assert EVIL in page.locator("#turns").evaluate("e => e.textContent")
        assert EVIL in page.locator("#fields").evaluate("e => e.textContent")
        assert page.locator("main img, main script, main b[onclick]").count() == 0
        assert page.locator("#text-left").evaluate("e => getComputedStyle(e).whiteSpace") == "pre-wrap"

        press(page, "q w w 1 Enter")  # not everything is answered
        sync_api.expect(page.locator("#missing")).to_contain_text("left clear")
        at_pair(page, 1)
        assert served.reviews.judgments == {}
        press(page, "x n")
        page.keyboard.type("q 2 ?")  # in the note these are letters
        press(page, "Escape Enter")
        at_pair(page, 2)
        press(page, "q w e r u i o p p 2 Enter")
        at_pair(page, 3)
        press(page, "Backspace")
        at_pair(page, 2)
        press(page, "t Enter")
        at_pair(page, 3)
        press(page, "Q Q Q Q x 0 Enter")  # a fourth time is yes again
        sync_api.expect(page.locator("#finished-title")).to_be_focused()
        sync_api.expect(page.locator("#count")).to_have_text("3 of 3 judged")
        assert "1 more had two equal replies" in page.locator("#finished-equal").inner_text()
    stored = lines(run / "reviews/r1.jsonl")
    assert [item["preference"] for item in stored] == ["left", "right", "tie", "tie"]
    assert stored[0]["left"] == {"correct": "yes", "format": "no", "clear": "cannot say", "robust": "cannot say"}
    assert set(stored[0]["right"].values()) == {"cannot say"}
    assert stored[0]["note"] == "q 2 ?"
    assert stored[1]["left"] == dict.fromkeys(QUESTIONS, "yes")
    assert stored[1]["right"] == {**dict.fromkeys(QUESTIONS, "yes"), "robust": "no"}
    assert stored[2]["pair"] == stored[1]["pair"]
    assert stored[2]["seconds"] >= stored[1]["seconds"]  # the time of a second look is added
    assert stored[3]["left"]["correct"] == "yes"
    assert len({item["pair"] for item in stored}) == 3
    assert [item.preferred for item in read_reviews(run / "reviews")["r1"].values()].count("tie") == 2
    assert page.troubles == []


def test_a_server_that_goes_and_comes_back(page: Any, tmp_path: Path) -> None:
    recipe, run = write_run(tmp_path)
    with serve_review(recipe, run, "r1") as served:
        page.goto(served.url)
        at_pair(page, 1)
        port = int(served.url.split(":")[2].split("/")[0])
    press(page, "x 1 Enter")
    sync_api.expect(page.locator("#trouble")).to_contain_text("Your judgment is kept here")
    at_pair(page, 1)
    with serve_review(recipe, run, "r1", port=port) as served:
        sync_api.expect(page.locator("#trouble")).to_contain_text("no longer valid")
        assert served.reviews.judgments == {}
        page.goto("about:blank")
        page.goto(served.url)
        at_pair(page, 2)  # the kept judgment was sent
        assert len(served.reviews.judgments) == 1
        page.route("**/api/judgments", lambda route: route.abort())
        press(page, "x 2 Enter")
        sync_api.expect(page.locator("#trouble")).to_be_visible()
        page.unroute("**/api/judgments")
        page.locator("#again").click()
        at_pair(page, 3)
        sync_api.expect(page.locator("#trouble")).to_be_hidden()
        page.reload()  # the tab keeps the token
        at_pair(page, 3)
        page.evaluate("old => sessionStorage.setItem('tunesmith-review-pending', old)", json.dumps(OTHERS))
        page.reload()
        sync_api.expect(page.locator("#missing")).to_contain_text("Not saved: this judgment is about replies")
        press(page, "x")
        sync_api.expect(page.locator("#missing")).to_contain_text("your preference")
    assert [item["preference"] for item in lines(run / "reviews/r1.jsonl")] == ["left", "right"]


def test_help_names_and_single_keys(page: Any, tmp_path: Path) -> None:
    recipe, run = write_run(tmp_path)
    with serve_review(recipe, run, "r1") as served:
        page.goto(served.url)
        at_pair(page, 1)
        sync_api.expect(page.locator("#place")).to_be_focused()
        for name in QUESTIONS:
            for side in ("Left", "Right"):
                group = page.get_by_role("group", name=f"{side} reply: {name}")
                for answer in ("yes", "no", "cannot say"):
                    assert group.get_by_role("radio", name=answer, exact=True).count() == 1
        assert page.get_by_role("article", name="Left reply").count() == 1
        assert page.get_by_role("progressbar", name="0 of 3 judged").count() == 1
        press(page, "?")
        dialog = page.get_by_role("dialog", name="How to judge")
        sync_api.expect(dialog).to_be_visible()
        for text in QUESTIONS.values():
            assert text in dialog.inner_text()
        press(page, "q")  # behind the help nothing is judged
        page.get_by_label("Single-key shortcuts").uncheck()
        press(page, "Escape")
        sync_api.expect(dialog).to_be_hidden()
        press(page, "q 1")
        assert page.locator("input:checked:not(#single)").count() == 0
        page.get_by_role("group", name="Left reply: correct").get_by_role("radio", name="yes", exact=True).focus()
        press(page, "Space")
        press(page, "ArrowDown")
        assert page.locator("input:checked:not(#single)").evaluate_all("all => all.map(e => e.name + e.value)") == [
            "left-correctno"
        ]
        assert page.locator("#back").is_disabled()
        page.set_viewport_size({"width": 360, "height": 740})
        left, right = (page.locator(".reply").nth(n).bounding_box() for n in (0, 1))
        assert left["y"] + left["height"] <= right["y"]  # one above the other
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.troubles == []


def test_without_the_token_the_page_says_what_to_do(page: Any, tmp_path: Path) -> None:
    recipe, run = write_run(tmp_path)
    with serve_review(recipe, run, "r1") as served:
        page.goto(served.url.split("#")[0])
        sync_api.expect(page.locator("#trouble")).to_contain_text("Open the address that the terminal shows now")
        sync_api.expect(page.locator("#judging")).to_be_hidden()
