"""The packing command: what it refuses, and that its output is reproducible."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tools.extension import EXTENSION, pack, troubles

from extension_browser import Browser


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXTENSION, tmp_path / "extension"))


def test_the_extension_itself_is_fit() -> None:
    assert troubles(version="0.1.0") == []
    assert troubles(version="9.9") == ["manifest.json: version is 0.1.0, the project's 9.9"]


MANIFESTS: list[tuple[dict[str, Any], str]] = [
    ({"permissions": ["activeTab", "scripting", "storage", "sidePanel", "tabs"]}, "permissions are not"),
    ({"permissions": ["activeTab"]}, "permissions are not"),
    ({"host_permissions": ["<all_urls>"]}, "host_permissions are not"),
    ({"host_permissions": ["http://127.0.0.1/*", "http://localhost/*", "https://*/*"]}, "host_permissions are not"),
    ({"content_scripts": [{"matches": ["<all_urls>"], "js": ["worker.js"]}]}, "keys that are not needed"),
    ({"optional_host_permissions": ["https://*/*"]}, "keys that are not needed"),
    ({"externally_connectable": {"matches": ["https://*.example/*"]}}, "keys that are not needed"),
    ({"web_accessible_resources": []}, "keys that are not needed"),
    ({"update_url": "https://x.example"}, "keys that are not needed"),
    ({"content_security_policy": {"extension_pages": "script-src 'self'"}}, "not the strict one"),
    ({"content_security_policy": {}}, "not the strict one"),
    ({"manifest_version": 2}, "manifest_version is not 3"),
    ({"description": "x" * 133}, "longer than 132"),
    ({"icons": {"16": "icons/17.png"}}, "icons/17.png: named, but not there"),
]


@pytest.mark.parametrize(("change", "words"), MANIFESTS)
def test_manifests_that_ask_for_more(copy: Path, change: dict[str, Any], words: str) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert any(words in item for item in troubles(copy))


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("panel/panel.js", "at('x').innerHTML = 'y';", "markup from text"),
        ("panel/panel.js", "document.body.insertAdjacentHTML('beforeend', x);", "markup from text"),
        ("page/read.js", "eval('1');", "code from text"),
        ("page/read.js", "setTimeout('alert(1)', 5);", "code from text"),
        ("worker.js", "new Function('return 1');", "code from text"),
        ("worker.js", "importScripts('https://cdn.example/x.js');", "code from elsewhere"),
        ("panel/panel.js", "import 'https://cdn.example/x.js';", "code from elsewhere"),
        ("panel/panel.js", "import(name);", "code from elsewhere"),
        ("panel/panel.js", "fetch('https://collect.example/');", "names another computer: collect.example"),
        ("panel/panel.js", "new WebSocket(x);", "other ways out"),
        ("panel.html", "<script>alert(1)</script>", "within the page"),
        ("panel.html", "<p onclick='x()'>", "within the page"),
        ("panel.html", "<link rel=stylesheet href='https://cdn.example/x.css'>", "no file of the extension"),
        ("style.css", "@import 'x.css';", "styles that load something"),
        ("style.css", "p { background: url(x.png); }", "styles that load something"),
    ],
)
def test_code_that_does_not_belong(copy: Path, file: str, line: str, words: str) -> None:
    with (copy / file).open("a") as opened:
        opened.write(f"\n{line}\n")
    assert any(item.startswith(f"{file}: ") and words in item for item in troubles(copy))


def test_stray_and_missing_files(copy: Path) -> None:
    (copy / "notes.js").write_text("")
    (copy / "key.pem").write_text("")
    (copy / "lib" / "bounds.js").unlink()
    assert troubles(copy) == ["key.pem: not a kind of file that belongs here", "lib/bounds.js: named, but not there",
                              "key.pem: used by nothing", "notes.js: used by nothing"]  # fmt: skip


def test_the_same_files_give_the_same_bytes(copy: Path, tmp_path: Path) -> None:
    for path in copy.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700)
    one, second = pack(EXTENSION, tmp_path / "one.zip"), pack(copy, tmp_path / "other.zip")
    assert one.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert "manifest.json" in archive.namelist()
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}


def test_chromium_takes_the_manifest_as_it_is_meant(browser: Browser) -> None:
    permissions = browser.worker.evaluate("chrome.permissions.getAll()")
    assert set(permissions["permissions"]) == {"activeTab", "scripting", "storage", "sidePanel"}
    assert set(permissions["origins"]) == {"http://127.0.0.1/*", "http://localhost/*"}
    page = browser.own("options.html")
    outside = "fetch('http://board.example:1/').then(() => 'asked', (error) => String(error))"
    assert "Failed to fetch" in page.evaluate(outside)
    browser.troubles.clear()  # the policy's complaint
    assert browser.asked[-1].endswith(".js") or "board.example" not in browser.asked[-1]
    locked = "chrome.storage.local.get ? 'open' : 'closed'"
    assert page.evaluate(locked) == "open"
