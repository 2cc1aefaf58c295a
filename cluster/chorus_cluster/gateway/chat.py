"""The service behind HTTP, gRPC and batch: a request in, typed events out.

A request's way: validate, render to token ids, ask the engine and await its first response (a refusal is raised here,
before any byte of an answer), then parse what comes into events until the request ends.
"""

import asyncio
import contextlib
import datetime
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chorus_cluster.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, Unavailable
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.answer import AnswerAssembler, TokenParser
from chorus_cluster.gateway.choices import all_or_none
from chorus_cluster.gateway.guide import Guided, build_guide, build_text_guide
from chorus_cluster.gateway.metrics import ChatTimer, GatewayMetrics
from chorus_cluster.gateway.model_info import ModelInfoCache
from chorus_cluster.gateway.request import ChatRequest, Sampling, TextRequest
from chorus_cluster.gateway.stream import ChatStream, close_responses, next_response, outcome_of
from chorus_cluster.gateway.validate import (
    MAX_CHARACTERS_PER_TOKEN,
    check_token_ids,
    max_new_tokens,
    validate,
    validate_text,
)
from chorus_cluster.harmony.conversation import Conversation, ConversationTooLong, InvalidConversation
from chorus_cluster.harmony.marked_text import decode_marked, encode_marked
from chorus_cluster.harmony.parser import StreamParser
from chorus_cluster.harmony.plain_parser import PlainParser
from chorus_cluster.harmony.render import render
from chorus_cluster.routing.engine_client import EngineClient
from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import STOP_TOKEN_IDS

# Below this, sampling is greedy in single precision, and the division by it would overflow.
_MIN_TEMPERATURE = 1e-4
# OpenAI allows top_p 0, engines do not: this keeps the likeliest token alone.
_MIN_TOP_P = 1e-6
_HEALTH_TIMEOUT_S = 5.0


def utc_today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """`field`: what the client calls it."""

    field: str
    token_ids: Sequence[int]


class ChatService:
    """Runs chat requests on an engine client. One for each gateway replica; its methods may run concurrently."""

    def __init__(
        self,
        engine: EngineClient,
        metrics: GatewayMetrics | None = None,
        *,
        today: Callable[[], datetime.date] = utc_today,
        clock: Callable[[], float] = time.time,
        header_guard: bool = True,
    ) -> None:
        """header_guard: whether the engine keeps the headers of every answer to those that harmony has."""
        self.metrics = GatewayMetrics() if metrics is None else metrics
        self.models = ModelInfoCache(engine)
        self.started_at = int(clock())
        self._engine = engine
        self._today = today
        self._clock = clock
        self._header_guard = header_guard

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

        def prompts(model: engine_pb2.ModelInfo) -> list[_Prompt]:
            return [_Prompt("messages", self.render(request, model))]

        def parser() -> StreamParser:
            return StreamParser([tool.name for tool in request.tools])

        return await self._start_answers(
            request,
            f"chatcmpl-{secrets.token_hex(16)}",
            prompts,
            parser,
            guided=lambda: build_guide(request, header_guard=self._header_guard),
            include_reasoning=request.include_reasoning,
            deadline_unix_s=deadline_unix_s,
            owner=owner,
        )

    async def start_text(
        self, request: TextRequest, *, deadline_unix_s: float | None = None, owner: str = ""
    ) -> list[ChatStream]:
        """As `start_all`: `n` streams for each prompt, in their order, of answer events alone."""

        def prompts(model: engine_pb2.ModelInfo) -> list[_Prompt]:
            validate_text(request, model)
            fields = ["prompt"] if len(request.prompts) == 1 else [f"prompt[{i}]" for i in range(len(request.prompts))]
            pairs = zip(fields, request.prompts, strict=True)
            return [_Prompt(field, encode_prompt(prompt, field, model)) for field, prompt in pairs]

        return await self._start_answers(
            request,
            f"cmpl-{secrets.token_hex(16)}",
            prompts,
            lambda: PlainParser(with_markup=request.with_markup),
            guided=lambda: build_text_guide(request.output_format),
            echo=request.echo,
            deadline_unix_s=deadline_unix_s,
            owner=owner,
        )

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

    async def _start_answers(
        self,
        request: ChatRequest | TextRequest,
        completion_id: str,
        prompts: Callable[[engine_pb2.ModelInfo], Sequence[_Prompt]],
        parser: Callable[[], TokenParser],
        *,
        guided: Callable[[], Guided],
        include_reasoning: bool = True,
        echo: bool = False,
        deadline_unix_s: float | None,
        owner: str,
    ) -> list[ChatStream]:
        """`n` streams for each prompt. The first goes ahead, so that the engine's prefix cache may have its prompt when
        the others come."""

        async def start(asked: engine_pb2.GenerateRequest, timer: ChatTimer) -> ChatStream:
            assembler = AnswerAssembler(
                num_prompt_tokens=len(asked.prompt_token_ids),
                include_reasoning=include_reasoning,
                stop=request.stop,
                with_logprobs=request.top_logprobs is not None,
                parser=parser(),
            )
            before = [ev.Answer(decode_marked(asked.prompt_token_ids))] if echo else []
            return await self._start(request.model, completion_id, asked, assembler, timer, before)

        async def start_counted(asked: engine_pb2.GenerateRequest) -> ChatStream:
            with _counting_failures(ChatTimer(self.metrics)) as timer:
                return await start(asked, timer)

        with _counting_failures(ChatTimer(self.metrics)) as timer:
            model = await self._model(deadline_unix_s)
            sent = prompts(model)
            guide = guided()
            asked = [
                engine_pb2.GenerateRequest(
                    request_id=completion_id,
                    prompt_token_ids=prompt.token_ids,
                    sampling=sampling_params(request),
                    max_tokens=max_new_tokens(request, len(prompt.token_ids), model.max_model_len, prompt.field),
                    deadline_unix_s=deadline_unix_s,
                    cache_salt=owner,
                    guide=guide.pb,
                    priority=request.priority,
                )
                for prompt in sent
            ]
            try:
                first = await start(asked[0], timer)
            except InvalidRequest as error:
                raise guide.explain(error) from None
        n = request.n
        others = [_another(one, i * n + j, j) for i, one in enumerate(asked) for j in range(n) if i or j]
        return [first, *await all_or_none(map(start_counted, others), first)] if others else [first]

    async def _start(
        self,
        model: str,
        completion_id: str,
        engine_request: engine_pb2.GenerateRequest,
        assembler: AnswerAssembler,
        timer: ChatTimer,
        before: Sequence[ev.Event] = (),
    ) -> ChatStream:
        """`before`: events that come before those of the engine."""
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
            model=model,
            events=[*before, *events],
            responses=responses,
            assembler=assembler,
            timer=timer,
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
            tools=request.tools if request.tool_choice.mode != "none" else (),
            effort=request.effort,
            current_date=self._today(),
            response_format=None if request.output_format is None else request.output_format.announced,
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


def _another(first: engine_pb2.GenerateRequest, index: int, choice: int) -> engine_pb2.GenerateRequest:
    """The request for another answer: the same but for its name and seed. `choice`: which one to its prompt."""
    other = engine_pb2.GenerateRequest()
    other.CopyFrom(first)
    other.request_id = f"{first.request_id}-{index}"
    other.sampling.seed = (first.sampling.seed + choice) % 2**64
    return other


def encode_prompt(prompt: str | Sequence[int], field: str, model: engine_pb2.ModelInfo) -> Sequence[int]:
    """The token ids of a raw prompt. Errors: ContextTooLong, InvalidRequest."""
    if not isinstance(prompt, str):
        check_token_ids(prompt, field, model)
    elif len(prompt) > model.max_model_len * MAX_CHARACTERS_PER_TOKEN:
        raise ContextTooLong(
            field, f"holds {len(prompt)} characters: more than a context of {model.max_model_len} tokens holds"
        )
    token_ids = encode_marked(prompt) if isinstance(prompt, str) else prompt
    if not token_ids:
        raise InvalidRequest(field, "must hold at least one token")
    return token_ids


def sampling_params(request: Sampling) -> engine_pb2.SamplingParams:
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
