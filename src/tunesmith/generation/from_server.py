"""Replies from any server that speaks OpenAI's chat completions: a vendor's, llama.cpp's, vLLM's, Ollama's.

The protocol: https://platform.openai.com/docs/api-reference/chat/create. The key comes from the environment and stays
in this object: it stands in no error, log or file. Sent are the conversation, the settings, that key, and nothing else.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, ResourceError, TunesmithError
from tunesmith.generation.stop_strings import ReplyFilter, reply_of
from tunesmith.generation.text_model import Reply
from tunesmith.prompt.reply import ReplyFormat

CONNECT = 10.0  # seconds to reach the server; `timeout` is for its answer
QUOTED = 200  # characters of a server's own words in an error
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")  # no key looks so: those of vendors hold small letters
_SENT = {  # the library adds what it knows of this computer, and what OPENAI_ORG_ID and its like say, to every request
    *("accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"),
    "user-agent",
}


class FromServer:
    """A model behind a URL. Requests that fail for the moment (429, 5xx, no connection, no answer) are made again.

    The wait doubles from half a second to 8 s, or is what the server's Retry-After says, up to two minutes.
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
        """`url` ends in /v1 with most servers; `key` is the NAME of the environment variable that holds the key.

        `timeout` is in seconds and for one answer. Raises ModelError for a URL that is none or would carry text and key
        in clear over a network (http to another machine, unless `plain_http`), and for a missing key.
        """
        self.host = check_url(url, plain_http=plain_http)
        self.model, self.timeout, self._key = model, timeout, _read_key(key)
        self._limit = "max_tokens"
        from openai import DefaultHttpxClient, OpenAI, Timeout

        http = DefaultHttpxClient(
            follow_redirects=False,  # elsewhere is not where the key belongs
            trust_env=not is_loopback(urlsplit(url).hostname or ""),  # no proxy between this machine and itself
            event_hooks={"request": [self._dress]},
        )
        self._client = OpenAI(
            base_url=url,
            api_key="not the key",  # `_dress` puts it on, or nothing
            timeout=Timeout(timeout, connect=min(CONNECT, timeout)),
            max_retries=retries,
            http_client=http,
        )

    def __enter__(self) -> FromServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections."""
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
        """The reply to one conversation. None leaves a setting to the server; `tokens` is 0 where the server is silent.

        Raises ModelError for what asking again does not mend (unauthorised, unknown model, refused settings, an answer
        that is no chat completion), and ResourceError for a server that stays away, overloaded or silent.
        """
        wanted = {"temperature": temperature, "seed": seed, "stop": list(stop) or None}
        with self._failures():
            return self._reply(self._post(turns, max_new_tokens, {k: v for k, v in wanted.items() if v is not None}))

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """See TextModel. `batch` requests are under way at once; temperature 0 is as greedy as the server makes it."""
        with ThreadPoolExecutor(max_workers=batch) as pool:
            asked = {pool.submit(self.complete, p, max_new_tokens=max_new_tokens): n for n, p in enumerate(prompts)}
            try:
                for done in as_completed(asked):
                    yield asked[done], done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """See TextModel."""
        ended, reply = False, ReplyFilter(ReplyFormat(), ())
        with self._failures():
            for chunk in self._post(prompt, max_new_tokens, {"temperature": 0.0, "stream": True}):
                for choice in chunk.choices[:1]:
                    ended = ended or choice.finish_reason is not None
                    if shown := reply.feed(choice.delta.content or ""):
                        yield shown
        if rest := reply.rest():
            yield rest
        if not ended:
            raise ResourceError("the answer broke off", where=self.host, next="Ask again")

    def _post(self, turns: Sequence[Turn], max_new_tokens: int, settings: dict[str, Any]) -> Any:
        """The body of a chat completion as text, or its chunks."""
        import httpx2
        from openai import BadRequestError

        messages: Any = [{"role": turn.role, "content": turn.text} for turn in turns]
        body = {"model": self.model, "messages": messages, self._limit: max_new_tokens, **settings}
        try:
            if settings.get("stream"):
                return self._client.chat.completions.create(**body)
            return self._client.post("/chat/completions", body=body, cast_to=httpx2.Response).text
        except BadRequestError as error:  # newer models of OpenAI's want the new name, older servers the old one
            if self._limit == "max_completion_tokens" or "max_completion_tokens" not in error.message:
                raise
            self._limit = "max_completion_tokens"
            return self._post(turns, max_new_tokens, settings)

    def _reply(self, body: str) -> Reply:
        try:
            plain = json.loads(body)
            choice = plain["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
            tokens = (plain.get("usage") or {}).get("completion_tokens")
            if not isinstance(text, str | None) or not isinstance(tokens, int | None):
                raise TypeError("text or count of another type")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            what = f"the answer is no chat completion: {self._quote(body)}"
            raise ModelError(what, where=self.host, next="Check the server's URL; most end in /v1") from None
        return reply_of(text or "", ReplyFormat(), (), ended=reason == "stop", tokens=tokens or 0)

    def _dress(self, request: Any) -> None:
        """Leaves what must be sent on a request, and puts the key on."""
        for name in [name for name in request.headers if name.lower() not in _SENT]:
            del request.headers[name]
        if self._key:
            request.headers["authorization"] = f"Bearer {self._key}"

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """The library's errors as ours. They are not chained: a request with its headers hangs on each."""
        import httpx2  # what openai speaks with
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._explain(error.status_code, self._quote(error.response.text)) from None
        except openai.APITimeoutError:
            what = f"the server gave no answer within {self.timeout:g} s"
            raise ResourceError(what, where=self.host, next="Allow more with timeout, or ask later") from None
        except (openai.APIConnectionError, httpx2.TransportError) as error:  # the latter within a stream
            cause = self._quote(str(error.__cause__ or error))
            what, advice = f"the connection to the server failed: {cause}", "Check its URL, and that it runs"
            raise ResourceError(what, where=self.host, next=advice) from None
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a stream of what is not JSON
            what = f"the answer cannot be read: {self._quote(str(error))}"
            raise ModelError(what, where=self.host, next="Check the server's URL; most end in /v1") from None

    def _explain(self, status: int, said: str) -> TunesmithError:
        if status in (401, 403):  # its words are not quoted: some servers repeat a part of the key
            told = "Check the key, and what it may do" if self._key else "Name the variable with the key as `key`"
            return ModelError(f"the server refuses the key (status {status})", where=self.host, next=told)
        if status == 404:
            advice = "Check the model's name, and the URL: most end in /v1"
            return ModelError(f"no model '{self.model}', or no such address: {said}", where=self.host, next=advice)
        if status in (408, 409, 429) or status >= 500:
            what = f"the server answers with status {status}: {said}"
            return ResourceError(what, where=self.host, next="Wait, then try again")
        what = f"the server refuses the request (status {status}): {said}"
        return ModelError(what, where=self.host, next="Check the model's name and the settings")

    def _quote(self, said: str) -> str:
        """The beginning of what the server said, in one line, without the key."""
        safe = said.replace(self._key, "…") if self._key else said
        line = "".join(letter if letter.isprintable() else " " for letter in safe)
        return " ".join(line.split())[:QUOTED] or "nothing"


def check_url(url: str, *, plain_http: bool = False) -> str:
    """The host of `url`, with its port if it names one. Raises ModelError for a URL that is not to be used."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("http", "https") or not host:
        raise ModelError("the server's URL is none", next="Write it as http://127.0.0.1:8080/v1 or https://HOST/v1")
    shown = f"[{host}]" if ":" in host else host
    shown = f"{shown}:{port}" if port else shown
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        advice = "Put the key into an environment variable, and name that"
        raise ModelError("the server's URL holds a password or a query", where=shown, next=advice)
    if parts.scheme == "http" and not (plain_http or is_loopback(host)):
        raise ModelError(
            "http to another machine carries texts and key in clear",
            where=shown,
            next="Use https, or allow it with plain_http: true",
        )
    return shown


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine: localhost, 127.0.0.0/8 or ::1 (RFC 6761, RFC 1122, RFC 4291)."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_key(name: str | None) -> str:
    if name is None:
        return ""
    if not _NAME.fullmatch(name):  # it may be the key itself: it is not repeated
        advice = "Write NAME, not the key itself; then: export NAME=…"
        raise ModelError("the key's variable is no name in capitals", next=advice)
    key = os.environ.get(name, "").strip()
    if not key:
        advice = f"export {name}=…, or name none for a server that asks for no key"
        raise ModelError(f"the environment variable {name} holds no key", next=advice)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ModelError(f"what {name} holds is no key: it has blanks or foreign letters", next=f"Set {name} again")
    return key
