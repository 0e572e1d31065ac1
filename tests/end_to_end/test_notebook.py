"""The notebook, executed cell by cell as a reader's machine does it: disconnected, taken up again, to its last cell."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from gguf_models import make_convertible
from tiny import toy_rows
from tunesmith.training.job import read_journal

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "tunesmith.ipynb"
COLAB = """
import sys
from pathlib import Path


class drive:
    def mount(where):
        Path(where, "MyDrive").mkdir(parents=True, exist_ok=True)


class files:
    def download(path):
        print("downloaded", path)


sys.modules[__name__ + ".drive"], sys.modules[__name__ + ".files"] = drive, files
"""


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def settings(notebook: Any) -> Any:
    (parameters_cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return parameters_cell


def with_settings(**values: Any) -> Any:
    """The notebook with other values in its settings cell."""
    notebook = read()
    cell = settings(notebook)
    for name, value in values.items():
        cell.source, replacements = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", cell.source)
        assert replacements == 1, f"the settings cell has no {name}"
    return notebook


def client(notebook: Any, folder: Path) -> NotebookClient:
    return NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}})


def said(notebook: Any, cell: str) -> str:
    """What the cell of this id printed and showed, as text."""
    (matching,) = [candidate for candidate in notebook.cells if candidate.id == cell]
    return "".join(output.get("text") or output.get("data", {}).get("text/html", "") for output in matching.outputs)


def execute(notebook: Any, folder: Path) -> Any:
    asyncio.run(client(notebook, folder).async_execute())
    return notebook


def newest(run: Path) -> int:
    return max((int(checkpoint.name[5:]) for checkpoint in run.glob("checkpoints/step-*")), default=0)


def disturbed(notebook: Any, folder: Path, run: Path, disturb: Callable[[NotebookClient], Any]) -> Exception:
    """Executes until a checkpoint more is written, then interrupts it; returns what the execution ended with."""
    before = newest(run)

    async def executing() -> None:
        running = client(notebook, folder)
        task = asyncio.ensure_future(running.async_execute())
        while newest(run) <= before and not task.done():
            await asyncio.sleep(0.02)
        disturbed_once = disturb(running)
        if inspect.isawaitable(disturbed_once):
            await disturbed_once
        await task

    with pytest.raises((CellExecutionError, DeadKernelError)) as ended:
        asyncio.run(executing())
    assert newest(run) > before, str(ended.value)
    return ended.value


def disconnect(running: NotebookClient) -> None:
    """The whole machine goes: the kernel and the commands that it started."""
    assert running.km and isinstance(running.km.provisioner, LocalProvisioner)
    assert running.km.provisioner.pgid
    os.killpg(running.km.provisioner.pgid, signal.SIGKILL)


def interrupt(running: NotebookClient) -> Any:
    """Returns the awaitable of the interrupt that the notebook's stop button sends to the kernel."""
    assert running.km
    return running.km.interrupt_kernel()


def write_recipe(folder: Path, epochs: int, *files: Any) -> None:
    plain = {
        "name": "toy",
        "seed": 3,
        "base": {"model": "base", "bits": 4},
        "data": {
            "source": "rows.jsonl",
            "format": {"columns": {"prompt": "prompt", "answer": "completion", "group": "topic"}},
            "split": {"by": "group", "test": 0.15, "valid": 0.15, "unseen_groups": 1},
        },
        "prompt": {"max_tokens": 128},
        "adapter": {"rank": 8, "alpha": 16},
        "train": {"epochs": 1, "batch": "4 rows", "learning_rate": 1e-2, "evaluate_every": 5, "precision": "float32"},
        "evaluate": {"metrics": ["rouge", "stops"], "primary": "rougeL", "max_new_tokens": 16, "rows": 4},
        "export": {
            "files": list(files),
            "likelihood_rows": 1,
            "keep": 0.8,
            "keep_exact": 0.8,
            "agree_exact": 0.8,
        },
        "small": {"train.epochs": epochs},  # of five steps
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    make_convertible(folder / "base", ends=True, tie_word_embeddings=False)


@pytest.fixture(scope="module", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels write their history and connections here."""
    with pytest.MonkeyPatch.context() as patched:
        home = tmp_path_factory.mktemp("jupyter")
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
            patched.setenv(name, str(home / name))
        yield


@pytest.fixture(scope="module")
def executed(own_home: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folder and notebook of a run that exports nothing, from the first cell to the last."""
    folder = tmp_path_factory.mktemp("notebook")
    write_recipe(folder, 12)
    wish = {"RECIPE": "toy.yaml", "SMALL": True, "QUESTION": "how to do t0 way 1?", "SOURCE": "nowhere"}
    return folder, execute(with_settings(**wish), folder)


# --- the file -----------------------------------------------------------------------------------------------


def test_it_is_stored_as_a_reader_wants_to_find_it() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 8 <= len(code) <= 12
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    names = [cell.id for cell in notebook.cells]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names)  # named by hand, so they stay
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 30, cell.id
            assert before.cell_type == "markdown" or cell.id == "journal", f"{cell.id} is not explained"
    assert set(notebook.metadata) == {"accelerator", "colab", "kernelspec", "language_info"}


def test_it_tells_no_path_no_secret_and_no_host() -> None:
    text = "\n".join(cell.source for cell in read().cells)
    assert not re.search(r"(?<![\w.)}/<])/[a-zA-Z]\w+/?|[A-Z]:\\|~/", text), "an absolute path"
    assert not re.search(r"https?:|\bwww\.|\.(com|org|io)\b", text), "a host"
    assert not re.search(r"hf_\w{8}|sk-\w{8}|ghp_\w{8}|(?i:token|key|password) *= *[\"'][^\"']+[\"']", text), "a secret"


def test_settings_are_one_cell_of_plain_values() -> None:
    body = ast.parse(settings(read()).source).body
    values = {}
    for line in body:
        assert isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        values[line.targets[0].id] = ast.literal_eval(line.value)
    assert {"RECIPE", "SMALL", "RUNS"} <= values.keys()
    assert not Path(values["RUNS"]).is_absolute()


def test_every_cell_is_python_once_magics_are_read() -> None:
    for cell in read().cells:
        if cell.cell_type == "code":
            ast.parse(TransformerManager().transform_cell(cell.source))


# --- executed -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_cell_says_what_it_should(executed: tuple[Path, Any]) -> None:
    _, notebook = executed
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    run = Path("tunesmith-runs/toy-small")
    assert "There is no Colab drive: the run is on this machine's disk." in said(notebook, "drive")
    assert f"The run is {run}" in said(notebook, "drive")
    assert "train: step 10 of 60, loss" in said(notebook, "run") and "\x1b" not in said(notebook, "run")
    assert "started, 60 steps in all\nfinished at step 60" in said(notebook, "journal")
    assert re.search(r"memory: about [\d.]+ [MG]iB of", said(notebook, "plan"))
    assert f"tunesmith pack {run}" in said(notebook, "pack")
    assert said(notebook, "ask").startswith("> ")
    assert len(said(notebook, "ask").removeprefix("> ").rstrip("> \n")) > 5
    assert "There is no verified GGUF file: add" in said(notebook, "export")


@pytest.mark.slow
def test_the_report_is_shown_whole_in_a_frame_that_may_do_nothing(executed: tuple[Path, Any]) -> None:
    from html import unescape

    folder, notebook = executed
    page = (folder / "tunesmith-runs/toy-small/report.html").read_text(encoding="utf-8")
    output = said(notebook, "report")
    (frame,) = re.findall(r"<iframe ([^>]*)>", output)
    assert frame.startswith("sandbox srcdoc=")  # no permission named: no scripts, no forms, no way out
    assert unescape(frame.split('srcdoc="')[1].split('"')[0]) == page


@pytest.mark.slow
def test_packed_it_is_taken_up_on_another_machine(
    executed: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = executed
    for name in ("toy.yaml", "rows.jsonl"):
        shutil.copyfile(folder / name, tmp_path / name)
    (tmp_path / "base").symlink_to(folder / "base")
    shutil.copytree(folder / "tunesmith-runs/toy-small", tmp_path / "work/toy-small")
    monkeypatch.chdir(tmp_path)
    cells = {cell.id: cell.source for cell in with_settings(RECIPE="toy.yaml", PACK=True, RUNS="kept").cells}

    def in_this_process() -> str:
        space: dict[str, Any] = {}
        for name in ("settings", "install", "drive", "pack"):
            exec(compile(TransformerManager().transform_cell(cells[name]), name, "exec"), space)
        assert space["what"] == ["toy.yaml", "--small", "--runs", Path("work")] or space["what"] == [space["run"]]
        return capsys.readouterr().out

    assert "The run is work/toy-small, kept as kept/toy-small.tar" in in_this_process()
    packed = Path("kept/toy-small.tar").read_bytes()
    shutil.rmtree("work")
    assert "unpack: work/toy-small:" in in_this_process()
    assert Path("work/toy-small/report.html").is_file()
    assert Path("kept/toy-small.tar").read_bytes() == packed


@pytest.mark.long
@pytest.mark.slow
def test_on_colab_after_a_disconnect_and_after_a_stop_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path, 60, {"gguf": {"types": ["q8_0"]}})
    (tmp_path / "modules/google/colab").mkdir(parents=True)
    (tmp_path / "modules/google/colab/__init__.py").write_text(COLAB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    wish = {"RECIPE": "toy.yaml", "RUNS": "runs"}
    run = tmp_path / "drive/MyDrive/runs/toy-small"
    assert isinstance(disturbed(with_settings(**wish), tmp_path, run, disconnect), DeadKernelError)
    stopped = with_settings(**wish)
    error = disturbed(stopped, tmp_path, run, interrupt)
    assert isinstance(error, CellExecutionError) and error.ename == "KeyboardInterrupt"
    assert re.search(r"stopped after step \d+ of 300; everything is kept", said(stopped, "run"))
    assert "Traceback" not in said(stopped, "run")
    notebook = execute(with_settings(**wish), tmp_path)
    events = read_journal(run / "journal.jsonl")
    resumed = [event["step"] for event in events if event["kind"] == "resume"]
    assert len(resumed) == 2 and 0 < resumed[0] < resumed[1] < 300
    steps = [event["step"] for event in events if event["kind"] == "step"]
    assert steps == list(range(1, 301))  # none lost, none twice
    assert f"resuming after step {resumed[1]} of 300" in said(notebook, "run")
    for step in resumed:
        assert f"resumed after step {step} of 300" in said(notebook, "journal")
    assert "prepare: up to date" in said(notebook, "plan")
    assert "The run is drive/MyDrive/runs/toy-small" in said(notebook, "drive")
    file = run / "export/gguf/toy-small.q8_0.gguf"
    assert f"downloaded {file.relative_to(tmp_path)}" in said(notebook, "export")
    assert file.read_bytes()[:4] == b"GGUF"


@pytest.mark.long
@pytest.mark.slow
def test_the_demo_on_its_embedded_model(tmp_path: Path) -> None:
    """The shipped recipe and its small section, with one epoch instead of three and few questions."""
    plain = yaml.safe_load((ROOT / "recipes/shopsphere.yaml").read_text(encoding="utf-8"))
    plain["data"]["source"] = str(ROOT / "recipes/samples/shopsphere.jsonl")
    plain["data"]["split"]["valid"] = 0
    plain["evaluate"] |= {"rows": 6, "robustness": []}
    del plain["evaluate"]["probes"]
    plain["export"] |= {"keep": 0.5, "likelihood_rows": 1}
    files = [{"gguf": {"types": ["q8_0"]}}]  # a third of the training does not survive four bits
    plain["small"] |= {"train.epochs": 1, "train.learning_rate": 1e-3, "export.files": files}
    (tmp_path / "shopsphere.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    notebook = execute(with_settings(RECIPE="shopsphere.yaml"), tmp_path)
    match = re.search(r"numbered steps went from (\S+) to (\S+) \(", said(notebook, "run"))
    assert match and float(match[2]) > float(match[1]) + 0.5
    assert f"numbered steps went from {match[1]} to {match[2]}" in said(notebook, "report")
    assert said(notebook, "ask").startswith("> 1.")
    assert "tunesmith-runs/shopsphere-small/export/gguf/shopsphere-small.q8_0.gguf" in said(notebook, "export")
