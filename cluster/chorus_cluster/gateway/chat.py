"""The chat service behind HTTP, gRPC and batch: a `ChatRequest` in, typed events out.

A request's way: validate, render to token ids, ask the engine and await its first response (a refusal is raised here,
before any byte of an answer), then parse what comes into events until the request ends.
"""

import asyncio
import contextlib
import datetime
import secrets
import time
from collections.abc import Callable, Iterator

from chorus_cluster.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, Unavailable
from chorus_cluster.gateway.answer import AnswerAssembler
from chorus_cluster.gateway.choices import all_or_none
from chorus_cluster.gateway.metrics import ChatTimer, GatewayMetrics
from chorus_cluster.gateway.model_info import ModelInfoCache
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.stream import ChatStream, close_responses, next_response, outcome_of
from chorus_cluster.gateway.validate import max_new_tokens, validate
from chorus_cluster.harmony.conversation import Conversation, ConversationTooLong, InvalidConversation
from chorus_cluster.harmony.render import render
from chorus_cluster.harmony.vocabulary import STOP_TOKEN_IDS
from chorus_cluster.routing.engine_client import EngineClient
from chorus_protos.v1 import engine_pb2

# Below this, sampling is greedy in single precision, and the division by it would overflow.
_MIN_TEMPERATURE = 1e-4
# OpenAI allows top_p 0, engines do not: this keeps the likeliest token alone.
_MIN_TOP_P = 1e-6
_HEALTH_TIMEOUT_S = 5.0


def utc_today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


class ChatService:
    """Runs chat requests on an engine client. One for each gateway replica; its methods may run concurrently."""

    def __init__(
        self,
        engine: EngineClient,
        metrics: GatewayMetrics | None = None,
        *,
        today: Callable[[], datetime.date] = utc_today,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.metrics = GatewayMetrics() if metrics is None else metrics
        self.models = ModelInfoCache(engine)
        self.started_at = int(clock())
        self._engine = engine
        self._today = today
        self._clock = clock

    async def start(self, request: ChatRequest, *, deadline_unix_s: float | None = None, owner: str = "") -> ChatStream:
        """`start_all` of a request for one answer."""
        (stream,) = await self.start_all(request, deadline_unix_s=deadline_unix_s, owner=owner)
        return stream

    async def start_all(
        self, request: ChatRequest, *, deadline_unix_s: float | None = None, owner: str = ""
    ) -> list[ChatStream]:
        """Sends the request to the engine and returns a stream of events for each of its `n` answers, once the engine
        has admitted all of them.

        `deadline_unix_s`: seconds since the epoch after which the request ends with `DeadlineExceeded`. `owner`: whose
        request it is; what engines keep of it for later ones serves those of the same owner alone.
        Errors: those of `chorus_cluster.errors`. Whoever gets streams must `aclose` each.
        """
        completion_id = f"chatcmpl-{secrets.token_hex(16)}"
        with _counting_failures(ChatTimer(self.metrics)) as timer:
            asked = await self._prepare(request, completion_id, deadline_unix_s, owner)
            first = await self._start(request, completion_id, asked, timer)
        if request.n == 1:
            return [first]
        # Only now, that the engine's prefix cache may have the prompt.
        others = (self._start_another(request, completion_id, _another(asked, i)) for i in range(1, request.n))
        return [first, *await all_or_none(others, first)]

    def render(self, request: ChatRequest, model: engine_pb2.ModelInfo) -> list[int]:
        """The token ids that the model would be sent. Errors: RequestError."""
        validate(request, model)
        return self._render(request, model.max_model_len)

    async def check_health(self) -> None:
        """Returns if a worker answers.

        Errors: `Unavailable` if none does, or none in time.
        """
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self.models.ask()
        except TimeoutError:
            raise Unavailable("The workers do not answer.") from None

    async def _start_another(
        self, request: ChatRequest, completion_id: str, engine_request: engine_pb2.GenerateRequest
    ) -> ChatStream:
        with _counting_failures(ChatTimer(self.metrics)) as timer:
            return await self._start(request, completion_id, engine_request, timer)

    async def _start(
        self, request: ChatRequest, completion_id: str, engine_request: engine_pb2.GenerateRequest, timer: ChatTimer
    ) -> ChatStream:
        assembler = AnswerAssembler(
            num_prompt_tokens=len(engine_request.prompt_token_ids),
            include_reasoning=request.include_reasoning,
            stop=request.stop,
            with_logprobs=request.top_logprobs is not None,
            tool_names=[tool.name for tool in request.tools],
        )
        responses = self._engine.generate(engine_request)
        try:
            # Here it is known whether the engine admitted the request, and nothing has been answered yet.
            first = await next_response(responses)
            if first.token_ids:
                timer.on_message()
            events = assembler.feed(first)
            if assembler.failure is not None:
                raise assembler.failure
        except (Exception, asyncio.CancelledError):
            await close_responses(responses)
            raise
        return ChatStream(
            id=completion_id,
            created=int(self._clock()),
            model=request.model,
            events=events,
            responses=responses,
            assembler=assembler,
            timer=timer,
        )

    async def _prepare(
        self, request: ChatRequest, completion_id: str, deadline_unix_s: float | None, owner: str
    ) -> engine_pb2.GenerateRequest:
        model = await self._model(deadline_unix_s)
        prompt = self.render(request, model)
        return engine_pb2.GenerateRequest(
            request_id=completion_id,
            prompt_token_ids=prompt,
            sampling=sampling_params(request),
            max_tokens=max_new_tokens(request, len(prompt), model.max_model_len),
            deadline_unix_s=deadline_unix_s,
            cache_salt=owner,
        )

    async def _model(self, deadline_unix_s: float | None) -> engine_pb2.ModelInfo:
        """The workers keep deadlines, but while none has ever answered, a request would wait here without end."""
        timeout_s = None if deadline_unix_s is None else max(0.0, deadline_unix_s - time.time())
        try:
            async with asyncio.timeout(timeout_s):
                return await self.models.get()
        except TimeoutError:
            raise DeadlineExceeded() from None

    def _render(self, request: ChatRequest, max_model_len: int) -> list[int]:
        conversation = Conversation(
            messages=request.messages,
            tools=request.tools if request.tool_choice == "auto" else (),
            effort=request.effort,
            current_date=self._today(),
        )
        try:
            return render(conversation, max_model_len)
        except ConversationTooLong as error:
            raise ContextTooLong(error.field, error.message) from None
        except InvalidConversation as error:
            raise InvalidRequest(error.field, error.message) from None


@contextlib.contextmanager
def _counting_failures(timer: ChatTimer) -> Iterator[ChatTimer]:
    """What is raised within ends the request that the timer counts."""
    try:
        yield timer
    except (Exception, asyncio.CancelledError) as error:
        timer.finish(outcome_of(error))
        raise


def _another(first: engine_pb2.GenerateRequest, index: int) -> engine_pb2.GenerateRequest:
    """The request for another answer: the same but for its name and seed."""
    other = engine_pb2.GenerateRequest()
    other.CopyFrom(first)
    other.request_id = f"{first.request_id}-{index}"
    other.sampling.seed = (first.sampling.seed + index) % 2**64
    return other


def sampling_params(request: ChatRequest) -> engine_pb2.SamplingParams:
    """The engine's sampling parameters, with a seed drawn where the client gave none."""
    seed = secrets.randbits(64) if request.seed is None else request.seed % 2**64
    return engine_pb2.SamplingParams(
        temperature=request.temperature if request.temperature >= _MIN_TEMPERATURE else 0.0,
        top_p=max(request.top_p, _MIN_TOP_P),
        top_k=request.top_k,
        min_p=request.min_p,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=request.repetition_penalty,
        seed=seed,
        logit_bias=request.logit_bias,
        stop_token_ids=STOP_TOKEN_IDS,
        logprobs=request.top_logprobs,
    )
