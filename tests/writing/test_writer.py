"""The `writer` command: the best model of a run behind its form, with a stub model."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from finished_runs import finish
from tunesmith.commands.writer import Writer, best_gguf, open_writer
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import Turn
from tunesmith.errors import DataError, RecipeError
from tunesmith.runs.run import Run
from tunesmith.writing.events import ClaimEvent, DoneEvent, TextEvent
from tunesmith.writing.form import build_prompt

LETTER = read_recipe("cover-letter", small=True)
VALUES = {
    "Job Title": "Baker",
    "Hiring Company": "Mill Lane Bakery",
    "Applicant Name": "Kim Oat",
    "Skillsets": "kneading",
}
REPLY = (
    "Here is the cover letter:\n\nDear team,\n\nI know kneading and sailing.\n\nKind regards,\nKim Oat\n\nUser: More."
)


class Model:
    """Streams REPLY in pieces of `size` characters, each counted as a token."""

    def __init__(self, reply: str = REPLY, size: int = 6) -> None:
        self.pieces = [reply[start : start + size] for start in range(0, len(reply), size)]
        self.size, self.prompts, self.closed, self.sent = size, list[Any](), 0, 0

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        self.prompts.append((tuple(prompt), max_new_tokens))
        try:
            for piece in self.pieces[:max_new_tokens]:
                self.sent += 1
                yield piece
        finally:
            self.closed += 1

    def tokens(self, text: str) -> list[int]:
        return [0] * -(-len(text) // self.size)


def last(events: Sequence[Any]) -> DoneEvent:
    assert isinstance(events[-1], DoneEvent)
    return events[-1]


def test_a_letter_is_written_and_the_model_stopped_when_it_is_over() -> None:
    model = Model(REPLY + " and more" * 50)
    events = list(Writer(LETTER, model, "a model").write(VALUES))
    done = last(events)
    assert done.text == "Dear team,\n\nI know kneading and sailing.\n\nKind regards,\nKim Oat"
    assert "".join(event.text for event in events if isinstance(event, TextEvent)) == done.text
    assert (done.prefix, done.cut and done.cut.why) == ("Here is the cover letter:", "continues as the other speaker")
    assert [(claim.text, claim.verdict) for claim in done.claims][:1] == [("kneading", "supported")]
    assert model.prompts == [(build_prompt(LETTER, VALUES), 320)]
    assert (model.closed, model.sent < len(model.pieces)) == (1, True)


def test_a_letter_cut_by_the_limit_has_not_stopped() -> None:
    short = last(list(Writer(LETTER, Model("Dear team, I know kneading."), "").write(VALUES, max_tokens=3)))
    assert (short.text, short.stopped) == ("Dear team, I know", False)
    assert last(list(Writer(LETTER, Model("Dear team, I know kneading."), "").write(VALUES))).stopped


def test_the_system_message_and_wrong_values() -> None:
    model = Model()
    draft = Writer(LETTER, model, "")
    list(draft.write(VALUES, "Be brief."))
    assert model.prompts[0][0][0] == Turn("system", "Be brief.")
    with pytest.raises(DataError, match="missing"):
        draft.write({"Job Title": "Baker"})
    with pytest.raises(RecipeError, match="max_tokens is 0"):
        draft.write(VALUES, max_tokens=0)
    assert len(model.prompts) == 1


def test_closing_the_iterator_ends_the_reply() -> None:
    model = Model()
    draft = Writer(LETTER, model, "")
    events = draft.write(VALUES)
    next(events)
    assert isinstance(events, Generator)
    events.close()
    assert model.closed == 1
    assert last(list(draft.write(VALUES))).text  # the lock is free again


def test_repair_and_documents() -> None:
    draft = Writer(LETTER, None, "")
    text = "Dear team,\n\nI know kneading and Docker.\n\nKind regards,\nAnn Rye"
    claims = {claim.text: claim for claim in draft.judged(text, VALUES)}
    assert claims["Docker"].verdict == "unsupported"
    others = [claim for claim in claims.values() if claim.text != "Docker"]
    assert draft.without(text, claims["Docker"], others) == text.replace(" and Docker", "")
    assert draft.filling(text, claims["Ann Rye"], VALUES) == "Kim Oat"
    assert draft.filled(text, claims["Ann Rye"], VALUES) == text.replace("Ann Rye", "Kim Oat")
    assert isinstance(claims["Docker"], ClaimEvent)
    assert draft.document(text, "Letter", "txt") == text.encode() + b"\n"
    assert draft.document(text, "Letter", "docx")[:2] == b"PK"
    assert draft.document(text, "Letter", "pdf")[:5] == b"%PDF-"
    assert Writer(read_recipe("persona", small=True), None, "").judged("I am 5 years old.", {"prompt": "Hi"}) == ()


def exported(run: Run, *, verified: bool = True) -> None:
    for mix in ("q4_k_m", "q8_0"):
        run.write(f"export/gguf/x.{mix}.gguf", b"GGUF")
    files: list[dict[str, Any]] = [
        {"name": mix, "target": "gguf", "path": f"export/gguf/x.{mix}.gguf", "verified": verified, "problems": []}
        for mix in ("q4_k_m", "q8_0")
    ]
    run.write_json("export.json", {"files": [{"name": "adapter", "target": "adapter", "verified": True}, *files]})
    run.write_fingerprints("export-gguf", {"adapter": run.fingerprint("train")}, [])


def test_the_nearest_verified_file_of_this_adapter_is_taken(tmp_path: Path) -> None:
    run = finish(LETTER, tmp_path / "run", until="train")
    assert best_gguf(run) is None
    exported(run)
    assert best_gguf(run) == run / "export/gguf/x.q8_0.gguf"
    (run / "export/gguf/x.q8_0.gguf").unlink()
    assert best_gguf(run) == run / "export/gguf/x.q4_k_m.gguf"
    run.write("adapter/adapter_config.json", json.dumps({"name": "another"}))
    run.write_fingerprints("train", {}, ["adapter"])
    assert best_gguf(run) is None  # the adapter was trained again
    exported(run, verified=False)
    assert best_gguf(run) is None


def test_without_a_file_the_adapter_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, model = finish(LETTER, tmp_path / "run", until="train"), Model()
    home = sys.modules["tunesmith.commands.writer"]
    monkeypatch.setattr(home, "chat", lambda *arguments: model)
    with open_writer(LETTER, run) as draft:
        assert draft.about == "the adapter of cover-letter-small on its base"
        assert last(list(draft.write(VALUES))).text.startswith("Dear team")
