"""The extension in Chromium: a board of fixture pages, clicks on its icon, its panel as a page of its own.

A click is Chromium's own `Extensions.triggerAction`, which does what a click on the toolbar's icon does: it grants
activeTab for that tab, tells the service worker and opens the side panel. Pages are served as http://board.example,
which the manifest gives no right to, so that without such a click nothing can be read. The panel under test is
panel.html in a tab of the same window; Playwright does not reach into the side panel itself.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EXTENSION = Path(__file__).parents[1] / "extension"
PAGES = Path(__file__).parent / "extension" / "pages"
HOST = "board.example"
PROFILE = {
    "name": "Lior Fernleaf",
    "summary": "",
    "current": "Design Engineer at Lundreth Bridges since 2019; bridge deck of 61 metres",
    "past": "Site Engineer at Mistlebrook Construction (2016 to 2019): designed 11 culverts",
    "skills": "progress reports\nAutoCAD\ndrainage design",
    "qualifications": "Master's degree in Structural Engineering",
    "other": "Language: Dutch",
}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def board() -> Iterator[str]:
    """Serves the fixture pages; their address as the browser knows it."""
    handler = functools.partial(_Quiet, directory=str(PAGES))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Browser:
    """Chromium with the extension; `troubles` are the errors that extension pages complained of."""

    def __init__(self, context: Any, pages: str) -> None:
        self.context, self.pages = context, pages
        workers = context.service_workers
        self.worker = workers[0] if workers else context.wait_for_event("serviceworker")
        self.id = self.worker.url.split("/")[2]
        self.troubles: list[str] = []
        self.asked: list[str] = []
        context.on("request", lambda request: self.asked.append(request.url))

    def open(self, page: str) -> Any:
        """A fixture page in a new tab."""
        made = self.context.new_page()
        made.set_default_timeout(8000)
        made.goto(f"{self.pages}/{page}")
        return made

    def own(self, page: str, width: int = 380) -> Any:
        """A page of the extension in a new tab, as wide as a side panel."""
        made = self.context.new_page()
        made.set_default_timeout(8000)
        made.on("pageerror", lambda error: self.troubles.append(str(error)))
        made.on("console", lambda said: self.troubles.append(said.text) if unexpected(said) else None)
        made.set_viewport_size({"width": width, "height": 900})
        made.goto(f"chrome-extension://{self.id}/{page}")
        return made

    def front(self, tab: Any) -> str:
        """Brings a tab to the front until it draws; its target's id. One that stays behind draws a frame a second."""
        frame = """() => {
          const began = performance.now();
          return new Promise((done) => requestAnimationFrame(() => done(performance.now() - began)));
        }"""
        for _ in range(10):
            tab.bring_to_front()
            tab.wait_for_timeout(50)
            if max(tab.evaluate(frame) for _ in range(2)) < 300:  # ms
                break
            self.context.pages[0].bring_to_front()  # the side panel that opens may keep the change from being seen
        session = self.context.browser.new_browser_cdp_session()
        found = session.send("Target.getTargets", {"filter": [{"type": "tab"}]})["targetInfos"]
        session.detach()
        [target] = [each for each in found if each["url"] == tab.url and "embedderData" in each]  # no side panel
        assert target["embedderData"]["tabActive"]
        return str(target["targetId"])

    def click(self, tab: Any) -> None:
        """A click on the extension's icon while `tab` is in front."""
        target = self.front(tab)
        session = self.context.browser.new_browser_cdp_session()
        session.send("Extensions.triggerAction", {"id": self.id, "targetId": target})
        session.detach()

    def keep(self, **values: Any) -> None:
        """Puts values into the extension's storage, as its settings do."""
        self.worker.evaluate("values => chrome.storage.local.set(values)", values)

    def kept(self) -> dict[str, Any]:
        """What the extension keeps."""
        found: dict[str, Any] = self.worker.evaluate("chrome.storage.local.get()")
        return found

    def clear(self) -> None:
        """Closes every page and forgets everything, so that the next test begins anew."""
        first, *others = self.context.pages
        for page in others:
            page.close()
        first.goto("about:blank")
        self.worker.evaluate("Promise.all([chrome.storage.local.clear(), chrome.storage.session.clear()])")
        self.troubles.clear()
        self.asked.clear()


def press(locator: Any) -> None:
    """Clicks a control once it no longer moves.

    Playwright's own wait for that needs animation frames, which a panel behind another tab does not get.
    """
    box, previous = locator.bounding_box(), None
    while box != previous:
        locator.page.wait_for_timeout(50)
        box, previous = locator.bounding_box(), box
    locator.click(force=True)


def unexpected(said: Any) -> bool:
    """Whether a console message is an error of ours; that a server is away or refuses is part of some tests."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


@contextmanager
def browsing(folder: Path, extension: Path = EXTENSION) -> Iterator[Browser]:
    """Chromium with the extension loaded and the board of fixture pages."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with board() as pages, sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder,
            headless=False,
            executable_path=CHROMIUM,
            accept_downloads=True,
            args=[
                "--headless=new", "--disable-gpu", "--no-sandbox", f"--load-extension={extension}",
                f"--disable-extensions-except={extension}", f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
                "--enable-unsafe-extension-debugging", "--disable-background-networking",
                "--disable-component-update", "--no-first-run", "--disable-backgrounding-occluded-windows",
                "--disable-renderer-backgrounding", "--disable-background-timer-throttling",
            ],
        )  # fmt: skip
        yield Browser(context, pages)
        context.close()
