"""Recipes as forms: what each asks for, and the text that its model writes, checked as it comes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from tunesmith.data.conversation import Turn
from tunesmith.errors import TunesmithError
from tunesmith.serve.backend import Sampling
from tunesmith.serve.events import STREAMED, EventStream, whole
from tunesmith.serve.openai_models import MOST_TOKENS, Text
from tunesmith.web.errors import ApiError
from tunesmith.web.limits import Limits
from tunesmith.writing.events import Claimed, Cut, Done, Event
from tunesmith.writing.events import Text as Shown
from tunesmith.writing.form import Form, conversation, form_of
from tunesmith.writing.stream_filter import Gate

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.serve.request_queue import Served

SYSTEM = 20_000  # characters of a system message
FIELDS = 64  # of a form
_NAMES: dict[type, str] = {Shown: "text", Claimed: "claim", Cut: "cut", Done: "done"}


class RecipeCard(BaseModel):
    """A recipe that can be written with."""

    name: str
    about: str
    model: str


class RecipeList(BaseModel):
    """All of them."""

    data: list[RecipeCard]


class FieldShape(BaseModel):
    """A value that is asked for; `longest` in characters."""

    name: str
    label: str
    help: str
    kind: Literal["text", "lines"]
    required: bool
    longest: int


class RecipeShape(RecipeCard):
    """What a recipe asks for, its own system message, and a row's values as an example."""

    system: str | None
    max_tokens: int
    fields: list[FieldShape]
    example: dict[str, str]


class WriteRequest(BaseModel):
    """The values to write from. `system` null is the recipe's own, "" none; `max_tokens` null the recipe's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    fields: Annotated[dict[Annotated[str, Field(max_length=200)], Text], Field(max_length=FIELDS)]
    system: Annotated[Text, Field(max_length=SYSTEM)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None


class ClaimShape(BaseModel):
    """A statement of the text, code points start to end (end not included), and what the fields say to it."""

    start: int
    end: int
    text: str
    kind: str
    verdict: Literal["supported", "contradicted", "unsupported"]
    why: str
    field: str | None


class CutShape(BaseModel):
    """Why the text was ended, and the beginning of what was removed."""

    why: str
    removed: str


class Tokens(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int


class Written(BaseModel):
    """A whole text. `stopped`: the model ended by itself; `prefix`: the chatter that was left out in front."""

    text: str
    claims: list[ClaimShape]
    stopped: bool
    prefix: str
    cut: CutShape | None
    usage: Tokens
    seconds: float


@dataclass(frozen=True)
class _Written:
    model: Served
    recipe: Recipe
    form: Form

    def card(self, name: str) -> dict[str, str]:
        return {"name": name, "about": self.form.about, "model": self.model.name}


def router(models: Sequence[Served], limits: Limits) -> APIRouter:
    """GET /v1/recipes, GET /v1/recipes/{name}, POST /v1/recipes/{name}/write."""
    made, known = APIRouter(prefix="/v1/recipes"), _known(models)

    def find(name: str) -> _Written:
        if name not in known:
            there = ", ".join(known) or "none; serve a run, or name one with --recipe"
            raise ApiError(404, f"there is no such recipe; there are: {there}", param="name", code="recipe_not_found")
        return known[name]

    @made.get("", response_model=RecipeList)
    async def list_recipes() -> dict[str, Any]:
        """The recipes whose models are served."""
        return {"data": [each.card(name) for name, each in known.items()]}

    @made.get("/{name}", response_model=RecipeShape)
    async def one_recipe(name: str) -> dict[str, Any]:
        """The form of one."""
        found = find(name)
        form = found.form
        fields, example = [asdict(each) for each in form.fields], dict(form.example)
        more = {"system": form.system, "max_tokens": form.max_tokens, "fields": fields, "example": example}
        return {**found.card(name), **more}

    @made.post("/{name}/write", response_model=Written, responses=STREAMED)
    async def write(name: str, asked: WriteRequest, request: Request) -> Response:
        """The text for a form's values, whole or as it is written, with its statements held against the fields."""
        found = find(name)
        try:
            turns = conversation(found.recipe, asked.fields, asked.system)
        except TunesmithError as error:
            raise ApiError(400, str(error), param="fields", code="invalid_fields") from error
        source = _events(found, turns, asked)
        if asked.stream:
            return EventStream(_told(source), _wrong, stall=limits.stall_seconds)

        async def work() -> dict[str, Any]:
            body: dict[str, Any] = {}
            async for told in source:
                body = told[-1][1]
            return body

        return JSONResponse(await whole(request, work()))

    return made


def _known(models: Sequence[Served]) -> dict[str, _Written]:
    """The recipes by name; of two models with the same one the second is told by its own name."""
    known: dict[str, _Written] = {}
    for model in models:
        if model.recipe is not None:
            name = model.recipe.name if model.recipe.name not in known else f"{model.recipe.name}.{model.name}"
            known[name] = _Written(model, model.recipe, form_of(model.recipe))
    return known


async def _events(
    found: _Written, turns: Sequence[Turn], asked: WriteRequest
) -> AsyncGenerator[list[tuple[str, dict[str, Any]]], None]:
    """What each piece of the reply brings, by name; `done` comes last. The reply is ended when the text is."""
    began, gate = time.monotonic(), Gate.of(found.form, asked.fields, turns)
    sampling = Sampling(asked.max_tokens or found.form.max_tokens, asked.temperature or 0.0, seed=asked.seed)
    async with found.model.desk.writing(turns, sampling) as writing:
        async for piece in writing:
            if told := gate.feed(piece):
                yield _plain(told)
            if gate.over:
                break
        last = _plain(gate.end(not gate.over and writing.finish == "stop"))
        last[-1][1]["usage"] = {"prompt_tokens": writing.prompt_tokens, "completion_tokens": writing.tokens}
        last[-1][1]["seconds"] = round(time.monotonic() - began, 3)
        yield last


def _plain(events: Iterable[Event]) -> list[tuple[str, dict[str, Any]]]:
    """Events as plain values by name, neighbouring texts as one."""
    found: list[tuple[str, dict[str, Any]]] = []
    for event in events:
        name = _NAMES[type(event)]
        if isinstance(event, Shown) and found and found[-1][0] == "text":
            found[-1][1]["text"] += event.text
        else:
            found.append((name, asdict(event)))
    return found


async def _told(source: AsyncGenerator[list[tuple[str, dict[str, Any]]], None]) -> AsyncGenerator[bytes, None]:
    """Server-sent events; what is told at the same moment goes out together."""
    async with contextlib.aclosing(source):
        async for told in source:
            yield b"".join(_event(name, plain) for name, plain in told)


def _wrong(error: ApiError) -> bytes:
    return _event("error", {"message": error.message, "code": error.code})


def _event(name: str, plain: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(plain, separators=(',', ':'))}\n\n".encode()
