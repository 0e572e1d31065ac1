"""The Space: its files, and its page as a process that answers on a loopback port."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from gguf_models import sayable, write_model
from tiny import CHATML, make_model, make_tokenizer
from tunesmith.errors import MissingExtra, ModelError, RecipeError
from tunesmith.exporting.job import File, Job
from tunesmith.exporting.targets import space
from tunesmith.exporting.targets._space_run import Page
from tunesmith.exporting.targets.space import APP, check, write
from tunesmith.models.weights import Weights
from tunesmith.prompt.template import Template

pytestmark = pytest.mark.skipif(not find_spec("gradio"), reason="needs gradio")
CARD = "---\nbase_model: tea/base\nlicense: apache-2.0\n---\n\n# toy\n"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("space")
    network: Any = AutoModelForCausalLM.from_pretrained(make_model(folder / "model", tie_word_embeddings=False))
    silent = [n for n, piece in enumerate(make_tokenizer().convert_ids_to_tokens(range(261))) if not sayable(piece)]
    with torch.no_grad():
        network.lm_head.weight[silent] = 0.0  # it says nothing but ASCII
    (folder / "export" / "gguf").mkdir(parents=True)
    write_model(folder / "export" / "gguf" / "toy.q4_k_m.gguf", network)
    return Job(
        "toy", folder / "export", Weights("tea/base", folder, ""), folder,
        Template(make_tokenizer(), CHATML, "its own"), ("zz",), "quantized", 4, "float32", 16, 256, 1, lambda: CARD,
    )  # fmt: skip


@pytest.fixture
def file(job: Job) -> File:
    return write(job)[0]


def settings(path: Path) -> dict[str, Any]:
    values = {}
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id not in ("LONGEST", "WAITING"):
            assert node.value is not None
            values[target.id] = ast.literal_eval(node.value)
    return values


def front(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text().split("---\n")[1]))


def test_the_files(job: Job, file: File) -> None:
    names = ["README.md", "app.py", "requirements.txt", "toy.q4_k_m.gguf"]
    assert sorted(path.name for path in file.path.iterdir()) == names
    told = {"NAME": "toy", "FILE": "toy.q4_k_m.gguf", "REPO": "", "LIMIT": 16, "CONTEXT": 256, "STOP": ["zz"]}
    assert settings(file.path / "app.py") == {**told, "SYSTEM": ""}
    assert front(file.path / "README.md") == {
        "title": "toy", "sdk": "gradio", "sdk_version": version("gradio"), "app_file": "app.py",
        "license": "apache-2.0", "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "short_description": "A tuned model on a CPU",
    }  # fmt: skip
    pins = (file.path / "requirements.txt").read_text().split()
    assert pins == [f"{name}=={version(name)}" for name in ("gradio", "xllamacpp")]
    assert (file.path / "toy.q4_k_m.gguf").stat().st_nlink == 2


def test_with_a_repository_nothing_heavy_is_beside_it(job: Job) -> None:
    [file] = write(job, repo="tea/toy")
    assert sorted(path.name for path in file.path.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert settings(file.path / "app.py")["REPO"] == "tea/toy"
    assert f"huggingface_hub=={version('huggingface_hub')}" in (file.path / "requirements.txt").read_text()
    card = front(file.path / "README.md")
    assert (card["models"], card["preload_from_hub"]) == (["tea/toy"], ["tea/toy toy.q4_k_m.gguf"])


def test_words_in_a_setting_stay_words(job: Job) -> None:
    words = 'x"\nimport os  # \\1 = {'
    [file] = write(replace(job, stop=(words,)))
    assert settings(file.path / "app.py")["STOP"] == [words]
    assert list(space._import_problems(file.path / "app.py")) == []


def test_the_recipes_system_message_stands_in_the_page(job: Job) -> None:
    (file,) = space.write(replace(job, folder=job.folder, system='Be "dry".'))
    assert "SYSTEM = 'Be \"dry\".'" in (file.path / "app.py").read_text()


def test_it_answers_as_its_file_does(job: Job) -> None:
    [file] = write(job, repo="tea/toy")  # the file lies elsewhere, and is not fetched
    assert check(job, file) == []
    assert left_over() == []


@pytest.mark.slow
def test_what_the_page_refuses(file: File) -> None:
    with Page(file.path) as page:
        assert page.ask("hi") == page.ask("hi")
        for question in ("a" * 1025, "é" * 300):  # more characters than are allowed; more tokens than the context
            with pytest.raises(ModelError, match=r"last event \[\('error'"):
                page.ask(question)
        assert page.ask("hi")


def test_another_answer_is_noticed(job: Job, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, folder: Path) -> None:
            assert {path.name for path in folder.iterdir()} == {"app.py", "toy.q4_k_m.gguf"}

        def __enter__(self) -> Other:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing runs."""

        def ask(self, question: str) -> str:
            return question

    monkeypatch.setattr(space, "Page", Other)
    [wrong] = check(job, file)
    assert wrong.startswith(f"the page replies '{space.QUESTION}', but its file replies '")


FAULTS = {
    "exit": ("import gradio", "raise SystemExit('no such thing')\nimport gradio", "Its last output: no such thing"),
    "error": ("yield from pieces", "raise gr.Error('tired')\n        yield from pieces", "last event [('error'"),
    "file": ("FILE = 't", "FILE = 'b", "the process ended with exit code 1"),
}


@pytest.mark.parametrize("fault", ["exit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("error", "file"))])
def test_a_page_that_breaks_is_told(job: Job, file: File, fault: str) -> None:
    old, new, said = FAULTS[fault]
    page = file.path / "app.py"
    text = page.read_text().replace(old, new)
    assert text != page.read_text()
    page.write_text(text)
    [wrong] = check(job, file)
    assert "the page does not answer" in wrong
    assert said in wrong
    assert left_over() == []


def left_over() -> list[str]:
    """The pages that still run for this process."""
    commands = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    return [" ".join(words) for words in commands if "app.py" in words]


@pytest.mark.parametrize(
    ("name", "old", "new", "wrong"),
    [
        ("app.py", "import gradio as gr", "import gradio as gr\nimport requests", "app.py imports requests"),
        ("requirements.txt", "xllamacpp==", "xllamacpp==0.", "tested with"),
        ("requirements.txt", "xllamacpp", "torch", "lists torch"),
        ("README.md", "sdk: gradio", "sdk: docker", "does not say sdk: gradio"),
        ("README.md", "sdk_version: ", "sdk_version: 1", "README.md says Gradio 1"),
        ("README.md", "app_file: app.py", "app_file: main.py", "there is no app_file 'main.py'"),
    ],
)
def test_what_is_damaged_is_noticed(job: Job, file: File, name: str, old: str, new: str, wrong: str) -> None:
    path = file.path / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert any(wrong in each for each in check(job, file))


def test_what_is_not_there(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no GGUF file of type q8_0.*before space"):
        write(job, quantization="q8_0")
    with pytest.raises(RecipeError, match="owner/name"):
        write(job, repo="toy")
    monkeypatch.setattr(space, "version", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name)))
    with pytest.raises(MissingExtra, match=r"pip install .tunesmith\[ui\]"):
        write(job)


def test_the_page_shows_no_markup_and_reports_to_nobody() -> None:
    text = APP.read_text()
    for words in ("render_markdown=False", "sanitize_html=True", "allow_tags=False", 'ANALYTICS_ENABLED"] = "False"'):
        assert words in text
    assert text.index("GRADIO_ANALYTICS_ENABLED") < text.index("import gradio")
    assert "share=True" not in text
