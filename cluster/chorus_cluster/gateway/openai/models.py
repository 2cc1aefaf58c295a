"""The wire models of /v1/chat/completions, as OpenAI defines them: types only, for parsing and for the OpenAPI pages.

Types are strict: "5" is no number, 5.0 no integer, 1 no boolean. null means absent everywhere. Values and limits are
checked by `chorus_cluster.gateway.validate`; what a field that is not served becomes is in docs/api.md.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field

Element = TypeVar("Element")


class _FailFast(FailFast):
    """Pydantic's own, hashable, as members of a union must be."""

    __hash__ = object.__hash__


# A list that is wrong in every element is wrong in its first.
Elements = Annotated[list[Element], _FailFast()]


class _Lenient(BaseModel):
    """Messages and tools: clients send back what they were given, with fields of their own added. Those are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class ContentPart(_Lenient):
    type: str = Field(description="Only `text`: gpt-oss reads no images, audio or files.")
    text: str | None = None


class FunctionCall(_Lenient):
    name: str
    arguments: str = Field(description="JSON text, as the model wrote it.")


class ToolCall(_Lenient):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Elements[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = Field(
        default=None, description="Of an assistant message that called tools: its reasoning, to go on from."
    )
    reasoning_content: str | None = Field(default=None, description="Another name of `reasoning`.")
    tool_calls: Elements[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Any = Field(default=None, json_schema_extra={"deprecated": True})
    audio: Any = None


class FunctionDefinition(_Lenient):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of the arguments.")
    strict: bool | None = Field(default=None, description="Arguments are held to `parameters`.")


class FunctionTool(_Lenient):
    type: Literal["function"]
    function: FunctionDefinition


class StreamOptions(_Lenient):
    include_usage: bool | None = None


class GenerationBody(BaseModel):
    """What the bodies of all that generates have in common. A field that stands nowhere is refused, lest it be ignored
    unnoticed."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    temperature: float | None = Field(default=None, description="0 (greedy) to 2; default 1.")
    top_p: float | None = Field(default=None, description="0 to 1; default 1.")
    top_k: int | None = Field(default=None, description="0 or -1: off, the default.")
    min_p: float | None = Field(default=None, description="0 (off, the default) to 1.")
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = Field(default=None, description="Default 1 (off).")
    seed: int | None = None
    logit_bias: dict[str, float] | None = Field(default=None, description="Token id to bias, -100 to 100.")
    stop: str | Elements[str] | None = Field(default=None, description="At most 4; matched in the answer.")
    n: int | None = Field(default=None, description="How many answers to a prompt; at most 128 in all.")
    service_tier: str | None = Field(default=None, description="`priority` goes first, `flex` last.")
    priority: int | None = Field(default=None, description="Lower goes first; default 0.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class FormattedBody(GenerationBody):
    """What may ask for a form of the answer."""

    response_format: dict[str, Any] | None = Field(default=None, description="`text`, `json_object` or `json_schema`.")
    structured_outputs: dict[str, Any] | None = Field(
        default=None, description="One of `json`, `json_object`, `regex`, `choice` and `grammar` (Lark or EBNF)."
    )


class ChatCompletionBody(FormattedBody):
    """Body of POST /v1/chat/completions."""

    model_config = ConfigDict(title="ChatCompletionRequest")

    messages: Elements[ChatMessage]
    tools: Elements[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = Field(
        default=None, description="`auto`, `none`, `required`, a function, or `allowed_tools`."
    )
    reasoning_effort: str | None = Field(default=None, description="`low`, `medium` (the default) or `high`.")
    thinking_token_budget: int | None = Field(
        default=None, description="Most tokens of reasoning; then the answer begins."
    )
    include_reasoning: bool | None = Field(default=None, description="Default true. Whether `reasoning` is sent.")
    max_completion_tokens: int | None = Field(default=None, description="Reasoning included.")
    max_tokens: int | None = Field(default=None, json_schema_extra={"deprecated": True})
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, description="0 to 20; needs `logprobs`.")

    # Served in one form only; anything else is refused.
    modalities: Elements[str] | None = Field(default=None, description='Only `["text"]`.')
    verbosity: str | None = Field(default=None, description="Only `medium`.")
    audio: Any = None
    moderation: Any = None
    web_search_options: Any = None
    functions: list[Any] | None = Field(default=None, json_schema_extra={"deprecated": True})
    function_call: Any = Field(default=None, json_schema_extra={"deprecated": True})

    # Accepted whatever they hold: they change nothing about the answer.
    metadata: Any = None
    parallel_tool_calls: Any = Field(default=None, description="gpt-oss calls one tool at a time.")
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    store: Any = None
    user: Any = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail
