"""The API with OpenAI's own library and with curl."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from finished_runs import make_recipe
from serve.loopback_servers import FREE, TOKEN, Parrot, Running, events, running
from tunesmith.data.conversation import Turn
from tunesmith.web.errors import Limits

TEXT = "one two three four"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Parrot(), Parrot("other")) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def library(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_chat_completion_by_the_library(library: openai.OpenAI) -> None:
    result = library.chat.completions.create(model="parrot", messages=say(TEXT))
    assert result.object == "chat.completion"
    assert result.id.startswith("chatcmpl-")
    assert abs(result.created - time.time()) < 60
    (choice,) = result.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert result.usage and result.usage.model_dump(exclude_unset=True) == {
        "prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8,
    }  # fmt: skip
    short = library.chat.completions.create(model="other", messages=say(TEXT), max_completion_tokens=2)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("one two", "length")


@pytest.mark.parametrize("usage", [True, False])
def test_a_streamed_chat_by_the_library(library: openai.OpenAI, usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(library.chat.completions.create(model="parrot", messages=say(TEXT), stream=True, **options))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == TEXT
    assert [choice.delta.role for choice in choices] == ["assistant", *[None] * (len(choices) - 1)]
    assert [choice.finish_reason for choice in choices] == [*[None] * (len(choices) - 1), "stop"]
    counts = [chunk.usage for chunk in chunks]
    if usage:
        assert chunks[-1].choices == []
        assert counts[:-1] == [None] * (len(chunks) - 1)
        assert counts[-1] and (counts[-1].prompt_tokens, counts[-1].completion_tokens) == (4, 4)
    else:
        assert counts == [None] * len(chunks)


def test_the_librarys_own_way_to_join_a_stream(library: openai.OpenAI) -> None:
    with library.chat.completions.stream(model="parrot", messages=say(TEXT)) as stream:
        result = stream.get_final_completion()
    assert result.choices[0].message.role == "assistant"
    assert result.choices[0].message.content == TEXT


def test_a_text_completion_by_the_library(library: openai.OpenAI, server: Running) -> None:
    result = library.completions.create(model="parrot", prompt="go on", max_tokens=1)
    assert (result.object, result.choices[0].text, result.choices[0].finish_reason) == (
        "text_completion",
        "go",
        "length",
    )
    assert server.backends[0].heard[-1][0] == "go on"
    parts = list(library.completions.create(model="parrot", prompt=["go on"], stream=True))
    assert "".join(part.choices[0].text for part in parts) == "go on"
    assert parts[-1].choices[0].finish_reason == "stop"


def test_models_by_the_library(library: openai.OpenAI) -> None:
    assert [model.id for model in library.models.list()] == ["parrot", "other"]
    assert library.models.retrieve("other").owned_by == "tunesmith"
    with pytest.raises(openai.NotFoundError):
        library.models.retrieve("none")


def test_the_library_knows_our_errors(library: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        library.chat.completions.create(model="gpt", messages=say("x"))
    assert missing.value.code == "model_not_found"
    assert "parrot, other" in missing.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        library.chat.completions.create(model="parrot", messages=say("REFUSE"))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:  # before the first bytes it has a status in a stream, too
        library.chat.completions.create(model="parrot", messages=say("REFUSE"), stream=True)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError) as broken:
        library.chat.completions.create(model="parrot", messages=say("BREAK"))
    assert (broken.value.status_code, broken.value.code) == (502, "backend_failed")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_a_failure_within_a_stream_is_an_event_and_the_end(library: openai.OpenAI, server: Running) -> None:
    output = ""
    with pytest.raises(openai.APIError, match="the runtime failed"):
        for chunk in library.chat.completions.create(model="parrot", messages=say("one BREAK"), stream=True):
            output += chunk.choices[0].delta.content or ""
    assert output == "one"
    iterator = events(server.chat("one BREAK", stream=True).text)
    assert iterator[-1]["error"] == {
        "message": "the runtime failed", "type": "server_error", "param": None, "code": "backend_failed",
    }  # fmt: skip
    assert "[DONE]" not in iterator


def test_what_clients_spell_out_and_means_nothing_is_accepted(server: Running) -> None:
    idle = {
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "u1", "tools": [],
        "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": False, "store": False,
        "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True, "stop": None, "seed": None,
        "max_tokens": None, "temperature": None, "top_p": None, "stream": None, "stream_options": None,
        "modalities": ["text"], "prompt_cache_key": "k", "safety_identifier": "s",
    }  # fmt: skip
    assert server.chat(TEXT, **idle).json()["choices"][0]["message"]["content"] == TEXT
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    echoed: dict[str, Any] = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    messages = [{"role": "developer", "content": "Be kind."}, echoed, {"role": "user", "content": parts}]
    body = {"model": "parrot", "messages": messages}
    assert server.client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "one two"
    assert server.backends[0].heard[-1][0] == [
        Turn("system", "Be kind."), Turn("assistant", "x"), Turn("user", "one two"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"top_k": 5}, "top_k"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "half \ud800"}]}, "messages.0.content"),
        ({"model": 5}, "model"),
    ],
)
def test_what_is_not_served_is_refused_by_name(server: Running, more: dict[str, Any], param: str) -> None:
    before = len(server.backends[0].heard)
    body = {"model": "parrot", "messages": say("x"), **more}
    headers = {"Content-Type": "application/json"}
    response = server.client.post("/v1/chat/completions", content=json.dumps(body), headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).startswith(param)
    assert error["message"]
    assert len(server.backends[0].heard) == before


def test_what_is_asked_for_reaches_the_model(server: Running) -> None:
    server.chat("x", temperature=0.7, top_p=0.9, seed=-5, stop=["a", "b"], max_tokens=7)
    sampling = server.backends[0].heard[-1][1]
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (0.7, 0.9, -5, ("a", "b"))
    assert sampling.max_tokens == 7
    server.chat("x", stop="end")
    assert server.backends[0].heard[-1][1].stop == ("end",)
    assert server.backends[0].heard[-1][1].temperature == 0.0  # where nothing is asked for, as it was measured
    server.chat("x", top_p=0.5)
    assert server.backends[0].heard[-1][1].temperature == 1.0  # a share of the likeliest means nothing at 0


def test_the_recipes_system_message_is_there_unless_another_is() -> None:
    with running(Parrot(), recipe=make_recipe("toy", prompt__system="Be brief.")) as server:
        server.chat("x")
        assert server.backends[0].heard[-1][0] == [Turn("system", "Be brief."), Turn("user", "x")]
        own_messages = [{"role": "system", "content": "Be long."}, *say("x")]
        server.chat("", messages=own_messages)
        assert server.backends[0].heard[-1][0] == [Turn("system", "Be long."), Turn("user", "x")]


def test_too_many_at_once_are_told_when_to_come_again() -> None:
    with running(Parrot(slots=1, wait=0.3), waiting=1) as server:
        result: list[Any] = []
        threads = [threading.Thread(target=lambda: result.append(server.chat("a b"))) for _ in range(6)]
        for item in threads:
            item.start()
        for item in threads:
            item.join()
        statuses = [item.status_code for item in result]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 2
        for item in result:
            if item.status_code == 429:
                assert int(item.headers["retry-after"]) >= 1
                assert item.json()["error"]["code"] == "busy"
                assert item.json()["error"]["type"] == "rate_limit_error"
        assert server.chat("after").status_code == 200


def test_the_rate_of_one_client_is_bounded() -> None:
    with running(Parrot(), limits=Limits(rate=0.5, burst=3)) as server:
        response = [server.client.get("/v1/models") for _ in range(5)]
        assert [item.status_code for item in response] == [200, 200, 200, 429, 429]
        assert response[-1].headers["retry-after"] == "2"
        assert response[-1].json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_reply(stream: bool) -> None:
    parrot = Parrot(wait=0.01)
    with running(parrot) as server:
        body = json.dumps({"model": "parrot", "messages": say("word " * 500), "stream": stream}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        )
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        import socket

        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            wire.sendall(head.encode() + body)
            if stream:
                wire.recv(1000)
            until = time.monotonic() + 5
            while not parrot.now and time.monotonic() < until:
                time.sleep(0.01)
        while parrot.now and time.monotonic() < until:
            time.sleep(0.01)
        assert parrot.now == 0
        assert len(parrot.left) == 1


def test_a_reply_that_takes_too_long() -> None:
    with running(Parrot(), limits=Limits(reply_seconds=0.1, rate=1e9)) as server:
        response = server.chat("a HANG")
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert events(server.chat("a HANG", stream=True).text)[-1]["error"]["code"] == "timeout"
        assert server.chat("a").status_code == 200


# --- curl ----------------------------------------------------------------------------------------------------


def curl(*words: str) -> str:
    return subprocess.run(
        ["curl", "-sS", "--max-time", "20", *words], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_with_curl(server: Running) -> None:
    key, kind = f"Authorization: Bearer {TOKEN}", "Content-Type: application/json"
    body = json.dumps({"model": "parrot", "messages": say(TEXT)})
    result = json.loads(curl(f"{server.url}/v1/chat/completions", "-H", key, "-H", kind, "-d", body))
    assert result["choices"][0]["message"]["content"] == TEXT
    body = json.dumps({"model": "parrot", "messages": say(TEXT), "stream": True})
    text = curl("-N", f"{server.url}/v1/chat/completions", "-H", key, "-H", kind, "-d", body)
    assert text.endswith("\n\ndata: [DONE]\n\n")
    assert "".join(item["choices"][0]["delta"].get("content", "") for item in events(text)[:-1]) == TEXT
    assert json.loads(curl(f"{server.url}/health"))["status"] == "ok"
    assert "tunesmith_requests_total" in curl(f"{server.url}/metrics", "-H", key)
    assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{server.url}/v1/models") == "401"
    assert (
        curl("-o", "/dev/null", "-w", "%{http_code}", f"{server.url}/v1/chat/completions", "-H", key, "-d", body)
        == "415"
    )


# --- health and metrics --------------------------------------------------------------------------------------


def test_health_tells_the_worst(server: Running) -> None:
    try:
        assert server.client.get("/health").json()["status"] == "ok"
        server.backends[1].state = "loading"
        assert server.client.get("/health").json()["status"] == "loading"
        server.backends[0].state = "down"
        assert server.client.get("/health").json()["status"] == "down"
    finally:
        server.backends[0].state = server.backends[1].state = "ok"


def test_metrics_count_and_tell_nothing_that_was_written() -> None:
    with running(Parrot()) as server:
        secret = "MARMALADE"
        assert server.chat(f"{secret} is here").status_code == 200
        assert server.chat(secret, nonsense=secret).status_code == 400
        assert server.client.get(f"/v1/{secret}").status_code == 404
        assert server.client.get(f"/v1/models/{secret}").status_code == 404
        assert server.client.request(secret, "/v1/models").status_code in (405, 415)
        text = server.client.get("/metrics").text
    assert secret not in text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['tunesmith_requests_total{method="POST",route="/v1/chat/completions",status="200"}'] == "1.0"
    assert lines['tunesmith_requests_total{method="POST",route="/v1/chat/completions",status="400"}'] == "1.0"
    assert lines['tunesmith_tokens_total{kind="completion",model="parrot"}'] == "3.0"
    assert lines['tunesmith_tokens_total{kind="prompt",model="parrot"}'] == "3.0"
    assert lines['tunesmith_first_token_seconds_count{model="parrot"}'] == "1.0"
    assert lines['tunesmith_queue_length{model="parrot"}'] == "0.0"
    assert lines['tunesmith_busy_slots{model="parrot"}'] == "0.0"
    assert lines['tunesmith_slots{model="parrot"}'] == "2.0"
    assert lines['tunesmith_child_restarts_total{model="parrot"}'] == "0.0"
    assert float(lines["process_resident_memory_bytes"]) > 1e6


def test_the_description_tells_what_is_asked_and_answered(server: Running) -> None:
    result = server.client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"} <= set(result["paths"])
    chat = result["paths"]["/v1/chat/completions"]["post"]
    assert chat["security"] == [{"token": []}]
    assert {"200", "400", "401", "408", "413", "415", "429", "502"} <= set(chat["responses"])
    assert "422" not in chat["responses"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "security" not in result["paths"]["/health"]["get"]
    assert FREE.body == 1 << 20
