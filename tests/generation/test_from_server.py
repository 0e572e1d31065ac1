"""The client and a real server on loopback: requests, responses, errors, and that the key appears nowhere."""

from __future__ import annotations

import json
import logging
import socket
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from chat_server import ChatServer, Once, completion, serve
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, ResourceError, TunesmithError
from tunesmith.generation.from_server import ServerModel, check_url
from tunesmith.generation.text_model import Reply, TextModel

KEY = "sk-recognisable-4711"
ASKED = [Turn("system", "Be brief."), Turn("user", "Where is my parcel?")]


def echo(body: dict[str, Any]) -> Any:
    return f" {body['messages'][-1]['content'].upper()} "


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serve(echo) as running:
        yield running


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SHOP_KEY", KEY)
    return "SHOP_KEY"


def ask(server: ChatServer, **options: Any) -> Reply:
    with ServerModel(server.url, "small", **options) as model:
        return model.complete(ASKED, max_new_tokens=9)


def test_what_is_sent_and_what_comes_back(server: ChatServer, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "of-somebody-else")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Own: of-somebody-else")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with ServerModel(server.url, "small", key=named) as model:
        reply = model.complete(ASKED, max_new_tokens=9, temperature=0.5, seed=3, stop=["\n"])
    assert reply == Reply("WHERE IS MY PARCEL?", True, 4)
    text = server.told[0]
    assert text.path == "/v1/chat/completions"
    assert text.body == {
        "model": "small", "max_tokens": 9, "temperature": 0.5, "seed": 3, "stop": ["\n"],
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is my parcel?"}],
    }  # fmt: skip
    assert text.headers["authorization"] == f"Bearer {KEY}"
    assert "of-somebody-else" not in json.dumps(text.headers)
    assert not [name for name in text.headers if name.startswith("x-")]


def test_without_a_key_none_is_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(server)
    assert "authorization" not in server.told[0].headers


def test_a_text_cut_at_the_limit_has_not_stopped(server: ChatServer) -> None:
    server.once = [Once(body=json.dumps(completion(("one two", "length"))))]
    assert ask(server) == Reply("one two", False, 2)
    silent = completion(None)
    del silent["usage"]
    server.once = [Once(body=json.dumps(silent))]
    assert ask(server) == Reply("", True, 0)


def test_it_is_a_text_model(server: ChatServer) -> None:
    with ServerModel(server.url, "small") as client:
        model: TextModel = client
        prompts = [[Turn("user", f"number {n}")] for n in range(7)]
        iterator = dict(model.replies(prompts, max_new_tokens=5, batch=3))
        assert {n: reply.text for n, reply in iterator.items()} == {n: f"NUMBER {n}" for n in range(7)}
        assert {output.body["temperature"] for output in server.told} == {0.0}
        assert "".join(model.stream(ASKED, max_new_tokens=9)) == " WHERE IS MY PARCEL? "
        server.once = [Once(404, '{"error": {"message": "no such model"}}')]
        with pytest.raises(ModelError, match="no such model"):
            list(model.replies(prompts, max_new_tokens=5, batch=2))


def test_the_newer_name_of_the_limit_is_used_where_asked_for(server: ChatServer) -> None:
    text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.once = [Once(400, json.dumps({"error": {"message": text}}))]
    with ServerModel(server.url, "new") as model:
        model.complete(ASKED, max_new_tokens=9)
        model.complete(ASKED, max_new_tokens=9)
    limits = [sorted(set(text.body) & {"max_tokens", "max_completion_tokens"}) for text in server.told]
    assert limits == [["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"]]


# --- what goes wrong -----------------------------------------------------------------------------------------


def test_a_server_that_asks_to_wait_is_obeyed(server: ChatServer) -> None:
    server.once = [Once(429, '{"error": {"message": "slow down"}}', {"retry-after": "1.2"})]
    started = time.monotonic()
    assert ask(server).text == "WHERE IS MY PARCEL?"
    assert time.monotonic() - started >= 1.2
    assert len(server.told) == 2


def test_passing_failures_are_tried_again_and_no_more_than_asked(server: ChatServer) -> None:
    soon = {"retry-after-ms": "5"}
    server.once = [Once(500, "{}", soon), Once(503, "oh", soon)]
    assert ask(server, retries=2).text == "WHERE IS MY PARCEL?"
    server.told.clear()
    server.once = [Once(500, '{"error": {"message": "out of paper"}}', soon) for _ in range(5)]
    with pytest.raises(ResourceError, match=r"127\.0\.0\.1:\d+: the server answers with status 500: .*out of paper"):
        ask(server, retries=2)
    assert len(server.told) == 3


def test_a_slow_server(server: ChatServer) -> None:
    server.once = [Once(wait=0.6)]
    with pytest.raises(ResourceError, match=r"did not answer within 0\.2 s"):
        ask(server, timeout=0.2, retries=0)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ServerModel(f"http://127.0.0.1:{port}/v1", "small", retries=0) as model:
        with pytest.raises(ResourceError, match="connection to the server failed"):
            model.complete(ASKED, max_new_tokens=9)
        with pytest.raises(ResourceError, match="connection to the server failed"):
            list(model.stream(ASKED, max_new_tokens=9))


@pytest.mark.parametrize(
    ("once", "expected"),
    [
        (Once(401, json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}})), "refuses the key"),
        (Once(403, KEY), "refuses the key"),
        (Once(404, json.dumps({"error": {"message": f"no model for {KEY}"}})), "no model 'small'"),
        (Once(400, f'{{"error": {{"message": "bad {KEY}\\nand more"}}}}'), "refuses the request .status 400.: .*bad …"),
        (Once(302, "", {"location": "http://127.0.0.2:9/elsewhere"}), "status 302"),
        (Once(200, f"<html>{KEY}</html>", kind="text/html"), "not a chat completion: <html>…</html>"),
        (Once(200, "{broken"), "not a chat completion"),
        (Once(200, ""), "not a chat completion: nothing"),
        (Once(200, '{"choices": []}'), "not a chat completion"),
        (Once(200, '{"choices": [{"message": {"content": ["a"]}}]}'), "not a chat completion"),
        (Once(200, "[1]"), "not a chat completion"),
    ],
    ids=lambda value: f"{value.status} {value.body[:12]!r}" if isinstance(value, Once) else "",
)
def test_what_asking_again_does_not_fix(
    server: ChatServer, named: str, once: Once, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.once = [once]
    with pytest.raises(ModelError, match=expected) as caught:
        ask(server, key=named)
    assert len(server.told) == 1
    assert KEY in server.told[0].headers["authorization"]
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in caplog.text
    assert "openai" in caplog.text  # the library did log


def test_an_answer_that_breaks_off(server: ChatServer) -> None:
    cut = Once(200, 'data: {"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": null}]}\n\n')
    cut.headers, cut.kind = {"content-length": "9999", "connection": "close"}, "text/event-stream"
    with ServerModel(server.url, "small", retries=0) as model:
        with pytest.raises(ResourceError, match="ended early"):
            list(model.stream([Turn("user", "break here")], max_new_tokens=9))
        server.once, pieces = [cut], model.stream(ASKED, max_new_tokens=9)
        assert next(pieces) == "one"
        with pytest.raises(ResourceError, match="connection to the server failed"):
            next(pieces)
        server.once = [cut]
        with pytest.raises(ResourceError, match="connection to the server failed"):
            model.complete(ASKED, max_new_tokens=9)


def test_a_stream_of_rubbish(server: ChatServer) -> None:
    server.once = [Once(200, "data: {broken\n\n", kind="text/event-stream")]
    with ServerModel(server.url, "small") as model, pytest.raises(ModelError, match="cannot be read"):
        list(model.stream(ASKED, max_new_tokens=9))


# --- before anything is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:8080/v1", "127.0.0.1:8080"),
        ("http://localhost/v1", "localhost"),
        ("http://[::1]:1/v1", "[::1]:1"),
        ("https://models.example.org/v1", "models.example.org"),
    ],
)
def test_urls_that_are_used(url: str, host: str) -> None:
    assert check_url(url) == host


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://models.example.org/v1", "unencrypted"),
        ("http://192.0.2.7/v1", "unencrypted"),
        ("http://127.0.0.1.example.org/v1", "unencrypted"),
        ("http://127.0.0.1@models.example.org/v1", "password"),
        (f"https://me:{KEY}@models.example.org/v1", "password"),
        (f"https://models.example.org/v1?key={KEY}", "query"),
        ("ftp://127.0.0.1/v1", "is not valid"),
        ("127.0.0.1:8080", "is not valid"),
        ("https://[oh/v1", "is not valid"),
        ("https://models.example.org:99999/v1", "is not valid"),
    ],
)
def test_urls_that_are_not(url: str, expected: str) -> None:
    with pytest.raises(ModelError, match=expected) as caught:
        ServerModel(url, "small")
    assert KEY not in str(caught.value)


def test_http_to_another_machine_can_be_allowed() -> None:
    assert check_url("http://192.0.2.7:8000/v1", plain_http=True) == "192.0.2.7:8000"


@pytest.mark.parametrize("value", [None, "", "  ", f"{KEY}\nX: y", f"{KEY} {KEY}", f"{KEY}ü"])
def test_a_variable_without_a_key(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SHOP_KEY", value)
    with pytest.raises(TunesmithError, match="SHOP_KEY") as caught:
        ServerModel("http://127.0.0.1:1/v1", "small", key="SHOP_KEY")
    assert KEY not in str(caught.value)


def test_a_key_in_the_place_of_its_variable_is_not_repeated() -> None:
    with pytest.raises(ModelError, match="not a name in capitals") as caught:
        ServerModel("http://127.0.0.1:1/v1", "small", key=KEY)
    assert KEY not in str(caught.value)
