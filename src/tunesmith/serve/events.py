"""Responses that are streamed, and canceled when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tunesmith.web.errors import ApiError, to_api_error

_Result = TypeVar("_Result")
CONTENT_TYPE = [(b"content-type", b"text/event-stream; charset=utf-8")]
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
EVENT_STREAM_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": _EVENT}}}
}  # for OpenAPI
CLIENT_CLOSED_REQUEST = 499  # nginx's status for it; nobody reads it


class EventStream(Response):
    """Server-sent events. `source` yields encoded events; it runs and is closed in one task.

    An error before the first event becomes an error response; later, `format_error` encodes it as the last event. The
    stream ends if the client disconnects or reads nothing for `stall` seconds.
    """

    media_type = "text/event-stream"

    def __init__(
        self, source: AsyncGenerator[bytes, None], format_error: Callable[[ApiError], bytes], *, stall: float = 30.0
    ) -> None:
        """Starts nothing yet."""
        super().__init__()
        self._source, self._format_error, self._stall = source, format_error, stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        with contextlib.suppress(_Disconnected):
            await _cancel_on_disconnect(self._send(scope, receive, send), receive)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with contextlib.aclosing(self._source):
                async for piece in self._source:
                    async with asyncio.timeout(self._stall):
                        if not started:
                            started = True
                            await send(_start_message())
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            if not started:
                raise
            await self._end(send, self._format_error(to_api_error(error)))
            return
        if not started:
            await send(_start_message())
        await self._end(send, b"")

    async def _end(self, send: Send, body: bytes) -> None:
        async with asyncio.timeout(self._stall):
            await send({"type": "http.response.body", "body": body, "more_body": False})


def _start_message() -> Message:
    return {"type": "http.response.start", "status": 200, "headers": list(CONTENT_TYPE)}


async def run_unless_disconnected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of `work`, which is canceled if the client disconnects.

    Raises ApiError with a status that nobody reads then.
    """
    try:
        return await _cancel_on_disconnect(work, request.receive)
    except _Disconnected:
        raise ApiError(CLIENT_CLOSED_REQUEST, "the client disconnected") from None


class _Disconnected(Exception):
    """The client disconnected."""


async def _cancel_on_disconnect(work: Coroutine[Any, Any, _Result], receive: Receive) -> _Result:
    task, disconnect = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Disconnected
        return task.result()
    finally:
        for pending in (task, disconnect):
            if not pending.done():
                pending.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
