"""Another server as backend: a second tunesmith server, llama.cpp's own, and servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_server import Once, serve
from gguf_models import opened
from serve.loopback_servers import TOKEN, Parrot, Running, events, make_file, running
from tunesmith.data.conversation import Turn
from tunesmith.generation.from_server import AsyncServerModel
from tunesmith.serve.gguf_backend import GgufBackend
from tunesmith.serve.remote_backend import RemoteBackend

OWN = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel, params.n_ctx, params.port, params.hostnames = 2, 1024, 0, ["127.0.0.1"]
params.api_keys, params.warmup, params.verbosity = ["a-key"], False, 0
server = xllamacpp.Server(params)
print(json.dumps(server.listening_address), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_file(tmp_path_factory.mktemp("gguf"))


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REMOTE_KEY", TOKEN)
    return "REMOTE_KEY"


@contextlib.contextmanager
def before(url: str, model: str, key: str | None = None, **options: Any) -> Iterator[Running]:
    """A server of ours that asks another one."""
    backend = RemoteBackend(model, AsyncServerModel(url, model, key=key, timeout=10), **options)
    with contextlib.closing(backend), running(backend) as running_server:
        yield running_server


def test_a_second_server_of_ours_says_the_same(file: Path, key: str) -> None:
    with opened(file, slots=2) as model:
        first = GgufBackend("tiny", model)
        with running(first) as far, before(f"{far.url}/v1", "tiny", key) as near:
            for more in ({}, {"temperature": 1.2, "top_p": 0.9, "seed": 5}, {"stop": ["e"]}, {"max_tokens": 3}):
                options = {"max_tokens": 20, **more}
                one, second = far.chat("hi there", **options).json(), near.chat("hi there", **options).json()
                assert second["choices"] == one["choices"]
                if "stop" not in more:  # there the counts, which come last, are not waited for
                    assert second["usage"] == one["usage"]
            output = events(near.chat("hi there", stream=True, max_tokens=20).text)
            plain = far.chat("hi there", max_tokens=20).json()["choices"][0]["message"]["content"]
            assert "".join(item["choices"][0]["delta"].get("content", "") for item in output[:-1]) == plain
            raw = {"model": "tiny", "prompt": "go on", "max_tokens": 9}
            texts = [item.client.post("/v1/completions", json=raw).json()["choices"] for item in (far, near)]
            assert texts[0] == texts[1]


def test_leaving_here_ends_it_there(key: str) -> None:
    parrot = Parrot(wait=0.01)
    with running(parrot) as far, before(f"{far.url}/v1", "parrot", key) as near:
        body = {"model": "parrot", "messages": [{"role": "user", "content": "word " * 900}], "stream": True}
        with near.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_raw()  # kept: forgotten, it would leave
            next(pieces)
            assert parrot.now == 1
        for _ in range(200):
            if not parrot.now:
                break
            near.client.get("/health")
        assert parrot.now == 0


def test_errors_of_the_other_server(key: str) -> None:
    with running(Parrot()) as far, before(f"{far.url}/v1", "parrot", key) as near:
        assert near.chat("REFUSE").status_code == 400
        assert near.chat("BREAK").status_code == 502
        response = events(near.chat("one BREAK", stream=True).text)
        assert response[-1]["error"]["code"] == "backend_failed"
        assert near.client.get("/health").json()["status"] == "down"
        assert near.chat("fine").status_code == 200
        assert near.client.get("/health").json()["status"] == "ok"
    with running(Parrot(slots=1, wait=0.2), waiting=0) as far, before(f"{far.url}/v1", "parrot", key) as near:
        import threading

        slow = threading.Thread(target=lambda: far.chat("a b c"))
        slow.start()
        while not far.backends[0].now:
            pass
        response = near.chat("x")
        slow.join()
        assert (response.status_code, response.json()["error"]["code"]) == (429, "busy")
        assert int(response.headers["retry-after"]) >= 1


def test_servers_that_are_silent_about_tokens_or_break_off() -> None:
    with serve(lambda body: body["messages"][-1]["content"]) as far, before(far.url, "m", stop=["User:"]) as near:
        result = near.chat("hello over there").json()
        assert result["choices"][0]["message"]["content"] == "hello over there"
        assert result["usage"]["completion_tokens"] == 4  # its pieces have five letters
        assert near.chat("hello User: there").json()["choices"][0]["message"]["content"] == "hello "
        assert far.told[-1].body["stream_options"] == {"include_usage": True}
        assert "authorization" not in far.told[-1].headers
        assert near.chat("BREAK here").status_code == 502
        far.once.append(Once(429, "slow down", {"retry-after": "7"}))
        assert near.chat("x").headers["retry-after"] == "7"
        far.once.append(Once(401, "no"))
        assert near.chat("x").status_code == 400
        far.once.append(Once(400, json.dumps({"error": {"message": "use max_completion_tokens"}})))
        assert near.chat("x", max_tokens=5).status_code == 200
        assert far.told[-1].body["max_completion_tokens"] == 5
    with before("http://127.0.0.1:9/v1", "m") as near:
        assert near.chat("x").status_code == 502


@pytest.mark.parametrize(
    "text", ["a<|im_end|>b", "<|start_header_id|>", "x <end_of_turn>", "[/INST] y", "<<SYS>>", "</s>"]
)
def test_what_another_server_may_take_for_a_turn_is_refused(text: str) -> None:
    parrot = Parrot()
    with serve(lambda body: "never") as far, before(far.url, "m") as near:
        response = near.chat(text)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "special_token")
        assert far.told == []
        assert near.chat("a < b, [INS] and <b>bold</b>").status_code == 200
    assert parrot.heard == []


def test_llama_cpps_own_server_behind_ours(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_KEY", "a-key")
    command = [sys.executable, "-c", OWN, str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout
            line = next(line for line in process.stdout if line.startswith('"http'))
            with before(f"{json.loads(line)}/v1", "tiny", "REMOTE_KEY") as near, opened(file, slots=1) as model:
                result = near.chat("hi there", max_tokens=20).json()
                plain = "".join(model.stream([Turn("user", "hi there")], max_new_tokens=20))
                assert result["choices"][0]["message"]["content"] == plain
                assert result["usage"]["completion_tokens"] == 20
        finally:
            process.kill()
