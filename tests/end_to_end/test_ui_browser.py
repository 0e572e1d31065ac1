"""The pages Start, Data, Recipe and Train in a browser: no foreign requests, no untrusted markup runs."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finished_runs import finish, make_recipe
from strict_pages import EVIL
from tunesmith.ui import jobs
from tunesmith.ui.app import RunningServer, serve_ui

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'tunesmith[ui]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from Gradio's use of pandas
]
TABS = ("start", "data", "recipe", "train")
EXPECTED_ERRORS = ("signal is aborted", "errored out")  # requests that a page load cancels
PATIENCE = 120_000  # milliseconds for a background command on a busy machine
expect = sync_api.expect
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield instance
        instance.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RunningServer]:
    with serve_ui(tmp_path / "runs", here=tmp_path) as serving:
        yield serving


@pytest.fixture
def page(browser: Any, served: RunningServer) -> Iterator[Any]:
    """A page that may only contact its own server; console errors fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    new_page = context.new_page()
    new_page.set_default_timeout(30_000)
    troubles: list[str] = []
    foreign: list[str] = []

    def route(handler: Any) -> None:
        if handler.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            handler.continue_()
        else:
            foreign.append(handler.request.url)
            handler.abort()

    context.route("**/*", route)
    new_page.on("pageerror", lambda error: troubles.append(str(error)))
    new_page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
    new_page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
    yield new_page
    context.close()
    assert foreign == []
    assert [error for error in troubles if not any(words in error for words in EXPECTED_ERRORS)] == []


def open_tab(page: Any, name: str) -> None:
    page.locator(f"#tab-{name}-button").click()
    expect(page.locator(f"#tab-{name}")).to_be_visible()


def box(page: Any, name: str) -> Any:
    """Returns the text input of a component."""
    return page.locator(f"#{name} input, #{name} textarea").first


def choose(page: Any, name: str, option: str) -> None:
    control = box(page, name)
    control.click()
    control.fill(option)
    page.get_by_role("option", name=option, exact=True).click()


def no_wider_than_the_window(page: Any) -> bool:
    script = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    return bool(page.evaluate(script))


def test_the_pages_open_and_fit_without_foreign_requests(page: Any, tmp_path: Path, served: RunningServer) -> None:
    run = finish(make_recipe("one", about=EVIL), tmp_path / "runs/one")
    run.write("report.html", "<!doctype html><title>r</title><p>the report of one</p>")
    page.goto(served.url)
    expect(page.locator("#start-runs")).to_contain_text("one")
    assert "token" not in page.url  # neither in the address nor in the history
    page.go_back()
    assert served.token not in page.url
    page.goto(f"http://{served.hosts[0]}/")
    runs = page.locator("#start-runs")
    expect(runs).to_contain_text("reported")
    for text in ("loss", "2.000 → 0.9", "better"):
        expect(runs).to_contain_text(text)
    with page.expect_popup() as popup:
        runs.get_by_role("link", name="report").click()
    expect(popup.value.locator("p")).to_have_text("the report of one")
    popup.value.close()
    for scheme, width in (("dark", 390), ("light", 390), ("light", 1280)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 860})
        for name in TABS:
            open_tab(page, name)
            assert no_wider_than_the_window(page), (name, width)
    expect(page.locator("#train-state")).to_contain_text("Finished.")
    expect(page.locator("#train-samples")).to_contain_text("no sample replies")
    # tabs and their contents are reachable by keyboard
    page.locator("#tab-start-button").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")


@pytest.mark.slow  # over twenty seconds where the machine is busy
def test_a_recipe_in_the_form_and_as_yaml(page: Any, tmp_path: Path, served: RunningServer) -> None:
    page.goto(served.url)
    open_tab(page, "recipe")
    choose(page, "recipe-which", "shopsphere")
    expect(box(page, "field-name")).to_have_value("shopsphere")
    expect(page.locator("#recipe-preview")).to_contain_text("may have to be downloaded first")
    page.locator("#section-train button").first.click()
    epochs = box(page, "field-train-epochs")
    expect(epochs).to_have_value("1")
    epochs.fill("0")
    epochs.blur()
    mark = page.locator("#error-train-epochs")
    for part in ("greater than or equal to 1, not 0", "line 18, train.epochs", "passes over the training rows"):
        expect(mark).to_contain_text(part)
    expect(page.locator("#recipe-preview")).to_contain_text("One error to fix")
    epochs.fill("3")
    epochs.blur()
    expect(mark).to_have_count(0)
    expect(page.locator("#recipe-preview")).to_contain_text("3\nepochs", use_inner_text=True)

    page.locator("#recipe-views").get_by_role("tab", name="YAML").click()
    editor = page.locator("#recipe-yaml .cm-content")
    expect(editor).to_contain_text("epochs: 3")
    expect(editor).to_contain_text("# 4 topics that only the test sees")  # comments are kept
    editor.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(
        f"name: other\nbase: {{model: a/b}}\ndata: {{source: x.csv}}\nabout: '{EVIL.replace(chr(39), chr(39) * 2)}'\n"
    )
    editor.blur()
    page.locator("#recipe-views").get_by_role("tab", name="Form").click()
    expect(box(page, "field-name")).to_have_value("other")
    expect(box(page, "field-about")).to_have_value(EVIL)
    expect(epochs).to_have_value("1")
    expect(page.locator("#recipe-preview")).to_contain_text(EVIL)
    box(page, "recipe-name").fill("mine")
    page.locator("#recipe-save").click()
    expect(page.locator("#recipe-trouble")).to_contain_text("Saved as")
    assert "name: other" in (tmp_path / "recipes/mine.yaml").read_text()
    box(page, "recipe-name").fill("../mine")
    page.locator("#recipe-save").click()
    expect(page.locator("#recipe-trouble")).to_contain_text("is not a valid file name")


@pytest.mark.slow  # two background commands: half a minute
def test_rows_are_audited_repaired_accepted_and_restored(page: Any, tmp_path: Path, served: RunningServer) -> None:
    path = tmp_path / "letters & more.csv"
    rows = [{"question": f"how {n}?", "answer": f"Step {n} {EVIL} and so it goes."} for n in range(12)]
    rows[3]["answer"] = "Itâ€™s here, and that is how it should be."
    rows[5]["answer"] = ""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    page.goto(served.url)
    open_tab(page, "data")
    page.locator("#data-begin").click()
    expect(page.locator("#data-trouble")).to_contain_text("No rows given")
    page.locator("#data-upload input[type=file]").set_input_files(path)
    expect(box(page, "data-what")).to_have_value(str(tmp_path / "data/letters_more.csv"))
    page.locator("#data-begin").click()
    expect(page.locator("#data-findings")).to_contain_text("Empty", timeout=PATIENCE)
    expect(page.locator("#data-summary")).to_contain_text("12\nrows read", use_inner_text=True)
    expect(page.locator("#data-findings")).to_contain_text("<b onclick=x>")
    assert page.locator("#data-findings script, #data-findings b[onclick]").count() == 0
    with page.expect_popup() as popup:
        page.locator("#data-summary").get_by_role("link").click()
    expect(popup.value.locator("h1")).to_contain_text("letters_more")
    popup.value.close()

    page.locator("#data-propose").click()
    expect(page.locator("#data-repairs")).to_contain_text("mojibake", timeout=PATIENCE)
    expect(page.locator("#data-repairs")).to_contain_text("Nothing is written until you accept")
    assert not list((tmp_path / "audits/letters_more").glob("*.cleaned.csv"))
    page.reload()  # the state is in the folder
    open_tab(page, "data")
    page.locator("#data-accept").click()
    expect(page.locator("#data-repairs")).to_contain_text("Accepted")
    cleaned = tmp_path / "audits/letters_more/letters_more.cleaned.csv"
    assert "It's here" in cleaned.read_text(encoding="utf-8").replace("’", "'")
    page.locator("#data-undo").click()
    expect(page.locator("#data-trouble")).to_contain_text("Restored 12 original rows")
    with cleaned.with_name("letters_more.restored.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    page.locator("#data-draft").click()
    expect(box(page, "recipe-source")).to_have_value(str(tmp_path / "data/letters_more.csv"))
    expect(box(page, "recipe-new-name")).to_have_value("letters-more")


@pytest.mark.slow  # a training that is stopped and resumed: a minute
def test_a_run_from_its_recipe_to_its_report(
    page: Any, tmp_path: Path, served: RunningServer, recipe_file: Callable[..., Path]
) -> None:
    (tmp_path / "recipes").mkdir()
    path = recipe_file(train__epochs=150, train__batch="2 rows", train__evaluate_every=20)
    shutil.copy(path, tmp_path / "recipes/toy.yaml")
    text = (tmp_path / "recipes/toy.yaml").read_text().replace("rows.jsonl", str(tmp_path / "rows.jsonl"))
    (tmp_path / "recipes/toy.yaml").write_text(text)
    page.goto(served.url)
    open_tab(page, "recipe")
    choose(page, "recipe-which", "toy.yaml")
    preview = page.locator("#recipe-preview")
    expect(preview).to_contain_text("Rows as the model sees them", timeout=PATIENCE)
    expect(preview).to_contain_text("36\nrows", use_inner_text=True)
    assert preview.locator("mark").count() >= 1
    page.locator("#recipe-run").click()
    expect(page.locator("#train-state")).to_contain_text("Not trained yet")
    page.locator("#train-begin").click()
    expect(page.locator("#train-state")).to_contain_text("running", timeout=PATIENCE)
    expect(page.locator("#train-curves svg[aria-label^='Training']")).to_be_visible(timeout=PATIENCE)
    page.reload()
    open_tab(page, "train")
    expect(page.locator("#train-state")).to_contain_text("Train: running")
    expect(page.locator("#train-curves svg[aria-label^='Memory']")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#train-begin")).to_be_disabled()
    page.locator("#train-stop").click()
    expect(page.locator("#train-state")).to_contain_text("Everything is saved", timeout=PATIENCE)
    assert jobs.read_job(tmp_path / "runs/toy").status == "stopped"
    expect(page.locator("#train-begin")).to_have_text("Resume")

    page.locator("#train-begin").click()
    expect(page.locator("#train-state")).to_contain_text("running", timeout=PATIENCE)
    deadline = time.monotonic() + 60
    while jobs.read_job(tmp_path / "runs/toy").status != "ended":
        if time.monotonic() > deadline:
            break
        page.wait_for_timeout(500)
    expect(page.locator("#train-state")).to_contain_text("Finished.", timeout=PATIENCE)
    expect(page.locator("#train-curves")).to_contain_text("Resumed after step")
    expect(page.locator("#train-state").get_by_role("link", name="Read the report")).to_be_visible()


@pytest.mark.slow  # the demo's command with a tiny model: half a minute
def test_the_demo_run_needs_one_click(
    page: Any, tmp_path: Path, served: RunningServer, recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.ui import start_page

    monkeypatch.setattr(start_page, "RECIPE", str(recipe_file(small={"train.epochs": 1})))
    monkeypatch.setattr(start_page, "RUN_NAME", "toy-small")
    page.goto(served.url)
    page.locator("#demo-begin").click()
    expect(page.locator("#demo-progress")).to_contain_text("running")
    expect(page.locator("#demo-write")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#demo-progress")).to_contain_text("Finished.", timeout=PATIENCE)
    expect(page.locator("#start-runs")).to_contain_text("toy-small")
    with page.expect_popup() as popup:
        page.locator("#demo-progress").get_by_role("link", name="Read the report").click()
    expect(popup.value.locator("h1").first).to_be_visible()


@pytest.mark.slow  # a training process is killed
def test_a_killed_process_is_reported(
    page: Any, tmp_path: Path, served: RunningServer, recipe_file: Callable[..., Path]
) -> None:
    import os
    import signal

    import tunesmith
    from tunesmith.config.recipe import read_recipe

    recipe = read_recipe(str(recipe_file(train__epochs=400, train__batch="2 rows")))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    jobs.start(run.path, ["run", str(run.path), "--runs", str(tmp_path / "runs")])
    page.goto(served.url)
    open_tab(page, "train")
    expect(page.locator("#train-curves svg").first).to_be_visible(timeout=PATIENCE)
    os.kill(jobs.read_job(run.path).pid, signal.SIGKILL)
    expect(page.locator("#train-state")).to_contain_text("memory was full", timeout=PATIENCE)
    expect(page.locator("#train-begin")).to_have_text("Resume")
