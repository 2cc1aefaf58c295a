"""Several shards against one: the same logits, the same tokens; and what happens when a shard is lost."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.runner_driver import ScatteredSequence, make_runner
from tests.support.shard_process import free_address, shard_config, spawn_shard

from chorus_workers.model.checkpoint import load_model
from chorus_workers.runner.base import Batch, RunnerError, SampleRequest, SequenceChunk
from chorus_workers.runner.factory import create_runner, run_follower
from chorus_workers.runner.shard_group import ShardLeader, decode_chunks, encode_chunks
from chorus_workers.sampling_params import SamplingParams

# One window layer and one full one. Each further layer amplifies what the order of a sum leaves behind.
SHAPE = Shape(
    num_layers=2, num_heads=12, num_kv_heads=6, num_experts=12, num_experts_per_token=4, window=9, vocab_size=83
)
# Far less than what the shards give one another.
LOST_WITHIN_S = 15.0


@contextmanager
def shard_group(folder: Path, size: int) -> Iterator[tuple[ShardLeader, list[subprocess.Popen[str]]]]:
    """The leader in this process, and its followers."""
    address = free_address()
    with ExitStack() as stack:
        followers = []
        for rank in range(1, size):
            followers.append(stack.enter_context(spawn_shard(rank, size, address, folder)))
            stack.callback(followers[-1].kill)
        leader = create_runner(shard_config(folder, size, address))
        assert isinstance(leader, ShardLeader)
        stack.callback(leader.close)
        yield leader, followers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, SHAPE)


def chunk(start: int, token_ids: list[int], params: SamplingParams | None = None) -> SequenceChunk:
    sample = SampleRequest(params, tuple(range(start + len(token_ids))), 1, start + len(token_ids)) if params else None
    return SequenceChunk("a", 0, start, token_ids, list(range(70)), sample)


@pytest.mark.parametrize("size", [2, 3])
def test_shards_compute_what_one_does(folder: Path, size: int) -> None:
    whole = make_runner(load_model(folder))
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 83, (n,), generator=generator).tolist() for n in (150, 1, 40)]
    schedule = ((100, 1, 0), (49, 0, 17), (1, 0, 23))
    tokens: list[list[int]] = [[] for _ in prompts]
    with shard_group(folder, size) as (leader, _):
        sequences = [ScatteredSequence(slot, whole) for slot in (3, 0, 4)]

        def step(parts: list[list[int]]) -> torch.Tensor:
            chunks = [sequence.chunk(part) for sequence, part in zip(sequences, parts, strict=True) if part]
            expected = whole.logits(whole.forward(chunks))
            actual = leader.logits(leader.forward(chunks))
            assert float((actual - expected).abs().max()) < 1e-5
            assert torch.equal(actual.argmax(-1), expected.argmax(-1))
            return actual

        for sizes in schedule:
            starts = [sequence.num_computed for sequence in sequences]
            logits = step([p[s : s + n] for p, s, n in zip(prompts, starts, sizes, strict=True)])
        for generated in tokens:
            generated.append(5)
        for _ in range(64):
            logits = step([generated[-1:] for generated in tokens])
            for generated, token in zip(tokens, logits.argmax(-1).tolist(), strict=True):
                generated.append(token)
    assert len(set(tokens[0])) > 10


def test_sampling_is_the_leaders_alone(folder: Path) -> None:
    params = SamplingParams(temperature=1.0, seed=4, num_top_logprobs=2)
    expected = create_runner(shard_config(folder, 1)).run(Batch([chunk(0, [1, 2, 3], params)])).sampled[0]
    with shard_group(folder, 2) as (leader, followers):
        drawn = leader.run(Batch([chunk(0, [1, 2, 3], params)])).sampled[0]
        assert drawn is not None and expected is not None and drawn.token_id == expected.token_id
        assert drawn.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert leader.run(Batch([])).sampled == []
        # A table of more numbers than a message's first part holds.
        long = replace(chunk(3, [9], params), block_table=[*range(70), *[0] * 3000])
        assert leader.run(Batch([long])).sampled[0] is not None
        leader.close()
        assert followers[0].wait(5) == 0


def test_a_lost_follower_is_noticed_in_the_next_step(folder: Path) -> None:
    with shard_group(folder, 2) as (leader, followers):
        leader.run(Batch([chunk(0, [1, 2, 3])]))
        followers[0].kill()
        followers[0].wait()
        begin = time.monotonic()
        with pytest.raises(RunnerError, match="lost another shard"):
            leader.run(Batch([chunk(3, [4])]))
        assert time.monotonic() - begin < LOST_WITHIN_S


@pytest.mark.parametrize("num_blocks", [70, 3000])
def test_a_follower_that_hangs_is_given_up_and_not_waited_for_at_the_end(folder: Path, num_blocks: int) -> None:
    """Whether in a step, or before it has taken the whole message that begins one."""
    with shard_group(folder, 2) as (leader, followers):
        leader.run(Batch([chunk(0, [1, 2, 3])]))
        # After the start, for which a short time would not do.
        for group in (None, leader._links._messages):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=0.5), group)
        followers[0].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(RunnerError, match="lost another shard"):
            leader.run(Batch([replace(chunk(3, [4]), block_table=[*range(70), *[0] * (num_blocks - 70)])]))
        leader.close()
        assert time.monotonic() - begin < LOST_WITHIN_S


def test_followers_end_with_their_leader(folder: Path) -> None:
    address = free_address()
    with spawn_shard(0, 2, address, folder) as leader, spawn_shard(1, 2, address, folder) as follower:
        assert leader.stdout is not None and leader.stdout.readline() == "ready\n"
        # The follower waits for work. Its leader's process ends without a word.
        leader.kill()
        _, errors = follower.communicate(timeout=LOST_WITHIN_S)
        assert follower.returncode == 1 and "RunnerError: shard 1 lost another shard" in errors


def test_a_follower_that_cannot_load_ends_the_start(folder: Path, tmp_path: Path) -> None:
    (broken := tmp_path / "broken").mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    address = free_address()
    with spawn_shard(1, 2, address, broken) as follower:
        with pytest.raises(RunnerError, match="shard"):
            create_runner(shard_config(folder, 2, address))
        _, errors = follower.communicate(timeout=LOST_WITHIN_S)
        assert "has no *.safetensors files" in errors


def test_models_that_cannot_be_shared_are_refused_before_anyone_waits(folder: Path) -> None:
    with pytest.raises(ValueError, match="4 shards can't share 6 KV heads equally"):
        create_runner(shard_config(folder, 4, free_address()))
    with pytest.raises(ValueError, match="4 shards can't share 6 KV heads equally"):
        run_follower(1, 4, free_address(), shard_config(folder, 4))
    with pytest.raises(ValueError, match="shard_address must say where"):
        create_runner(shard_config(folder, 2))


def test_chunks_survive_the_journey() -> None:
    chunks = [
        SequenceChunk("x", 3, 17, [5, 201087, 0], [9, 8], None),
        SequenceChunk("y", 0, 0, [1], [4], None, saves=[(1, 7), (3, 2)]),
        SequenceChunk("z", 1, 8, [1, 2], [], None, restore=0, saves=[(9, 0)]),
    ]
    assert decode_chunks(encode_chunks(chunks)) == [
        replace(chunk, request_id="", saves=list(chunk.saves)) for chunk in chunks
    ]
    assert decode_chunks(encode_chunks([replace(chunks[1], token_ids=(1,))]))[0].token_ids == [1]
    assert decode_chunks(encode_chunks([])) == []
