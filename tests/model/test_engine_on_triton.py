"""The engine over the Triton runner in the batch-invariant mode: greedy answers are the same alone and in a crowd.

On a machine without a GPU the model and the crowd are as small as the interpreter's patience.
"""

import random
import time
from dataclasses import replace

import pytest
import torch
from tests.support.checkpoints import TINY, write_checkpoint
from tests.support.engine_driver import Answer, run

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest
from chorus_workers.model.checkpoint import load_model_as
from chorus_workers.runner.base import RunnerInfo
from chorus_workers.runner.triton.form import DeviceForm
from chorus_workers.runner.triton.runner import TritonRunner
from chorus_workers.sampling_params import SamplingParams

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# gpt-oss-20b's sizes but for the layers' number and the vocabulary.
AS_20B = replace(
    TINY,
    num_experts=32,
    num_experts_per_token=4,
    hidden_size=2880,
    intermediate_size=2880,
    num_heads=64,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=5000,
    window=128,
)
SHAPE = AS_20B if ON_GPU else TINY
NUM_REQUESTS, LONGEST_PROMPT, NUM_TOKENS = (70, 300, 40) if ON_GPU else (4, 12, 4)
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """With pages for all, so that none is preempted, and steps that take no crowd's prompts at once."""
    info = RunnerInfo(
        vocab_size=SHAPE.vocab_size,
        max_model_len=LONGEST_PROMPT + NUM_TOKENS,
        block_size=16,
        num_blocks=NUM_REQUESTS * (1 + (LONGEST_PROMPT + NUM_TOKENS) // 16),
        num_slots=NUM_REQUESTS,
        max_batched_tokens=2 * LONGEST_PROMPT,
        num_shards=1,
        num_snapshots=0,
    )
    model = load_model_as(DeviceForm(DEVICE), write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPE))
    runner = TritonRunner(model, info, batch_invariant=True)
    runner.warm_up()
    return Engine(runner, max_queued_requests=NUM_REQUESTS, clock=time.monotonic)


def crowd() -> list[GenerationRequest]:
    dice = random.Random(9)
    return [
        GenerationRequest(
            str(number),
            [dice.randrange(SHAPE.vocab_size) for _ in range(dice.randrange(1, LONGEST_PROMPT))],
            GREEDY,
            max_tokens=NUM_TOKENS,
        )
        for number in range(NUM_REQUESTS)
    ]


@pytest.mark.gpu
def test_a_crowd_changes_no_greedy_answer(engine: Engine) -> None:
    alone: dict[str, Answer] = {}
    for request in crowd()[:: max(NUM_REQUESTS // 10, 1)]:
        alone |= run(engine, [request])
    in_crowd = run(engine, crowd())
    assert {name: in_crowd[name] for name in alone} == alone
    assert all((len(tokens), reason) == (NUM_TOKENS, FinishReason.LENGTH) for tokens, reason in in_crowd.values())
    # Answers that say nothing but one token would be the same in any mode.
    assert len({token for tokens, _ in alone.values() for token in tokens}) > len(alone)
