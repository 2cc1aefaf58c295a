"""The engine over the Triton runner in the batch-invariant mode: greedy answers are the same alone, in a crowd,
and after preemption.

On a machine without a GPU the model and the crowd are as small as the interpreter's patience.
"""

import random
import time
from dataclasses import replace

import pytest
import torch
from tests.support.checkpoints import TINY, write_checkpoint
from tests.support.engine_driver import Answer, run

from chorus_kernels.moe.layout import PackedExperts
from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest
from chorus_workers.model.checkpoint import load_model_as
from chorus_workers.model.weights import Model
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
NUM_REQUESTS, LONGEST_PROMPT, NUM_TOKENS, BLOCK_SIZE = (70, 300, 40, 16) if ON_GPU else (4, 12, 6, 4)
GREEDY = SamplingParams(temperature=0.0)
ENOUGH_BLOCKS = NUM_REQUESTS * (1 + (LONGEST_PROMPT + NUM_TOKENS) // BLOCK_SIZE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model[PackedExperts]:
    return load_model_as(DeviceForm(DEVICE), write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPE))


def build(model: Model[PackedExperts], num_blocks: int) -> Engine:
    """Steps take no crowd's prompts at once."""
    info = RunnerInfo(
        vocab_size=SHAPE.vocab_size,
        max_model_len=LONGEST_PROMPT + NUM_TOKENS,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        num_slots=NUM_REQUESTS,
        max_batched_tokens=2 * LONGEST_PROMPT,
        num_shards=1,
        num_snapshots=NUM_REQUESTS,
    )
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


@pytest.fixture(scope="module")
def alone(model: Model[PackedExperts]) -> dict[str, Answer]:
    """Answers of some, each on an engine that nobody else uses."""
    answers: dict[str, Answer] = {}
    for request in crowd()[:: max(NUM_REQUESTS // 10, 1)]:
        answers |= run(build(model, ENOUGH_BLOCKS), [request]) if ON_GPU else run(build(model, 8), [request])
    return answers


@pytest.mark.gpu
@pytest.mark.parametrize("is_tight", [False, True] if ON_GPU else [True])
def test_a_crowd_changes_no_greedy_answer(
    model: Model[PackedExperts], alone: dict[str, Answer], is_tight: bool
) -> None:
    blocks_of_prompts = sum(-(-len(request.prompt_token_ids) // BLOCK_SIZE) for request in crowd())
    engine = build(model, blocks_of_prompts if is_tight else ENOUGH_BLOCKS)
    in_crowd = run(engine, crowd())
    assert bool(engine.stats.num_preemptions) == is_tight
    assert {name: in_crowd[name] for name in alone} == alone
    assert all((len(tokens), reason) == (NUM_TOKENS, FinishReason.LENGTH) for tokens, reason in in_crowd.values())
    # The prefix cache has none of what they said: who goes on from there gets no other bits.
    (request,) = [request for request in crowd() if request.request_id == "0"]
    longer = replace(request, request_id="longer", prompt_token_ids=[*request.prompt_token_ids, *in_crowd["0"][0][:3]])
    assert run(engine, [longer]) == run(build(model, ENOUGH_BLOCKS), [longer])
    # Answers that say nothing but one token would be the same in any mode.
    assert len({token for tokens, _ in alone.values() for token in tokens}) > len(alone)
