"""The draw on the device: token for token what the reference draws."""

import math
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from chorus_kernels.sampling import MIN_TEMPERATURE, greedy, op, philox, reference, split_seed
from chorus_kernels.sampling._kernel import SLACK, approximate_gumbel, exact_gumbel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONTROLS = ("temperature", "top_k", "top_p", "min_p", "seeds", "positions")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operators allocate holds NaN, or integers far from any column."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 2**30)

    monkeypatch.setattr(torch, "empty", poisoned)


def controls(size: int, **settings: Any) -> dict[str, Tensor]:
    """Sampling tensors for `size` rows; each setting is a value for all or a list of one each."""
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seeds": 5, "positions": 0} | settings
    lists = {name: value if isinstance(value, list) else [value] * size for name, value in values.items()}
    lists["seeds"] = [split_seed(seed) for seed in lists["seeds"]]
    return {name: torch.tensor(lists[name], device=DEVICE) for name in CONTROLS}


def normal(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def drawn_by_reference(logits: Tensor, settings: dict[str, Tensor], token_ids: Tensor | None = None) -> list[int]:
    settings = {name: value.cpu() for name, value in settings.items()}
    columns = greedy(logits)
    random = settings["temperature"] >= MIN_TEMPERATURE
    ids = torch.arange(logits.shape[1]) if token_ids is None else token_ids
    if random.any():
        chosen = {name: value[random] for name, value in settings.items()}
        columns[random] = reference.sample(logits[random], ids, **chosen)
    return columns.tolist()


def drawn(logits: Tensor, settings: dict[str, Tensor], token_ids: Tensor | None = None, **options: Any) -> list[int]:
    ids = None if token_ids is None else token_ids.to(DEVICE)
    columns, token_ids, _ = op.sample(logits.to(DEVICE), **settings, token_ids=ids, **options)
    assert torch.equal(token_ids, columns if ids is None else ids[columns])
    return columns.tolist()


TRUNCATIONS: list[dict[str, Any]] = [
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 1e-6},
    {"top_p": 0.999},
    {"top_k": 3},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10**12},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 7, "top_p": 0.5},
    {"top_k": 90, "top_p": 0.95},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.01},
    {"top_p": 0.7, "min_p": 0.02},
    {"top_p": 0.97, "temperature": 30.0},
    {"top_k": 200, "top_p": 0.5, "temperature": 30.0},
    {"temperature": 0.0, "top_k": 9, "top_p": 0.1},
    {"temperature": MIN_TEMPERATURE, "top_p": 0.5},
    {},
]


# One column, a whole tile, one more than two.
@pytest.mark.parametrize(("num_tokens", "grid"), [(1, 0.0), (128, 0.0), (257, 0.0), (203, 0.5)])
def test_draws_are_the_references(num_tokens: int, grid: float) -> None:
    """grid > 0 rounds logits to it, so that many are equal: also the largest, and the last that truncation keeps."""
    truncations = TRUNCATIONS if num_tokens > 128 else TRUNCATIONS[::6]
    size = len(truncations)
    logits = normal(size, num_tokens, seed=num_tokens)
    if grid:
        logits = (logits / 3 / grid).round() * grid
    generator = torch.Generator().manual_seed(1)
    temperatures = (torch.rand(size, generator=generator) * 2 + 0.1).tolist()
    rows = [{"temperature": t, "top_k": 0, "top_p": 1.0, "min_p": 0.0} for t in temperatures]
    rows = [row | truncation for row, truncation in zip(rows, truncations, strict=True)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    seeds = [7**i % 2**64 + i for i in range(0, 2 * size, 2)]
    settings = controls(size, **columns, seeds=seeds, positions=[i * 7919 for i in range(size)])
    assert drawn(logits, settings) == drawn_by_reference(logits, settings)


@pytest.mark.parametrize("truncation", [{"top_p": 0.6}, {"top_k": 4}, {"top_k": 30, "top_p": 0.9}], ids=str)
def test_many_seeds(truncation: dict[str, Any]) -> None:
    """Often the first token drawn isn't kept: then what is drawn instead is the reference's too."""
    size, num_tokens = 12, 101
    logits = normal(1, num_tokens, seed=3, scale=1.0).expand(size, -1).contiguous()
    settings = controls(size, temperature=1.3, **truncation, seeds=list(range(size)), positions=list(range(size)))
    actual = drawn(logits, settings)
    assert actual == drawn_by_reference(logits, settings)
    off = {"top_k": torch.zeros(size, dtype=torch.int64), "top_p": torch.ones(size)}
    plain = drawn_by_reference(logits, settings | off)
    assert len(set(actual)) > 2 and sum(a != b for a, b in zip(actual, plain, strict=True)) > 2


def test_the_smaller_kernel_draws_the_same_and_greedy_rows_mix_freely() -> None:
    size = 9
    logits = normal(size, 260, seed=4)
    logits[:, 201] = logits[:, 77] = logits.amax(-1) + 1  # greedy takes the first of equals, over tiles
    temperatures = [0.0, 0.4, 1.0, 0.0, 25.0, MIN_TEMPERATURE / 2, 2.0, 60.0, 0.0]
    settings = controls(size, temperature=temperatures, positions=list(range(size)))
    expected = drawn_by_reference(logits, settings)
    assert drawn(logits, settings, truncated=False) == drawn(logits, settings) == expected
    assert [expected[i] for i in (0, 3, 5, 8)] == [77] * 4 and len(set(expected)) > 3


def test_a_row_draws_the_same_alone_and_in_a_crowd() -> None:
    size = 6
    logits = normal(size, 140, seed=5)
    settings = controls(
        size,
        temperature=[0.3, 1.0, 2.0, 0.0, 1.5, 9.0],
        top_k=[0, 5, 0, 80, 30, 0],
        top_p=[1.0, 1.0, 0.9, 0.5, 0.8, 0.2],
        seeds=[0, 1, 2**64 - 1, 3, 2**63 + 4, 5],
        positions=[0, 10, 131071, 7, 7, 2],
    )
    crowd = drawn(logits, settings)
    order = [4, 2, 0, 1, 5, 3]
    assert drawn(logits[order], {name: value[order] for name, value in settings.items()}) == [crowd[i] for i in order]
    assert drawn(logits[4:5], {name: value[4:5] for name, value in settings.items()}) == [crowd[4]]


def test_the_noise_goes_by_token_id() -> None:
    size = 3
    logits = normal(size, 150, seed=6)
    token_ids = torch.randperm(201088, generator=torch.Generator().manual_seed(7))[:150]
    settings = controls(size, top_p=[1.0, 0.8, 0.9], positions=list(range(size)))
    actual = drawn(logits, settings, token_ids)
    assert actual == drawn_by_reference(logits, settings, token_ids)
    assert actual != drawn(logits, settings)


def test_the_first_of_equal_scores_is_drawn() -> None:
    """Columns of one token id have one noise: also here the lowest column wins, within a tile and over tiles."""
    logits = torch.zeros(2, 270)
    logits[1, :140] = -1.0
    settings = controls(2, top_p=[1.0, 0.6])
    assert drawn(logits, settings, torch.full((270,), 1234)) == [0, 140]


def test_a_mask_is_as_if_what_it_forbids_were_impossible() -> None:
    size, num_tokens = 5, 300
    logits = normal(size, num_tokens, seed=8)
    allowed = torch.rand(size, num_tokens, generator=torch.Generator().manual_seed(9)) < 0.3
    allowed[1] = torch.arange(num_tokens) == 287  # one token only, in the last tile
    allowed[4] = False
    bits = torch.zeros(size, 10 * 32, dtype=torch.int64)
    bits[:, :num_tokens] = allowed
    bits[:, num_tokens:] = 1  # bits past the end mean nothing
    words = (bits.view(size, 10, 32) << torch.arange(32)).sum(-1)
    mask = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).to(DEVICE)
    settings = controls(
        size, temperature=[1.0, 1.0, 0.0, 2.0, 1.0], top_k=[0, 5, 0, 99, 0], top_p=[0.9, 1.0, 1.0, 0.9, 1.0]
    )
    # A sixth row has no mask, and the masks lie in another order than the rows.
    order = [3, 1, 4, 0, 2]
    rows = torch.tensor([order.index(row) for row in range(size)] + [-1], dtype=torch.int32, device=DEVICE)
    logits = torch.cat([logits, logits[:1]])
    settings = {name: torch.cat([value, value[:1]]) for name, value in settings.items()}
    columns, token_ids, overruled = op.sample(
        logits.to(DEVICE), **settings, token_mask=op.TokenMask(mask[order].contiguous(), rows)
    )
    assert overruled is not None
    assert (token_ids >= 0).tolist() == [True] * 4 + [False, True]
    free = {name: value[5:] for name, value in settings.items()}
    assert columns[5:].tolist() == drawn(logits[5:], free)
    best = logits.argmax(-1).tolist()
    assert overruled.tolist() == [*(int(not allowed[row, best[row]]) for row in range(size)), 0]
    some = {name: value[:4] for name, value in settings.items()}
    masked = logits[:size].masked_fill(~allowed, -math.inf)
    assert columns[:5].tolist() == [*drawn_by_reference(masked[:4], some), 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_fail_their_row_alone(bad: float) -> None:
    size = 5
    logits = normal(size, 260, seed=10)
    settings = controls(size, temperature=[1.0, 0.0, 0.0, 1.0, 1.0], top_p=[0.9, 1.0, 1.0, 0.9, 1.0])
    good = drawn(logits, settings)
    logits[1, 259] = logits[3, 0] = bad
    latest = op.LatestTokens(torch.full((9,), -7, dtype=torch.int32, device=DEVICE), torch.arange(5).to(DEVICE) + 3)
    ids = torch.arange(logits.shape[1]).to(DEVICE) * 2 + 1
    columns, token_ids, _ = op.sample(logits.to(DEVICE), **settings, token_ids=ids, latest=latest)
    failed = torch.tensor([False, True, False, True, False], device=DEVICE)
    assert torch.equal(token_ids, torch.where(failed, -1, ids[columns]))
    assert torch.equal(latest.token_ids[3:8], token_ids.clamp_min(0).int())
    assert latest.token_ids[[0, 1, 2, 8]].tolist() == [-7] * 4
    columns, token_ids, _ = op.sample(logits.to(DEVICE), **settings)
    assert (token_ids >= 0).tolist() == [True, False, True, False, True]
    assert columns.tolist() == [good[0], 0, good[2], 0, good[4]]


@triton.jit
def noise_kernel(words_ptr, exact_ptr, approximate_ptr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    words = tl.load(words_ptr + lanes).to(tl.uint32)
    tl.store(exact_ptr + lanes, exact_gumbel(words))
    tl.store(approximate_ptr + lanes, approximate_gumbel(words))


def test_noise_is_exact_and_its_bound_holds() -> None:
    """At both ends, around the place where the approximation changes its formula, and at random words between."""
    ends = [0, 1, 2, 2**31, 2**32 - 1, 2**32 - 2, *(2**32 - 2**28 + i for i in range(-3, 4))]
    powers = [2**i for i in range(2, 31)] + [2**32 - 2**i for i in range(2, 31)]
    words = torch.tensor(ends + powers, dtype=torch.int64)
    between = torch.randint(0, 2**32, (2048 - len(words),), generator=torch.Generator().manual_seed(11))
    words = torch.cat((words, between)).to(DEVICE)
    exact, approximate = (torch.full((2048,), math.nan, device=DEVICE) for _ in range(2))
    noise_kernel[(1,)](words, exact, approximate, BLOCK=2048)
    assert torch.equal(exact.cpu(), philox._to_gumbel(words.cpu()))
    assert float((exact - approximate).abs().max()) < SLACK.value / 5


def test_no_rows_and_what_does_not_fit() -> None:
    columns, token_ids, overruled = op.sample(
        torch.zeros(0, 7, device=DEVICE), **{n: v[:0] for n, v in controls(1).items()}
    )
    assert columns.shape == token_ids.shape == (0,) and columns.dtype == torch.int64
    logits, settings = torch.zeros(2, 40, device=DEVICE), controls(2)
    with pytest.raises(ValueError, match=r"temperature must be \[2\]"):
        op.sample(logits, **settings | {"temperature": settings["temperature"][:1]})
    with pytest.raises(ValueError, match="top_k must be"):
        op.sample(logits, **settings | {"top_k": settings["top_k"].float()})
    words, rows = (torch.zeros(2, n, dtype=torch.int32, device=DEVICE) for n in (1, 2))
    with pytest.raises(ValueError, match=r"token_mask.words must be \[2, 2\]"):
        op.sample(logits, **settings, token_mask=op.TokenMask(words, rows[:, 0].contiguous()))
    with pytest.raises(ValueError, match=r"token_mask.rows must be \[2\]"):
        op.sample(logits, **settings, token_mask=op.TokenMask(rows, rows))
    with pytest.raises(ValueError, match="logits must be"):
        op.sample(logits.bfloat16(), **settings)
    for latest in (op.LatestTokens(columns, settings["positions"]), op.LatestTokens(columns.int(), columns)):
        with pytest.raises(ValueError, match="latest"):
            op.sample(logits, **settings, latest=latest)
    with pytest.raises(ValueError, match="logits must be contiguous"):
        op.sample(torch.zeros(40, 2, device=DEVICE).t(), **settings)
