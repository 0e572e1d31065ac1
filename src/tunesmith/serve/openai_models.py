"""What OpenAI's chat completions, completions and models send and answer, as far as they are served here.

https://platform.openai.com/docs/api-reference/chat/create and /completions/create. What is not served is allowed with
the value alone that asks for nothing, so that a client which spells out defaults is understood.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tunesmith.web.limits import Limits

_MOST = Limits()


def _encodable(text: str) -> str:
    """JSON can name halves of characters, which nothing else can hold, and the zero byte, where C's texts end."""
    if "\0" in text:
        raise ValueError("a zero byte stands in it; leave it out")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a character stands alone (a surrogate); send whole characters")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Zero = Annotated[float, Field(ge=0, le=0)]
Empty = Annotated[dict[str, Any], Field(max_length=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Stop = Annotated[Text, Field(min_length=1, max_length=_MOST.stop_letters)]
Label = Annotated[str, Field(max_length=512)]
MOST_TOKENS = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """One speaker's words. `developer` is the newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    reasoning_content: Text | None = None
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None
    annotations: Nothing | None = None

    @property
    def text(self) -> str:
        """What is said."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Strict):
    """`include_usage` asks for a last chunk with the counts."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(_Strict):
    """Plain text is the one format."""

    type: Literal["text"]


class Asked(_Strict):
    """What both ways of asking share."""

    model: Name
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=_MOST.stops)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Empty | None = None
    user: Label | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the reply."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Asked):
    """A conversation to answer."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST.turns)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[Label, Label], Field(max_length=16)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None


class CompletionRequest(Asked):
    """A text to go on with. It is the model's raw input: special tokens written in it are special tokens."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        """The one prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str | None = None


class ChatChoice(BaseModel):
    """The one reply."""

    index: int
    message: Answer
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """A whole reply."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    """The one reply."""

    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """A whole reply."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models that can be asked."""

    object: Literal["list"]
    data: list[ModelCard]
