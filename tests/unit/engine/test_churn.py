"""Random requests, aborts and deadlines on little memory, with and without a prefix cache, step by step and overlapped:
every answer is what it
would be alone, nobody sees what another salt computed, and all memory comes back."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.engine.support import (
    NOT_FINITE_SEED,
    Gathered,
    alone,
    ask,
    build_engine,
    check_partition,
    run_all,
)

from chorus_workers.engine.request import FinishReason, GenerationRequest

NUM_BLOCKS, BLOCK_SIZE = 12, 3
MAX_MODEL_LEN = NUM_BLOCKS * BLOCK_SIZE


# What prompts begin with, so that some begin alike.
STEM = [n * n % 50 for n in range(MAX_MODEL_LEN)]


class Churn(RuleBasedStateMachine):
    num_snapshots = 3
    has_window_layers = True
    prefix_cache = True
    overlaps = False
    batch_invariant = False

    def __init__(self) -> None:
        super().__init__()
        self.engine, self.runner, self.clock = build_engine(
            overlaps=self.overlaps,
            max_queued_requests=6,
            prefix_cache=self.prefix_cache,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            num_slots=4,
            max_batched_tokens=7,
            num_snapshots=self.num_snapshots,
            has_window_layers=self.has_window_layers,
            batch_invariant=self.batch_invariant,
        )
        self.runner.salts = self.salts = {}
        self.asked: dict[str, GenerationRequest] = {}
        self.refused: set[str] = set()
        self.gathered = Gathered()

    @rule(
        going_on=st.integers(-3, 3),
        stem=st.sampled_from([0, 9, 9, 16, 16, 22]),
        rest=st.lists(st.integers(0, 49), min_size=1, max_size=MAX_MODEL_LEN + 2),
        max_tokens=st.integers(0, 30),
        seed=st.sampled_from([*range(12), NOT_FINITE_SEED]),
        patience=st.sampled_from([None, None, None, None, 3, 20]),
        priority=st.sampled_from([0, 0, 0, 1]),
        resumed_share=st.sampled_from([0, 0, 0.5, 0.9]),
        salt=st.sampled_from(["", "", "tenant"]),
        presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 0.5]),
    )
    def submit(
        self,
        going_on: int,
        stem: int,
        rest: list[int],
        max_tokens: int,
        seed: int,
        patience: int | None,
        priority: int,
        resumed_share: float,
        salt: str,
        presence_penalty: float,
    ) -> None:
        prompt = [*STEM[:stem], *rest[: 4 if stem else None]]
        if going_on >= 0 and self.asked:
            earlier = list(self.asked.values())[-1 - going_on % len(self.asked)]
            prompt = [*earlier.prompt_token_ids, *rest[:going_on]]
        deadline = float("inf") if patience is None else self.clock.now + patience
        asked = ask(
            f"r{len(self.asked)}",
            prompt,
            max_tokens,
            seed=seed,
            presence_penalty=presence_penalty,
            clock=self.clock,
            deadline=deadline,
            priority=priority,
            num_resumed_tokens=min(int(len(prompt) * resumed_share), len(prompt) - 1),
            cache_salt=salt,
        )
        self.salts[asked.request_id] = salt
        self.asked[asked.request_id] = asked
        self.engine.add(asked)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.asked:
            self.engine.abort(data.draw(st.sampled_from(sorted(self.asked))))

    @rule(count=st.integers(1, 16))
    def step(self, count: int) -> None:
        for _ in range(count):
            output = self.engine.step()
            self.refused |= output.refused.keys()
            self.gathered.take(output)

    @invariant()
    def accounts_agree(self) -> None:
        self.engine.check_integrity()
        check_partition(self.engine)

    def teardown(self) -> None:
        self.step(1)
        run_all(self.engine, self.gathered)
        assert self.engine.load().kv_usage == 0
        assert self.gathered.finished.keys() | self.refused == self.asked.keys()
        for request_id, reason in self.gathered.finished.items():
            drawn = self.gathered.tokens.get(request_id, [])
            expected, expected_reason = alone(self.asked[request_id], MAX_MODEL_LEN)
            if reason in (FinishReason.ABORT, FinishReason.DEADLINE):
                assert drawn == expected[: len(drawn)]
            else:
                assert (drawn, reason) == (expected, expected_reason)


class ChurnWithoutWindows(Churn):
    num_snapshots = 0
    has_window_layers = False


class ChurnWithoutCache(Churn):
    num_snapshots = 0
    prefix_cache = False


class OverlappedChurn(Churn):
    overlaps = True


class OverlappedChurnWithoutWindows(ChurnWithoutWindows):
    overlaps = True


class OverlappedChurnWithoutCache(ChurnWithoutCache):
    overlaps = True


class BatchInvariantChurn(Churn):
    batch_invariant = True


class OverlappedBatchInvariantChurn(OverlappedChurn):
    batch_invariant = True


class BatchInvariantChurnWithoutWindows(ChurnWithoutWindows):
    batch_invariant = True


TestChurn = Churn.TestCase
TestChurnWithoutWindows = ChurnWithoutWindows.TestCase
TestChurnWithoutCache = ChurnWithoutCache.TestCase
TestOverlappedChurn = OverlappedChurn.TestCase
TestOverlappedChurnWithoutWindows = OverlappedChurnWithoutWindows.TestCase
TestOverlappedChurnWithoutCache = OverlappedChurnWithoutCache.TestCase
TestBatchInvariantChurn = BatchInvariantChurn.TestCase
TestOverlappedBatchInvariantChurn = OverlappedBatchInvariantChurn.TestCase
TestBatchInvariantChurnWithoutWindows = BatchInvariantChurnWithoutWindows.TestCase
TestChurn.settings = TestOverlappedChurn.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
for fewer in (
    TestChurnWithoutWindows,
    TestChurnWithoutCache,
    TestOverlappedChurnWithoutWindows,
    TestOverlappedChurnWithoutCache,
    TestBatchInvariantChurn,
    TestOverlappedBatchInvariantChurn,
    TestBatchInvariantChurnWithoutWindows,
):
    fewer.settings = settings(TestChurn.settings, max_examples=50)
