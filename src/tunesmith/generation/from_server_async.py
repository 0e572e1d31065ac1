"""Replies from another server as they come, for an event loop: FromServer for those who may not wait in a thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tunesmith.data.conversation import Turn
from tunesmith.errors import ResourceError
from tunesmith.generation.from_server import CONNECT, FromServer, is_loopback


class Overloaded(ResourceError):
    """The server has too much to do; `seconds` is what its Retry-After says, or one."""

    def __init__(self, what: str, *, where: str, seconds: int) -> None:
        """See the class."""
        super().__init__(what, where=where, next="Wait, then try again")
        self.seconds = seconds


@dataclass(frozen=True)
class Part:
    """A piece of text, and what is known with it: how it ended, tokens read and written."""

    text: str
    finish: str | None = None
    read: int | None = None
    written: int | None = None


class FromServerAsync(FromServer):
    """FromServer's connection, key and errors, with replies as they come. Used in one event loop."""

    def __init__(
        self, url: str, model: str, *, key: str | None = None, timeout: float = 120.0, plain_http: bool = False
    ) -> None:
        """See FromServer. A request is made once more where no connection is had, and not otherwise."""
        super().__init__(url, model, key=key, timeout=timeout, retries=0, plain_http=plain_http)
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        async def dress(request: Any) -> None:
            self._dress(request)

        http = DefaultAsyncHttpxClient(
            follow_redirects=False,
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
            event_hooks={"request": [dress]},
        )
        self._loop_client = AsyncOpenAI(
            base_url=url,
            api_key="not the key",
            timeout=Timeout(timeout, connect=min(CONNECT, timeout)),
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
    ) -> AsyncGenerator[Part, None]:
        """The reply to a conversation, or how a text goes on. Closing it ends the request.

        Raises what `complete` raises, Overloaded among it, and ResourceError for an answer that breaks off.
        """
        import openai

        body: dict[str, Any] = {"model": self.model, "temperature": temperature, "top_p": top_p, "stream": True}
        body |= {"stream_options": {"include_usage": True}, **({} if seed is None else {"seed": seed})}
        ended = False
        with self._failures():
            try:
                stream = await self._ask(prompt, max_new_tokens, body)
            except openai.RateLimitError as error:
                wait = error.response.headers.get("retry-after", "")
                what = f"the server answers with status 429: {self._quote(error.response.text)}"
                raise Overloaded(what, where=self.host, seconds=int(wait) if wait.isdigit() else 1) from None
            async with stream:
                async for chunk in self._told(stream):
                    read, written = _counts(chunk)
                    text, finish = "", None
                    for choice in chunk.choices[:1]:
                        delta = choice.text if isinstance(prompt, str) else choice.delta.content
                        text, finish = delta or "", choice.finish_reason
                        ended = ended or finish is not None
                    yield Part(text, finish, read, written)
        if not ended:
            raise ResourceError("the answer broke off", where=self.host, next="Ask again")

    async def _told(self, stream: Any) -> AsyncGenerator[Any, None]:
        """The chunks. An error that the server tells in one of them is its failure, not a refusal."""
        import openai

        try:
            async for chunk in stream:
                yield chunk
        except openai.APIError as error:
            if type(error) is not openai.APIError:  # those with a status, and of the connection
                raise
            what = f"the server failed within its answer: {self._quote(error.message)}"
            raise ResourceError(what, where=self.host, next="Ask again") from None

    async def _ask(self, prompt: Sequence[Turn] | str, limit: int, body: dict[str, Any]) -> Any:
        from openai import BadRequestError

        if isinstance(prompt, str):
            return await self._loop_client.completions.create(prompt=prompt, max_tokens=limit, **body)
        messages: Any = [{"role": turn.role, "content": turn.text} for turn in prompt]
        try:
            return await self._loop_client.chat.completions.create(messages=messages, **{**body, self._limit: limit})
        except BadRequestError as error:  # newer models of OpenAI's want the new name, older servers the old one
            if self._limit == "max_completion_tokens" or "max_completion_tokens" not in error.message:
                raise
            self._limit = "max_completion_tokens"
            return await self._ask(prompt, limit, body)


def _counts(chunk: Any) -> tuple[int | None, int | None]:
    usage = getattr(chunk, "usage", None)
    return (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
