"""Shared by the tests of the pages: Gradio, a finished run of letters, and a scripted model."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'tunesmith[ui]'")

from finished_runs import finish, make_recipe
from handmade import row
from strict_pages import EVIL, Page
from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Conversation, Turn
from tunesmith.runs.run import Run
from tunesmith.ui.app import load_gradio

load_gradio(Path(tempfile.mkdtemp(prefix="tunesmith-test-")))

HOSTILE = f"{EVIL} **bold** [link](javascript:window.pwned=1) ${{window.pwned=2}} {{{{value}}}}"
HOSTILE += " <img src=x onerror=window.pwned=3> \u202etxt"
FIELDS = {
    "Job Title": "Alterations Tailor",
    "Hiring Company": "Zellington Clothing",
    "Applicant Name": "Kofi Jigsaw",
    "Past Working Experience": "Sewing Machinist at Tarnleigh Workshops for 3 years",
    "Skillsets": "embroidery, overlocking",
}
SAID = (
    "Sure, here is your letter:\n\nDear Zellington Clothing team,\n\nI apply for the post of Alterations Tailor. "
    "I was a Sewing Machinist at Tarnleigh Workshops for 12 years. I know Kubernetes and embroidery. "
    f"{HOSTILE}\n\nYours sincerely,\nKofi Jigsaw"
)


class Scripted:
    """A TextModel that streams one text in small pieces, with `wait` seconds before each."""

    def __init__(self, text: str = SAID, wait: float = 0.0) -> None:
        self.text, self.wait, self.closed, self.prompts = text, wait, False, list[Sequence[Turn]]()

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        self.prompts.append(prompt)
        try:
            for start in range(0, len(self.text), 7):
                time.sleep(self.wait)
                yield self.text[start : start + 7]
        finally:
            self.closed = True


def letters(folder: Path, name: str = "letters", **changes: Any) -> Recipe:
    """Returns a recipe for letters and writes its data, one row, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text(json.dumps({**FIELDS, "Cover Letter": "Dear team,"}) + "\n")
    options = {"fields": list(FIELDS), "answer": "Cover Letter", "instruction": "Write the cover letter."}
    plain: dict[str, Any] = {
        "data__source": str(folder / "rows.jsonl"),
        "data__format": {"fields": options},
        "evaluate__metrics": ["grounded", "contradicted", "loss", "stops", "length"],
        "evaluate__max_new_tokens": 400,
        "export__files": [{"gguf": {"types": ["q4_k_m", "q8_0"]}}, "adapter", {"hub": {"repo": "someone/letters"}}],
    }
    return make_recipe(name, **{**plain, **changes})


def letter_rows(count: int = 6) -> dict[str, list[Conversation]]:
    """Returns held-out rows with hostile texts."""
    question = "\n".join(f"{name}: {value}" for name, value in FIELDS.items())
    rows = [
        row(n, f"Letter {n} {HOSTILE}\n{question}", f"Dear team {n}, {HOSTILE}", group=f"t{n}", **FIELDS)
        for n in range(count)
    ]
    return {"test": rows[: count // 2], "unseen": rows[count // 2 :]}


def finished(folder: Path, gain: float = 1.0, **changes: Any) -> tuple[Recipe, Run]:
    """Creates an evaluated and exported run in folder/runs/NAME from small files."""
    recipe = letters(folder, **changes)
    text = f"The base says 40 years. {HOSTILE}"
    run = finish(recipe, folder / "runs" / recipe.name, rows=letter_rows(), base_text=text, gain=gain)
    run.write(".lock", "")
    exported(run)
    return recipe, run


def exported(run: Run) -> None:
    """Writes export.json with one verified and one failed GGUF, and the replies of both."""
    entries = []
    for name, problems in (("q4_k_m", []), ("q8_0", [f"5 of 6 prompts are other tokens {HOSTILE}"])):
        path = run.write(f"export/gguf/letters.{name}.gguf", b"no model")
        run.write(f"replies/export-{name}.jsonl", (run / "replies/tuned.jsonl").read_text())
        entries.append(
            {
                "name": name, "target": "gguf", "path": f"export/gguf/{path.name}", "bytes": 105_000_000,
                "problems": problems, "verified": not problems,
                "commands": {"llama.cpp": f"llama-server -m old/place/export/gguf/{path.name} --temp 0"}, "notes": {},
                "share": {"share": 0.99, "low": 0.9, "high": 1.02},
                "facts": {"load_seconds": 0.3, "memory_bytes": 2 << 28, "rate": 56.0, "slots": 4, "threads": 2},
            }
        )  # fmt: skip
    run.write_json("export.json", {"merge_into": "quantized", "files": entries})


def strict(markup: str) -> Page:
    """Parses HTML and checks that nothing of HOSTILE became a tag or an attribute."""
    page = Page(markup)
    for tag, attributes in page.tags:
        assert tag not in {"script", "img", "iframe", "style"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert not str(value).lower().startswith("javascript:")
            assert name != "href" or str(value).startswith("http://127.0.0.1:")
    return page
