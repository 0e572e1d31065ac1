"""Streams one answer of the llama.cpp process in an event loop, without a thread.

HTTP/1.1 as llama.cpp's server uses it (RFC 9112): one request per connection, a chunked answer, and one line that
begins with `data: ` per event.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from tunesmith.generation.llama_process import CONNECTION_ERRORS, LlamaProcess


class AsyncCompletionStream:
    """The pieces of one answer, as JSON objects of the server; pieces that arrive together are yielded together."""

    def __init__(self, child: LlamaProcess, path: str, body: dict[str, Any]) -> None:
        """Sends nothing yet."""
        self._child, self._path, self._body = child, path, {**body, "stream": True}
        self._protocol: _HttpProtocol | None = None

    async def __aiter__(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Ends after the last piece. Raises ModelError if the process refuses the request, ends or hangs."""
        child = self._child
        try:
            protocol = self._protocol = await self._connect()
            status = await protocol.read_status(child.patience)
            if status != 200:
                raise child.refusal(json.loads(await protocol.read_body(child.patience)))
            while True:
                pieces = [
                    json.loads(line[6:]) for line in await protocol.read_lines(child.patience) if line[:7] == b"data: {"
                ]
                for index, piece in enumerate(pieces):
                    if "error" in piece:
                        raise child.refusal(piece)
                    if piece["stop"]:
                        yield pieces[: index + 1]
                        return
                if pieces:
                    yield pieces
        except CONNECTION_ERRORS as error:
            fault = error  # a hanging process takes seconds to be killed
            raise await asyncio.to_thread(child.connection_error, fault) from None
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the server notices and frees the slot."""
        if self._protocol is not None:
            self._protocol.close()
            self._protocol = None

    async def _connect(self) -> _HttpProtocol:
        parts, loop = urlsplit(self._child.address), asyncio.get_running_loop()
        body = json.dumps(self._body).encode()
        head = {**self._child.headers, "Host": "localhost", "Connection": "close", "Content-Length": str(len(body))}
        lines = [f"POST {self._path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        if parts.scheme == "unix":
            _, protocol = await loop.create_unix_connection(_HttpProtocol, parts.path)
        else:
            _, protocol = await loop.create_connection(_HttpProtocol, parts.hostname or "", parts.port or 0)
        protocol.send("\r\n".join(lines).encode() + body)
        return protocol


class _HttpProtocol(asyncio.Protocol):
    """The client side of one HTTP connection, read on demand."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received, self._body_bytes = (
            bytearray(),
            bytearray(),
        )  # as received; the body without chunk framing
        self._chunked = self._complete = self._lost = False
        self._data_arrived: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._notify()

    def send(self, data: bytes) -> None:
        """Send without waiting: a prompt is small."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._transport.write(data)

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def read_status(self, patience: float) -> int:
        """Read the head and return the status. Raises TimeoutError, ConnectionError or ValueError."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            await self._wait_for_data(patience)
        head = bytes(self._received[:end]).lower()
        del self._received[: end + 4]
        self._chunked = b"transfer-encoding: chunked" in head
        return int(head.split(None, 2)[1])

    async def read_body(self, patience: float) -> bytes:
        """Return the whole body, up to the end of the connection."""
        while not self._complete:
            self._decode_chunks()
            if self._complete:
                break
            if self._lost:
                break
            await self._wait_for_data(patience)
        return bytes(self._body_bytes)

    async def read_lines(self, patience: float) -> list[bytes]:
        """Return the complete lines that have arrived, at least one."""
        while True:
            self._decode_chunks()
            end = self._body_bytes.rfind(b"\n")
            if end >= 0:
                lines = bytes(self._body_bytes[:end]).split(b"\n")
                del self._body_bytes[: end + 1]
                return lines
            if self._complete:
                raise ConnectionError("no last piece")
            await self._wait_for_data(patience)

    def _decode_chunks(self) -> None:
        if not self._chunked:
            self._body_bytes += self._received
            self._received.clear()
            return
        while (end := self._received.find(b"\r\n")) >= 0:
            size = int(bytes(self._received[:end]), 16)
            if len(self._received) < end + size + 4:
                return
            self._body_bytes += self._received[end + 2 : end + 2 + size]
            del self._received[: end + size + 4]
            self._complete = self._complete or size == 0

    async def _wait_for_data(self, patience: float) -> None:
        if self._lost:
            raise ConnectionError("the connection ended")
        self._data_arrived = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience):
                await self._data_arrived
        finally:
            self._data_arrived = None

    def _notify(self) -> None:
        if self._data_arrived is not None and not self._data_arrived.done():
            self._data_arrived.set_result(None)
