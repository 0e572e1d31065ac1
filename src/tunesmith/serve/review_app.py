"""The review page and its API. Responses never reveal which model wrote a reply."""

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
from tunesmith.evaluation.review import QUESTIONS, Answer, Judgment, Preference, PresentedPair, Reviews
from tunesmith.web.auth import TokenAuth

PAGES_FOLDER = Path(__file__).parent / "pages"
PAGE_FILES = {
    "/": ("review.html", "text/html; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
}
MAX_NOTE = 4000  # characters
MAX_BODY = 64 * 1024  # bytes: a note of 4,000 characters as \uXXXX\uXXXX, and the answers
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def _require_all_answers(answers: dict[str, Answer]) -> dict[str, Answer]:
    if answers.keys() != QUESTIONS.keys():
        raise ValueError(f"exactly these questions need an answer: {', '.join(QUESTIONS)}")
    return answers


Answers = Annotated[dict[str, Answer], AfterValidator(_require_all_answers)]


class JudgementRequest(BaseModel):
    """A judgment as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    key: str
    left: Answers
    right: Answers
    preference: Preference
    seconds: Annotated[float, Field(ge=0, le=7 * 24 * 3600, allow_inf_nan=False)]
    note: Annotated[str, Field(max_length=MAX_NOTE)] = ""


def review_app(
    blind_pairs: Sequence[PresentedPair], equal: int, reviews: Reviews, *, name: str, token: str, hosts: Collection[str]
) -> ASGIApp:
    """Build the app with authentication for one reviewer; `equal` pairs were left out, `name` is the recipe's.

    `blind_pairs` are the reviewer's pairs; `hosts` are the accepted Host names with ports, such as 127.0.0.1:8000.
    """
    app = FastAPI(openapi_url=None, redirect_slashes=False, max_body_size=MAX_BODY, telemetry=NO_TELEMETRY)
    by_key = {entry.key: place for place, entry in enumerate(blind_pairs)}
    for path, (file, kind) in PAGE_FILES.items():
        app.add_route(path, _static_page((PAGES_FOLDER / file).read_bytes(), kind))

    @app.get("/api/state")
    async def state() -> dict[str, Any]:
        return {
            "name": name,
            "reviewer": blind_pairs[0].reviewer if blind_pairs else "",
            "equal": equal,
            "longest_note": MAX_NOTE,
            "questions": [{"name": entry, "text": text} for entry, text in QUESTIONS.items()],
            **_progress(blind_pairs, reviews),
        }

    @app.get("/api/pairs/{place}")
    async def pair(place: int) -> dict[str, Any]:
        if not 0 <= place < len(blind_pairs):
            raise HTTPException(404, f"pair {place} does not exist")
        return {"place": place, **_describe(blind_pairs[place], reviews)}

    @app.post("/api/judgments")
    async def judge(payload: JudgementRequest) -> dict[str, Any]:
        if payload.key not in by_key:
            raise HTTPException(409, "this judgment is about replies that are no longer shown; reload the page")
        reviews.add(_judgement(payload, blind_pairs[by_key[payload.key]]))
        return _progress(blind_pairs, reviews)

    @app.exception_handler(ResourceError)
    async def full(request: Request, error: ResourceError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 507)

    return TokenAuth(app, hosts, token, PAGE_FILES)


def _static_page(body: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda request: Response(body, headers={"Content-Type": kind})


def _progress(blind_pairs: Sequence[PresentedPair], reviews: Reviews) -> dict[str, Any]:
    """Return how many pairs are judged, and the index of the first that is not."""
    open_places = [place for place, blind_pair in enumerate(blind_pairs) if blind_pair.pair.id not in reviews.judgments]
    return {
        "of": len(blind_pairs),
        "done": len(blind_pairs) - len(open_places),
        "open": open_places[0] if open_places else None,
    }


def _describe(blind_pair: PresentedPair, reviews: Reviews) -> dict[str, Any]:
    judgment = reviews.judgments.get(blind_pair.pair.id)
    oriented = judgment.with_left(blind_pair.left_is) if judgment else None
    return {
        "key": blind_pair.key,
        "turns": [{"role": turn.role, "text": turn.text} for turn in blind_pair.pair.turns],
        "fields": [{"name": name, "value": value} for name, value in blind_pair.pair.fields.items()],
        "left": blind_pair.left,
        "right": blind_pair.right,
        "given": oriented
        and {
            "left": oriented.left,
            "right": oriented.right,
            "preference": oriented.preference,
            "seconds": oriented.seconds,
            "note": oriented.note,
        },
    }


def _judgement(payload: JudgementRequest, blind_pair: PresentedPair) -> Judgment:
    return Judgment(
        pair=blind_pair.pair.id,
        part=blind_pair.pair.part,
        reviewer=blind_pair.reviewer,
        left_is=blind_pair.left_is,
        left=payload.left,
        right=payload.right,
        preference=payload.preference,
        seconds=round(payload.seconds, 1),
        note=payload.note.strip(),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
