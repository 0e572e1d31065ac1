"""The page Export: state of each target with its reasons, progress, and commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.commands import export
from tunesmith.ui.jobs import Job
from ui_runs import finished, letters, strict

from tunesmith.ui import export_page  # isort: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return finished(tmp_path_factory.mktemp("export"))


def test_each_target_has_its_state_and_the_reason(run: tuple[Any, Any]) -> None:
    page = strict(export_page.targets_html(*run))
    states = [str(span["class"]) for span in page.named("span") if "state" in str(span.get("class"))]
    assert states == ["state good", "state bad", "state none", "state none"]  # q4_k_m, q8_0, adapter, hub
    assert "NOT VERIFIED" in page.text
    assert "5 of 6 prompts are other tokens" in page.text
    assert page.text.count("not exported") == 2
    assert "<script>alert(1)</script>" in page.text


def test_a_type_that_was_not_exported_is_shown(run: tuple[Any, Any], tmp_path: Path) -> None:
    recipe = letters(tmp_path, export__files=[{"gguf": {"types": ["q4_k_m", "f16"]}}])
    page = strict(export_page.targets_html(recipe, run[1]))
    assert "gguf: f16" in page.text
    assert "not exported" in page.text
    nothing = letters(tmp_path, export__files=[])
    assert "no export targets" in strict(export_page.targets_html(nothing, run[1])).text


def test_sizes_and_speeds_with_unverified_files_marked(run: tuple[Any, Any]) -> None:
    page = strict(export_page.files_html(run[1]))
    assert "56 tokens/s" in page.text
    assert "100 MiB" in page.text
    assert "99.0 %" in page.text
    assert page.text.count("NOT VERIFIED") == 1


def test_commands_contain_the_current_path_of_the_run(run: tuple[Any, Any]) -> None:
    page = strict(export_page.commands_html(run[1]))
    path = run[1] / "export/gguf/letters.q4_k_m.gguf"
    assert f"llama-server -m {path} --temp 0" in page.text
    assert "old/place" not in page.text
    assert "not verified" in page.text  # a warning above the commands of q8_0
    ids = [tag["id"] for tag in page.named("code")]
    assert len(set(ids)) == len(ids) == 4
    assert {tag["data-copy"] for tag in page.named("button")} == set(ids)


def test_the_python_snippet_compiles(run: tuple[Any, Any]) -> None:
    code = export_page.SNIPPET.format(path=str(run[1] / "a 'file'.gguf"))
    compile(code, "snippet", "exec")
    imports = "\n".join(line for line in code.splitlines() if line.startswith("from "))
    subprocess.run([sys.executable, "-c", imports], check=True)


@pytest.mark.parametrize(
    ("command", "path", "expected"),
    [
        ("x -m runs/a/export/gguf/a.gguf --t", "export/gguf/a.gguf", "x -m HERE/export/gguf/a.gguf --t"),
        ("P.from_pretrained(base, '/old/a/adapter')", "adapter", "P.from_pretrained(base, 'HERE/adapter')"),
        ("ollama run letters", "export/ollama/Modelfile", "ollama run letters"),
    ],
)
def test_with_current_path(run: tuple[Any, Any], command: str, path: str, expected: str) -> None:
    assert export_page.with_current_path(command, path, run[1]) == expected.replace("HERE", str(run[1].path))


def test_progress_counts_the_rows_that_a_file_has_answered(run: tuple[Any, Any]) -> None:
    part = run[1] / "replies/export-q8_0.part"
    lines: list[dict[str, Any]] = [{"inputs": {}}, {"id": "r0"}, {"id": "r1"}]
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        job = Job("running", ("export", "x"), log="export: verifying q8_0 <b>\n")
        page = strict(export_page.progress_html(*run, job))
    finally:
        part.unlink()
    assert "q8_0 has answered 2 of 6 rows" in page.text
    (bar,) = page.named("progress")
    assert (bar["value"], bar["max"]) == ("2", "6")
    assert "verifying q8_0 <b>" in page.text


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job("none"), ""),
        (Job("ended", ("export",), log="export: verified: q4_k_m\n"), "All files are exported and verified"),
        (Job("ended", ("push", "x", "--dry-run"), log="push: 12 README.md\n"), "sent nothing"),
        (Job("stopped", ("export",)), "to resume"),
        (Job("failed", ("export",), reason="no base <i>"), "Failed: no base <i>"),
        (Job("failed", ("export",), log="export: NOT VERIFIED: q8_0\n"), "some failed verification"),
        (Job("gone", ("export",), reason="someone"), "The process is gone"),
        (Job("running", ("train",)), "'train' is running"),
        (Job("ended", ("train",)), ""),
    ],
)
def test_how_a_command_ended(run: tuple[Any, Any], job: Job, words: str) -> None:
    page = strict(export_page.progress_html(*run, job))
    assert words in page.text
    assert bool(words) == bool(page.text)


def test_a_failed_export_is_recognized_by_the_command_output(run: tuple[Any, Any]) -> None:
    entry = json.loads((run[1] / "export.json").read_text())["files"][1]
    assert export.describe_entry(entry).startswith("NOT VERIFIED")
