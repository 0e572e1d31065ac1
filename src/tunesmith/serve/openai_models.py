"""Requests and responses of OpenAI's chat completions, completions and models, as far as they are supported.

https://platform.openai.com/docs/api-reference/chat/create and /completions/create. A setting that is not supported is
accepted only with its neutral value, so that clients which send defaults work.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tunesmith.web.errors import Limits

_LIMITS = Limits()


def _encodable(text: str) -> str:
    """Reject surrogates, which only JSON can hold, and null characters, where C strings end."""
    if "\0" in text:
        raise ValueError("the text contains a null character; remove it")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("the text contains a lone surrogate; send whole characters")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Zero = Annotated[float, Field(ge=0, le=0)]
EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]
EmptyList = Annotated[list[Any], Field(max_length=0)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
StopString = Annotated[Text, Field(min_length=1, max_length=_LIMITS.stop_letters)]
Label = Annotated[str, Field(max_length=512)]
MAX_TOKENS = 1 << 20


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_StrictModel):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class Message(_StrictModel):
    """One message of a conversation. `developer` is the newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    reasoning_content: Text | None = None
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: EmptyList | None = None
    annotations: EmptyList | None = None

    @property
    def text(self) -> str:
        """The whole text of the message."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_StrictModel):
    """`include_usage` requests a last chunk with the token counts."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(_StrictModel):
    """Plain text, the only supported format."""

    type: Literal["text"]


class GenerationRequest(_StrictModel):
    """Settings that chat completions and completions share."""

    model: ModelName
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=_LIMITS.stops)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: EmptyObject | None = None
    user: Label | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end the reply."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(GenerationRequest):
    """A conversation to reply to."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_LIMITS.turns)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: EmptyList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[Label, Label], Field(max_length=16)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None


class CompletionRequest(GenerationRequest):
    """A text to continue. It is the model's raw input: special tokens in it are recognized."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        """The only prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class Usage(BaseModel):
    """Token counts of prompt and reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str | None = None


class ChatChoice(BaseModel):
    """The only choice."""

    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    """The only choice."""

    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """A whole completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelCard]
