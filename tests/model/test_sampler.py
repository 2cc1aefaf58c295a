"""The runners' samplers: each request by its own parameters, over plain and compact vocabularies."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from chorus_kernels.sampling import gumbel_noise_grid, split_seed
from chorus_workers.guide.columns import Columns
from chorus_workers.model.weights import Vocabulary
from chorus_workers.runner.base import SampledToken, SampleRequest
from chorus_workers.runner.sampler import Sampler
from chorus_workers.runner.triton.sampler import DeviceSampler, PreparedDraw
from chorus_workers.runner.triton.transfer import Upload
from chorus_workers.sampling_params import SamplingParams

NewSampler = Callable[[Vocabulary], "Sampler | SamplerOnTheDevice"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_ROWS = 12
# Rows 0 to 11 are the token ids 100, 107, 114, ...; id 3 and others have none.
COMPACT_IDS = torch.arange(NUM_ROWS) * 7 + 100


class SamplerOnTheDevice:
    """The Triton runner's, for logits that are made on the host."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._sampler = DeviceSampler(vocabulary, DEVICE)

    def draw(self, logits: torch.Tensor, requests: Sequence[SampleRequest]) -> list[SampledToken]:
        upload = Upload()
        numbers = self._sampler.prepare(upload, requests)
        draw = PreparedDraw(self._sampler, requests, logits.to(DEVICE), numbers, upload.to(DEVICE))
        return draw.launch().result()


@pytest.fixture(params=["reference", "triton"])
def new_sampler(request: pytest.FixtureRequest) -> NewSampler:
    return Sampler if request.param == "reference" else SamplerOnTheDevice


def compact_vocabulary() -> Vocabulary:
    rows = torch.full((300,), -1).index_copy_(0, COMPACT_IDS, torch.arange(NUM_ROWS))
    return Vocabulary(rows.clamp_min(0), rows, COMPACT_IDS)


def request(tokens: tuple[int, ...] = (100, 3), num_prompt_tokens: int = 1, **params: Any) -> SampleRequest:
    return SampleRequest(SamplingParams(**({"temperature": 0.0} | params)), tokens, num_prompt_tokens, len(tokens))


def logits(*rows: int) -> torch.Tensor:
    """One distribution for each row named, which is its likeliest."""
    values = torch.linspace(-1, 1, NUM_ROWS).repeat(len(rows), 1)
    values[torch.arange(len(rows)), list(rows)] = 3.0
    return values


def test_greedy_gives_token_ids(new_sampler: NewSampler) -> None:
    drawn = new_sampler(compact_vocabulary()).draw(logits(2, 11), [request(), request()])
    assert [(token.token_id, token.failed, token.logprob, token.top) for token in drawn] == [
        (114, False, None, ()),
        (177, False, None, ()),
    ]


def test_logit_bias_goes_by_token_id_and_ignores_unlisted_ones(new_sampler: NewSampler) -> None:
    drawn = new_sampler(compact_vocabulary()).draw(
        logits(2, 2, 2), [request(logit_bias={128: 50.0, 3: 100.0}), request(logit_bias={114: -100.0}), request()]
    )
    assert [token.token_id for token in drawn] == [128, 177, 114]


def test_penalties_count_generated_tokens_only_where_they_should(new_sampler: NewSampler) -> None:
    sampler = new_sampler(compact_vocabulary())
    in_prompt = request((114, 3, 177), 2, presence_penalty=2.0, frequency_penalty=2.0)
    generated = request((3, 114, 114), 1, frequency_penalty=2.0)
    repeated = request((114, 3, 3), 2, repetition_penalty=4.0)
    drawn = sampler.draw(logits(2, 2, 2), [in_prompt, generated, repeated])
    assert [token.token_id for token in drawn] == [114, 177, 177]


def test_log_probabilities_are_after_bias_and_penalties_and_before_temperature(new_sampler: NewSampler) -> None:
    raw = logits(2)
    adjusted = raw[0].clone()
    adjusted[5] += 1.5
    adjusted[3] -= 2 * 0.5 + 0.25
    expected = adjusted.double().log_softmax(-1)
    params: dict[str, Any] = {"logit_bias": {135: 1.5}, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    drawn = new_sampler(compact_vocabulary()).draw(
        raw, [request((100, 121, 121), 1, temperature=0.01, top_k=1, num_top_logprobs=3, **params)]
    )[0]
    order = expected.argsort(descending=True)[:3]
    assert drawn.token_id == 114 and drawn.logprob == pytest.approx(float(expected[2]), abs=1e-6)
    assert [token for token, _ in drawn.top] == COMPACT_IDS[order].tolist()
    assert [value for _, value in drawn.top] == pytest.approx(expected[order].tolist(), abs=1e-6)


def test_zero_top_logprobs_still_gives_the_tokens_own(new_sampler: NewSampler) -> None:
    drawn = new_sampler(compact_vocabulary()).draw(logits(1), [request(num_top_logprobs=0)])[0]
    assert drawn.logprob is not None and drawn.top == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_their_request_alone(
    new_sampler: NewSampler, value: float, temperature: float
) -> None:
    good = [request(seed=5, temperature=temperature), request(seed=6, temperature=temperature, num_top_logprobs=2)]
    alone = new_sampler(compact_vocabulary()).draw(logits(4, 7), good)
    values = logits(4, 1, 7)
    values[1, 9] = value
    bad = request(temperature=temperature, num_top_logprobs=1, top_p=0.5, logit_bias={100: 1.0}, presence_penalty=1.0)
    drawn = new_sampler(compact_vocabulary()).draw(values, [good[0], bad, good[1]])
    assert [token.failed for token in drawn] == [False, True, False]
    assert [drawn[0], drawn[2]] == alone


def test_seeded_draws_are_the_same_alone_in_a_crowd_and_in_another_vocabulary(new_sampler: NewSampler) -> None:
    requests = [request(tuple(range(i + 1)), temperature=1.0, seed=i * 2**60 + 1) for i in range(10)]
    values = torch.randn(10, NUM_ROWS, generator=torch.Generator().manual_seed(0))
    crowd = [token.token_id for token in new_sampler(compact_vocabulary()).draw(values.clone(), requests)]
    for i, one in enumerate(requests):
        assert new_sampler(compact_vocabulary()).draw(values[i : i + 1].clone(), [one])[0].token_id == crowd[i]
    full = torch.full((10, 300), -50.0)
    full[:, COMPACT_IDS] = values
    assert [token.token_id for token in new_sampler(Vocabulary.plain(300)).draw(full, requests)] == crowd
    assert len(set(crowd)) > 3


def test_a_seed_draws_by_the_position_of_the_token_to_come(new_sampler: NewSampler) -> None:
    ids, size = torch.arange(500), 40
    values = torch.randn(500, generator=torch.Generator().manual_seed(4)).expand(size, 500)
    requests = [request((1,) * length, temperature=1.0, seed=9) for length in range(1, size + 1)]
    drawn = [token.token_id for token in new_sampler(Vocabulary.plain(500)).draw(values.clone(), requests)]
    noise = gumbel_noise_grid(torch.tensor([split_seed(9)] * size), torch.arange(1, size + 1), ids)
    assert drawn == (values + noise).argmax(-1).tolist()
    assert len(set(drawn)) > size // 2


def test_greedy_and_random_requests_mix(new_sampler: NewSampler) -> None:
    values = torch.zeros(3, NUM_ROWS)
    values[:, 6] = 0.5
    requests = [request(), request(temperature=1.0, seed=1), request()]
    drawn = [token.token_id for token in new_sampler(compact_vocabulary()).draw(values.clone(), requests)]
    assert drawn[0] == drawn[2] == 142
    assert drawn[1] == new_sampler(compact_vocabulary()).draw(values[:1], [requests[1]])[0].token_id


def masked(asked: SampleRequest, *rows: int) -> SampleRequest:
    return replace(asked, mask=Columns(COMPACT_IDS.tolist(), 300).only(COMPACT_IDS[list(rows)].tolist()))


def test_what_a_mask_forbids_is_not_drawn_and_it_is_told_where_that_was_likelier(new_sampler: NewSampler) -> None:
    asked = [request(), masked(request(), 3, 5), masked(request(), 2, 5), request(), masked(request(), 0)]
    drawn = new_sampler(compact_vocabulary()).draw(logits(2, 2, 2, 2, 2), asked)
    assert [(token.token_id, token.overruled) for token in drawn] == [
        (114, False),
        (135, True),
        (114, False),
        (114, False),
        (100, True),
    ]


def test_where_a_mask_forbids_everything_the_request_fails_alone(new_sampler: NewSampler) -> None:
    for temperature in (0.0, 1.0):
        asked = [masked(request(temperature=temperature)), request(temperature=0.0)]
        drawn = new_sampler(compact_vocabulary()).draw(logits(2, 2), asked)
        assert [token.failed for token in drawn] == [True, False]


@pytest.mark.parametrize("truncation", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.05}])
def test_a_mask_comes_before_truncation_and_leaves_the_noise_as_it_is(
    new_sampler: NewSampler, truncation: dict[str, Any]
) -> None:
    """As if the model had no other tokens: the same draws as from a vocabulary of these alone."""
    rows = [1, 4, 7, 8]
    few_ids = COMPACT_IDS[rows]
    few = Vocabulary(torch.zeros(300, dtype=torch.int64), torch.full((300,), -1), few_ids)
    few.logit_rows[few_ids] = torch.arange(len(rows))  # type: ignore[index]
    asked = [request(temperature=1.0, seed=seed, **truncation) for seed in range(40)]
    values = logits(*[2] * len(asked))
    drawn = new_sampler(compact_vocabulary()).draw(values.clone(), [masked(one, *rows) for one in asked])
    expected = new_sampler(few).draw(values[:, rows].clone(), asked)
    assert [token.token_id for token in drawn] == [token.token_id for token in expected]
    assert all(token.overruled for token in drawn)
    assert len({token.token_id for token in drawn}) > 1


def test_log_probabilities_are_those_without_the_mask(new_sampler: NewSampler) -> None:
    values = logits(2)
    asked = request(num_top_logprobs=2)
    (free,) = new_sampler(compact_vocabulary()).draw(values.clone(), [asked])
    (held,) = new_sampler(compact_vocabulary()).draw(values.clone(), [masked(asked, 11)])
    assert (held.token_id, held.top) == (177, free.top)
    assert held.logprob == pytest.approx(float(values[0].log_softmax(-1)[11]), rel=1e-5)
