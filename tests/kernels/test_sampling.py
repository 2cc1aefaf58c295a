"""Truncation, penalties and the draw, against plain Python over sorted probabilities."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from chorus_kernels.sampling import apply_penalties, greedy, sample, split_seed, top_logprobs, truncation_threshold


def controls(size: int, **settings: Any) -> dict[str, Tensor]:
    """Sampling tensors for `size` sequences; each setting is a value for all or a list of one each."""
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seeds": 5, "positions": 0} | settings
    lists = {name: value if isinstance(value, list) else [value] * size for name, value in values.items()}
    lists["seeds"] = [split_seed(seed) for seed in lists["seeds"]]
    return {name: torch.tensor(value) for name, value in lists.items()}


def kept_by_sorting(z: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens that may be drawn: min-p, then top-k, then top-p, each over what is left."""
    highest = max(z)
    kept = [i for i in range(len(z)) if math.exp(z[i] - highest) >= min_p]
    kept.sort(key=lambda i: -z[i])
    if 0 < top_k < len(kept):
        kept = [i for i in kept if z[i] >= z[kept[top_k - 1]]]
    if top_p < 1:
        total, mass = sum(math.exp(z[i]) for i in kept), 0.0
        for i in kept:
            mass += math.exp(z[i]) / total
            if mass >= top_p:
                return {j for j in kept if z[j] >= z[i]}
    return set(kept)


@pytest.mark.parametrize("num_tokens", [1, 5, 63, 64, 65, 1500])
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
def test_truncation_keeps_what_sorting_keeps(num_tokens: int, spread: float) -> None:
    settings = [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.2), (40, 0.5, 0.0), (7, 0.99, 0.01)]
    settings += [(num_tokens, 0.7, 0.0), (10**6, 1.0, 0.05), (0, 1e-6, 0.0), (1, 0.5, 1.0), (0, 0.999999, 0.0)]
    generator = torch.Generator().manual_seed(num_tokens)
    z = torch.randn(len(settings), num_tokens, generator=generator) * spread
    z -= z.amax(-1, keepdim=True)
    top_k, top_p, min_p = (list(column) for column in zip(*settings, strict=True))
    threshold = truncation_threshold(z, torch.tensor(top_k), torch.tensor(top_p), torch.tensor(min_p))
    for row, (k, p, m) in enumerate(settings):
        kept = (z[row] >= threshold[row]).nonzero().squeeze(-1).tolist()
        # top_p in float32, as it is compared.
        assert set(kept) == kept_by_sorting(z[row].tolist(), k, float(torch.tensor(p)), m), settings[row]


def test_equals_of_the_last_token_kept_are_kept() -> None:
    z = torch.tensor([[0.0, -1.0, -1.0, -1.0, -2.0]] * 2)
    threshold = truncation_threshold(z, torch.tensor([2, 0]), torch.tensor([1.0, 0.5]), torch.zeros(2))
    assert (z >= threshold.unsqueeze(-1)).tolist() == [[True, True, True, True, False]] * 2


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, -3.0])
    size, temperature = 40_000, 0.8
    drawn = sample(
        logits.expand(size, -1).clone(),
        torch.tensor([3, 200, 17, 1, 90000, 6]),
        **controls(size, temperature=temperature, positions=list(range(size))),
    )
    expected = (logits / temperature).softmax(-1) * size
    chi_square = float(((drawn.bincount(minlength=6) - expected) ** 2 / expected).sum())
    assert chi_square < 20.5  # the 99.9% point at 5 degrees of freedom


def test_truncated_draws_stay_within_what_is_kept() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(1)) * 2
    settings: dict[str, Any] = {"top_k": 9, "top_p": 0.9, "min_p": 0.02}
    kept = kept_by_sorting((logits / 2.5).tolist(), 9, 0.9, 0.02)
    drawn = sample(
        logits.expand(3000, -1),
        torch.arange(30),
        **controls(3000, temperature=2.5, positions=list(range(3000)), **settings),
    )
    assert set(drawn.tolist()) == kept and len(kept) > 3


def test_a_request_draws_the_same_alone_and_in_a_crowd() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(9, 700, generator=generator) * 3
    token_ids = torch.randperm(201088, generator=generator)[:700]
    settings: dict[str, list[Any]] = {
        "temperature": [0.3, 1.0, 2.0] * 3,
        "top_k": [0, 5, 0, 80, 0, 0, 1, 0, 0],
        "top_p": [1.0, 1.0, 0.9, 0.5, 1.0, 0.2, 1.0, 0.95, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.01, 0.0],
        "seeds": [0, 1, 2**64 - 1, 3, 4, 5, 6, 7, 8],
        "positions": [0, 10, 100, 7, 7, 7, 131071, 1, 2],
    }
    crowd = sample(logits, token_ids, **controls(9, **settings))
    for i in range(9):
        alone = {name: [values[i]] for name, values in settings.items()}
        assert sample(logits[i : i + 1], token_ids, **controls(1, **alone)).tolist() == [int(crowd[i])]


def test_the_draw_goes_by_token_id_not_by_row() -> None:
    """A vocabulary stored in another order, or with rows left out that can't be drawn, gives the same tokens."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(50, 40, generator=generator)
    token_ids = torch.arange(1000, 1040)
    settings = controls(50, positions=list(range(50)))
    order = torch.randperm(40, generator=generator)
    drawn = token_ids[sample(logits, token_ids, **settings)]
    assert torch.equal(token_ids[order][sample(logits[:, order], token_ids[order], **settings)], drawn)
    padded = torch.cat((logits, torch.full((50, 3), -math.inf)), -1)
    padded_ids = torch.cat((token_ids, torch.tensor([4, 5, 6])))
    assert torch.equal(padded_ids[sample(padded, padded_ids, **settings)], drawn)


def test_seed_and_position_both_matter() -> None:
    logits = torch.zeros(64, 1000)
    by_seed = sample(logits, torch.arange(1000), **controls(64, seeds=list(range(64))))
    by_position = sample(logits, torch.arange(1000), **controls(64, positions=list(range(64))))
    assert len(set(by_seed.tolist())) > 50 and len(set(by_position.tolist())) > 50


@pytest.mark.parametrize("temperature", [1e-5, 1e-4])
def test_a_tiny_temperature_is_greedy_without_overflow(temperature: float) -> None:
    logits = torch.tensor([[1.0, 80.0, 79.9, -80.0]])
    assert sample(logits, torch.arange(4), **controls(1, temperature=temperature)).tolist() == [1]


def test_greedy_takes_the_first_of_equals() -> None:
    assert greedy(torch.tensor([[0.0, 2.0, 2.0], [3.0, -1.0, 3.0]])).tolist() == [1, 0]


def test_penalties_follow_their_formulas() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, -1.0, 0.5, 3.0])
    expected = logits.clone()
    expected[0] = 2.0 / 1.25 - (2 * 0.5 + 0.75)  # generated twice, and seen
    expected[1] = -2.0 * 1.25 - (1 * 0.5 + 0.75)  # generated once
    expected[2] = 1.0 / 1.25  # only in the prompt
    apply_penalties(
        logits,
        torch.tensor([2, 2, 0, 1, 0]),
        torch.tensor([0, 1, 0]),
        repetition=1.25,
        frequency=0.5,
        presence=0.75,
    )
    assert torch.allclose(logits, expected)


@pytest.mark.parametrize("repetition", [1e-39, 1e-38, 3e38])
def test_an_extreme_repetition_penalty_leaves_finite_logits(repetition: float) -> None:
    logits = torch.tensor([2.0, -2.0, 0.0, 1.0])
    seen, generated = torch.tensor([0, 1, 2]), torch.tensor([0])
    apply_penalties(logits, seen, generated, repetition=repetition, frequency=0.5, presence=0.0)
    assert logits.isfinite().all()
    assert sample(logits[None], torch.arange(4), **controls(1)).tolist() == [0 if repetition < 1 else 3]
    logprob, _, logprobs = top_logprobs(logits, 3, 1)
    assert math.isfinite(logprob) and -1 < logprobs[0] <= 0


def test_negative_penalties_and_none_seen() -> None:
    logits = torch.tensor([1.0, 2.0])
    empty = torch.tensor([], dtype=torch.int64)
    apply_penalties(logits, empty, empty, repetition=2.0, frequency=-1.0, presence=-1.0)
    assert logits.tolist() == [1.0, 2.0]
    apply_penalties(logits, torch.tensor([1]), torch.tensor([1]), repetition=1.0, frequency=-1.5, presence=0.0)
    assert logits.tolist() == [1.0, 3.5]


def test_top_logprobs() -> None:
    logits = torch.tensor([0.5, 3.0, -1.0, 2.0])
    expected = logits.double().log_softmax(-1)
    logprob, rows, logprobs = top_logprobs(logits, 2, 3)
    assert logprob == pytest.approx(float(expected[2]), abs=1e-6)
    assert rows == [1, 3, 0] and logprobs == pytest.approx(expected[rows].tolist(), abs=1e-6)
    assert top_logprobs(logits, 0, 0)[1:] == ([], [])
    assert len(top_logprobs(logits, 0, 20)[1]) == 4
