"""Errors as OpenAI writes them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from tunesmith.errors import TunesmithError

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
QUOTED = 400  # letters of a message


class Problem(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every refused request is answered with."""

    error: Problem


class Refused(Exception):
    """What is asked cannot be answered as it is. `param` names the part of the request, `code` is for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """`message` says what is wrong and what to do."""
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class Broken(Exception):
    """The runtime failed; asking again may help."""


class Busy(Exception):
    """As many wait as may; `retry_after` in seconds."""

    def __init__(self, retry_after: int) -> None:
        """`retry_after` is about how long those who wait will take."""
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class TooLong(Exception):
    """A reply was not done within the time that one may take."""


class ApiError(Exception):
    """An answer other than the wished one."""

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
        self.status, self.message, self.code, self.param = status, message[:QUOTED], code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def told(error: Exception) -> ApiError:
    """Any error as an answer. What is not known is named by its kind alone: its words may hold somebody's text."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="busy", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, TooLong):
        return ApiError(504, f"{error}. Ask for fewer tokens", code="timeout")
    if isinstance(error, Refused):
        return ApiError(400, error.message, code=error.code, param=error.param)
    if isinstance(error, Broken):
        return ApiError(502, str(error), code="backend_failed")
    if isinstance(error, TunesmithError):
        return ApiError(400, str(error))
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    return ApiError(500, f"the server failed ({type(error).__name__})", code="internal")


def install(app: FastAPI) -> None:
    """Lets `app` answer every error so."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return told(error).response()

    for kind in (ApiError, Busy, TooLong, Refused, Broken, TunesmithError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def busy_for(seconds: float) -> ApiError:
    """The answer to one who asks too often."""
    wait = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return ApiError(429, "too many requests; slow down", code="rate_limit_exceeded", headers=wait)


def _invalid(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong, without what was sent: that may be anything."""
    found = error.errors()[0]
    place = [str(part) for part in found.get("loc", ()) if part != "body"]
    param = ".".join(part for part in place if part.isascii() and part.isprintable())[:80] or None
    what = str(found.get("msg", "is invalid"))
    if found.get("type") == "json_invalid":
        return ApiError(400, "the body is no JSON", code="invalid_json")
    if found.get("type") == "extra_forbidden":
        return ApiError(400, f"'{param}' is not known here; leave it out", param=param, code="unknown_parameter")
    return ApiError(400, f"{param or 'the request'}: {what}", param=param)
