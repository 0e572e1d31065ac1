"""Error responses in OpenAI's format: {"error": {"message", "type", "param", "code"}}, and limits of requests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from tunesmith.errors import TunesmithError

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
MAX_MESSAGE = 400  # characters


class ErrorDetail(BaseModel):
    """The error in OpenAI's format."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class RequestRefused(Exception):
    """The request cannot be served as it is. `param` names the field of the request, `code` is for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """`message` says what is wrong and what to do."""
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class BackendFailed(Exception):
    """The runtime failed; a retry may succeed."""


class QueueFull(Exception):
    """The queue of waiting requests is full; `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        """`retry_after` is an estimate of when the queue has a free place."""
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class ReplyTimeout(Exception):
    """A reply was not complete within the time limit."""


class ApiError(Exception):
    """An error response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`message` says what is wrong and what to do; `code` is for programs."""
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message[:MAX_MESSAGE], code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body in OpenAI's format."""
        kind = ERROR_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body(), self.status, self.headers)


def to_api_error(error: Exception) -> ApiError:
    """Convert any error to a response; of an unknown error only the class, since its text may be private."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="busy", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, ReplyTimeout):
        return ApiError(504, f"{error}. Request fewer tokens", code="timeout")
    if isinstance(error, RequestRefused):
        return ApiError(400, error.message, code=error.code, param=error.param)
    if isinstance(error, BackendFailed):
        return ApiError(502, str(error), code="backend_failed")
    if isinstance(error, TunesmithError):
        return ApiError(400, str(error))
    if isinstance(error, RequestValidationError):
        return _validation_error(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    return ApiError(500, f"internal server error ({type(error).__name__})", code="internal")


def install_error_handlers(app: FastAPI) -> None:
    """Make `app` convert every error with `to_api_error`."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return to_api_error(error).response()

    for kind in (
        ApiError,
        QueueFull,
        ReplyTimeout,
        RequestRefused,
        BackendFailed,
        TunesmithError,
        RequestValidationError,
        HTTPException,
    ):
        app.add_exception_handler(kind, answer)


def rate_limit_error(seconds: float) -> ApiError:
    """Return the response to a client that sends requests too fast."""
    wait = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return ApiError(429, "too many requests; send them more slowly", code="rate_limit_exceeded", headers=wait)


def _validation_error(error: RequestValidationError) -> ApiError:
    """Return the first problem, without the value that was sent, which may be anything."""
    problem = error.errors()[0]
    location = [str(part) for part in problem.get("loc", ()) if part != "body"]
    param = ".".join(part for part in location if part.isascii() and part.isprintable())[:80] or None
    message = str(problem.get("msg", "is invalid"))
    if problem.get("type") == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if problem.get("type") == "extra_forbidden":
        return ApiError(400, f"unknown field '{param}'; remove it", param=param, code="unknown_parameter")
    return ApiError(400, f"{param or 'the request'}: {message}", param=param)


@dataclass(frozen=True)
class Limits:
    """Limits of a server; beyond `rate` requests per second, after a burst of `burst`, a client gets status 429."""

    body: int = 1 << 20  # bytes
    body_seconds: float = 10.0  # for a whole body
    header_seconds: float = 10.0  # for a whole request line with its headers
    stall_seconds: float = 30.0  # for a client to read what was sent
    reply_seconds: float = 600.0
    waiting: int = 64  # requests per model
    connections: int = 512
    rate: float = 50.0  # requests per second and client: more than two cores can answer, fewer than a flood
    burst: int = 200
    turns: int = 256  # messages of a conversation
    stops: int = 16  # strings in `stop`; OpenAI allows 4
    stop_letters: int = 128  # characters of each


class RateLimiter:
    """A token bucket per client: `burst` tokens, refilled with `rate` per second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, client: str) -> float:
        """Take a token and return 0, or return the seconds until one is available."""
        current = self._clock()
        tokens, updated = self._buckets.get(client, (self._burst, current))
        tokens = min(self._burst, tokens + (current - updated) * self._rate)
        if tokens < 1.0:
            self._buckets[client] = tokens, current
            return (1.0 - tokens) / self._rate
        self._buckets[client] = tokens - 1.0, current
        return 0.0
