"""The side panel: a streamed letter, its marks, edits and uses, and the errors that can occur."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extension_browser import PROFILE, Browser, press
from scripted_letters import CLAIMS, DONE, FIELDS, LETTER, TOKEN, Scripted, events

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = sync_api.expect
pytestmark = pytest.mark.slow  # headless Chromium draws the panel about once a second after a click
EVIL = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'


def ready(browser: Browser, letters: Scripted, **more: Any) -> None:
    browser.keep(server={"address": letters.address, "token": TOKEN}, profile=PROFILE, **more)


def opened(browser: Browser, letters: Scripted, page: str = "board.html") -> tuple[Any, Any]:
    """A fixture page and the panel, with that page read."""
    ready(browser, letters)
    tab, panel = browser.open(page), browser.own("panel.html")
    expect(panel.locator("#health")).to_contain_text("Ready: small-letters")
    browser.click(tab)
    expect(panel.locator("#advert-name")).not_to_have_value("")
    browser.front(panel)
    return tab, panel


def written(panel: Any) -> None:
    press(panel.get_by_role("button", name="Write the letter"))
    expect(panel.locator("#progress")).to_contain_text("words")


def text(panel: Any) -> str:
    result: str = panel.locator("#letter").evaluate("e => e.textContent")
    return result


def marks(panel: Any) -> dict[str, list[str]]:
    result: dict[str, list[str]] = panel.evaluate("Object.fromEntries([...CSS.highlights].map(([name, "
"ranges]) => [name, [...ranges].map(String)]))")  # fmt: skip
    return result


def test_without_a_click_no_page_can_be_read(browser: Browser, letters: Scripted) -> None:
    ready(browser, letters)
    tab, panel = browser.open("board.html"), browser.own("panel.html")
    press(panel.get_by_role("button", name="Read this page"))
    expect(panel.locator("#trouble")).to_contain_text("Click the tunesmith icon in the toolbar")
    tabs = browser.worker.evaluate("chrome.tabs.query({}).then((all) => all.map((each) => each.id))")
    refused = (
        "id => chrome.scripting.executeScript({target: {tabId: id}, func: () => document.title}).then(() "
        "=> 'read', String)"
    )
    assert "Cannot access contents" in browser.worker.evaluate(refused, tabs[1])
    browser.click(tab)
    expect(panel.locator("#advert-name")).to_have_value("Structural Engineer")
    assert browser.worker.evaluate(refused, tabs[1]) == "read"
    expect(panel.locator("#trouble")).to_be_hidden()
    tab.goto(browser.pages.replace("board.example", "127.0.0.1") + "/none.html")  # another site: the right is gone
    tab.goto(f"{browser.pages}/plain.html")
    panel.bring_to_front()
    press(panel.get_by_role("button", name="Read this page"))
    expect(panel.locator("#trouble")).to_contain_text("Chrome asks for a new click")
    expect(panel.locator("#advert-name")).to_have_value("Structural Engineer")


def test_fields_are_filled_from_advert_and_profile_and_can_be_changed(browser: Browser, letters: Scripted) -> None:
    _, panel = opened(browser, letters)
    title = panel.get_by_role("textbox", name="Job Title")
    expect(title).to_have_value("Structural Engineer")
    expect(panel.get_by_role("textbox", name="Skillsets")).to_have_value("progress reports; AutoCAD; drainage design")
    expect(panel.get_by_role("textbox", name="Current Working")).to_have_value(PROFILE["current"])
    panel.get_by_label("Title", exact=True).fill("Bridge Engineer")
    expect(title).to_have_value("Bridge Engineer")
    title.fill("My own words")
    panel.get_by_label("Title", exact=True).fill("Ignored now")
    expect(title).to_have_value("My own words")
    panel.get_by_label("Where “Qualifications” comes from").select_option("profile.other")
    expect(panel.get_by_role("textbox", name="Qualifications", exact=True)).to_have_value("Language: Dutch")
    browser.keep(profile={**PROFILE, "other": "Language: Frisian"})
    expect(panel.get_by_role("textbox", name="Qualifications", exact=True)).to_have_value("Language: Frisian")
    written(panel)
    sent = letters.letters[0]
    assert sent["fields"]["Job Title"] == "My own words"
    assert sent["fields"]["Qualifications"] == "Language: Frisian"
    assert set(sent) == {"fields", "system", "max_tokens", "temperature", "seed", "stream"}
    assert sent["system"] is None
    assert letters.origins == [f"chrome-extension://{browser.id}"]
    again = browser.own("panel.html")  # the choice is remembered, what was typed is not
    expect(again.get_by_label("Where “Qualifications” comes from")).to_have_value("profile.other")
    expect(again.get_by_label("Where “Job Title” comes from")).to_have_value("advert.title")


def test_a_needed_field_that_is_empty_or_too_long_is_not_sent(browser: Browser, letters: Scripted) -> None:
    letters.fields = [{**field, "longest": 30} for field in FIELDS]
    _, panel = opened(browser, letters)
    title = panel.get_by_role("textbox", name="Job Title")
    expect(panel.locator(".note", has_text="Cut to fit")).to_have_count(5)
    title.fill("")
    press(panel.get_by_role("button", name="Write the letter"))
    expect(title).to_be_focused()
    expect(title).to_have_attribute("aria-invalid", "true")
    expect(panel.get_by_text("“Job Title” is needed.")).to_be_visible()
    title.fill("x" * 31)
    expect(panel.get_by_text("“Job Title” is 1 character too long.")).to_be_visible()
    assert letters.letters == []


def test_the_letter_comes_with_its_marks(browser: Browser, letters: Scripted) -> None:
    letters.hold.clear()
    letters.hold_after = 10
    _, panel = opened(browser, letters)
    press(panel.get_by_role("button", name="Write the letter"))
    stop = panel.get_by_role("button", name="Stop")
    expect(stop).to_be_focused()
    expect(panel.locator("#progress")).to_have_text("Writing…")
    expect(panel.locator("#letter")).to_contain_text("a doctorate")
    assert panel.locator("#letter").get_attribute("aria-busy") == "true"
    assert panel.locator("#letter").get_attribute("contenteditable") is None  # not before it is finished
    letters.hold.set()
    expect(panel.locator("#progress")).to_contain_text("Finished.")
    expect(panel.locator("#letter-title")).to_be_focused()
    assert text(panel) == LETTER
    assert marks(panel) == {"unsupported": ["a doctorate"], "contradicted": ["75 culverts"]}
    styles = [
        panel.locator("#letter").evaluate(f"e => getComputedStyle(e, '::highlight({name})').textDecorationStyle")
        for name in ("unsupported", "contradicted")
    ]
    assert styles == ["dotted", "wavy"]  # told apart without color
    expect(panel.locator("#tally")).to_have_text(
        "1 statement supported by your fields, 1 contradicted (wavy line), 1 unsupported (dotted line)."
    )
    items = panel.get_by_role("list", name="Statements to review").get_by_role("listitem")
    expect(items).to_have_count(2)
    expect(items.nth(0)).to_contain_text("Unsupported“I hold a doctorate in bridges. I have worked at Lundreth …”")
    expect(items.nth(0)).to_contain_text("No field names a doctorate. (field: Qualifications)")
    expect(items.nth(1)).to_contain_text("Contradicted“… Bridges since 2019. There I built 75 culverts.”")
    heard = panel.get_by_role("log").locator("p").all_text_contents()
    assert heard[-1].endswith("Lior Fernleaf")
    assert len(heard) < 8  # sentences, not words
    press(items.nth(1).get_by_role("button", name="Show"))
    assert panel.evaluate("String(getSelection())") == "75 culverts"
    expect(items.nth(1)).to_have_attribute("aria-current", "true")


def test_a_marked_sentence_is_removed_and_put_back(browser: Browser, letters: Scripted) -> None:
    _, panel = opened(browser, letters)
    written(panel)
    press(panel.get_by_role("button", name="Remove the sentence: a doctorate"))
    assert text(panel) == LETTER.replace("I hold a doctorate in bridges. ", "")
    assert marks(panel) == {"unsupported": [], "contradicted": ["75 culverts"]}
    focused = panel.get_by_role("button", name="Remove the sentence: 75 culverts")
    expect(focused).to_be_focused()
    panel.keyboard.press("Enter")
    assert text(panel) == LETTER.replace("I hold a doctorate in bridges. ", "").replace(
        " There I built 75 culverts.", ""
    )
    expect(panel.locator("#tally")).to_have_text("1 statement supported by your fields; nothing to look at.")
    back = panel.get_by_role("button", name="Restore the sentence")
    expect(back).to_be_focused()
    press(back)
    press(back)
    assert text(panel) == LETTER
    assert marks(panel) == {"unsupported": ["a doctorate"], "contradicted": ["75 culverts"]}
    expect(back).to_be_hidden()


def test_the_letter_is_edited_as_plain_text(browser: Browser, letters: Scripted) -> None:
    _, panel = opened(browser, letters)
    written(panel)
    letter = panel.get_by_role("textbox", name="Letter")
    press(letter)
    panel.keyboard.press("Control+Home")
    panel.keyboard.type("To ")
    assert text(panel) == "To " + LETTER
    assert marks(panel)["contradicted"] == ["75 culverts"]
    panel.evaluate(
        "getSelection().selectAllChildren(document.getElementById('letter')), getSelection().collapseToEnd()"
    )
    panel.keyboard.press("Enter")
    panel.keyboard.type("Post")
    panel.keyboard.press("Enter")
    panel.keyboard.type("scriptum")
    assert text(panel).rstrip("\n") == "To " + LETTER + "\nPost\nscriptum"
    panel.evaluate("""text => {
      const data = new DataTransfer();
      data.setData("text/html", text);
      data.setData("text/plain", text);
      document.getElementById("letter").dispatchEvent(
        new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
      document.execCommand("insertText", false, text);
    }""", EVIL)  # fmt: skip
    assert text(panel).rstrip("\n").endswith("scriptum" + EVIL)
    assert panel.locator("#letter img, #letter script").count() == 0
    press(panel.get_by_role("button", name="Show: 75 culverts"))
    panel.keyboard.type("11 culverts")
    assert "I built 11 culverts." in text(panel)
    assert marks(panel)["contradicted"] == []  # changed words are no longer the claim
    expect(panel.locator("#claims li")).to_have_count(1)


def test_markup_from_the_server_is_text(browser: Browser, letters: Scripted) -> None:
    claim = {**CLAIMS[0], "start": 0, "end": 4, "why": EVIL, "field": EVIL}
    letters.events = [("text", {"text": EVIL}), ("claim", claim), ("cut", {"why": EVIL, "removed": EVIL}),
                      ("done", {**DONE, "text": EVIL, "claims": [claim]})]  # fmt: skip
    letters.fields = [{**FIELDS[0], "label": EVIL, "help": EVIL}, *FIELDS[1:]]
    letters.recipes = ["cover-letter", "<b>other</b>"]
    _, panel = opened(browser, letters)
    written(panel)
    assert text(panel) == EVIL
    assert panel.locator("main img, main script, main b").count() == 0
    assert panel.evaluate("window.hurt") is None
    expect(panel.locator("#claims")).to_contain_text(EVIL)
    expect(panel.locator("#recipes-box")).to_be_visible()


def test_claims_that_do_not_lie_in_the_text_are_not_marked(browser: Browser, letters: Scripted) -> None:
    claims = [{**CLAIMS[0], "start": 5000, "end": 5003}, {**CLAIMS[0], "verdict": "odd"}, CLAIMS[2]]
    letters.events = [("text", {"text": LETTER}), ("done", {**DONE, "claims": claims})]
    _, panel = opened(browser, letters)
    written(panel)
    assert marks(panel) == {"unsupported": [], "contradicted": ["75 culverts"]}


def test_stopping_keeps_what_is_there_and_ends_the_request(browser: Browser, letters: Scripted) -> None:
    letters.hold.clear()
    _, panel = opened(browser, letters)
    press(panel.get_by_role("button", name="Write the letter"))
    expect(panel.locator("#letter")).to_contain_text("Dear Windlecombe team 🌉,")
    panel.get_by_role("button", name="Stop").press("Enter")
    expect(panel.locator("#progress")).to_contain_text("Stopped. What was written so far is kept.")
    assert letters.left.wait(5)
    assert text(panel).startswith("Dear Windlecombe")
    expect(panel.locator("#letter")).to_have_attribute("contenteditable", "plaintext-only")
    expect(panel.get_by_role("button", name="Insert into the page")).to_be_visible()
    letters.hold.set()
    press(panel.get_by_role("button", name="Write another"))
    expect(panel.locator("#progress")).to_contain_text("Finished.")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b'event: text\ndata: {"text":"Dear"}\n\n'], "the server ended the connection"),
        ([b'event: text\ndata: {"text":"Dear"}\n\n', b"event: text\ndata: {not json\n\n"], "is incomplete"),
        ([b'event: text\ndata: {"text":"Dear"}\n\n', (b'event: error\ndata: {"message":"the model died",'
b'"code":"broken"}\n\n')], "the model died"),
    ],
    ids=["ends early", "malformed", "says an error"],
)  # fmt: skip
def test_a_stream_that_breaks_off(browser: Browser, letters: Scripted, pieces: list[bytes], words: str) -> None:
    _, panel = opened(browser, letters)
    letters.pieces = pieces
    press(panel.get_by_role("button", name="Write the letter"))
    expect(panel.locator("#trouble")).to_contain_text(words)
    expect(panel.locator("#progress")).to_contain_text("Interrupted. What was written so far is kept.")
    assert text(panel) == "Dear"
    letters.pieces = None
    press(panel.locator("#trouble").get_by_role("button", name="Write again"))
    expect(panel.locator("#progress")).to_contain_text("Finished.")
    expect(panel.locator("#trouble")).to_be_hidden()


def test_a_busy_server_says_how_long(browser: Browser, letters: Scripted) -> None:
    _, panel = opened(browser, letters)
    letters.status, letters.headers = 429, {"Retry-After": "2"}
    press(panel.get_by_role("button", name="Write the letter"))
    expect(panel.get_by_role("alert").first).to_contain_text("busy with other letters. It asks for 2 s of patience.")
    again = panel.locator("#trouble-do")
    expect(again).to_be_disabled()
    letters.status = 200
    expect(again).to_be_enabled()
    press(again)
    expect(panel.locator("#progress")).to_contain_text("Finished.")


@pytest.mark.parametrize(
    ("status", "words"),
    [(400, "refused with 400"), (404, "refused with 404"), (500, "refused with 500"), (503, "refused with 503")],
)
def test_refusals_are_shown_in_the_servers_words(browser: Browser, letters: Scripted, status: int, words: str) -> None:
    _, panel = opened(browser, letters)
    letters.status = status
    press(panel.get_by_role("button", name="Write the letter"))
    expect(panel.locator("#trouble")).to_contain_text(words)
    expect(panel.locator("#letter")).to_be_hidden()


def test_a_revoked_token_leads_to_the_settings(browser: Browser, letters: Scripted) -> None:
    _, panel = opened(browser, letters)
    letters.token = "another"
    press(panel.get_by_role("button", name="Write the letter"))
    expect(panel.locator("#trouble")).to_contain_text("Pair again")
    with browser.context.expect_page() as settings:
        press(panel.locator("#trouble").get_by_role("button", name="Open settings"))
    assert settings.value.url.endswith("options.html")


def test_a_server_that_is_away_loading_or_not_paired(browser: Browser, letters: Scripted) -> None:
    browser.keep(server={"address": "http://127.0.0.1:9", "token": TOKEN})
    panel = browser.own("panel.html")
    expect(panel.locator("#health")).to_have_text("Server not running")
    expect(panel.locator("#trouble")).to_contain_text("Start it in a terminal: tunesmith serve")
    expect(panel.get_by_role("button", name="Write the letter")).to_be_disabled()
    expect(panel.locator("#you-told")).to_contain_text("No profile yet")
    letters.health = {"status": "loading"}
    browser.keep(server={"address": letters.address, "token": ""})
    expect(panel.locator("#health")).to_have_text("The model is loading…")
    letters.health = {"status": "down"}
    expect(panel.locator("#trouble")).to_contain_text("See its terminal")
    letters.health = {"status": "ok"}
    press(panel.locator("#trouble").get_by_role("button", name="Try again"))
    expect(panel.locator("#health")).to_have_text("Not paired")
    browser.keep(server={"address": letters.address, "token": TOKEN})
    expect(panel.locator("#health")).to_contain_text("Ready")
    expect(panel.locator("#trouble")).to_be_hidden()
    expect(panel.get_by_role("button", name="Write the letter")).to_be_enabled()


def test_the_field_is_picked_where_there_are_several(browser: Browser, letters: Scripted) -> None:
    tab, panel = opened(browser, letters, "plain.html")
    written(panel)
    press(panel.get_by_role("button", name="Insert into the page"))
    group = panel.get_by_role("group", name="Which field?")
    expect(group.get_by_role("radio").first).to_be_focused()
    names = group.get_by_role("radio").evaluate_all(
        "all => all.map((each) => each.parentElement.innerText.split('\\n')[0].trim())"
    )
    assert names == ["Cover letter (at most 5000 characters)", "A note to the caretaker", "Full name", "E-mail"]
    panel.keyboard.press("ArrowDown")
    expect(group.get_by_role("radio", name="A note to the caretaker")).to_be_checked()
    expect(group).to_contain_text("holds 11 characters, which are replaced")
    press(panel.get_by_role("button", name="Insert here"))
    expect(panel.locator("#used")).to_have_text(
        "Inserted into “A note to the caretaker”. Read it there before you send it."
    )
    assert tab.locator("#note").input_value() == LETTER
    assert tab.locator("#cover").input_value() == ""
    press(panel.get_by_role("button", name="Restore the field's previous text"))
    expect(panel.locator("#used")).to_contain_text("was restored")
    assert tab.locator("#note").input_value() == "Ring twice."


def test_a_page_without_fields_and_one_that_has_gone(browser: Browser, letters: Scripted) -> None:
    tab, panel = opened(browser, letters, "spanish.html")
    written(panel)
    press(panel.get_by_role("button", name="Insert into the page"))
    expect(panel.locator("#used")).to_contain_text("no field to write into")
    tab.close()
    press(panel.get_by_role("button", name="Insert into the page"))
    expect(panel.locator("#trouble")).to_contain_text("That page is closed")


def test_copy_and_download(browser: Browser, letters: Scripted, tmp_path: Path) -> None:
    _, panel = opened(browser, letters)
    written(panel)
    press(panel.get_by_role("button", name="Copy"))
    expect(panel.locator("#used")).to_have_text("Copied.")
    panel.get_by_label("Description").fill("")
    panel.keyboard.press("Control+V")
    expect(panel.get_by_label("Description")).to_have_value(LETTER)
    with panel.expect_download() as file:
        press(panel.get_by_role("button", name="Download .txt"))
    assert file.value.suggested_filename == "letter-Structural-Engineer-Windlecombe-Engineering.txt"
    file.value.save_as(tmp_path / "letter.txt")
    assert (tmp_path / "letter.txt").read_text(encoding="utf-8") == LETTER + "\n"


def test_the_draft_outlives_the_panel_but_not_the_browser(browser: Browser, letters: Scripted) -> None:
    _, panel = opened(browser, letters)
    written(panel)
    panel.wait_for_timeout(500)
    panel.close()
    again = browser.own("panel.html")
    expect(again.locator("#letter")).to_contain_text("75 culverts")
    assert text(again) == LETTER
    assert marks(again)["contradicted"] == ["75 culverts"]
    expect(again.locator("#advert-name")).to_have_value("Structural Engineer")
    assert set(browser.kept()) == {"server", "profile"}  # a letter is kept in memory only


def test_an_advert_of_another_tab_does_not_replace_the_letter(browser: Browser, letters: Scripted) -> None:
    _, panel = opened(browser, letters)
    written(panel)
    other_tab = browser.open("plain.html")
    expect(panel.locator("#advert-hint")).to_contain_text("Another tab is in front")
    browser.click(other_tab)
    expect(panel.locator("#advert-hint")).to_contain_text("This page can be read and filled in now")
    expect(panel.locator("#advert-name")).to_have_value("Structural Engineer")
    press(panel.get_by_role("button", name="Read this page"))
    expect(panel.locator("#advert-name")).to_have_value("Letting Agent")
    assert text(panel) == LETTER


@pytest.mark.parametrize("page", ["panel.html", "options.html"])
@pytest.mark.parametrize("width", [320, 400])
def test_narrow_and_named(browser: Browser, letters: Scripted, page: str, width: int) -> None:
    letters.events = [("text", {"text": "W" * 300}), *events()]
    _, panel = opened(browser, letters, "plain.html")
    written(panel)
    view = browser.own(page, width) if page == "options.html" else panel
    view.set_viewport_size({"width": width, "height": 700})
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    nameless = view.evaluate("""() => [...document.querySelectorAll("button, input, textarea, select, [role=textbox]")]
      .filter((each) => each.checkVisibility())
      .filter((each) => !(each.labels?.length || each.getAttribute("aria-label") || each.textContent.trim()))
      .map((each) => each.outerHTML)""")  # fmt: skip
    assert nameless == []
    ids = view.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


CONTRAST = """(dark) => {
  const lum = (color) => {
    const bent = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => bent(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const back = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)|transparent/.test(color)) return color;
    }
    return "rgb(255,255,255)";
  };
  const bad = [];
  const all = "h1, h2, p, label, button:not(:disabled), input, textarea, select, summary, li, .badge, .state";
  for (const e of document.querySelectorAll(all)) {
    if (!e.checkVisibility() || !(e.textContent || e.value || "").trim()) continue;
    const [a, b] = [lum(getComputedStyle(e).color), lum(back(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push([e.tagName, e.id, (a + .05) / (b + .05)]);
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_in_light_and_dark(browser: Browser, letters: Scripted, scheme: str) -> None:
    _, panel = opened(browser, letters)
    panel.emulate_media(color_scheme=scheme)
    written(panel)
    assert panel.evaluate(CONTRAST) == []
    letters.status = 429
    press(panel.get_by_role("button", name="Write another"))
    expect(panel.locator("#trouble")).to_be_visible()
    assert panel.evaluate(CONTRAST) == []


def test_from_click_to_letter_by_keyboard_alone(browser: Browser, letters: Scripted) -> None:
    tab, panel = opened(browser, letters)

    def reach(name: str) -> None:
        for _ in range(60):
            panel.keyboard.press("Tab")
            if panel.evaluate("document.activeElement.textContent.trim()") == name:
                return
        raise AssertionError(f"{name} cannot be reached")

    reach("Write the letter")
    panel.keyboard.press("Enter")
    expect(panel.locator("#letter-title")).to_be_focused()
    reach("Remove the sentence")
    panel.keyboard.press("Enter")
    reach("Insert into the page")
    panel.keyboard.press("Enter")
    expect(panel.locator("#used")).to_contain_text("Inserted into “Your cover letter”")
    assert tab.locator("textarea").input_value() == LETTER.replace("I hold a doctorate in bridges. ", "")
    assert json.loads(tab.evaluate("JSON.stringify(seen)")) == ["input", "change"]
