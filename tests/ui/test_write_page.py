"""The page Write: what the gate tells becomes a letter, marks and a list; what a browser sends back is not trusted."""

from __future__ import annotations

import base64
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from tunesmith.commands.writer import Drafting
from tunesmith.errors import DataError, Several
from tunesmith.writing.events import Cut, Done
from ui_runs import FIELDS, HOSTILE, SAID, Scripted, letters, strict

from tunesmith.ui import write_page  # isort: skip
from tunesmith.ui.html import claim_list, plain  # isort: skip


@pytest.fixture
def draft(tmp_path: Path) -> Drafting:
    return Drafting(letters(tmp_path), Scripted(), "a script")


def written(draft: Drafting, stop: threading.Event | None = None) -> list[Any]:
    return list(write_page.writing(draft, FIELDS, "", 3, stop or threading.Event()))


def test_a_letter_comes_in_pieces_and_ends_with_its_statements(draft: Drafting) -> None:
    told = written(draft)
    texts = [value["text"] for value, _, _ in told]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    last, listed, notes = told[-1]
    assert last["text"].startswith("Dear Zellington Clothing team,")
    assert HOSTILE.split()[0] in last["text"]
    assert [value["busy"] for value, _, _ in told] == [True] * (len(told) - 1) + [False]
    assert {value["version"] for value, _, _ in told} == {3}
    verdicts = {last["text"][each["start"] : each["end"]]: each["verdict"] for each in listed}
    assert verdicts["12 years"] == "contradicted"
    assert verdicts["Kubernetes"] == "unsupported"
    assert verdicts["embroidery"] == "supported"
    assert "Done." in last["say"]
    assert "statements to look at" in last["say"]
    assert "began with chatter" in strict(notes).text
    assert "Sure, here is your letter" in strict(notes).text
    assert "a script" in strict(notes).text


def test_statements_are_told_while_the_text_is_written(draft: Drafting) -> None:
    first = next(listed for value, listed, _ in written(draft) if listed)
    assert 0 < len(first) < 6


def test_stop_keeps_what_is_there_judges_it_and_ends_the_model(draft: Drafting) -> None:
    stop, model, told = threading.Event(), draft._model, []
    for value, listed, notes in write_page.writing(draft, FIELDS, "", 0, stop):
        told.append((value, listed, notes))
        if "12 years of" in value["text"] or "12 years." in value["text"]:
            stop.set()
    last, listed, _ = told[-1]
    assert last["say"].startswith("Stopped")
    assert len(last["text"]) < len(SAID) - 50
    assert any(each["text"] == "12 years" for each in listed)
    assert model.closed


def test_values_that_do_not_fit_are_errors_before_anything_is_written(draft: Drafting) -> None:
    with pytest.raises((DataError, Several), match="Applicant Name"):
        list(write_page.writing(draft, {"Job Title": "x"}, "", 0, threading.Event()))


def test_the_list_shows_hostile_words_as_text(draft: Drafting) -> None:
    bad = {
        "id": f"c{HOSTILE}",
        "text": HOSTILE,
        "verdict": "unsupported",
        "why": HOSTILE,
        "field": HOSTILE,
        "fill": HOSTILE,
    }
    page = strict(claim_list([bad, {**bad, "verdict": "contradicted"}, {**bad, "verdict": "supported"}], True))
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert {each["data-do"] for each in page.named("button")} == {"find", "remove", "fill"}
    assert "2 statements to look at" in page.text
    assert "Contradicted" in page.text  # told in words, not by colour alone


def test_one_click_removes_a_statement_and_the_rest_is_judged_anew(draft: Drafting) -> None:
    text = "I know Kubernetes and embroidery. I was there for 12 years."
    sheet = write_page.Sheet(FIELDS, 5, text, draft.judged(text, FIELDS))
    at = next(each["id"] for each in sheet.listed() if each["text"] == "Kubernetes")
    value, markup = write_page.mended(draft, sheet, "remove", at)
    assert value["text"] == "I know embroidery. I was there for 12 years."
    assert value["version"] == 5
    assert {value["text"][each["start"] : each["end"]] for each in value["claims"]} >= {"embroidery", "12 years"}
    assert "Kubernetes" not in strict(markup).text
    assert value["say"] == "Removed. 1 statement to look at."


def test_one_click_fills_a_statement_from_its_field(draft: Drafting) -> None:
    text = "I was a Sewing Machinist at Tarnleigh Workshops for 12 years."
    sheet = write_page.Sheet(FIELDS, 0, text, draft.judged(text, FIELDS))
    wrong = next(each for each in sheet.mendable(draft) if each["text"] == "12 years")
    assert wrong["fill"] == "3 years"
    value, _ = write_page.mended(draft, sheet, "fill", wrong["id"])
    assert value["text"] == text.replace("12 years", "3 years")
    assert all(each["verdict"] == "supported" for each in value["claims"])


def test_a_statement_that_was_edited_away_is_left_alone(draft: Drafting) -> None:
    value, _ = write_page.mended(draft, write_page.Sheet(FIELDS, 0, "Dear team,"), "remove", "c0-9")
    assert value["text"] == "Dear team,"
    assert "edited" in value["say"]


@pytest.mark.parametrize(
    "sent",
    [
        None, [], "text", {"text": None}, {"claims": [None, 3, {"start": "1", "end": 2}, {"start": -1, "end": 2}]},
        {"text": "abc", "claims": [{"start": 1, "end": 9}, {"start": 2, "end": 2}]}, {"version": "7"},
        {"text": "x" * (write_page.LONGEST + 5), "version": True},
    ],
)  # fmt: skip
def test_what_a_browser_sends_back_is_read_with_care(sent: Any) -> None:
    sheet = write_page.sheet_of(sent, FIELDS)
    assert sheet.claims == {}
    assert len(sheet.text) <= write_page.LONGEST
    assert sheet.value("", busy=False)["claims"] == []


def test_documents(draft: Drafting) -> None:
    found = {kind: write_page.document_of(draft, [kind, f"Dear team,\n\n{HOSTILE} ä漢"]) for kind in write_page.KINDS}
    begin = {kind: base64.b64decode(each["data"])[:4] for kind, each in found.items()}
    assert begin == {"txt": b"Dear", "docx": b"PK\x03\x04", "pdf": b"%PDF"}
    assert {each["name"] for each in found.values()} == {"letters.txt", "letters.docx", "letters.pdf"}


@pytest.mark.parametrize("asked", [["exe", "x"], ["txt", 3], ["txt", "x" * 200_000], None, ["txt"], {"a": 1}])
def test_no_document_of_anything_else(draft: Drafting, asked: Any) -> None:
    assert "error" in write_page.document_of(draft, asked)


def test_what_was_left_out_is_told_as_text() -> None:
    done = Done("Dear", (), False, f"Sure! {HOSTILE}", Cut(f"A second letter began {HOSTILE}", HOSTILE * 9))
    page = strict(write_page.left_out(done))
    assert "began with chatter" in page.text
    assert "ran on" in page.text
    assert len(page.text) < 3 * write_page.SHORT + 500
    assert "broke off" in strict(write_page.left_out(Done("Dear", (), False, "", None))).text
    assert write_page.left_out(Done("Dear", (), True, "", None)) == ""


def test_the_writer_is_kept_and_another_runs_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    from ui_runs import finished

    opened, closed = [], []

    @contextlib.contextmanager
    def fake(recipe: Any, run: Any) -> Any:
        opened.append(recipe.name)
        yield Drafting(recipe, Scripted(), recipe.name)
        closed.append(recipe.name)

    monkeypatch.setattr(write_page, "drafting", fake)
    one, other = finished(tmp_path / "a", name="one"), finished(tmp_path / "b", name="other")
    desk = write_page.Desk()
    assert desk.writer(*one) is desk.writer(*one)
    desk.writer(*other)
    assert (opened, closed) == (["one", "other"], ["one"])


def test_plain_is_plain() -> None:
    assert plain("<b a='\"'>&") == "&lt;b a=&#x27;&quot;&#x27;&gt;&amp;"
