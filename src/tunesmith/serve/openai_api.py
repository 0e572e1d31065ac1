"""OpenAI's chat completions, completions and models, for clients that know nothing else."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from tunesmith.data.conversation import Turn
from tunesmith.serve.backend import Sampling, Writing
from tunesmith.serve.events import STREAMED, EventStream, whole
from tunesmith.serve.openai_models import (
    Asked,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ModelCard,
    ModelList,
)
from tunesmith.web.errors import ApiError
from tunesmith.web.limits import Limits

if TYPE_CHECKING:
    from tunesmith.serve.request_queue import Served

TOKENS = 1024  # of a reply where nothing is asked for
DONE = b"data: [DONE]\n\n"
Choice = Callable[[str, str | None], dict[str, Any]]


def router(models: Sequence[Served], limits: Limits) -> APIRouter:
    """GET /v1/models, POST /v1/chat/completions, POST /v1/completions."""
    made, known, since = APIRouter(prefix="/v1"), {each.name: each for each in models}, int(time.time())

    def find(name: str) -> Served:
        if name not in known:
            raise ApiError(
                404, f"there is no such model; there are: {', '.join(known)}", param="model", code="model_not_found"
            )
        return known[name]

    @made.get("/models", response_model=ModelList)
    async def list_models() -> ModelList:
        """The models that can be asked."""
        return ModelList(object="list", data=[_card(name, since) for name in known])

    @made.get("/models/{name}", response_model=ModelCard)
    async def one_model(name: str) -> ModelCard:
        """One of them."""
        return _card(find(name).name, since)

    @made.post("/chat/completions", response_model=ChatCompletion, responses=STREAMED)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """The reply to a conversation, whole or as it is written."""
        model = find(asked.model)
        turns = [
            Turn("system" if m.role == "developer" else m.role, m.text, m.reasoning_content or "")
            for m in asked.messages
        ]
        if model.recipe and model.recipe.prompt.system and not any(turn.role == "system" for turn in turns):
            turns.insert(0, Turn("system", model.recipe.prompt.system))  # as in every row that it learnt from
        form = _Form("chatcmpl", "chat.completion", model.name, _message, _delta)
        return await _answer(
            model, turns, asked, asked.max_completion_tokens or asked.max_tokens, form, request, limits
        )

    @made.post("/completions", response_model=Completion, responses=STREAMED)
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """How the model goes on with a text."""
        model = find(asked.model)
        form = _Form("cmpl", "text_completion", model.name, _text, _text)
        return await _answer(model, asked.text, asked, asked.max_tokens, form, request, limits)

    return made


class _Form:
    """How a reply is written down: whole, and in chunks whose frame is made once."""

    def __init__(self, prefix: str, kind: str, model: str, whole: Choice, part: Choice) -> None:
        self._whole, self._part = whole, part
        chunk = f"{kind}.chunk" if kind == "chat.completion" else kind
        head = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
        self.head, self._chunk = head, {**head, "object": chunk}

    def body(self, text: str, writing: Writing) -> dict[str, Any]:
        """The whole reply."""
        choice = self._whole(text, writing.finish)
        if writing.reasoning and "message" in choice:  # the name that DeepSeek, vLLM and llama.cpp give it
            choice["message"]["reasoning_content"] = writing.reasoning
        return {**self.head, "choices": [choice], "usage": _usage(writing)}

    def frame(self, usage: bool) -> tuple[bytes, bytes]:
        """What stands before and behind each piece of text, which is put between as JSON."""
        mark = "\ue000"
        plain = {**self._chunk, "choices": [self._part(mark, None)], **({"usage": None} if usage else {})}
        before, _, behind = json.dumps(plain, separators=(",", ":")).partition(json.dumps(mark))
        return f"data: {before}".encode(), f"{behind}\n\n".encode()

    def first(self, usage: bool) -> bytes:
        """What a chat begins with: who speaks. Nothing else does, for clients join what comes."""
        if self._part is _text:
            return b""
        choice = {**_delta("", None), "delta": {"role": "assistant", "content": ""}}
        return _event({**self._chunk, "choices": [choice], **({"usage": None} if usage else {})})

    def last(self, finish: str | None, usage: bool) -> bytes:
        """The chunk that says how it ended."""
        return _event({**self._chunk, "choices": [self._part("", finish)], **({"usage": None} if usage else {})})

    def counts(self, writing: Writing) -> bytes:
        """The chunk with the counts."""
        return _event({**self._chunk, "choices": [], "usage": _usage(writing)})


async def _answer(
    model: Served,
    prompt: Sequence[Turn] | str,
    asked: Asked,
    tokens: int | None,
    form: _Form,
    request: Request,
    limits: Limits,
) -> Response:
    sampling = Sampling(
        tokens or TOKENS,
        1.0 if asked.temperature is None and asked.top_p is not None else asked.temperature or 0.0,
        1.0 if asked.top_p is None else asked.top_p,
        asked.seed,
        asked.stops,
    )
    if asked.stream:
        return EventStream(
            _chunks(model, prompt, sampling, asked.wants_usage, form), _wrong, stall=limits.stall_seconds
        )

    async def work() -> dict[str, Any]:
        async with model.desk.writing(prompt, sampling) as writing:
            text = "".join([piece async for piece in writing])
            return form.body(text, writing)

    return JSONResponse(await whole(request, work()))


async def _chunks(
    model: Served, prompt: Sequence[Turn] | str, sampling: Sampling, usage: bool, form: _Form
) -> AsyncGenerator[bytes, None]:
    before, behind = form.frame(usage)
    encode, first = json.JSONEncoder().encode, form.first(usage)
    async with model.desk.writing(prompt, sampling) as writing:
        async for piece in writing:
            yield first + before + encode(piece).encode() + behind
            first = b""
        yield first + form.last(writing.finish, usage) + (form.counts(writing) if usage else b"") + DONE


def _wrong(error: ApiError) -> bytes:
    return _event(error.body())


def _event(plain: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(plain, separators=(',', ':'))}\n\n".encode()


def _usage(writing: Writing) -> dict[str, int]:
    read, written = writing.prompt_tokens, writing.tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _message(text: str, finish: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


def _delta(text: str, finish: str | None) -> dict[str, Any]:
    delta = {} if finish else {"content": text}
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _text(text: str, finish: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


def _card(name: str, since: int) -> ModelCard:
    return ModelCard(id=name, object="model", created=since, owned_by="tunesmith")
