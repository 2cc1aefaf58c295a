"""Requests as the gateway sees them, whichever door they came through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from chorus_cluster.harmony.conversation import Effort, Message, ResponseFormat, Tool

# Most tokens of an answer to a raw prompt, if the client doesn't say: OpenAI's.
DEFAULT_TEXT_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn, how many, and what ends them. Types are right; `validate` checks values and limits."""

    # Most tokens to generate, reasoning included. None: until the context is full.
    max_tokens: int | None = None
    # What the client calls it.
    max_tokens_field: str = "max_completion_tokens"
    temperature: float = 1.0
    top_p: float = 1.0
    # 0 is off.
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    # None: one is drawn.
    seed: int | None = None
    # Token id to what is added to its logit.
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    # Matched in the answer's text, and not part of it.
    stop: tuple[str, ...] = ()
    # Lower runs first; equals in order of arrival.
    priority: int = 0
    # How many answers; the first is the one that a request for one would get.
    n: int = 1
    # None: no log probabilities. n: those of the answer's tokens, and of the n likeliest alternatives.
    top_logprobs: int | None = None
    # What the client calls it.
    top_logprobs_field: str = "top_logprobs"


# Fields of `Sampling` that every form calls by these names, and may leave out.
SAMPLING_FIELDS: Final = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
)


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools the model may call, and whether it must call one."""

    # "none": tools are not shown to the model either.
    mode: Literal["auto", "none", "required"] = "auto"
    # The tools that may be called, of those that are shown. Empty: all.
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What the answer must be. Of a chat, reasoning and the arguments of tool calls are none of it."""

    kind: Literal["json_schema", "regex", "lark", "choice"]
    # A JSON schema as JSON text; a regular expression; a grammar in Lark or EBNF; a JSON array of strings.
    source: str
    # What the client calls it, for error messages.
    field: str
    # How the prompt tells the model of it. None: not at all.
    announced: ResponseFormat | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest(Sampling):
    """What HTTP, gRPC and batch lines are turned into.

    Field names in error messages are those of OpenAI's chat completions, for gRPC as well.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    # None: any text.
    output_format: OutputFormat | None = None
    effort: Effort = Effort.MEDIUM
    # Whether the client wants to see the reasoning; the model reasons either way.
    include_reasoning: bool = True
    # Most tokens of reasoning, after which the model must go on to its answer. None: as many as it likes.
    max_reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TextRequest(Sampling):
    """Prompts as they are, to be gone on with; each has `n` answers."""

    model: str
    # Texts, in which harmony's markup may be spelled out, or token ids.
    prompts: tuple[str | Sequence[int], ...]
    # Whether an answer begins with its prompt.
    echo: bool = False
    # Whether special tokens of the answer are spelled out, but for the one that ends it.
    with_markup: bool = False
    # What the answer must be, from its first token on. None: anything.
    output_format: OutputFormat | None = None
