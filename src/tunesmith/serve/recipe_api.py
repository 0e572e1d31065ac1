"""Recipes as forms: the fields of each recipe, and the text that its model writes, checked as it is generated."""

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
from tunesmith.serve.events import EVENT_STREAM_RESPONSE, EventStream, run_unless_disconnected
from tunesmith.serve.openai_models import MAX_TOKENS, Text
from tunesmith.web.errors import ApiError, Limits
from tunesmith.writing.events import ClaimEvent, CutEvent, DoneEvent, Event
from tunesmith.writing.events import TextEvent as TextEvent
from tunesmith.writing.form import Form, build_form, build_prompt
from tunesmith.writing.stream_filter import StreamFilter

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.serve.backend import ServedModel

MAX_SYSTEM = 20_000  # characters
MAX_FIELDS = 64  # per form
_EVENT_NAMES: dict[type, str] = {TextEvent: "text", ClaimEvent: "claim", CutEvent: "cut", DoneEvent: "done"}


class RecipeCard(BaseModel):
    """A recipe to write with."""

    name: str
    about: str
    model: str


class RecipeList(BaseModel):
    """All recipes."""

    data: list[RecipeCard]


class FieldShape(BaseModel):
    """A field of the form; `longest` is in characters."""

    name: str
    label: str
    help: str
    kind: Literal["text", "lines"]
    required: bool
    longest: int


class RecipeShape(RecipeCard):
    """A recipe's fields, its system message, and the values of a row as an example."""

    system: str | None
    max_tokens: int
    fields: list[FieldShape]
    example: dict[str, str]


class WriteRequest(BaseModel):
    """The values to write from. `system` null is the recipe's own, "" none; `max_tokens` null is the recipe's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    fields: Annotated[dict[Annotated[str, Field(max_length=200)], Text], Field(max_length=MAX_FIELDS)]
    system: Annotated[Text, Field(max_length=MAX_SYSTEM)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None


class ClaimShape(BaseModel):
    """A claim in the text, from code point `start` to `end` (exclusive), and whether the fields support it."""

    start: int
    end: int
    text: str
    kind: str
    verdict: Literal["supported", "contradicted", "unsupported"]
    why: str
    field: str | None


class CutShape(BaseModel):
    """Why the text was cut, and the beginning of what was removed."""

    why: str
    removed: str


class Tokens(BaseModel):
    """Token counts of prompt and reply."""

    prompt_tokens: int
    completion_tokens: int


class WriteResponse(BaseModel):
    """A whole text. `stopped`: the model ended it; `prefix`: introductory chatter that was removed."""

    text: str
    claims: list[ClaimShape]
    stopped: bool
    prefix: str
    cut: CutShape | None
    usage: Tokens
    seconds: float


@dataclass(frozen=True)
class _ServedRecipe:
    model: ServedModel
    recipe: Recipe
    form: Form

    def card(self, name: str) -> dict[str, str]:
        return {"name": name, "about": self.form.about, "model": self.model.name}


def recipe_router(models: Sequence[ServedModel], limits: Limits) -> APIRouter:
    """Routes: GET /v1/recipes, GET /v1/recipes/{name}, POST /v1/recipes/{name}/write."""
    router, recipes = APIRouter(prefix="/v1/recipes"), _recipes_by_name(models)

    def find(name: str) -> _ServedRecipe:
        if name not in recipes:
            names = ", ".join(recipes) or "none; serve a run, or add --recipe NAME"
            raise ApiError(404, f"unknown recipe; available: {names}", param="name", code="recipe_not_found")
        return recipes[name]

    @router.get("", response_model=RecipeList)
    async def list_recipes() -> dict[str, Any]:
        """List the recipes whose models are served."""
        return {"data": [entry.card(name) for name, entry in recipes.items()]}

    @router.get("/{name}", response_model=RecipeShape)
    async def one_recipe(name: str) -> dict[str, Any]:
        """Return the form of one recipe."""
        served = find(name)
        form = served.form
        fields, example = [asdict(entry) for entry in form.fields], dict(form.example)
        details = {"system": form.system, "max_tokens": form.max_tokens, "fields": fields, "example": example}
        return {**served.card(name), **details}

    @router.post("/{name}/write", response_model=WriteResponse, responses=EVENT_STREAM_RESPONSE)
    async def write(name: str, payload: WriteRequest, request: Request) -> Response:
        """Write a text from the form's values, whole or streamed, and check its claims against the fields."""
        served = find(name)
        try:
            turns = build_prompt(served.recipe, payload.fields, payload.system)
        except TunesmithError as error:
            raise ApiError(400, str(error), param="fields", code="invalid_fields") from error
        source = _events(served, turns, payload)
        if payload.stream:
            return EventStream(_encode_events(source), _error_event, stall=limits.stall_seconds)

        async def work() -> dict[str, Any]:
            body: dict[str, Any] = {}
            async for events in source:
                body = events[-1][1]
            return body

        return JSONResponse(await run_unless_disconnected(request, work()))

    return router


def _recipes_by_name(models: Sequence[ServedModel]) -> dict[str, _ServedRecipe]:
    """Return the recipes by name; the name of a repeated recipe gets the model's name as a suffix."""
    recipes: dict[str, _ServedRecipe] = {}
    for model in models:
        if model.recipe is not None:
            name = model.recipe.name if model.recipe.name not in recipes else f"{model.recipe.name}.{model.name}"
            recipes[name] = _ServedRecipe(model, model.recipe, build_form(model.recipe))
    return recipes


async def _events(
    served: _ServedRecipe, turns: Sequence[Turn], payload: WriteRequest
) -> AsyncGenerator[list[tuple[str, dict[str, Any]]], None]:
    """Yield the named events of each piece of the reply; `done` comes last. The reply ends with the text."""
    started, stream_filter = time.monotonic(), StreamFilter.of(served.form, payload.fields, turns)
    sampling = Sampling(payload.max_tokens or served.form.max_tokens, payload.temperature or 0.0, seed=payload.seed)
    async with served.model.queue.writing(turns, sampling) as reply:
        async for piece in reply:
            if events := stream_filter.feed(piece):
                yield _named_events(events)
            if stream_filter.over:
                break
        final = _named_events(stream_filter.end(not stream_filter.over and reply.finish == "stop"))
        final[-1][1]["usage"] = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens}
        final[-1][1]["seconds"] = round(time.monotonic() - started, 3)
        yield final


def _named_events(events: Iterable[Event]) -> list[tuple[str, dict[str, Any]]]:
    """Return events as names and JSON values, with adjacent texts merged."""
    named_event: list[tuple[str, dict[str, Any]]] = []
    for event in events:
        name = _EVENT_NAMES[type(event)]
        if isinstance(event, TextEvent) and named_event and named_event[-1][0] == "text":
            named_event[-1][1]["text"] += event.text
        else:
            named_event.append((name, asdict(event)))
    return named_event


async def _encode_events(source: AsyncGenerator[list[tuple[str, dict[str, Any]]], None]) -> AsyncGenerator[bytes, None]:
    """Yield server-sent events; events that arrive together are sent together."""
    async with contextlib.aclosing(source):
        async for events in source:
            yield b"".join(_event(name, data) for name, data in events)


def _error_event(error: ApiError) -> bytes:
    return _event("error", {"message": error.message, "code": error.code})


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
