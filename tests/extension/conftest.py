"""One Chromium with the extension per test file, reset between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from extension_browser import CHROMIUM, Browser, browsing
from scripted_letters import Scripted, scripted


@pytest.fixture(scope="module")  # an open one has a loop of its own, in which other tests cannot start theirs
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install chromium")
    with browsing(tmp_path_factory.mktemp("chromium")) as session:
        yield session


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Empty before each test; fails one whose extension pages complained or asked anybody else than this computer."""
    chromium.clear()
    yield chromium
    troubles, requested = list(chromium.troubles), list(chromium.asked)
    chromium.clear()
    assert troubles == []
    ours = ("chrome-extension://", "http://127.0.0.1:", "http://board.example:", "about:", "data:", "blob:")
    assert [url for url in requested if not url.startswith(ours)] == []


@pytest.fixture
def letters() -> Iterator[Scripted]:
    with scripted() as scripted_model:
        yield scripted_model
