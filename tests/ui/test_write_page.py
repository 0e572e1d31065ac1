"""The page Write: streamed text, claims and their list; values sent by the browser are not trusted."""

from __future__ import annotations

import base64
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from tunesmith.commands.writer import Writer
from tunesmith.errors import DataError, MultipleErrors
from tunesmith.writing.events import CutEvent, DoneEvent
from ui_runs import FIELDS, HOSTILE, SAID, Scripted, letters, strict

from tunesmith.ui import write_page  # isort: skip
from tunesmith.ui.html import claim_list, escape  # isort: skip


@pytest.fixture
def draft(tmp_path: Path) -> Writer:
    return Writer(letters(tmp_path), Scripted(), "a script")


def written(draft: Writer, stop: threading.Event | None = None) -> list[Any]:
    return list(write_page.stream_text(draft, FIELDS, "", 3, stop or threading.Event()))


def test_text_is_streamed_and_ends_with_its_claims(draft: Writer) -> None:
    updates = written(draft)
    texts = [value["text"] for value, _, _ in updates]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    last, listed, notes = updates[-1]
    assert last["text"].startswith("Dear Zellington Clothing team,")
    assert HOSTILE.split()[0] in last["text"]
    assert [value["busy"] for value, _, _ in updates] == [True] * (len(updates) - 1) + [False]
    assert {value["version"] for value, _, _ in updates} == {3}
    verdicts = {last["text"][claim["start"] : claim["end"]]: claim["verdict"] for claim in listed}
    assert verdicts["12 years"] == "contradicted"
    assert verdicts["Kubernetes"] == "unsupported"
    assert verdicts["embroidery"] == "supported"
    assert "Done." in last["status"]
    assert "statements to review" in last["status"]
    assert "started with chatter" in strict(notes).text
    assert "Sure, here is your letter" in strict(notes).text
    assert "a script" in strict(notes).text


def test_claims_are_sent_while_text_is_streamed(draft: Writer) -> None:
    first = next(listed for value, listed, _ in written(draft) if listed)
    assert 0 < len(first) < 6


def test_stop_keeps_and_checks_the_text_and_closes_the_model(draft: Writer) -> None:
    stop, model, updates = threading.Event(), draft._model, []
    for value, listed, notes in write_page.stream_text(draft, FIELDS, "", 0, stop):
        updates.append((value, listed, notes))
        if "12 years of" in value["text"] or "12 years." in value["text"]:
            stop.set()
    last, listed, _ = updates[-1]
    assert last["status"].startswith("Stopped")
    assert len(last["text"]) < len(SAID) - 50
    assert listed is not None and any(claim["text"] == "12 years" for claim in listed)
    assert model.closed


def test_invalid_values_are_errors_before_anything_is_written(draft: Writer) -> None:
    with pytest.raises((DataError, MultipleErrors), match="Applicant Name"):
        list(write_page.stream_text(draft, {"Job Title": "x"}, "", 0, threading.Event()))


def test_the_claim_list_escapes_hostile_text(draft: Writer) -> None:
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
    assert {button["data-do"] for button in page.named("button")} == {"find", "remove", "fill"}
    assert "2 statements to review" in page.text
    assert "Contradicted" in page.text  # stated in words, not only by color


def test_removing_a_claim_checks_the_rest_again(draft: Writer) -> None:
    text = "I know Kubernetes and embroidery. I was there for 12 years."
    checked = write_page.CheckedText(FIELDS, 5, text, draft.judged(text, FIELDS))
    claim_id = next(claim["id"] for claim in checked.claim_dicts() if claim["text"] == "Kubernetes")
    value, markup = write_page.apply_fix(draft, checked, "remove", claim_id)
    assert value["text"] == "I know embroidery. I was there for 12 years."
    assert value["version"] == 5
    assert {value["text"][claim["start"] : claim["end"]] for claim in value["claims"]} >= {"embroidery", "12 years"}
    assert "Kubernetes" not in strict(markup).text
    assert value["status"] == "Removed. 1 statement to review."


def test_filling_a_claim_from_its_field(draft: Writer) -> None:
    text = "I was a Sewing Machinist at Tarnleigh Workshops for 12 years."
    checked = write_page.CheckedText(FIELDS, 0, text, draft.judged(text, FIELDS))
    wrong = next(claim for claim in checked.fixable_claims(draft) if claim["text"] == "12 years")
    assert wrong["fill"] == "3 years"
    value, _ = write_page.apply_fix(draft, checked, "fill", wrong["id"])
    assert value["text"] == text.replace("12 years", "3 years")
    assert all(claim["verdict"] == "supported" for claim in value["claims"])


def test_a_claim_that_was_edited_away_is_ignored(draft: Writer) -> None:
    value, _ = write_page.apply_fix(draft, write_page.CheckedText(FIELDS, 0, "Dear team,"), "remove", "c0-9")
    assert value["text"] == "Dear team,"
    assert "edited" in value["status"]


@pytest.mark.parametrize(
    "sent",
    [
        None, [], "text", {"text": None}, {"claims": [None, 3, {"start": "1", "end": 2}, {"start": -1, "end": 2}]},
        {"text": "abc", "claims": [{"start": 1, "end": 9}, {"start": 2, "end": 2}]}, {"version": "7"},
        {"text": "x" * (write_page.MAX_TEXT + 5), "version": True},
    ],
)  # fmt: skip
def test_values_from_the_browser_are_validated(sent: Any) -> None:
    sheet = write_page.text_from_browser(sent, FIELDS)
    assert sheet.claims == {}
    assert len(sheet.text) <= write_page.MAX_TEXT
    assert sheet.value("", busy=False)["claims"] == []


def test_documents(draft: Writer) -> None:
    documents = {
        kind: write_page.make_document(draft, [kind, f"Dear team,\n\n{HOSTILE} ä漢"]) for kind in write_page.MIME_TYPES
    }
    begin = {kind: base64.b64decode(document["data"])[:4] for kind, document in documents.items()}
    assert begin == {"txt": b"Dear", "docx": b"PK\x03\x04", "pdf": b"%PDF"}
    assert {document["name"] for document in documents.values()} == {"letters.txt", "letters.docx", "letters.pdf"}


@pytest.mark.parametrize("request_value", [["exe", "x"], ["txt", 3], ["txt", "x" * 200_000], None, ["txt"], {"a": 1}])
def test_invalid_document_requests(draft: Writer, request_value: Any) -> None:
    assert "error" in write_page.make_document(draft, request_value)


def test_removed_text_is_shown_as_text() -> None:
    done = DoneEvent("Dear", (), False, f"Sure! {HOSTILE}", CutEvent(f"A second letter began {HOSTILE}", HOSTILE * 9))
    page = strict(write_page.removed_notes(done))
    assert "started with chatter" in page.text
    assert "did not stop" in page.text
    assert len(page.text) < 3 * write_page.MAX_REMOVED + 500
    assert "cut off" in strict(write_page.removed_notes(DoneEvent("Dear", (), False, "", None))).text
    assert write_page.removed_notes(DoneEvent("Dear", (), True, "", None)) == ""


def test_the_writer_is_cached_and_closed_for_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    from ui_runs import finished

    opened, closed = [], []

    @contextlib.contextmanager
    def fake(recipe: Any, run: Any) -> Any:
        opened.append(recipe.name)
        yield Writer(recipe, Scripted(), recipe.name)
        closed.append(recipe.name)

    monkeypatch.setattr(write_page, "open_writer", fake)
    first, second = finished(tmp_path / "a", name="one"), finished(tmp_path / "b", name="other")
    open_writer = write_page.OpenWriter()
    assert open_writer.writer(*first) is open_writer.writer(*first)
    open_writer.writer(*second)
    assert (opened, closed) == (["one", "other"], ["one"])


def test_escape() -> None:
    assert escape("<b a='\"'>&") == "&lt;b a=&#x27;&quot;&#x27;&gt;&amp;"
