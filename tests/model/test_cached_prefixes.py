"""The prefix cache over the reference runner, in memory full of NaN: where a request begins changes no answer."""

import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import TINY, Shape, write_checkpoint
from tests.support.engine_driver import Answer, run
from tests.support.overlapping_runner import OverlappingRunner
from tests.support.runner_driver import ScatteredSequence, make_runner, poison
from tests.support.shard_process import free_address, shard_config, spawn_shard
from tests.support.triton_stand_ins import stand_in

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest
from chorus_workers.model.checkpoint import load_model, load_model_as
from chorus_workers.model.config import read_config
from chorus_workers.runner.base import Batch, Runner, RunnerInfo, SequenceChunk
from chorus_workers.runner.config import RunnerConfig, resolve
from chorus_workers.runner.factory import create_runner
from chorus_workers.runner.reference import ReferenceRunner
from chorus_workers.runner.triton.transfer import Upload
from chorus_workers.sampling_params import SamplingParams

VOCAB_SIZE = 83
MAX_MODEL_LEN = 160


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints by window: shorter than most prompts, and longer than all."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        window: write_checkpoint(root / str(window), Shape(window=window, vocab_size=VOCAB_SIZE, num_layers=4))
        for window in (9, 16, 150)
    }


def build(
    folder: Path, *, block_size: int = 7, prefix_cache: bool = True, overlaps: bool = False, **settings: int
) -> Engine:
    runner = build_runner(folder, block_size=block_size, prefix_cache=prefix_cache, **settings)
    return over(OverlappingRunner(runner) if overlaps else runner, prefix_cache=prefix_cache)


def build_runner(folder: Path, *, block_size: int = 7, prefix_cache: bool = True, **settings: int) -> ReferenceRunner:
    chosen = {"num_blocks": 80, "num_slots": 4, "max_batched_tokens": 24} | settings
    config = RunnerConfig(str(folder), MAX_MODEL_LEN, block_size, num_threads=1, **chosen)  # type: ignore[arg-type]
    runner = create_runner(replace(config, prefix_cache=prefix_cache))
    assert isinstance(runner, ReferenceRunner)
    poison(runner)
    return runner


def over(runner: Runner, *, prefix_cache: bool = True) -> Engine:
    return Engine(runner, max_queued_requests=100, clock=time.monotonic, prefix_cache=prefix_cache)


def draw(dice: random.Random, count: int) -> list[int]:
    return [dice.randrange(VOCAB_SIZE - 1) for _ in range(count)]


def family() -> list[GenerationRequest]:
    """Prompts that begin alike at several lengths, some of them twice, and some that go on from another's answer."""
    dice = random.Random(2)
    stem = draw(dice, 60)
    prompts = [[*stem[:kept], *draw(dice, own)] for kept in (60, 60, 33, 14, 3) for own in (1, 8, 41)]
    prompts += prompts[::2]
    return [
        GenerationRequest(
            f"{number}", prompt, SamplingParams(temperature=0.8, seed=number % 15), max_tokens=dice.randrange(5, 20)
        )
        for number, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def cold(folders: dict[int, Path]) -> dict[int, dict[str, Answer]]:
    """Each request alone, prefilled at once, by an engine that caches nothing."""
    answers: dict[int, dict[str, Answer]] = {}
    for window, folder in folders.items():
        engine = build(folder, prefix_cache=False, num_slots=1, max_batched_tokens=MAX_MODEL_LEN)
        answers[window] = {name: answer for request in family() for name, answer in run(engine, [request]).items()}
        assert engine.stats.num_prefix_hits == 0
        assert len({tuple(tokens) for tokens, _ in answers[window].values()}) > 12
    return answers


@pytest.mark.parametrize(
    ("window", "block_size", "max_batched_tokens", "overlaps"),
    [
        (9, 7, MAX_MODEL_LEN, False),
        (9, 16, 24, False),
        (9, 16, 24, True),
        (16, 16, 24, False),
        (16, 5, MAX_MODEL_LEN, True),
        (150, 7, 24, False),
    ],
)
def test_one_after_the_other(
    folders: dict[int, Path],
    cold: dict[int, dict[str, Answer]],
    window: int,
    block_size: int,
    max_batched_tokens: int,
    overlaps: bool,
) -> None:
    engine = build(folders[window], block_size=block_size, max_batched_tokens=max_batched_tokens, overlaps=overlaps)
    answers = {name: answer for request in family() for name, answer in run(engine, [request]).items()}
    assert answers == cold[window]
    assert engine.stats.num_prefix_hits > engine.stats.num_prefix_queries / 3


@pytest.mark.parametrize("window", [9, 150])
@pytest.mark.parametrize("num_blocks", [80, 24])
@pytest.mark.parametrize("overlaps", [False, True])
def test_side_by_side(
    folders: dict[int, Path], cold: dict[int, dict[str, Answer]], window: int, num_blocks: int, overlaps: bool
) -> None:
    """Also where memory is so short that requests give way, and little stays cached."""
    engine = build(folders[window], num_blocks=num_blocks, max_batched_tokens=31, overlaps=overlaps)
    requests = family()
    assert run(engine, requests) == cold[window]
    assert engine.stats.num_prefix_hits > 0
    assert (engine.stats.num_preemptions > 0) == (num_blocks == 24)
    again = run(engine, [replace(request, request_id=f"again {request.request_id}") for request in requests])
    assert {name.removeprefix("again "): answer for name, answer in again.items()} == cold[window]


def test_a_conversation_and_a_resumed_answer(folders: dict[int, Path], cold: dict[int, dict[str, Answer]]) -> None:
    engine, without = build(folders[9]), build(folders[9], prefix_cache=False)
    request = family()[2]
    run(engine, [request])
    answer, _ = cold[9][request.request_id]
    following = replace(request, request_id="next", prompt_token_ids=[*request.prompt_token_ids, *answer, 1, 2, 3])
    resumed = replace(
        request,
        request_id="resumed",
        prompt_token_ids=[*request.prompt_token_ids, *answer[:4]],
        num_resumed_tokens=4,
    )
    assert run(engine, [following, resumed]) == run(without, [following, resumed])
    assert run(engine, [resumed])["resumed"][0] == answer[4:]
    assert engine.stats.num_prefix_hits > 250


def test_models_of_one_kind_of_layers(tmp_path: Path) -> None:
    for kind in ("full_attention", "sliding_attention"):
        overrides = {"layer_types": [kind] * 2}
        shape = Shape(num_layers=2, window=10, vocab_size=VOCAB_SIZE, overrides=overrides)
        folder = write_checkpoint(tmp_path / kind, shape)
        engine, without = build(folder), build(folder, prefix_cache=False)
        for request in family()[:8]:
            assert run(engine, [request]) == run(without, [request])
        assert engine.stats.num_prefix_hits > engine.stats.num_prefix_queries / 4
        assert (engine.info.num_snapshots == 0) == (kind == "full_attention")


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("max_batched_tokens", [64, 13])
def test_what_a_failed_request_computed_is_never_used(tmp_path: Path, max_batched_tokens: int, overlaps: bool) -> None:
    """A token's embedding is not a number for a while: what was computed then must be gone afterwards."""
    folder = write_checkpoint(tmp_path, Shape(window=9, vocab_size=VOCAB_SIZE, num_layers=2))
    runner = build_runner(folder, max_batched_tokens=max_batched_tokens)
    engine = over(OverlappingRunner(runner) if overlaps else runner)
    request = GenerationRequest("a", [5, 6, VOCAB_SIZE - 1, *range(40)], SamplingParams(temperature=0.0), 8)
    sound = replace(request, request_id="b", prompt_token_ids=[5, 6, 7, *range(40)])
    expected = run(build(folder, prefix_cache=False), [request, sound])
    embedding = runner._transformer.model.embedding
    row = embedding[VOCAB_SIZE - 1].clone()
    embedding[VOCAB_SIZE - 1] = torch.nan
    answers = run(engine, [request, sound])
    assert answers == {"a": ([], FinishReason.ERROR), "b": expected["b"]}
    embedding[VOCAB_SIZE - 1] = row
    assert run(engine, [request]) == {"a": expected["a"]}
    assert engine.stats.num_prefix_hits == 0
    assert run(engine, [request]) == {"a": expected["a"]}
    assert engine.stats.num_prefix_hits == 42


def test_a_ring_is_saved_as_it_is_at_any_position_of_a_chunk(folders: dict[int, Path]) -> None:
    """Of chunks shorter and longer than the window, several at once; compared with a chunk that ends there."""
    runner = make_runner(load_model(folders[9]), num_snapshots=3)
    tokens = draw(random.Random(3), 60)
    for start, stops, end in ((0, (4,), 6), (0, (20, 23), 40), (6, (8, 13, 14), 14), (30, (31, 50), 60)):
        poison(runner)
        whole, cut = ScatteredSequence(0, runner), ScatteredSequence(1, runner)
        other = ScatteredSequence(2, runner)
        for sequence in (whole, cut):
            if start:
                runner.run(Batch([sequence.chunk(tokens[:start])]))
        chunk = replace(whole.chunk(tokens[start:end]), saves=[(stop, i) for i, stop in enumerate(stops)])
        runner.run(Batch([other.chunk([1]), chunk]))
        for snapshot, stop in enumerate(stops):
            runner.run(Batch([cut.chunk(tokens[cut.num_computed : stop])]))
            expected, saved = ring(runner, 1), ring(runner, runner.info.num_slots + snapshot)
            torch.testing.assert_close(saved, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
            assert not saved[:, :, : min(stop, 9)].isnan().any()


def ring(runner: ReferenceRunner, slot: int) -> torch.Tensor:
    """[window layers, Hkv, window, 2 D]"""
    first = runner.memory.ring_row(slot, 0)
    return torch.stack([memory[:, first : first + 9] for memory in runner.memory.layers[::2]])


def test_a_snapshot_may_be_restored_and_overwritten_in_one_step(folders: dict[int, Path]) -> None:
    runner = make_runner(load_model(folders[9]), num_snapshots=1)
    tokens = draw(random.Random(3), 40)
    first, second, third = (ScatteredSequence(slot, runner) for slot in range(3))
    runner.run(Batch([replace(first.chunk(tokens[:30]), saves=[(28, 0)])]))
    expected = ring(runner, runner.info.num_slots).clone()
    second.block_table, second.num_computed = first.block_table, 28
    chunks = [replace(third.chunk(tokens[5:40]), saves=[(14, 0)]), replace(second.chunk(tokens[28:29]), restore=0)]
    runner.run(Batch(chunks))
    unchanged = [row for row in range(9) if row != 28 % 9]
    assert torch.equal(ring(runner, 1)[:, :, unchanged], expected[:, :, unchanged])
    assert not torch.allclose(ring(runner, runner.info.num_slots), expected)


@contextmanager
def shard_group(folder: Path, size: int) -> Iterator[Runner]:
    address = free_address()
    with ExitStack() as stack:
        for rank in range(1, size):
            follower: subprocess.Popen[str] = stack.enter_context(spawn_shard(rank, size, address, folder))
            stack.callback(follower.kill)
        leader = create_runner(shard_config(folder, size, address))
        stack.callback(leader.close)
        yield leader


def test_shards_save_and_restore_alike(tmp_path: Path) -> None:
    # Two layers: each further one amplifies what the order of a sum leaves behind.
    shape = Shape(num_layers=2, num_heads=12, num_kv_heads=6, num_experts=12, window=9, vocab_size=VOCAB_SIZE)
    folder = write_checkpoint(tmp_path, shape)
    requests = [replace(request, params=SamplingParams(temperature=0.0)) for request in family()]
    with shard_group(folder, 2) as leader:
        engine, without = over(leader), build(folder, prefix_cache=False)
        for request in requests[:5]:
            assert run(engine, [request]) == run(without, [request])
        assert run(engine, requests) == run(without, requests)
    assert engine.stats.num_prefix_hits > engine.stats.num_prefix_queries / 3


def test_resolve_makes_snapshots_for_a_share_of_the_pages_memory(folders: dict[int, Path]) -> None:
    model = read_config(folders[16])
    config = RunnerConfig("", 100, block_size=16, num_blocks=400, num_slots=3, max_batched_tokens=64)
    # As many layers have pages as rings of 16: an eighth of the memory is a ring for each eight pages.
    assert resolve(config, model, 0).num_snapshots == 50
    assert resolve(replace(config, num_blocks=8), model, 0).num_snapshots == 3
    assert resolve(replace(config, num_blocks=8, num_slots=20), model, 0).num_snapshots == 8
    assert resolve(replace(config, num_shards=2), model, 0).num_snapshots == 50
    assert resolve(replace(config, prefix_cache=False), model, 0).num_snapshots == 0


def test_a_device_keeps_up_with_pages_that_are_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a page gives way to an equal one, the tables on the device have the one that is kept."""
    from chorus_workers.runner.triton.decode_graphs import DecodeGraphs
    from chorus_workers.runner.triton.form import DeviceForm
    from chorus_workers.runner.triton.runner import TritonRunner

    stand_in(monkeypatch)
    launch, shared = DecodeGraphs.run, []

    def checked(graphs: DecodeGraphs, chunks: Sequence[SequenceChunk], upload: Upload) -> object:
        launched = launch(graphs, chunks, upload)
        tables = [list(chunk.block_table) for chunk in chunks]
        for chunk, table in zip(chunks, tables, strict=True):
            assert graphs._tables[chunk.slot, : len(table)].tolist() == table
        shared.append(len(tables) == 2 and tables[0][:3] == tables[1][:3])
        return launched

    monkeypatch.setattr(DecodeGraphs, "run", checked)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model_as(DeviceForm(device), write_checkpoint(tmp_path, TINY))
    info = RunnerInfo(
        VOCAB_SIZE, 40, 4, num_blocks=20, num_slots=2, max_batched_tokens=40, num_shards=1, num_snapshots=2
    )
    prompt, greedy = draw(random.Random(3), 13), SamplingParams(temperature=0.0)
    answers = run(over(TritonRunner(model, info)), [GenerationRequest(name, prompt, greedy, 8) for name in "ab"])
    assert answers["a"] == answers["b"] and any(shared)
