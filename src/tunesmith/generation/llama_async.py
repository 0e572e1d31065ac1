"""One answer of the child that runs llama.cpp, for an event loop: no thread waits for it.

HTTP/1.1 as llama.cpp's server speaks it (RFC 9112): one request a connection, the answer in chunks, each event a line
that begins with `data: `.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from tunesmith.generation.llama_process import FAILURES, Child


class AsyncStream:
    """The pieces of one answer, each an object of the server's; those that came together are told together."""

    def __init__(self, child: Child, path: str, body: dict[str, Any]) -> None:
        """Asks nothing yet."""
        self._child, self._path, self._body = child, path, {**body, "stream": True}
        self._wire: _Wire | None = None

    async def __aiter__(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Ends after the last piece. Raises ModelError when the child refuses, ends or hangs."""
        child = self._child
        try:
            wire = self._wire = await self._open()
            status = await wire.status(child.patience)
            if status != 200:
                raise child.refusal(json.loads(await wire.rest(child.patience)))
            while True:
                pieces = [json.loads(line[6:]) for line in await wire.lines(child.patience) if line[:7] == b"data: {"]
                for place, piece in enumerate(pieces):
                    if "error" in piece:
                        raise child.refusal(piece)
                    if piece["stop"]:
                        yield pieces[: place + 1]
                        return
                if pieces:
                    yield pieces
        except FAILURES as error:
            fault = error  # looking after the child takes seconds where it hangs
            raise await asyncio.to_thread(child.explain, fault) from None
        finally:
            self.close()

    def close(self) -> None:
        """The server notices that nobody listens any more, and frees the slot."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _open(self) -> _Wire:
        parts, loop = urlsplit(self._child.address), asyncio.get_running_loop()
        body = json.dumps(self._body).encode()
        head = {**self._child.headers, "Host": "localhost", "Connection": "close", "Content-Length": str(len(body))}
        lines = [f"POST {self._path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        if parts.scheme == "unix":
            _, wire = await loop.create_unix_connection(_Wire, parts.path)
        else:
            _, wire = await loop.create_connection(_Wire, parts.hostname or "", parts.port or 0)
        wire.send("\r\n".join(lines).encode() + body)
        return wire


class _Wire(asyncio.Protocol):
    """What comes, read as it is asked for."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._raw, self._text = bytearray(), bytearray()  # as it came; its body, without the frames of chunks
        self._chunked = self._ended = self._lost = False
        self._news: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._raw += data
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._tell()

    def send(self, data: bytes) -> None:
        """Without waiting: a prompt is small."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._transport.write(data)

    def close(self) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()

    async def status(self, patience: float) -> int:
        """Reads the head. Raises TimeoutError, ConnectionError, ValueError."""
        while (end := self._raw.find(b"\r\n\r\n")) < 0:
            await self._more(patience)
        head = bytes(self._raw[:end]).lower()
        del self._raw[: end + 4]
        self._chunked = b"transfer-encoding: chunked" in head
        return int(head.split(None, 2)[1])

    async def rest(self, patience: float) -> bytes:
        """The whole body, up to the connection's end."""
        while not self._ended:
            self._unframe()
            if self._ended:
                break
            if self._lost:
                break
            await self._more(patience)
        return bytes(self._text)

    async def lines(self, patience: float) -> list[bytes]:
        """Whole lines that came, at least one."""
        while True:
            self._unframe()
            end = self._text.rfind(b"\n")
            if end >= 0:
                lines = bytes(self._text[:end]).split(b"\n")
                del self._text[: end + 1]
                return lines
            if self._ended:
                raise ConnectionError("no last piece")
            await self._more(patience)

    def _unframe(self) -> None:
        if not self._chunked:
            self._text += self._raw
            self._raw.clear()
            return
        while (end := self._raw.find(b"\r\n")) >= 0:
            size = int(bytes(self._raw[:end]), 16)
            if len(self._raw) < end + size + 4:
                return
            self._text += self._raw[end + 2 : end + 2 + size]
            del self._raw[: end + size + 4]
            self._ended = self._ended or size == 0

    async def _more(self, patience: float) -> None:
        if self._lost:
            raise ConnectionError("the connection ended")
        self._news = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience):
                await self._news
        finally:
            self._news = None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
