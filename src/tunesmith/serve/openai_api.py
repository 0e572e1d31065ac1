"""OpenAI's chat completions, completions and models."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from tunesmith.data.conversation import Turn
from tunesmith.serve.backend import Sampling, StreamedReply
from tunesmith.serve.events import EVENT_STREAM_RESPONSE, EventStream, run_unless_disconnected
from tunesmith.serve.openai_models import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    GenerationRequest,
    ModelCard,
    ModelList,
)
from tunesmith.web.errors import ApiError, Limits

if TYPE_CHECKING:
    from tunesmith.serve.backend import ServedModel

DEFAULT_MAX_TOKENS = 1024  # of a reply, if the request sets no limit
DONE = b"data: [DONE]\n\n"
MakeChoice = Callable[[str, str | None], dict[str, Any]]


def openai_router(models: Sequence[ServedModel], limits: Limits) -> APIRouter:
    """Routes: GET /v1/models, POST /v1/chat/completions, POST /v1/completions."""
    router, served, created = APIRouter(prefix="/v1"), {entry.name: entry for entry in models}, int(time.time())

    def find(name: str) -> ServedModel:
        if name not in served:
            raise ApiError(404, f"unknown model; available: {', '.join(served)}", param="model", code="model_not_found")
        return served[name]

    @router.get("/models", response_model=ModelList)
    async def list_models() -> ModelList:
        """List the models."""
        return ModelList(object="list", data=[_model_card(name, created) for name in served])

    @router.get("/models/{name}", response_model=ModelCard)
    async def one_model(name: str) -> ModelCard:
        """Return one model."""
        return _model_card(find(name).name, created)

    @router.post("/chat/completions", response_model=ChatCompletion, responses=EVENT_STREAM_RESPONSE)
    async def chat(payload: ChatRequest, request: Request) -> Response:
        """Reply to a conversation, whole or streamed."""
        model = find(payload.model)
        turns = [
            Turn(
                "system" if message.role == "developer" else message.role, message.text, message.reasoning_content or ""
            )
            for message in payload.messages
        ]
        if model.recipe and model.recipe.prompt.system and not any(turn.role == "system" for turn in turns):
            turns.insert(0, Turn("system", model.recipe.prompt.system))  # as in every training row
        builder = _ResponseBuilder("chatcmpl", "chat.completion", model.name, _message, _delta)
        return await _respond(
            model, turns, payload, payload.max_completion_tokens or payload.max_tokens, builder, request, limits
        )

    @router.post("/completions", response_model=Completion, responses=EVENT_STREAM_RESPONSE)
    async def complete(payload: CompletionRequest, request: Request) -> Response:
        """Continue a text, whole or streamed."""
        model = find(payload.model)
        builder = _ResponseBuilder("cmpl", "text_completion", model.name, _text, _text)
        return await _respond(model, payload.text, payload, payload.max_tokens, builder, request, limits)

    return router


class _ResponseBuilder:
    """Builds the JSON of a reply: the whole body, or chunks whose frame is encoded once."""

    def __init__(self, prefix: str, kind: str, model: str, full_choice: MakeChoice, chunk_choice: MakeChoice) -> None:
        self._full_choice, self._chunk_choice = full_choice, chunk_choice
        chunk = f"{kind}.chunk" if kind == "chat.completion" else kind
        head = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
        self.head, self._chunk = head, {**head, "object": chunk}

    def body(self, text: str, reply: StreamedReply) -> dict[str, Any]:
        """Return the body of a whole reply."""
        choice = self._full_choice(text, reply.finish)
        if reply.reasoning and "message" in choice:  # the name in DeepSeek, vLLM and llama.cpp
            choice["message"]["reasoning_content"] = reply.reasoning
        return {**self.head, "choices": [choice], "usage": _usage(reply)}

    def frame(self, usage: bool) -> tuple[bytes, bytes]:
        """Return the bytes before and after each piece of text, which is inserted as a JSON string."""
        placeholder = "\ue000"
        chunk = {
            **self._chunk,
            "choices": [self._chunk_choice(placeholder, None)],
            **({"usage": None} if usage else {}),
        }
        head_text, _, tail_text = json.dumps(chunk, separators=(",", ":")).partition(json.dumps(placeholder))
        return f"data: {head_text}".encode(), f"{tail_text}\n\n".encode()

    def first(self, usage: bool) -> bytes:
        """Return the first chunk of a chat, with the role; empty for completions."""
        if self._chunk_choice is _text:
            return b""
        choice = {**_delta("", None), "delta": {"role": "assistant", "content": ""}}
        return _event({**self._chunk, "choices": [choice], **({"usage": None} if usage else {})})

    def last(self, finish: str | None, usage: bool) -> bytes:
        """Return the chunk with the finish reason."""
        return _event(
            {**self._chunk, "choices": [self._chunk_choice("", finish)], **({"usage": None} if usage else {})}
        )

    def counts(self, reply: StreamedReply) -> bytes:
        """Return the chunk with the token counts."""
        return _event({**self._chunk, "choices": [], "usage": _usage(reply)})


async def _respond(
    model: ServedModel,
    prompt: Sequence[Turn] | str,
    payload: GenerationRequest,
    max_tokens: int | None,
    builder: _ResponseBuilder,
    request: Request,
    limits: Limits,
) -> Response:
    sampling = Sampling(
        max_tokens or DEFAULT_MAX_TOKENS,
        1.0 if payload.temperature is None and payload.top_p is not None else payload.temperature or 0.0,
        1.0 if payload.top_p is None else payload.top_p,
        payload.seed,
        payload.stop_strings,
    )
    if payload.stream:
        return EventStream(
            _chunks(model, prompt, sampling, payload.wants_usage, builder), _error_event, stall=limits.stall_seconds
        )

    async def work() -> dict[str, Any]:
        async with model.queue.writing(prompt, sampling) as reply:
            text = "".join([piece async for piece in reply])
            return builder.body(text, reply)

    return JSONResponse(await run_unless_disconnected(request, work()))


async def _chunks(
    model: ServedModel, prompt: Sequence[Turn] | str, sampling: Sampling, usage: bool, builder: _ResponseBuilder
) -> AsyncGenerator[bytes, None]:
    prefix, suffix = builder.frame(usage)
    encode, first = json.JSONEncoder().encode, builder.first(usage)
    async with model.queue.writing(prompt, sampling) as reply:
        async for piece in reply:
            yield first + prefix + encode(piece).encode() + suffix
            first = b""
        yield first + builder.last(reply.finish, usage) + (builder.counts(reply) if usage else b"") + DONE


def _error_event(error: ApiError) -> bytes:
    return _event(error.body())


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _usage(reply: StreamedReply) -> dict[str, int]:
    total = reply.prompt_tokens + reply.tokens
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens, "total_tokens": total}


def _message(text: str, finish: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


def _delta(text: str, finish: str | None) -> dict[str, Any]:
    delta = {} if finish else {"content": text}
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _text(text: str, finish: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


def _model_card(name: str, created: int) -> ModelCard:
    return ModelCard(id=name, object="model", created=created, owned_by="tunesmith")
