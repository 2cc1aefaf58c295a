"""The engine: schedule, launch, draw, commit; with a runner that overlaps, the next step is launched before a commit,
and draws after it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from chorus_workers.engine.guide_maker import GuideMaker, Prepared
from chorus_workers.engine.kv_cache import KVCacheManager
from chorus_workers.engine.output import StepOutput
from chorus_workers.engine.prefix_cache import PrefixCache
from chorus_workers.engine.request import GenerationRequest, Refused
from chorus_workers.engine.scheduler import Scheduler, SchedulerLimits
from chorus_workers.engine.stats import EngineLoad, EngineStats
from chorus_workers.engine.steps import ScheduledStep
from chorus_workers.guide.columns import Columns
from chorus_workers.guide.grammars import GrammarError
from chorus_workers.runner.base import PendingStep, Runner, RunnerInfo


@dataclass(frozen=True, slots=True)
class _Launched:
    step: ScheduledStep
    pending: PendingStep


class Engine:
    """Continuous batching over a runner. Not thread-safe; does no I/O but what the runner does.

    `clock` returns seconds; deadlines and arrival times are on it. With `prefix_cache`, requests that begin alike use
    the same KV. `step_budget_s`, `grammar_timeout_s`: see WorkerConfig.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_queued_requests: int,
        clock: Callable[[], float],
        prefix_cache: bool = True,
        step_budget_s: float | None = None,
        grammar_timeout_s: float = 2.0,
    ) -> None:
        info = runner.info
        self.stats = EngineStats()
        self._runner = runner
        self._kv = KVCacheManager(
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            num_slots=info.num_slots,
            prefix_cache=PrefixCache(num_snapshots=info.num_snapshots, has_window_layers=info.has_window_layers)
            if prefix_cache
            else None,
        )
        limits = SchedulerLimits(
            max_model_len=info.max_model_len,
            max_num_seqs=info.num_slots,
            max_batched_tokens=info.max_batched_tokens,
            max_queued_requests=max_queued_requests,
            step_budget_s=step_budget_s,
            batch_invariant=info.batch_invariant,
        )
        self._scheduler = Scheduler(limits, self._kv, self.stats, clock)
        # The step that was launched before the last one was committed.
        self._launched: _Launched | None = None
        self.guides = GuideMaker(Columns(runner.token_ids, info.vocab_size), clock=clock, timeout_s=grammar_timeout_s)

    @property
    def has_requests(self) -> bool:
        """Whether there is something to step for: requests, or a step under way whose requests have all ended. Not
        those whose grammars are being compiled."""
        return self._scheduler.has_requests or self._launched is not None or self.guides.has_news

    @property
    def info(self) -> RunnerInfo:
        """The runner's, with max_model_len as what the KV memory allows a request to have."""
        return replace(self._runner.info, max_model_len=self._scheduler.max_model_len)

    def add(self, request: GenerationRequest) -> None:
        """Admits a request, or puts its refusal into the next step's output. One with grammars is admitted by the first
        step after they have been compiled, or refused by the first after that has taken too long."""
        try:
            prepared = self.guides.prepare(request)
            if prepared is not None:
                self._admit(prepared)
        except Refused as refused:
            self._scheduler.refuse(request.request_id, refused.refusal)

    def abort(self, request_id: str) -> None:
        """Ends a request, whose memory is free on return. An unknown id is not an error: it may just have ended."""
        if self.guides.forget(request_id):
            self._scheduler.tell_aborted(request_id)
        else:
            self._scheduler.abort(request_id)

    def step(self) -> StepOutput:
        """Takes one step to its end, if there is anything to run; a runner that overlaps has begun the next one then.

        Errors: RunnerError; the engine can't go on then.
        """
        for prepared in self.guides.take_ready():
            try:
                self._admit(prepared)
            except Refused as refused:
                self._scheduler.refuse(prepared.request.request_id, refused.refusal)
        current = self._launched
        if current is None and (current := self._launch()) is not None:
            self._draw(current)
        if current is not None:
            following = self._launched = self._launch() if self._runner.overlaps else None
            self._scheduler.commit(current.step, current.pending.result())
            if following is not None:
                self._draw(following)
        return self._scheduler.take_output()

    def load(self) -> EngineLoad:
        load = self._scheduler.load()
        return replace(load, num_waiting=load.num_waiting + self.guides.num_waiting)

    def check_integrity(self) -> None:
        """Raises AssertionError unless all accounts agree: queues, requests, pages, slots, snapshots."""
        self._scheduler.check_integrity(num_under_way=0 if self._launched is None else 1)

    def close(self) -> None:
        self.guides.close()
        self._runner.close()

    def _admit(self, prepared: Prepared) -> None:
        """Errors: Refused."""
        self._scheduler.add(prepared.request, self.guides.make(prepared))

    def _launch(self) -> _Launched | None:
        """Schedules and launches a step; None if there is nothing to compute."""
        step = self._scheduler.schedule()
        return _Launched(step, self._runner.launch(step.batch)) if step.chunks else None

    def _draw(self, launched: _Launched) -> None:
        """Draws what a step asks for, whose earlier tokens are all known."""
        for request, guide, sample in self._scheduler.guided(launched.step):
            try:
                sample.mask = self.guides.mask(guide)
            except GrammarError as error:
                self._scheduler.fail(request, str(error))
        launched.pending.draw()
