"""Which tokens are computed in the next step.

There are no phases: every request has tokens it knows and a count of those whose KV is computed, and a step gives each
running request some of the difference. Requests with one token to go (decode) come first; what is left of the token
budget goes to those with more (prefill, in chunks), then to waiting ones. So a long prompt never stops the others; how
much it slows them is bounded by a time for steps, if one is set (`PrefillBudget`).

A request is admitted with pages for all the tokens it knows, in order of priority and arrival. As answers grow, pages
may run out: then the request that came last gives up its KV and waits to be computed again. Its tokens stay, and random
numbers depend on the position alone, so its answer doesn't change.

A step may be scheduled while the one before is under way. The token that this draws for a request is *pending* then: it
counts, and is computed like a known one. That it ended its request shows at its commit, and what the next step computes
for that request is dropped. Whoever gives way with a token pending waits at least until it is known.

A request may have a guide. What that allows next shows only when the last token is known: after a step's commit, and
before the next one's draw. A token that the guide refuses is forgotten, and its request gives way, to draw again.

Where the KV memory still holds the beginning of a request, the request starts behind it. What it computes becomes known
to others once a token was drawn from finite logits, which shows that all before it is sound.
"""

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from chorus_workers.engine.kv_cache import KVCacheManager
from chorus_workers.engine.output import StepOutput, TokenLogprobs
from chorus_workers.engine.request import FinishReason, GenerationRequest, Refusal, RefusalReason, Refused, Request
from chorus_workers.engine.stats import EngineLoad, EngineStats
from chorus_workers.engine.steps import ScheduledStep, StepAccounts
from chorus_workers.guide.grammars import GrammarError
from chorus_workers.guide.guide import Constraint, Guide
from chorus_workers.runner.base import (
    PENDING_TOKEN,
    SampledToken,
    SampleRequest,
    SequenceChunk,
    StepResult,
)

# Share of the pages kept free when a request is admitted beside others, for these to grow into.
_RESERVED_SHARE = 0.01
_PENDING = (PENDING_TOKEN,)


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """See WorkerConfig for the fields."""

    max_model_len: int
    max_num_seqs: int
    max_batched_tokens: int
    max_queued_requests: int
    step_budget_s: float | None = None
    # See RunnerInfo.
    batch_invariant: bool = False


class Scheduler:
    """Owns every request from admission to its end. Not thread-safe."""

    def __init__(
        self, limits: SchedulerLimits, kv: KVCacheManager, stats: EngineStats, clock: Callable[[], float]
    ) -> None:
        """`clock` returns seconds; deadlines and arrival times are on it."""
        self._limits = limits
        self._max_model_len = min(limits.max_model_len, kv.capacity)
        self._kv = kv
        self._stats = stats
        self._clock = clock
        self._requests: dict[str, Request] = {}
        # Both in order of (priority, arrival).
        self._running: list[Request] = []
        self._waiting: list[Request] = []
        self._num_admitted = 0
        # No request's deadline is earlier.
        self._next_deadline = math.inf
        self._output = StepOutput()
        self._steps = StepAccounts(stats, limits.step_budget_s)

    @property
    def has_requests(self) -> bool:
        return bool(self._requests)

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer: what the model allows, or what the KV memory holds if that is less."""
        return self._max_model_len

    def add(self, asked: GenerationRequest, guide: Guide | None = None) -> None:
        """Admits a request to the queue, with the guide that it asks for.

        Errors: Refused, with nothing changed, when the request can never fit, the queue is full, its id is in use, or
        its deadline has passed.
        """
        request = Request(
            asked, guide, number=self._num_admitted, max_model_len=self._max_model_len, block_size=self._kv.block_size
        )
        if refusal := self._find_refusal(request):
            raise Refused(refusal)
        self._num_admitted += 1
        self._requests[request.request_id] = request
        self._stats.num_prompt_tokens += request.num_prompt_tokens
        self._next_deadline = min(self._next_deadline, request.deadline)
        insort(self._waiting, request, key=_order)
        # An earlier attempt may have drawn the last token without the client hearing that it was the last.
        if reason := request.ending():
            self._finish(request, reason)

    def refuse(self, request_id: str, refusal: Refusal) -> None:
        """Puts a refusal into the next output."""
        self._stats.refused[refusal.reason.name.lower()] += 1
        self._output.refused[request_id] = refusal

    def abort(self, request_id: str) -> bool:
        """Ends a request now; its slot and pages are free on return. False if there is none of this id."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request, FinishReason.ABORT)
        return True

    def tell_aborted(self, request_id: str) -> None:
        """Puts the end of a request that was never added into the next output."""
        self._stats.finished[FinishReason.ABORT.name.lower()] += 1
        self._output.finished[request_id] = (FinishReason.ABORT, "")

    def schedule(self) -> ScheduledStep:
        """The next step's work; without chunks if there is none. Requests past their deadline end first.

        At most one earlier step may be without its commit.
        """
        now = self._clock()
        if now >= self._next_deadline:
            self._expire(now)
        step = ScheduledStep(now, self._limits.max_batched_tokens)
        self._schedule_running(step)
        self._admit(step)
        return step

    def guided(self, step: ScheduledStep) -> list[tuple[Request, Guide, SampleRequest]]:
        """Those of a step's samples whose requests have guides, when all that comes before them is committed."""
        return [
            (request, request.guide, chunk.sample)
            for chunk, request in zip(step.chunks, step.requests, strict=True)
            if request.guide is not None
            and chunk.sample is not None
            and not request.num_void_tokens
            and self._requests.get(request.request_id) is request
        ]

    def fail(self, request: Request, message: str) -> None:
        """Ends a request, alone. message: for the client."""
        self._finish(request, FinishReason.ERROR, message)

    def commit(self, step: ScheduledStep, result: StepResult) -> None:
        """Takes in what the runner drew for `step`, the one scheduled longest ago. Who has ended since gets nothing."""
        now = self._clock()
        gaps: dict[float, int] = {}
        for chunk, request, sampled in zip(step.chunks, step.requests, result.sampled, strict=True):
            # An id may have come again.
            if sampled is None or self._requests.get(request.request_id) is not request:
                continue
            last_token_time = request.last_token_time
            if self._append(request, chunk, sampled, now) and last_token_time is not None:
                gaps[last_token_time] = gaps.get(last_token_time, 0) + 1
        for last_token_time, count in gaps.items():
            self._stats.inter_token_latency.observe(now - last_token_time, count)
        self._steps.observe(step, now)

    def take_output(self) -> StepOutput:
        """Everything since the last call."""
        output, self._output = self._output, StepOutput()
        return output

    def load(self) -> EngineLoad:
        return EngineLoad(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_outstanding_tokens=sum(request.num_outstanding_tokens for request in self._requests.values()),
            kv_usage=self._kv.usage,
        )

    def check_integrity(self, num_under_way: int) -> None:
        """Raises AssertionError unless queues, requests, pages and slots agree. num_under_way: steps not committed."""
        if len(self._running) + len(self._waiting) != len(self._requests):
            raise AssertionError("a request is neither running nor waiting, or both")
        if any(request.kv is not None or request.num_computed_tokens for request in self._waiting):
            raise AssertionError("a waiting request holds KV memory")
        if any(not 0 <= request.num_pending_tokens <= num_under_way for request in self._requests.values()):
            raise AssertionError("a token is pending that no step draws, or was counted twice")
        if len(self._running) > self._limits.max_num_seqs:
            raise AssertionError("more requests run than may")
        handles = [request.kv for request in self._running if request.kv is not None]
        if len(handles) != len(self._running):
            raise AssertionError("a running request holds no KV memory")
        self._kv.check_integrity(handles)

    def _find_refusal(self, request: Request) -> Refusal | None:
        invalid = RefusalReason.INVALID_ARGUMENT
        if request.request_id in self._requests:
            return Refusal(invalid, "a request of this id is running already", field="request_id")
        if request.deadline <= self._clock():
            return Refusal(RefusalReason.DEADLINE, "the deadline had passed on arrival", field="deadline_unix_s")
        if request.num_prompt_tokens >= self._max_model_len:
            message = (
                f"the prompt has {request.num_prompt_tokens} tokens, which leaves no room for an answer: both together "
                f"may have {self._max_model_len}"
            )
            return Refusal(invalid, message, field="prompt_token_ids")
        if len(self._requests) >= self._limits.max_num_seqs + self._limits.max_queued_requests:
            retry_after_s = self._steps.throughput.estimate_retry_after(
                self.load().num_outstanding_tokens, len(self._requests)
            )
            return Refusal(RefusalReason.OVERLOADED, "the worker's queue is full", retry_after_s=retry_after_s)
        return None

    def _schedule_running(self, step: ScheduledStep) -> None:
        """One token for each running request that lacks just one: there is budget for all, see WorkerConfig. What is
        left of it goes to those that lack more, in chunks."""
        lacking_more = []
        index = 0
        while index < len(self._running):
            request = self._running[index]
            num_uncomputed = request.num_uncomputed_tokens
            if num_uncomputed == 1:
                if not self._make_room(request):
                    break
                self._add_chunk(step, request, 1)
            elif num_uncomputed > 1:
                lacking_more.append(request)
            index += 1
        step.num_decode_tokens = step.num_tokens
        if step.num_decode_tokens:
            step.max_tokens = min(step.max_tokens, step.num_tokens + self._steps.prefill_budget.num_tokens())
        for request in lacking_more:
            if step.num_tokens == step.max_tokens:
                break
            self._prefill(step, request)

    def _admit(self, step: ScheduledStep) -> None:
        """Chunks for waiting requests, in order, as far as there is budget and memory."""
        reserve = math.ceil(self._kv.num_blocks * _RESERVED_SHARE)
        while step.num_tokens < step.max_tokens and len(self._running) < self._limits.max_num_seqs:
            # Who gave way with a token pending keeps its place.
            if not self._waiting or self._waiting[0].num_pending_tokens:
                return
            request = self._waiting[0]
            handle = self._kv.allocate(
                request.token_ids,
                request.page_hashes,
                num_shareable=self._num_shareable(request),
                reserve=reserve if self._running else 0,
            )
            if handle is None:
                return
            del self._waiting[0]
            request.kv = handle
            request.num_computed_tokens = handle.num_cached_tokens
            insort(self._running, request, key=_order)
            if not request.started:
                self._start(request, step.scheduled_at)
            self._prefill(step, request)

    def _start(self, request: Request, now: float) -> None:
        """Counts a request that runs for the first time."""
        request.started = True
        queue_time = now - request.arrival_time
        num_cached = min(request.num_computed_tokens, request.num_prompt_tokens)
        self._stats.queue_time.observe(queue_time)
        self._stats.num_prefix_queries += request.num_prompt_tokens
        self._stats.num_prefix_hits += num_cached
        self._output.started[request.request_id] = (queue_time, num_cached)

    def _prefill(self, step: ScheduledStep, request: Request) -> None:
        num_tokens = min(step.max_tokens - step.num_tokens, request.num_uncomputed_tokens)
        if self._limits.batch_invariant:
            num_tokens = min(num_tokens, max(request.num_prompt_tokens - request.num_computed_tokens, 1))
        self._add_chunk(step, request, num_tokens)

    def _num_shareable(self, request: Request) -> int:
        """Leading tokens whose KV is the same whoever computes it. What was generated may differ in bits from the same
        tokens in a prompt."""
        return request.num_prompt_tokens if self._limits.batch_invariant else len(request.token_ids)

    def _add_chunk(self, step: ScheduledStep, request: Request, num_tokens: int) -> None:
        """The request's next tokens, which count as computed from now on; and a token, once they reach the last."""
        handle = request.kv
        assert handle is not None
        start, end = request.num_computed_tokens, request.num_computed_tokens + num_tokens
        sample = None
        if end == request.num_tokens:
            sample = SampleRequest(request.params, request.token_ids, request.num_prompt_tokens, end)
        chunk = SequenceChunk(
            request.request_id,
            handle.slot,
            start,
            # A pending token follows all that are known, and is computed alone.
            request.token_ids[start:end] or _PENDING,
            handle.block_table,
            sample,
            handle.restore if start == handle.num_cached_tokens else None,
            self._kv.plan_saves(handle, end) if handle.save_positions else (),
            replayed=self._limits.batch_invariant and sample is None and start >= request.num_prompt_tokens,
        )
        request.num_computed_tokens = end
        if sample is not None:
            request.num_pending_tokens += 1
        step.chunks.append(chunk)
        step.requests.append(request)
        step.num_tokens += num_tokens

    def _make_room(self, request: Request) -> bool:
        """Gets a page for the request's next token, if it needs one, from whoever came last. False if that is itself.

        Only decode takes pages, and goes through requests in order, so a victim is not in the batch yet.
        """
        assert request.kv is not None
        while not self._kv.grow(request.kv, request.num_tokens):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._give_way(request)
        self._stats.num_preemptions += 1

    def _give_way(self, request: Request) -> None:
        self._running.remove(request)
        self._release(request)
        request.num_computed_tokens = 0
        insort(self._waiting, request, key=_order)

    def _append(self, request: Request, chunk: SequenceChunk, sampled: SampledToken, now: float) -> bool:
        """Takes in the token drawn after a chunk, and ends the request if it is the last. Whether there is one more."""
        request.num_pending_tokens -= 1
        if request.num_void_tokens:
            request.num_void_tokens -= 1
            return False
        if sampled.failed:
            self.fail(request, "the model's logits were not finite")
            return False
        if request.guide is not None and not self._follow(request, request.guide, sampled):
            return False
        # Who has given way since holds nothing, and gets no other memory while a token is pending.
        if request.kv is not None:
            num_computed = min(chunk.start + len(chunk.token_ids), self._num_shareable(request))
            self._kv.register(request.kv, request.token_ids, num_computed)
        if request.last_token_time is None:
            self._stats.time_to_first_token.observe(now - request.arrival_time)
        request.last_token_time = now
        request.token_ids.append(sampled.token_id)
        self._stats.num_generated_tokens += 1
        output = self._output
        if sampled.logprob is not None:
            output.logprobs[len(output.token_ids)] = TokenLogprobs(sampled.logprob, sampled.top)
        output.request_ids.append(request.request_id)
        output.token_ids.append(sampled.token_id)
        if reason := request.ending():
            self._finish(request, reason)
        return True

    def _follow(self, request: Request, guide: Guide, sampled: SampledToken) -> bool:
        """Gives a drawn token to the request's guide. If that refuses it, the request draws again."""
        if sampled.overruled and guide.constraint not in (None, Constraint.EARLY_STOP):
            self._stats.guide_interventions[guide.constraint] += 1
        try:
            accepted = guide.advance(sampled.token_id)
        except GrammarError as error:
            self.fail(request, str(error))
            return False
        if not accepted:
            self._stats.guide_interventions[Constraint.EARLY_STOP] += 1
            request.num_void_tokens = request.num_pending_tokens
            if request.kv is not None:
                self._give_way(request)
        return accepted

    def _expire(self, now: float) -> None:
        for request in [request for request in self._requests.values() if request.deadline <= now]:
            self._finish(request, FinishReason.DEADLINE)
        self._next_deadline = min((request.deadline for request in self._requests.values()), default=math.inf)

    def _finish(self, request: Request, reason: FinishReason, message: str = "") -> None:
        (self._waiting if request.kv is None else self._running).remove(request)
        self._release(request)
        del self._requests[request.request_id]
        self._stats.finished[reason.name.lower()] += 1
        self._output.finished[request.request_id] = (reason, message)

    def _release(self, request: Request) -> None:
        if request.kv is not None:
            self._kv.free(request.kv)
            request.kv = None


def _order(request: Request) -> tuple[int, int]:
    return request.order
