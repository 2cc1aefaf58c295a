"""The wire models of /v1/responses: types only, as in `chorus_cluster.gateway.openai.models`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from chorus_cluster.gateway.openai.models import Elements, GenerationBody

# How an item without a type is read: as a message, which clients may shorten to role and content.
MESSAGE = "message"


class _Lenient(BaseModel):
    """Items and tools: clients send back what they were given, with fields of their own added. Those are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Part(_Lenient):
    type: str = Field(description="`input_text`, `output_text`, `refusal`; gpt-oss reads no images or files.")
    text: str | None = None
    refusal: str | None = None


class MessageItem(_Lenient):
    type: Literal["message"] | None = None
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    phase: Literal["commentary", "final_answer"] | None = Field(
        default=None, description="Of the assistant: before calls or an answer, or the answer itself."
    )
    content: str | Elements[Part]


class ReasoningPart(_Lenient):
    type: str
    text: str


class ReasoningItem(_Lenient):
    type: Literal["reasoning"]
    id: str | None = None
    content: Elements[ReasoningPart] | None = None
    summary: Elements[ReasoningPart] | None = Field(default=None, description="Not read.")
    encrypted_content: str | None = Field(default=None, description="As this server made it.")


class FunctionCallItem(_Lenient):
    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


class CustomCallItem(_Lenient):
    type: Literal["custom_tool_call"]
    id: str | None = None
    call_id: str
    name: str
    namespace: str | None = None
    input: str


class _OutputItem(_Lenient):
    id: str | None = None
    call_id: str
    output: str | Elements[Part]


class FunctionOutputItem(_OutputItem):
    type: Literal["function_call_output"]


class CustomOutputItem(_OutputItem):
    type: Literal["custom_tool_call_output"]


class ItemReference(_Lenient):
    type: Literal["item_reference"]
    id: str = Field(description="Of an item in the output of a stored response.")


def _kind(item: Any) -> Any:
    return (item.get("type") or MESSAGE) if isinstance(item, dict) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[CustomOutputItem, Tag("custom_tool_call_output")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
]
ITEM_TYPES = (
    "message",
    "reasoning",
    "function_call",
    "custom_tool_call",
    "function_call_output",
    "custom_tool_call_output",
    "item_reference",
)


class ResponseTool(_Lenient):
    """A tool of any type; which fields it needs depends on that."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of a function's arguments.")
    strict: bool | None = Field(default=None, description="Arguments are held to `parameters`; default false.")
    format: dict[str, Any] | None = Field(default=None, description="Of a custom tool's input, which is held to it.")
    tools: "list[ResponseTool] | None" = Field(default=None, description="Of a namespace.")


class ReasoningOptions(_Lenient):
    effort: str | None = Field(default=None, description="`low`, `medium` (the default) or `high`.")
    summary: str | None = Field(default=None, description="Accepted: the reasoning itself is sent, and no summary.")
    generate_summary: str | None = Field(default=None, json_schema_extra={"deprecated": True})
    context: str | None = Field(default=None, description="Only `auto` and `current_turn`.")
    mode: str | None = Field(default=None, description="Only `standard`.")


class TextOptions(_Lenient):
    format: dict[str, Any] | None = Field(default=None, description="`text`, `json_object` or `json_schema`.")
    verbosity: str | None = Field(default=None, description="Only `medium`.")


class ResponseStreamOptions(_Lenient):
    include_obfuscation: bool | None = Field(default=None, description="Accepted; nothing is padded.")


class ResponsesBody(GenerationBody):
    """Body of POST /v1/responses."""

    model_config = ConfigDict(title="ResponseRequest")

    input: str | Elements[InputItem] | None = None
    instructions: str | None = Field(default=None, description="Not inherited from the previous response.")
    previous_response_id: str | None = None
    store: bool | None = Field(default=None, description="Default true, where the server has a store.")
    background: bool | None = None
    tools: Elements[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = Field(
        default=None, description="`auto`, `none`, `required`, a function or custom tool, or `allowed_tools`."
    )
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    thinking_token_budget: int | None = Field(
        default=None, description="Most tokens of reasoning; then the answer begins."
    )
    max_output_tokens: int | None = Field(default=None, description="Reasoning included.")
    include: Elements[str] | None = None
    top_logprobs: int | None = Field(default=None, description="0 to 20; needs `message.output_text.logprobs`.")
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    max_tool_calls: int | None = Field(default=None, description="Of tools that run here, of which there are none.")
    parallel_tool_calls: bool | None = Field(default=None, description="gpt-oss calls one tool at a time.")
    stream_options: ResponseStreamOptions | None = None  # type: ignore[assignment]

    # Refused.
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None

    # Accepted whatever they hold: they change nothing about the answer.
    background_options: Any = None
    client_metadata: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: str | None = None
    user: str | None = None


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(BaseModel):
    """Answer of POST /v1/responses without `stream`, as OpenAI's libraries read it."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    previous_response_id: str | None
    usage: ResponseUsage | None


class InputItemList(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: bool
