"""Where a request begins, given what others left behind; and that its answer is the same wherever it begins."""

from functools import partial

import pytest
from tests.unit.engine.support import (
    NOT_FINITE_SEED,
    Build,
    ManualClock,
    SimulatedRunner,
    alone,
    ask,
    build_engine,
    check_partition,
    run_all,
)

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest

BLOCK_SIZE = 4
SYSTEM = [(7 * n + 3) % 50 for n in range(22)]


@pytest.fixture
def build(build: Build) -> Build:
    return partial(build, block_size=BLOCK_SIZE, num_snapshots=6)


class Session:
    """Asks one request after the other and checks each answer."""

    def __init__(self, engine: Engine, runner: SimulatedRunner, _: ManualClock) -> None:
        self.engine, self.runner = engine, runner
        self._count = 0
        runner.salts = self.salts = {}

    def ask(self, prompt: list[int], **fields: object) -> int:
        """Returns how many tokens were cached, as they are reported and as they were left out."""
        self._count += 1
        asked = ask(f"r{self._count}", prompt, **fields)  # type: ignore[arg-type]
        self.salts[asked.request_id] = asked.cache_salt
        return self.run(asked)

    def run(self, asked: GenerationRequest) -> int:
        self.engine.add(asked)
        before = len(self.runner.batches)
        output = self.engine.step()
        (_, num_cached) = output.started[asked.request_id]
        assert self.runner.batches[before].chunks[0].start == num_cached
        tokens = list(output.token_ids)
        reasons = {key: reason for key, (reason, _) in output.finished.items()}
        gathered = run_all(self.engine)
        tokens += gathered.tokens.get(asked.request_id, [])
        assert (tokens, {**reasons, **gathered.finished}[asked.request_id]) == alone(asked)
        assert self.engine.load().kv_usage == 0
        check_partition(self.engine)
        return num_cached


@pytest.fixture
def session(build: Build) -> Session:
    return Session(*build())


def test_the_same_prompt_begins_at_its_last_page(session: Session) -> None:
    assert session.ask(SYSTEM) == 0
    assert session.ask(SYSTEM) == 20
    assert session.ask(SYSTEM, seed=8) == 20


@pytest.mark.parametrize(("num_tokens", "num_cached"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (20, 16)])
def test_one_token_at_least_is_left_to_compute(session: Session, num_tokens: int, num_cached: int) -> None:
    assert session.ask(SYSTEM[:num_tokens]) == 0
    assert session.ask(SYSTEM[:num_tokens]) == num_cached


def test_a_conversation_goes_on_where_its_last_prompt_ended(session: Session) -> None:
    asked = ask("turn", SYSTEM, seed=3, max_tokens=12)
    session.run(asked)
    answer, _ = alone(asked)
    assert len(answer) > BLOCK_SIZE
    longer = [*SYSTEM, *answer, 1, 2, 3]
    assert session.ask(longer) == 20
    # Then everything but the last page is there.
    assert session.ask([*longer, 4, 5]) == len(longer) // 4 * 4


def test_a_shared_beginning_is_kept_by_the_second_request_and_used_by_the_third(session: Session) -> None:
    assert session.ask([*SYSTEM, 1, 1, 1, 1, 1]) == 0
    assert session.ask([*SYSTEM, 2, 2, 2, 2, 2]) == 0
    assert session.ask([*SYSTEM, 3, 3, 3, 3, 3]) == 20
    assert session.ask([*SYSTEM, 2, 2, 2, 2, 2, 9]) == 24
    assert session.ask(SYSTEM[:11]) == 0
    assert session.ask(SYSTEM[:11]) == 8


def test_without_window_layers_no_snapshots_are_needed(build: Build) -> None:
    session = Session(*build(num_snapshots=0, has_window_layers=False))
    session.ask([*SYSTEM, 1, 1, 1, 1, 1])
    assert session.ask([*SYSTEM, 2, 2]) == 20
    assert session.ask([*SYSTEM[:9], 3, 3, 3, 3]) == 8
    assert not any(chunk.saves or chunk.restore for batch in session.runner.batches for chunk in batch.chunks)


@pytest.mark.parametrize("settings", [{"prefix_cache": False}, {"num_snapshots": 0}])
def test_without_a_cache_or_without_snapshots_nothing_hits(build: Build, settings: dict[str, int]) -> None:
    session = Session(*build(**settings))  # type: ignore[arg-type]
    assert [session.ask(SYSTEM) for _ in range(3)] == [0, 0, 0]


def test_salts_are_worlds_apart(session: Session) -> None:
    for salt in ("", "a", "b", "a\0"):
        assert session.ask(SYSTEM, cache_salt=salt) == 0
        assert session.ask(SYSTEM, cache_salt=salt) == 20


@pytest.mark.parametrize("max_batched_tokens", [4, 7, 9])
def test_chunks_are_not_cut_for_snapshots(build: Build, max_batched_tokens: int) -> None:
    session = Session(*build(max_batched_tokens=max_batched_tokens, num_slots=2))
    session.ask(SYSTEM, max_tokens=1)
    assert len(session.runner.batches) == -(-len(SYSTEM) // max_batched_tokens)
    assert session.ask([*SYSTEM, 1, 1, 1]) == 20


def test_a_request_that_failed_leaves_nothing_behind(build: Build) -> None:
    session = Session(*build(max_batched_tokens=5))
    assert session.ask(SYSTEM, seed=NOT_FINITE_SEED) == 0
    assert session.ask(SYSTEM) == 0
    assert session.ask(SYSTEM, seed=NOT_FINITE_SEED) == 20
    assert session.ask([*SYSTEM, 1, 2, 3, 4, 5], seed=NOT_FINITE_SEED) == 20
    assert session.ask([*SYSTEM, 1, 2, 3, 4, 5]) == 20


def test_who_leaves_before_its_first_token_leaves_nothing_behind(build: Build) -> None:
    session = Session(*build(max_batched_tokens=21, num_slots=2))
    session.engine.add(ask("a", SYSTEM))
    session.engine.step()
    session.engine.abort("a")
    run_all(session.engine)
    check_partition(session.engine)
    assert session.ask(SYSTEM) == 0


def test_what_an_answer_wrote_is_known_too(build: Build) -> None:
    session = Session(*build(num_snapshots=0, has_window_layers=False))
    asked = ask("a", SYSTEM, seed=3, max_tokens=12)
    session.run(asked)
    answer, _ = alone(asked)
    # The last token was drawn, but its KV not computed.
    assert session.ask([*SYSTEM, *answer, 1]) == (len(SYSTEM) + len(answer) - 1) // 4 * 4


def test_a_resumed_request_begins_behind_what_is_known(build: Build, session: Session) -> None:
    asked = ask("whole", SYSTEM, max_tokens=12, seed=3)
    session.run(asked)
    answer, _ = alone(asked)
    assert session.ask([*SYSTEM, *answer[:5]], max_tokens=12, seed=3, num_resumed_tokens=5) == 20
    # What is counted and reported is of the prompt.
    session = Session(*build(num_snapshots=0, has_window_layers=False))
    session.run(asked)
    resumed = ask("rest", [*SYSTEM[:2], *SYSTEM[2:], *answer[:5]], max_tokens=12, seed=3, num_resumed_tokens=5)
    session.engine.add(resumed)
    assert session.engine.step().started["rest"][1] == len(SYSTEM)
    assert session.runner.batches[-1].chunks[0].start == 24


def test_requests_side_by_side_hold_what_they_share_once() -> None:
    session = Session(*build_engine(num_snapshots=6, num_slots=5))
    engine = session.engine
    session.ask(SYSTEM)
    for seed in (20, 21, 22):
        engine.add(ask(f"s{seed}", SYSTEM, seed=seed, max_tokens=20))
    engine.step()
    # Five shared pages, and one of each.
    assert engine.load().kv_usage == 8 / 64
    # Computed at the same time they become one afterwards.
    other = [49, *SYSTEM]
    for seed in (20, 21):
        engine.add(ask(f"o{seed}", other, seed=seed, max_tokens=20))
    # The budget takes 13 tokens a step beside three that decode. The step after these is told what was kept.
    for _ in range(5):
        engine.step()
    tables = {chunk.request_id: chunk.block_table for chunk in session.runner.batches[-1].chunks}
    assert tables["o20"][:5] == tables["o21"][:5] and tables["o20"][5] != tables["o21"][5]
    assert engine.load().kv_usage == len({page for table in tables.values() for page in table}) / 64
    gathered = run_all(engine)
    assert gathered.finished.keys() == {"s20", "s21", "s22", "o20", "o21"}


def test_a_preempted_request_begins_behind_what_is_left_of_it(build: Build) -> None:
    engine, runner, _ = build(num_blocks=10, num_slots=3, max_batched_tokens=24)
    asked = [ask(name, [i, *SYSTEM[:7]], max_tokens=24, seed=i) for i, name in enumerate("abc", start=10)]
    assert all(len(alone(a, 40)[0]) > 10 for a in asked), "choose other seeds"
    for a in asked:
        engine.add(a)
    gathered = run_all(engine)
    assert {a.request_id: (gathered.tokens[a.request_id], gathered.finished[a.request_id]) for a in asked} == {
        a.request_id: alone(a, 40) for a in asked
    }
    assert engine.stats.num_preemptions > 0
    assert any(chunk.restore is not None for batch in runner.batches for chunk in batch.chunks)
    # Hits are counted when a request first runs.
    assert (engine.stats.num_prefix_queries, engine.stats.num_prefix_hits) == (24, 0)


def test_load_and_counters_leave_out_what_was_cached() -> None:
    session = Session(*build_engine(num_snapshots=6))
    engine = session.engine
    session.ask(SYSTEM, max_tokens=1)
    assert engine.stats.num_computed_tokens == 22
    engine.add(ask("a", SYSTEM, max_tokens=10, seed=20))
    assert engine.load().num_outstanding_tokens == 32
    engine.step()
    assert engine.load().num_outstanding_tokens == 10
    assert engine.stats.num_computed_tokens == 24
    assert (engine.stats.num_prefix_queries, engine.stats.num_prefix_hits) == (44, 20)


def test_cached_pages_count_as_free_for_who_needs_them(build: Build) -> None:
    session = Session(*build(num_blocks=8))
    session.ask(list(range(1, 29)), max_tokens=1)
    session.ask(list(range(21, 50)), max_tokens=1)
    assert session.ask(list(range(1, 29)), max_tokens=1) == 0


def test_the_least_recently_used_snapshot_makes_room(build: Build, session: Session) -> None:
    session = Session(*build(num_snapshots=2))
    prompts = [[n, *SYSTEM[1:9]] for n in range(40, 43)]
    for prompt in prompts[:2]:
        session.ask(prompt)
    assert session.ask(prompts[0]) == 8
    assert session.ask(prompts[2]) == 0
    assert [session.ask(prompt) for prompt in (prompts[0], prompts[2], prompts[1])] == [8, 8, 0]


def test_a_snapshot_that_everybody_writes_to_is_not_to_be_had(build: Build) -> None:
    engine, _, _ = build(num_snapshots=1, max_batched_tokens=24, num_slots=3)
    asked = [ask(name, [i, *SYSTEM[:9]], seed=i) for i, name in enumerate("ab", start=10)]
    for a in asked:
        engine.add(a)
    gathered = run_all(engine)
    assert {a.request_id: gathered.finished[a.request_id] for a in asked} == {a.request_id: alone(a)[1] for a in asked}
    check_partition(engine)


def test_a_failing_request_ends_with_error_beside_a_sharing_one(session: Session) -> None:
    session.ask(SYSTEM)
    engine = session.engine
    engine.add(ask("bad", SYSTEM, seed=NOT_FINITE_SEED))
    engine.add(ask("good", SYSTEM))
    gathered = run_all(engine)
    assert gathered.finished["bad"] == FinishReason.ERROR
    assert gathered.tokens["good"] == alone(ask("good", SYSTEM))[0]
    assert session.ask(SYSTEM) == 20
