import pytest

from chorus_workers.runner.base import Batch, RunnerError, SampleRequest, SequenceChunk
from chorus_workers.runner.fake import FakeModel, FakeRunner
from chorus_workers.sampling_params import SamplingParams


class Sleeper:
    """A clock that goes forward when it is slept on."""

    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def run(runner: FakeRunner, tokens: list[int], num_prompt_tokens: int, params: SamplingParams | None = None) -> int:
    sample = SampleRequest(params or SamplingParams(), tokens, num_prompt_tokens, len(tokens))
    (sampled,) = runner.run(Batch([SequenceChunk("a", 0, 0, tokens, [0], sample)])).sampled
    assert sampled is not None
    return sampled.token_id


def fake(model: FakeModel, **settings: int) -> tuple[FakeRunner, Sleeper]:
    sleeper = Sleeper()
    return FakeRunner(model, clock=sleeper, sleep=sleeper.sleep, **settings), sleeper  # type: ignore[arg-type]


def test_a_script_has_a_prefix_a_body_and_a_stop() -> None:
    runner, _ = fake(FakeModel(prefix=(7, 8), body=9, stop=3, num_tokens=5))
    tokens = [1, 1, 1]
    for _ in range(6):
        tokens.append(run(runner, tokens, 3))
    assert tokens[3:] == [7, 8, 9, 9, 3, 9]


def test_steps_in_a_row_keep_their_interval_and_a_pause_starts_anew() -> None:
    runner, sleeper = fake(FakeModel(step_time_s=1.0, body=9))
    ends = []
    for host_time in (0.0, 0.125, 0.125, 0.5):
        sleeper.now += host_time
        run(runner, [1], 1)
        ends.append(sleeper.now)
    assert ends == [11.0, 12.0, 13.0, 14.5]


def test_without_a_script_tokens_follow_from_seed_position_and_past() -> None:
    runner, _ = fake(FakeModel(vocab_size=1000))
    params = SamplingParams(seed=1)
    drawn = {
        run(runner, [1, 2], 2, params),
        run(runner, [1, 3], 2, params),
        run(runner, [2], 1, params),
        run(runner, [1, 2], 2, SamplingParams(seed=2)),
    }
    assert len(drawn) == 4
    assert run(runner, [1, 2], 2, params) == run(runner, [9, 2], 1, params)


def test_log_probabilities_are_there_when_asked_for() -> None:
    runner, _ = fake(FakeModel(body=9))
    sample = SampleRequest(SamplingParams(num_top_logprobs=3), [1], 1, 1)
    (sampled,) = runner.run(Batch([SequenceChunk("a", 0, 0, [1], [0], sample)])).sampled
    assert sampled is not None and sampled.logprob is not None
    assert len(sampled.top) == 3


def test_a_lost_device() -> None:
    runner, _ = fake(FakeModel(body=9, fail_at_step=2))
    run(runner, [1], 1)
    with pytest.raises(RunnerError):
        run(runner, [1], 1)


def test_a_model_survives_its_configuration() -> None:
    model = FakeModel(prefix=(1, 2), body=3, num_tokens=9, step_time_s=0.5)
    assert FakeModel.from_config(model.to_config()) == model
    assert FakeModel.from_config("fake:") == FakeModel()


@pytest.mark.parametrize(
    ("text", "message"),
    [("fake:{", "not JSON"), ("fake:[]", "JSON object"), ('fake:{"bodi": 3}', "no 'bodi'; it has body, ")],
)
def test_a_wrong_configuration_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FakeModel.from_config(text)
