"""Replies from any server with OpenAI's chat completions: a vendor's, llama.cpp's, vLLM's, Ollama's.

The protocol: https://platform.openai.com/docs/api-reference/chat/create. The API key comes from the environment and
stays in this object: it appears in no error, log or file. A request contains the conversation, the settings and the
key, and nothing else.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, ResourceError, TunesmithError
from tunesmith.generation.text_model import Reply, ReplyFilter, build_reply
from tunesmith.prompt.reply import ReplyFormat

CONNECT_SECONDS = 10.0  # to connect; `timeout` is for the answer
QUOTED = 200  # characters of a server's own text in an error
_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")  # API keys of vendors contain lower-case letters
# The library adds headers about this computer, and from OPENAI_ORG_ID and similar variables, to every request.
_ALLOWED_HEADERS = {
    *("accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"),
    "user-agent",
}


class ServerModel:
    """A model behind a URL. Requests that fail temporarily (429, 5xx, no connection, no answer) are retried.

    The wait doubles from half a second to 8 s, or follows the server's Retry-After, up to two minutes.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        plain_http: bool = False,
    ) -> None:
        """`url` ends in /v1 with most servers; `key` is the NAME of the environment variable that holds the API key.

        `timeout` is in seconds, for one answer. Raises ModelError for a URL that is not valid or would send text and
        key unencrypted (http to another machine, unless `plain_http`), and for a missing key.
        """
        self.host = check_url(url, plain_http=plain_http)
        self.model, self.timeout, self._key = model, timeout, _read_key(key)
        self._limit = "max_tokens"
        from openai import DefaultHttpxClient, OpenAI, Timeout

        http = DefaultHttpxClient(
            follow_redirects=False,  # the key must not go to another server
            trust_env=not is_loopback(urlsplit(url).hostname or ""),  # no proxy for loopback
            event_hooks={"request": [self._clean_headers]},
        )
        self._client = OpenAI(
            base_url=url,
            api_key="not the key",  # `_clean_headers` adds the real one
            timeout=Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            max_retries=retries,
            http_client=http,
        )

    def __enter__(self) -> ServerModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(
        self,
        turns: Sequence[Turn],
        *,
        max_new_tokens: int,
        temperature: float | None = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Reply:
        """Return the reply to one conversation; None leaves a setting to the server.

        `tokens` is 0 if the server reports no count. Raises ModelError for errors that a retry does not fix
        (unauthorized, unknown model, refused settings, an answer that is not a chat completion), and ResourceError for
        a server that is unreachable, overloaded or silent.
        """
        settings = {"temperature": temperature, "seed": seed, "stop": list(stop) or None}
        with self._failures():
            return self._reply(self._post(turns, max_new_tokens, {k: v for k, v in settings.items() if v is not None}))

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """Yield replies, with `batch` requests at once; temperature 0 is as greedy as the server makes it."""
        with ThreadPoolExecutor(max_workers=batch) as pool:
            futures = {
                pool.submit(self.complete, prompt, max_new_tokens=max_new_tokens): index
                for index, prompt in enumerate(prompts)
            }
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """See TextModel."""
        ended, reply_filter = False, ReplyFilter(ReplyFormat(), ())
        with self._failures():
            for chunk in self._post(prompt, max_new_tokens, {"temperature": 0.0, "stream": True}):
                for choice in chunk.choices[:1]:
                    ended = ended or choice.finish_reason is not None
                    if text := reply_filter.feed(choice.delta.content or ""):
                        yield text
        if remaining := reply_filter.flush():
            yield remaining
        if not ended:
            raise ResourceError("the answer ended early", where=self.host, next="Try again")

    def _post(self, turns: Sequence[Turn], max_new_tokens: int, settings: dict[str, Any]) -> Any:
        """Return the body of a chat completion as text, or its chunks."""
        import httpx2
        from openai import BadRequestError

        messages: Any = [{"role": turn.role, "content": turn.text} for turn in turns]
        body = {"model": self.model, "messages": messages, self._limit: max_new_tokens, **settings}
        try:
            if settings.get("stream"):
                return self._client.chat.completions.create(**body)
            return self._client.post("/chat/completions", body=body, cast_to=httpx2.Response).text
        except BadRequestError as error:  # OpenAI's newer models need the new name, older servers the old one
            if self._limit == "max_completion_tokens" or "max_completion_tokens" not in error.message:
                raise
            self._limit = "max_completion_tokens"
            return self._post(turns, max_new_tokens, settings)

    def _reply(self, body: str) -> Reply:
        try:
            completion = json.loads(body)
            choice = completion["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
            tokens = (completion.get("usage") or {}).get("completion_tokens")
            if not isinstance(text, str | None) or not isinstance(tokens, int | None):
                raise TypeError("wrong type of text or count")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            message = f"the answer is not a chat completion: {self._quote(body)}"
            raise ModelError(message, where=self.host, next="Check the server's URL; most end in /v1") from None
        return build_reply(text or "", ReplyFormat(), (), ended=reason == "stop", tokens=tokens or 0)

    def _clean_headers(self, request: Any) -> None:
        """Keep only the headers that a request needs, and add the API key."""
        for name in [name for name in request.headers if name.lower() not in _ALLOWED_HEADERS]:
            del request.headers[name]
        if self._key:
            request.headers["authorization"] = f"Bearer {self._key}"

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Convert the library's errors to ours, unchained because each holds the request with its headers."""
        import httpx2  # openai's HTTP client
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._status_error(error.status_code, self._quote(error.response.text)) from None
        except openai.APITimeoutError:
            message = f"the server did not answer within {self.timeout:g} s"
            raise ResourceError(message, where=self.host, next="Increase timeout, or try later") from None
        except (openai.APIConnectionError, httpx2.TransportError) as error:  # TransportError: within a stream
            cause = self._quote(str(error.__cause__ or error))
            message, advice = (
                f"the connection to the server failed: {cause}",
                "Check the URL, and that the server is running",
            )
            raise ResourceError(message, where=self.host, next=advice) from None
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a stream that is not JSON
            message = f"the answer cannot be read: {self._quote(str(error))}"
            raise ModelError(message, where=self.host, next="Check the server's URL; most end in /v1") from None

    def _status_error(self, status: int, detail: str) -> TunesmithError:
        if status in (401, 403):  # not quoted: some servers repeat a part of the key
            next_step = (
                "Check the key and its permissions"
                if self._key
                else "Set `key` to the name of the variable that holds the API key"
            )
            return ModelError(f"the server refuses the key (status {status})", where=self.host, next=next_step)
        if status == 404:
            advice = "Check the model's name and the URL; most end in /v1"
            return ModelError(f"no model '{self.model}' at this URL: {detail}", where=self.host, next=advice)
        if status in (408, 409, 429) or status >= 500:
            message = f"the server answers with status {status}: {detail}"
            return ResourceError(message, where=self.host, next="Wait, then try again")
        message = f"the server refuses the request (status {status}): {detail}"
        return ModelError(message, where=self.host, next="Check the model's name and the settings")

    def _quote(self, text: str) -> str:
        """Return the beginning of the server's own text in one line, without the API key."""
        safe = text.replace(self._key, "…") if self._key else text
        line = "".join(letter if letter.isprintable() else " " for letter in safe)
        return " ".join(line.split())[:QUOTED] or "nothing"


def check_url(url: str, *, plain_http: bool = False) -> str:
    """Return the host of `url`, with its port if it has one. Raises ModelError for an invalid or unsafe URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("http", "https") or not host:
        raise ModelError("the server URL is not valid", next="Write it as http://127.0.0.1:8080/v1 or https://HOST/v1")
    address = f"[{host}]" if ":" in host else host
    address = f"{address}:{port}" if port else address
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        advice = "Put the API key into an environment variable, and set `key` to its name"
        raise ModelError("the server URL contains a password or a query", where=address, next=advice)
    if parts.scheme == "http" and not (plain_http or is_loopback(host)):
        raise ModelError(
            "http to another machine would send texts and key unencrypted",
            where=address,
            next="Use https, or allow it with plain_http: true",
        )
    return address


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine: localhost, 127.0.0.0/8 or ::1 (RFC 6761, RFC 1122, RFC 4291)."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_key(name: str | None) -> str:
    if name is None:
        return ""
    if not _ENV_NAME.fullmatch(name):  # not repeated, because it may be the key itself
        advice = "Set `key` to the NAME of a variable, not to the API key; then: export NAME=…"
        raise ModelError("the key's variable is not a name in capitals", next=advice)
    key = os.environ.get(name, "").strip()
    if not key:
        advice = f"Run export {name}=…, or leave `key` out for a server without API keys"
        raise ModelError(f"the environment variable {name} is not set", next=advice)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ModelError(
            f"{name} does not hold an API key: it has spaces or non-ASCII letters",
            next=f"Set {name} again",
        )
    return key


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
