"""Routing, clamped SwiGLU and the grouped experts, against loops that follow the formula."""

import math

import pytest
import torch
from torch import Tensor

from chorus_kernels.moe import experts_forward, route, swiglu

NUM_EXPERTS, HIDDEN, INNER, TOP_K = 7, 10, 6, 3


def weights(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((2 * INNER, HIDDEN), (2 * INNER,), (HIDDEN, INNER), (HIDDEN,))
    gate_up, gate_up_bias, down, down_bias = (torch.randn(NUM_EXPERTS, *size, generator=generator) for size in sizes)
    return gate_up * 3, gate_up_bias, down, down_bias


def scalar_swiglu(gate: float, up: float) -> float:
    gate, up = min(gate, 7.0), max(-7.0, min(up, 7.0))
    return gate / (1 + math.exp(-1.702 * gate)) * (up + 1)


def expected_output(x: Tensor, experts: Tensor, shares: Tensor, seed: int = 0) -> Tensor:
    """Token by token, expert by expert, in float64."""
    gate_up, gate_up_bias, down, down_bias = (tensor.double() for tensor in weights(seed))
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(x.shape[0]):
        for e, share in zip(experts[t].tolist(), shares[t].tolist(), strict=True):
            projected = (gate_up[e] @ x[t].double() + gate_up_bias[e]).tolist()
            hidden = [scalar_swiglu(projected[2 * i], projected[2 * i + 1]) for i in range(INNER)]
            out[t] += share * (down[e] @ torch.tensor(hidden, dtype=torch.float64) + down_bias[e])
    return out


def test_route_is_a_softmax_over_the_chosen() -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0, 2.0], [5.0, 5.5, 1.0, -2.0]])
    experts, shares = route(logits, 2)
    assert experts.tolist() == [[1, 3], [1, 0]]
    high = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-0.5))
    assert torch.allclose(shares, torch.tensor([[high[0], 1 - high[0]], [high[1], 1 - high[1]]]), atol=1e-7)


@pytest.mark.parametrize(
    ("gate", "up"), [(0.5, -0.25), (9.0, 0.5), (-30.0, 2.0), (2.0, 11.0), (2.0, -11.0), (7.0, -7.0)]
)
def test_swiglu_clamps_gate_above_and_up_on_both_sides(gate: float, up: float) -> None:
    actual = float(swiglu(torch.tensor([[1.0, 1.0, gate, up]]))[0, 1])
    assert actual == pytest.approx(scalar_swiglu(gate, up), rel=1e-6)


def test_swiglu_leaves_its_input_alone() -> None:
    gate_up = torch.tensor([[9.0, -9.0, 1.0, 2.0]])
    swiglu(gate_up)
    assert gate_up.tolist() == [[9.0, -9.0, 1.0, 2.0]]


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 13])
def test_experts_match_the_formula(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, HIDDEN, generator=generator)
    experts, shares = route(torch.randn(num_tokens, NUM_EXPERTS, generator=generator), TOP_K)
    out = experts_forward(x, experts, shares, *weights())
    assert out.shape == x.shape
    assert torch.allclose(out.double(), expected_output(x, experts, shares), atol=2e-4, rtol=1e-5)


def test_experts_without_tokens_are_never_touched() -> None:
    gate_up, gate_up_bias, down, down_bias = weights()
    for tensor in (gate_up, gate_up_bias, down, down_bias):
        tensor[torch.tensor([0, 3, 4, 6])] = torch.nan
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(3))
    experts = torch.tensor([[1, 2, 5], [5, 2, 1], [2, 1, 5], [1, 5, 2], [5, 1, 2]])
    shares = torch.full((5, TOP_K), 1 / 3)
    out = experts_forward(x, experts, shares, gate_up, gate_up_bias, down, down_bias)
    assert torch.allclose(out.double(), expected_output(x, experts, shares), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 6])
def test_shares_of_the_experts_add_up(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(num_tokens, HIDDEN, generator=generator)
    experts, shares = route(torch.randn(num_tokens, NUM_EXPERTS, generator=generator), TOP_K)
    parts = [
        experts_forward(x, experts, shares, *(tensor[low:high] for tensor in weights()), first_expert=low)
        for low, high in ((0, 2), (2, 3), (3, 7))
    ]
    assert torch.allclose(sum(parts[1:], parts[0]), experts_forward(x, experts, shares, *weights()), atol=1e-4)


def test_a_token_does_not_see_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, HIDDEN, generator=generator)
    experts, shares = route(torch.randn(4, NUM_EXPERTS, generator=generator), TOP_K)
    clean = experts_forward(x, experts, shares, *weights())
    x[2] = torch.nan
    dirty = experts_forward(x, experts, shares, *weights())
    rest = torch.tensor([0, 1, 3])
    assert bool(dirty[2].isnan().all()) and torch.equal(dirty[rest], clean[rest])
