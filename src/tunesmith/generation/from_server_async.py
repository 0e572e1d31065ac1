"""Streamed replies from another server for an event loop: ServerModel without a blocked thread per request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tunesmith.data.conversation import Turn
from tunesmith.errors import ResourceError
from tunesmith.generation.from_server import CONNECT_SECONDS, ServerModel, is_loopback


class Overloaded(ResourceError):
    """The server is overloaded; `seconds` is its Retry-After, or 1."""

    def __init__(self, message: str, *, where: str, seconds: int) -> None:
        super().__init__(message, where=where, next="Wait, then try again")
        self.seconds = seconds


@dataclass(frozen=True)
class ReplyChunk:
    """A piece of text, and the finish reason and token counts if they came with it."""

    text: str
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class AsyncServerModel(ServerModel):
    """ServerModel's connection, key and errors, with streamed replies. Used in one event loop."""

    def __init__(
        self, url: str, model: str, *, key: str | None = None, timeout: float = 120.0, plain_http: bool = False
    ) -> None:
        """Takes ServerModel's arguments. Failed requests are not retried."""
        super().__init__(url, model, key=key, timeout=timeout, retries=0, plain_http=plain_http)
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        async def clean_headers(request: Any) -> None:
            self._clean_headers(request)

        http = DefaultAsyncHttpxClient(
            follow_redirects=False,
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
            event_hooks={"request": [clean_headers]},
        )
        self._async_client = AsyncOpenAI(
            base_url=url,
            api_key="not the key",
            timeout=Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            max_retries=0,
            http_client=http,
        )

    async def parts(
        self,
        prompt: Sequence[Turn] | str,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> AsyncGenerator[ReplyChunk, None]:
        """Yield the reply to a conversation, or the continuation of a text. Closing the generator ends the request.

        Raises what `complete` raises, Overloaded, and ResourceError for an answer that ends early.
        """
        import openai

        body: dict[str, Any] = {"model": self.model, "temperature": temperature, "top_p": top_p, "stream": True}
        body |= {"stream_options": {"include_usage": True}, **({} if seed is None else {"seed": seed})}
        ended = False
        with self._failures():
            try:
                stream = await self._create(prompt, max_new_tokens, body)
            except openai.RateLimitError as error:
                wait = error.response.headers.get("retry-after", "")
                error_message = f"the server answers with status 429: {self._quote(error.response.text)}"
                raise Overloaded(error_message, where=self.host, seconds=int(wait) if wait.isdigit() else 1) from None
            async with stream:
                async for chunk in self._chunks(stream):
                    prompt_tokens, completion_tokens = _usage(chunk)
                    text, finish = "", None
                    for choice in chunk.choices[:1]:
                        delta = choice.text if isinstance(prompt, str) else choice.delta.content
                        text, finish = delta or "", choice.finish_reason
                        ended = ended or finish is not None
                    yield ReplyChunk(text, finish, prompt_tokens, completion_tokens)
        if not ended:
            raise ResourceError("the answer ended early", where=self.host, next="Try again")

    async def _chunks(self, stream: Any) -> AsyncGenerator[Any, None]:
        """Yield the chunks. An error that the server sends inside a chunk is raised as a failure of the server."""
        import openai

        try:
            async for chunk in stream:
                yield chunk
        except openai.APIError as error:
            if type(error) is not openai.APIError:  # has a status, or is of the connection
                raise
            error_message = f"the server failed during its answer: {self._quote(error.message)}"
            raise ResourceError(error_message, where=self.host, next="Try again") from None

    async def _create(self, prompt: Sequence[Turn] | str, limit: int, body: dict[str, Any]) -> Any:
        from openai import BadRequestError

        if isinstance(prompt, str):
            return await self._async_client.completions.create(prompt=prompt, max_tokens=limit, **body)
        messages: Any = [{"role": turn.role, "content": turn.text} for turn in prompt]
        try:
            return await self._async_client.chat.completions.create(messages=messages, **{**body, self._limit: limit})
        except BadRequestError as error:  # OpenAI's newer models need the new name, older servers the old one
            if self._limit == "max_completion_tokens" or "max_completion_tokens" not in error.message:
                raise
            self._limit = "max_completion_tokens"
            return await self._create(prompt, limit, body)


def _usage(chunk: Any) -> tuple[int | None, int | None]:
    usage = getattr(chunk, "usage", None)
    return (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
