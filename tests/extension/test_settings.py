"""The settings page: import, edit, export and deletion of the profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extension.test_parts import CV, RESUME
from extension_browser import PROFILE, Browser, press
from scripted_letters import TOKEN, Scripted

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = sync_api.expect


@pytest.fixture
def settings(browser: Browser, letters: Scripted) -> Any:
    browser.keep(server={"address": letters.address, "token": TOKEN})
    settings_page = browser.own("options.html")
    expect(settings_page.locator("#server-told")).to_contain_text("The server is running")
    return settings_page


def test_pasted_text_is_looked_over_before_it_is_kept(browser: Browser, settings: Any) -> None:
    settings.get_by_label("CV or JSON Resume").fill(CV)
    press(settings.get_by_role("button", name="Read it into the form"))
    expect(settings.locator("#import-told")).to_contain_text(
        "Check it, then save it. Lines that fit no section are under Other."
    )
    expect(settings.locator("#profile-title")).to_be_focused()
    expect(settings.get_by_label("Name", exact=True)).to_have_value("Lior Fernleaf")
    assert "profile" not in browser.kept()
    settings.get_by_label("Skills").fill("AutoCAD")
    press(settings.get_by_role("button", name="Save"))
    expect(settings.locator("#profile-told")).to_have_text("Saved in this browser.")
    assert browser.kept()["profile"]["skills"] == "AutoCAD"
    settings.get_by_label("Skills").fill("nothing")
    press(settings.get_by_role("button", name="Discard changes"))
    expect(settings.get_by_label("Skills")).to_have_value("AutoCAD")
    expect(settings.get_by_role("button", name="Discard changes")).to_be_disabled()


def test_a_file_and_the_way_back_out(browser: Browser, settings: Any, tmp_path: Path) -> None:
    file = tmp_path / "resume.json"
    file.write_text(json.dumps(RESUME))
    settings.locator("#file").set_input_files(file)
    expect(settings.get_by_label("Past work")).to_have_value("Site Engineer at Mistlebrook Construction,"
" 2016 to 2019: designed 11 culverts")  # fmt: skip
    press(settings.get_by_role("button", name="Save"))
    with settings.expect_download() as saved:
        press(settings.get_by_role("button", name="Export as JSON Resume"))
    saved_settings = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    assert saved_settings["basics"]["name"] == "Lior Fernleaf"
    assert saved_settings["meta"]["tunesmith"] == browser.kept()["profile"]


def test_markup_in_an_imported_file_is_text(settings: Any) -> None:
    evil = "<img src=x onerror='window.hurt=1'>"
    settings.get_by_label("CV or JSON Resume").fill(json.dumps({"basics": {"name": evil}, "skills": [{"name": evil}]}))
    press(settings.get_by_role("button", name="Read it into the form"))
    expect(settings.get_by_label("Skills")).to_have_value(evil)
    assert settings.evaluate("window.hurt") is None
    settings.get_by_label("CV or JSON Resume").fill('{"basics"')
    press(settings.get_by_role("button", name="Read it into the form"))
    expect(settings.locator("#import-told")).to_contain_text("not valid JSON")
    expect(settings.get_by_label("Skills")).to_have_value(evil)  # what was there stays


def test_everything_is_deleted_after_a_second_question(browser: Browser, settings: Any) -> None:
    browser.keep(profile=PROFILE, choices={"r": {"f": "typed"}}, recipe="r")
    press(settings.get_by_role("button", name="Delete everything…"))
    expect(settings.get_by_role("button", name="Keep it")).to_be_focused()
    press(settings.get_by_role("button", name="Keep it"))
    assert browser.kept()["profile"] == PROFILE
    press(settings.get_by_role("button", name="Delete everything…"))
    press(settings.get_by_role("button", name="Yes, delete it"))
    expect(settings.locator("#data-told")).to_have_text("Everything is deleted.")
    assert browser.kept() == {}
    assert browser.worker.evaluate("chrome.storage.session.get()") == {}
    expect(settings.get_by_label("Name", exact=True)).to_have_value("")


def test_a_server_is_forgotten(browser: Browser, settings: Any) -> None:
    press(settings.get_by_role("button", name="Forget this server"))
    expect(settings.locator("#server-told")).to_contain_text("not paired with it yet")
    assert browser.kept()["server"]["token"] == ""
