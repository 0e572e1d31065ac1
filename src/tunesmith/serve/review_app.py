"""The review's page and what it asks for. Nothing that is sent says which reply is whose."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.telemetry import TelemetryConfig
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.types import ASGIApp

from tunesmith.errors import ResourceError
from tunesmith.evaluation.review import QUESTIONS, Answer, Judgement, Preference, Reviews, Shown
from tunesmith.web.auth import Guard

PAGES = Path(__file__).parent / "pages"
FILES = {
    "/": ("review.html", "text/html; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
}
LONGEST_NOTE = 4000  # characters
LARGEST_BODY = 64 * 1024  # bytes: a note of 4,000 characters, each written as \uXXXX\uXXXX, and the answers
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def _complete(answers: dict[str, Answer]) -> dict[str, Answer]:
    if answers.keys() != QUESTIONS.keys():
        raise ValueError(f"each of {', '.join(QUESTIONS)} needs an answer, and nothing else")
    return answers


Answers = Annotated[dict[str, Answer], AfterValidator(_complete)]


class Given(BaseModel):
    """A judgement as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    key: str
    left: Answers
    right: Answers
    preference: Preference
    seconds: Annotated[float, Field(ge=0, le=7 * 24 * 3600, allow_inf_nan=False)]
    note: Annotated[str, Field(max_length=LONGEST_NOTE)] = ""


def review_app(
    shown: Sequence[Shown], equal: int, reviews: Reviews, *, name: str, token: str, hosts: Collection[str]
) -> ASGIApp:
    """The guarded app for one reviewer: `shown` are their pairs, `equal` were left out, `name` is the recipe's.

    `hosts` are the names and ports it may be asked under, such as 127.0.0.1:8000.
    """
    app = FastAPI(openapi_url=None, redirect_slashes=False, max_body_size=LARGEST_BODY, telemetry=NO_TELEMETRY)
    by_key = {each.key: place for place, each in enumerate(shown)}
    for path, (file, kind) in FILES.items():
        app.add_route(path, _page((PAGES / file).read_bytes(), kind))

    @app.get("/api/state")
    async def state() -> dict[str, Any]:
        return {
            "name": name,
            "reviewer": shown[0].reviewer if shown else "",
            "equal": equal,
            "longest_note": LONGEST_NOTE,
            "questions": [{"name": each, "text": text} for each, text in QUESTIONS.items()],
            **_progress(shown, reviews),
        }

    @app.get("/api/pairs/{place}")
    async def pair(place: int) -> dict[str, Any]:
        if not 0 <= place < len(shown):
            raise HTTPException(404, f"there is no pair {place}")
        return {"place": place, **_describe(shown[place], reviews)}

    @app.post("/api/judgements")
    async def judge(given: Given) -> dict[str, Any]:
        if given.key not in by_key:
            raise HTTPException(409, "this judgement is of other replies than are shown here now")
        reviews.add(_judgement(given, shown[by_key[given.key]]))
        return _progress(shown, reviews)

    @app.exception_handler(ResourceError)
    async def full(request: Request, error: ResourceError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 507)

    return Guard(app, hosts, token, FILES)


def _page(body: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda request: Response(body, headers={"Content-Type": kind})


def _progress(shown: Sequence[Shown], reviews: Reviews) -> dict[str, Any]:
    """How many are judged, and the place of the first that is not."""
    open_places = [place for place, each in enumerate(shown) if each.pair.id not in reviews.judgements]
    return {"of": len(shown), "done": len(shown) - len(open_places), "open": open_places[0] if open_places else None}


def _describe(shown: Shown, reviews: Reviews) -> dict[str, Any]:
    found = reviews.judgements.get(shown.pair.id)
    given = found.with_left(shown.left_is) if found else None
    return {
        "key": shown.key,
        "turns": [{"role": turn.role, "text": turn.text} for turn in shown.pair.turns],
        "fields": [{"name": name, "value": value} for name, value in shown.pair.fields.items()],
        "left": shown.left,
        "right": shown.right,
        "given": given
        and {
            "left": given.left,
            "right": given.right,
            "preference": given.preference,
            "seconds": given.seconds,
            "note": given.note,
        },
    }


def _judgement(given: Given, shown: Shown) -> Judgement:
    return Judgement(
        pair=shown.pair.id,
        part=shown.pair.part,
        reviewer=shown.reviewer,
        left_is=shown.left_is,
        left=given.left,
        right=given.right,
        preference=given.preference,
        seconds=round(given.seconds, 1),
        note=given.note.strip(),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
