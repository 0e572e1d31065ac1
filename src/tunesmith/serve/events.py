"""Answers that grow: sent as they come, ended when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tunesmith.web.errors import ApiError, told

_Result = TypeVar("_Result")
KIND = [(b"content-type", b"text/event-stream; charset=utf-8")]
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}  # for OpenAPI
GONE = 499  # as nginx calls a client that left; nobody reads it


class EventStream(Response):
    """Server-sent events. `source` gives bytes as they are to be sent; it is run, and closed, in one task.

    What it raises before its first bytes is answered with a status; later, `wrong` says it in an event, and the answer
    ends. A client that leaves, or takes nothing for `stall` seconds, ends it.
    """

    media_type = "text/event-stream"

    def __init__(
        self, source: AsyncGenerator[bytes, None], wrong: Callable[[ApiError], bytes], *, stall: float = 30.0
    ) -> None:
        """Nothing runs yet."""
        super().__init__()
        self._source, self._wrong, self._stall = source, wrong, stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers (ASGI)."""
        with contextlib.suppress(_Left):
            await _unless_left(self._send(scope, receive, send), receive)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with contextlib.aclosing(self._source):
                async for piece in self._source:
                    async with asyncio.timeout(self._stall):
                        if not started:
                            started = True
                            await send(_start())
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            if not started:
                raise
            await self._end(send, self._wrong(told(error)))
            return
        if not started:
            await send(_start())
        await self._end(send, b"")

    async def _end(self, send: Send, last: bytes) -> None:
        async with asyncio.timeout(self._stall):
            await send({"type": "http.response.body", "body": last, "more_body": False})


def _start() -> Message:
    return {"type": "http.response.start", "status": 200, "headers": list(KIND)}


async def whole(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`, which is cancelled when the client leaves.

    Raises ApiError with a status that nobody reads then.
    """
    try:
        return await _unless_left(work, request.receive)
    except _Left:
        raise ApiError(GONE, "the client left") from None


class _Left(Exception):
    """The client is gone."""


async def _unless_left(work: Coroutine[Any, Any, _Result], receive: Receive) -> _Result:
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Left
        return task.result()
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
