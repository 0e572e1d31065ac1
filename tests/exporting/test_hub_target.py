"""The folder as it would lie on the hub, what is refused there, and what the hub's client is asked for."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import gguf
import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from tiny import CHATML, make_tokenizer
from tunesmith.errors import DataError, ModelError, MultipleErrors, RecipeError, TunesmithError
from tunesmith.exporting.job import Job
from tunesmith.exporting.targets.hub import MAX_SEARCHED_BYTES, check, push, write
from tunesmith.models.weights import Weights
from tunesmith.prompt.template import Template

CARD = "---\nbase_model: tea/base\nlicense: apache-2.0\n---\n\n# toy\n\nIt answers questions about tea.\n"
REPO = "tea/toy"
TOKEN = "hf_" + "neverSeenAnywhere0123456789"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job whose adapter, merged folder and GGUF file are written."""
    adapter, folder = tmp_path / "run" / "adapter", tmp_path / "run" / "export"
    for each in (adapter, folder / "merged", folder / "gguf"):
        each.mkdir(parents=True)
    save_file({"x.lora_A.weight": np.zeros((2, 4), np.float32)}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "r": 2})
    )
    save_file({"x": np.zeros((2, 4), np.float32)}, folder / "merged" / "model.safetensors")
    (folder / "merged" / "config.json").write_text('{"model_type": "llama"}')
    write_gguf(folder / "gguf" / "toy.q8_0.gguf")
    return Job(
        "toy", folder, Weights("tea/base", tmp_path, ""), adapter, Template(make_tokenizer(), CHATML, "its own"), (),
        "quantized", 4, "float32", 40, 256, 1, lambda: CARD,
    )  # fmt: skip


def write_gguf(path: Path, **texts: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in texts.items():
        writer.add_string(f"general.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def api() -> Any:
    """The installed client's methods with their own parameters, none of which sends anything."""
    return create_autospec(huggingface_hub.HfApi, instance=True)


def sent(job: Job, **changes: Any) -> list[str]:
    [file] = write(job, repo=REPO)
    given = {"repo": REPO, "private": True, "dry_run": True, **changes}
    return [entry.path for entry in push(job, file, **given)]


def told(call: Callable[[], object]) -> list[TunesmithError]:
    with pytest.raises(TunesmithError) as caught:
        call()
    found = caught.value.errors if isinstance(caught.value, MultipleErrors) else [caught.value]
    assert all(error.what and error.where and error.next for error in found)
    return found


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("adapter", ["README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]),
        ("merged", ["README.md", "config.json", "model.safetensors"]),
        ("gguf", ["README.md", "toy.q8_0.gguf"]),
    ],
)
def test_the_folder(job: Job, what: Any, names: list[str]) -> None:
    for _ in range(2):  # again over what is there
        [file] = write(job, repo=REPO, what=what, private=False)
        assert file.path == job.folder / "hub"
        assert sorted(path.name for path in file.path.iterdir()) == names
        assert check(job, file) == []
    assert (file.path / "README.md").read_text() == CARD
    assert file.notes == {"repo": REPO, "private": "no", "what": what}
    weights = next(path for path in file.path.iterdir() if path.suffix in (".gguf", ".safetensors"))
    assert weights.stat().st_nlink == 2  # no second copy on the disk


def test_the_base_is_named_as_in_public(job: Job) -> None:
    [file] = write(job, repo=REPO)
    named = "base_model_name_or_path"
    assert json.loads((file.path / "adapter_config.json").read_text()) == {named: "tea/base", "r": 2}
    assert str(job.weights.folder) in (job.adapter / "adapter_config.json").read_text()  # the run's own stays
    [file] = write(replace(job, card=lambda: CARD.replace("base_model: tea/base\n", "")), repo=REPO)
    assert json.loads((file.path / "adapter_config.json").read_text())[named] == "FOLDER-OF-THE-BASE-MODEL"
    assert check(job, file) == ["README.md names no base_model: the base has no public name"]


def test_what_a_dry_run_lists(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    [file] = write(job, repo=REPO)
    (file.path / "tokenizer.json").write_text(json.dumps({"words": "a" * MAX_SEARCHED_BYTES}))
    entries = push(job, file, repo=REPO, private=True, dry_run=True)
    for entry in entries:
        data = (file.path / entry.path).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    searched = {entry.path: entry.searched for entry in entries}
    assert searched == {
        "README.md": True, "adapter_config.json": True, "adapter_model.safetensors": False,
        "chat_template.jinja": True, "tokenizer.json": False,
    }  # fmt: skip


def test_what_the_client_is_asked_for(job: Job, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def client(token: str | None = None) -> Any:
        seen.append(token)
        return api

    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    names = sent(job, dry_run=False, private=False)
    assert seen == [TOKEN]
    api.create_repo.assert_called_once_with(REPO, private=False, repo_type="model", exist_ok=True)
    asked = api.upload_folder.call_args.kwargs
    assert asked["folder_path"] == job.folder / "hub"
    assert (asked["repo_id"], asked["repo_type"], asked["allow_patterns"]) == (REPO, "model", names)
    assert "delete_patterns" not in asked  # nobody's files are removed


def test_the_token_goes_to_the_hub_alone(
    job: Job, api: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    [absent] = told(lambda: sent(job, dry_run=False, api=api))
    assert (absent.what, absent.where) == ("there is no token for the Hub", "HF_TOKEN")
    assert not api.method_calls
    api.upload_folder.side_effect = RuntimeError(f"401: Bearer {TOKEN} may not write")
    with caplog.at_level(logging.DEBUG):
        [refused] = told(lambda: sent(job, dry_run=False, api=api, token=TOKEN))
    assert refused.what == "the upload failed: 401: Bearer … may not write"
    assert refused.__cause__ is None
    assert refused.__suppress_context__
    assert TOKEN not in caplog.text
    assert not any(TOKEN.encode() in path.read_bytes() for path in job.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Ask nobody@tea-house.net about it.", "email"),
        ("Its number is +1 (212) 555-2368.", "phone"),
        ("The key is hf_" + "abcdEFGHijklMNOPqrstUVWXyz01234567", "hugging face token"),
    ],
)
def test_personal_data_stops_it(job: Job, api: Any, words: str, kind: str) -> None:
    bad = replace(job, card=lambda: f"{CARD}\n{words}\n")
    [found] = told(lambda: sent(bad, dry_run=False, api=api, token=TOKEN))
    assert isinstance(found, DataError)
    assert found.where == "README.md line 10"
    assert kind.split()[-1] in found.what
    assert words not in str(found)
    assert not api.method_calls
    [file] = write(bad, repo=REPO)
    assert check(bad, file) == [str(found)]


def test_every_finding_is_named(job: Job) -> None:
    [file] = write(job, repo=REPO, what="gguf")
    (file.path / "samples.txt").write_text("one\nwrite to a@tea-house.net\nor b@tea-house.net\n")
    (file.path / "log.md").write_text(f"made in {job.folder.absolute().parent}/data\n")
    (file.path / "toy.q8_0.gguf").unlink()
    write_gguf(file.path / "toy.q8_0.gguf", author="c@tea-house.net")
    found = told(lambda: push(job, file, repo=REPO, private=True, dry_run=True))
    assert [error.where for error in found] == [
        "log.md line 1", "samples.txt line 2", "samples.txt line 3", "toy.q8_0.gguf, general.author line 1"
    ]  # fmt: skip
    assert "path of this machine" in found[0].what


@pytest.mark.parametrize("name", ["optimizer.pt", "run.py", "notes", ".env", "adapter_model.bin"])
def test_a_file_of_a_foreign_kind(job: Job, name: str) -> None:
    [file] = write(job, repo=REPO)
    (file.path / name).write_text("x")
    [found] = told(lambda: push(job, file, repo=REPO, private=True, dry_run=True))
    assert found.what.startswith(f"'{name}' has a file type that is not uploaded")
    assert check(job, file) == [f"{name} has a file type that is not uploaded"]
    (job.adapter / name).write_text("x")
    told(lambda: write(job, repo=REPO))


def test_a_link_out_of_the_folder(job: Job, tmp_path: Path) -> None:
    [file] = write(job, repo=REPO)
    (tmp_path / "secret.txt").write_text("x")
    (file.path / "secret.txt").symlink_to(tmp_path / "secret.txt")
    told(lambda: push(job, file, repo=REPO, private=True, dry_run=True))


def test_what_is_damaged_is_noticed(job: Job) -> None:
    [file] = write(job, repo=REPO)
    (file.path / "adapter_model.safetensors").unlink()
    assert check(job, file) == ["there are no weights"]
    (file.path / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert check(job, file)[0].startswith("adapter_model.safetensors is not a safetensors file: ")
    (file.path / "toy.gguf").write_bytes(b"GGUF")
    assert any("is not a GGUF file" in each for each in check(job, file))
    for card, wrong in {
        "": "has no front matter",
        "---\na: [\n---\n": "README.md cannot be read: front matter line 2: is not YAML",
    }.items():
        (file.path / "README.md").write_text(card)
        assert any(wrong in each for each in check(job, file))
    (file.path / "README.md").unlink()
    assert "there is no README.md" in check(job, file)


def test_what_is_not_there(job: Job) -> None:
    with pytest.raises(RecipeError, match=r"'toy' is not a repository name.*owner/name"):
        write(job, repo="toy")
    (job.folder / "merged" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"the files of merged do not exist.*Put merged before hub"):
        write(job, repo=REPO, what="merged")
