"""The API documentation page in a browser: nothing from other servers, and nothing without the token."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from serve.loopback_servers import TOKEN, Parrot, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install chromium")


@pytest.fixture
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.set_default_timeout(8000)
        yield tab
        browser.close()


def test_the_page_shows_what_may_be_asked(page: Any) -> None:
    troubles: list[str] = []
    requested: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda console: troubles.append(console.text) if console.type == "error" else None)
    page.on("request", lambda request: requested.append(request.url))
    with running(Parrot()) as server:
        page.goto(f"{server.url}/docs")
        assert page.locator("details").count() == 0
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("details", has_text="/v1/chat/completions")).to_be_visible()
        page.locator("summary", has_text="/v1/chat/completions").click()
        sync_api.expect(page.get_by_role("cell", name="temperature", exact=True)).to_be_visible()
        assert troubles == []
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        sync_api.expect(page.get_by_role("alert")).to_contain_text("the token is missing or wrong")
        assert page.locator("details").count() == 0
        assert all(url.startswith((server.url, "data:,")) for url in requested)
    assert TOKEN not in page.content()
