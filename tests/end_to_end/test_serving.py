"""`tunesmith serve` as it is given: a file, a run with its exported files, a run with its adapter; and its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from serve.loopback_servers import make_file, make_speaker
from tunesmith.commands.serve import ServeOptions, _hosts, best_verified_gguf, start_server
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, RecipeError, RunError
from tunesmith.prompt.tokens import encode_prompt
from tunesmith.runs.run import Run, hash_path

CODE = "import sys; sys.argv[0] = 'tunesmith'; from tunesmith.cli import main; main()"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_file(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@contextlib.contextmanager
def command(*words: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command in a process of its own, up to where it says its address; what it has said so far."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "serve", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        log_lines: list[str] = []
        assert process.stdout
        while not log_lines or "Ctrl-C stops the server" not in log_lines[-1]:
            log_lines.append(process.stdout.readline())
            assert log_lines[-1], process.communicate()[1]
        yield process, log_lines
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ask(url: str, path: str, body: Any = None, token: str = "") -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def chat(url: str, model: str, token: str, text: str = "hi") -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    return str(ask(url, "/v1/chat/completions", body, token)["choices"][0]["message"]["content"])


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_file_is_served_until_ctrl_c(file: Path, config: Path, how: signal.Signals) -> None:
    with command(str(file), "--port", "0", "--slots", "2", "--threads", "1", "--context", "256") as (
        process,
        log_lines,
    ):
        url = next(word for word in log_lines[-2].split() if word.startswith("http://")).removesuffix("/v1")
        assert url.startswith("http://127.0.0.1:")
        path = config / "tunesmith" / "token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token = path.read_text().strip()
        assert f"tiny: {file} (a file), 2 slots of 256 tokens, 1 thread" in log_lines[0]
        assert ask(url, "/health") == {"status": "ok", "version": ask(url, "/health")["version"]}
        assert len(chat(url, "tiny", token)) == 8
        with pytest.raises(urllib.error.HTTPError) as refused:
            chat(url, "tiny", "x" * 43)
        assert refused.value.code == 401
        refused.value.close()
        children = psutil.Process(process.pid).children()
        assert len(children) == 1
        assert token not in " ".join(children[0].cmdline() + psutil.Process(process.pid).cmdline())
        assert not [
            connection for connection in children[0].net_connections() if connection.status == "LISTEN"
        ]  # a private socket alone
        process.send_signal(how)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err == ""
    assert str(path) in log_lines[-1]
    assert out.strip().endswith("serve: stopped")
    assert token not in "".join(log_lines) + out
    assert not psutil.pid_exists(children[0].pid) or children[0].status() == psutil.STATUS_ZOMBIE


def finished(folder: Path, file: Path, types: tuple[str, ...] = ("q4_k_m", "q8_0")) -> tuple[Any, Run]:
    """A run whose adapter is finished and whose files were verified, by what lies in its folder."""
    base = folder / "base"
    make_speaker(base)
    plain = {
        "name": "toy", "about": "toys", "base": {"model": str(base), "bits": 16},
        "data": {"source": "rows.jsonl", "format": "alpaca"},
        "prompt": {"stop": ["STOP"], "system": "Be brief."}, "train": {"precision": "float32"},
        "adapter": {"rank": 2},
    }  # fmt: skip
    run = Run(folder / "runs" / "toy")
    run.write("recipe.yaml", yaml.safe_dump(plain))
    run.write(".lock", "")
    run.write("adapter/adapter_config.json", "{}")
    run.write_fingerprints("train", {}, ["adapter"])
    entries = []
    for number, name in enumerate(types):
        place = f"export/gguf/toy.{name}.gguf"
        (run / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, run / place)
        entries.append({
            "name": name, "target": "gguf", "path": place, "bytes": 100 + number, "sha256": hash_path(run / place),
            "verified": True, "problems": [],
        })  # fmt: skip
    run.write_json("export.json", {"merge_into": "dequantised", "files": entries})
    run.write_fingerprints("export-gguf", {"adapter": run.fingerprint("train")}, [])
    return read_recipe(str(run.path)), run


def test_of_a_run_the_best_verified_file_is_served(tmp_path: Path, file: Path, config: Path) -> None:
    _, run = finished(tmp_path, file)
    log_lines: list[str] = []
    wish = ServeOptions([str(run.path)], port=0, slots=1, threads=1, context=256)
    with start_server(wish, log_lines.append) as served:
        assert f"{run / 'export/gguf/toy.q8_0.gguf'} (q8_0, verified), 1 slot" in log_lines[0]
        (model,) = served.models
        assert model.recipe is not None
        assert (model.name, model.recipe.prompt.system) == ("toy", "Be brief.")
        backend: Any = model.queue.backend
        assert backend._model.template.source == "the model's own template"  # of the training
        assert backend._model.texts == ("STOP",)
        token = served.token.read_text().strip()
        body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        answer = ask(served.url, "/v1/chat/completions", body, token)
        turns = [Turn("system", "Be brief."), Turn("user", "hi")]
        assert answer["usage"]["prompt_tokens"] == len(encode_prompt(turns, backend._model.template))
    assert not served.thread.is_alive()
    with pytest.raises(ModelError, match="closed"):
        backend._model.running()


def test_files_that_do_not_count_are_passed_over(tmp_path: Path, file: Path) -> None:
    _, run = finished(tmp_path, file, ("q4_k_m", "q8_0", "q6_k", "f16"))

    def name(say: Callable[[str], None] = lambda text: None) -> str | None:
        entry = best_verified_gguf(run, say)
        return None if entry is None else str(entry["name"])

    assert name() == "q8_0"
    plain = run.read_json("export.json")
    plain["files"][1]["problems"] = ["it says other things"]
    run.write_json("export.json", plain)
    assert name() == "q6_k"
    log_lines: list[str] = []
    (run / "export/gguf/toy.q6_k.gguf").write_bytes(b"changed")
    assert name(log_lines.append) == "q4_k_m"
    assert "is missing or was changed since it was verified" in log_lines[0]
    (run / "export/gguf/toy.q4_k_m.gguf").unlink()
    assert name() == "f16"
    run.write("adapter/adapter_config.json", '{"new": 1}')
    run.write_fingerprints("train", {}, ["adapter"])
    assert name(log_lines.append) is None
    assert "of an older adapter" in log_lines[-1]
    (run / "export.json").unlink()
    assert name() is None


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (ServeOptions(), "no model is given"),
        (ServeOptions(["x.gguf"], host="0.0.0.0"), "reachable from the network, but no host name is allowed"),
        (ServeOptions(["x.gguf"], host="192.168.1.5"), "reachable from the network"),
        (ServeOptions(remote="http://127.0.0.1:9/v1"), "needs the model's name"),
        (ServeOptions(["x.gguf"], model="m"), "need --remote"),
        (ServeOptions(["a run"], recipe="shopsphere"), "has its own recipe"),
    ],
)
def test_wishes_that_do_not_go_together(wish: ServeOptions, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as error, start_server(wish):
        pass
    assert error.value.next


def test_what_cannot_be_served_is_told(tmp_path: Path, file: Path, config: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"none\.gguf"),
        start_server(ServeOptions([str(tmp_path / "none.gguf")], port=0)),
    ):
        pass
    twice = ServeOptions([str(file), str(file)], port=0, threads=1, context=64)
    with pytest.raises(RecipeError, match="two models are named tiny"), start_server(twice):
        pass
    (config / "tunesmith" / "token").chmod(0o644)
    with pytest.raises(RunError, match="other users may read"), start_server(ServeOptions([str(file)], port=0)):
        pass
    assert os.access(file, os.R_OK)


def test_names_that_may_be_asked_for() -> None:
    assert _hosts("127.0.0.1", 80, []) == ["127.0.0.1:80", "localhost:80"]
    assert _hosts("::1", 80, []) == ["[::1]:80"]
    assert _hosts("10.0.0.5", 80, ["Letters.lan"]) == ["10.0.0.5:80", "letters.lan", "letters.lan:80"]
    assert _hosts("0.0.0.0", 80, ["a"]) == ["127.0.0.1:80", "localhost:80", "a", "a:80"]
