"""The one validator: HTTP, gRPC and batch requests all pass here, so they are refused alike.

Every check raises `InvalidRequest` (or a subclass) that names the field, in OpenAI's spelling, and what would be right.
What concerns the conversation itself (roles, names, tool results that answer no call) is checked where it is rendered,
in `chorus_cluster.harmony`.
"""

from collections.abc import Sequence

from chorus_cluster.errors import ContextTooLong, InvalidRequest, ModelNotFound
from chorus_cluster.gateway.request import ChatRequest, Sampling, TextRequest
from chorus_cluster.harmony.conversation import Message
from chorus_protos.v1 import engine_pb2

# Most elements of a field. Whatever of this is in one request is dealt with in one go, beside which no stream of this
# gateway is served: rendering takes some 0.1 ms a message.
MAX_ELEMENTS = {"messages": 4096, "tools": 512, "stop": 4, "logit_bias": 1024}
MAX_STOP_LENGTH = 256
MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 128
# A message is at least <|start|>, its role, <|message|> and <|end|>.
MIN_TOKENS_PER_MESSAGE = 4
# Prose and code have 4 to 5. Only floods of white space have more than this over a whole context; they are refused
# before the time is spent on tokenizing them, which holds the event loop.
MAX_CHARACTERS_PER_TOKEN = 16

# Inclusive. The lowest repetition penalty keeps the division by it finite in single precision.
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
}
_INT32_MAX = 2**31 - 1


def validate(request: ChatRequest, model: engine_pb2.ModelInfo) -> None:
    """Checks values and limits of a request against the model that is to serve it.

    Errors: `ModelNotFound`, `ContextTooLong` (when the messages can't fit, whatever their tokens), `InvalidRequest`.
    """
    check_model(request.model, model)
    # Tool calls take as long to render as messages do.
    check_size("messages", len(request.messages) + sum(len(message.tool_calls) for message in request.messages))
    check_size("tools", len(request.tools))
    _check_messages(request, model.max_model_len)
    if request.max_reasoning_tokens is not None and not 0 <= request.max_reasoning_tokens <= _INT32_MAX:
        raise InvalidRequest("thinking_token_budget", f"must be from 0 to {_INT32_MAX}")
    _check_sampling(request, model.vocab_size)


def validate_text(request: TextRequest, model: engine_pb2.ModelInfo) -> None:
    """As `validate`; the prompts are checked where they are tokenized."""
    check_model(request.model, model)
    if not request.prompts:
        raise InvalidRequest("prompt", "must hold at least one prompt")
    if request.echo and request.top_logprobs is not None:
        raise InvalidRequest("echo", "is not supported with 'logprobs': a prompt's tokens have none here")
    _check_sampling(request, model.vocab_size)
    if len(request.prompts) * request.n > MAX_CHOICES:
        raise InvalidRequest(
            "prompt", f"holds {len(request.prompts)} prompts; with n, at most {MAX_CHOICES} answers are given"
        )


def check_model(name: str, model: engine_pb2.ModelInfo) -> None:
    """Errors: ModelNotFound."""
    if name != model.model:
        raise ModelNotFound(name)


def check_size(field: str, num_elements: int) -> None:
    """Errors: InvalidRequest where a field of `MAX_ELEMENTS` holds more than that."""
    if num_elements > MAX_ELEMENTS[field]:
        raise InvalidRequest(field, f"holds {num_elements} elements; at most {MAX_ELEMENTS[field]} are allowed")


def max_new_tokens(
    request: Sampling, num_prompt_tokens: int, max_model_len: int, prompt_field: str = "messages"
) -> int:
    """How many tokens may be generated for a rendered prompt, at least 1.

    Errors: `ContextTooLong` when prompt and `max_completion_tokens` together exceed the context.
    """
    room = max_model_len - num_prompt_tokens
    if room < 1:
        takes = "take" if prompt_field == "messages" else "takes"
        tools = " with their tools" if prompt_field == "messages" else ""
        raise ContextTooLong(
            prompt_field,
            f"{takes} {num_prompt_tokens} tokens{tools}; "
            f"the model's context is {max_model_len} tokens, answer included",
        )
    if request.max_tokens is None:
        return room
    if request.max_tokens > room:
        raise ContextTooLong(
            request.max_tokens_field,
            f"is {request.max_tokens}, but {num_prompt_tokens} prompt tokens leave room for {room} "
            f"in the model's context of {max_model_len} tokens",
        )
    return request.max_tokens


def check_token_ids(token_ids: Sequence[int], field: str, model: engine_pb2.ModelInfo) -> None:
    """Errors: `ContextTooLong`; `InvalidRequest` for an id that the model doesn't know."""
    if len(token_ids) > model.max_model_len:
        raise ContextTooLong(
            field, f"are {len(token_ids)} tokens: more than a context of {model.max_model_len} tokens holds"
        )
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < model.vocab_size:
            raise InvalidRequest(f"{field}[{index}]", f"must be from 0 to {model.vocab_size - 1}")


def _check_messages(request: ChatRequest, max_model_len: int) -> None:
    if not request.messages:
        raise InvalidRequest("messages", "must hold at least one message")
    num_messages = len(request.messages)
    if num_messages * MIN_TOKENS_PER_MESSAGE > max_model_len:
        raise ContextTooLong("messages", f"are {num_messages}: more than a context of {max_model_len} tokens holds")
    num_characters = sum(_num_characters(message) for message in request.messages)
    if num_characters > max_model_len * MAX_CHARACTERS_PER_TOKEN:
        raise ContextTooLong(
            "messages", f"hold {num_characters} characters: more than a context of {max_model_len} tokens holds"
        )


def _num_characters(message: Message) -> int:
    arguments = sum(len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning or "") + arguments


def _check_sampling(request: Sampling, vocab_size: int) -> None:
    check_size("stop", len(request.stop))
    check_size("logit_bias", len(request.logit_bias))
    for name, (low, high) in _RANGES.items():
        value = getattr(request, name)
        # NaN fails this comparison too.
        if not low <= value <= high:
            raise InvalidRequest(name, f"must be from {low:g} to {high:g}, not {value:g}")
    if not 0 <= request.top_k <= _INT32_MAX:
        raise InvalidRequest("top_k", "must be 0 (off) or positive")
    if request.max_tokens is not None and not 1 <= request.max_tokens <= _INT32_MAX:
        raise InvalidRequest(request.max_tokens_field, f"must be from 1 to {_INT32_MAX}")
    if request.seed is not None and not -(2**63) <= request.seed < 2**63:
        raise InvalidRequest("seed", "must fit into a signed 64-bit integer")
    if not 1 <= request.n <= MAX_CHOICES:
        raise InvalidRequest("n", f"must be from 1 to {MAX_CHOICES}")
    if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(
            request.top_logprobs_field, f"must be from 0 to {MAX_TOP_LOGPROBS}, not {request.top_logprobs}"
        )
    for token_id, bias in request.logit_bias.items():
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest("logit_bias", f"names token {token_id}; the vocabulary ends at {vocab_size - 1}")
        if not -100 <= bias <= 100:  # NaN too
            raise InvalidRequest(f"logit_bias.{token_id}", "must be from -100 to 100")
    _check_stop(request.stop)


def _check_stop(stop: tuple[str, ...]) -> None:
    for i, text in enumerate(stop):
        if not text:
            raise InvalidRequest(f"stop[{i}]", "must not be empty")
        if len(text) > MAX_STOP_LENGTH:
            raise InvalidRequest(f"stop[{i}]", f"must be at most {MAX_STOP_LENGTH} characters long")
