"""Training's rounding is what the packed checkpoint holds."""

import torch
from demo.mxfp4 import packed, rounded, straight_through

from chorus_kernels.mxfp4.reference import unpack_mxfp4


def weights() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    made = torch.randn(3, 5, 96, generator=generator) * torch.exp2(torch.randint(-9, 9, (3, 5, 1), generator=generator))
    made[0, 0, :32] = 0
    made[0, 1, 7] = 1000.0
    return made


def test_packed_weights_unpack_to_the_rounded_ones() -> None:
    blocks, scales = packed(weights())
    assert blocks.shape == (3, 5, 3, 16) and scales.shape == (3, 5, 3)
    torch.testing.assert_close(unpack_mxfp4(blocks, scales), rounded(weights()), atol=0, rtol=0)


def test_rounding_is_near_and_final() -> None:
    once = rounded(weights())
    torch.testing.assert_close(rounded(once), once, atol=0, rtol=0)
    largest = weights().unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
    # Neighbours are at most a third of the block's largest value apart, and 6 of 8 at worst where it saturates.
    assert ((once - weights()).unflatten(-1, (-1, 32)).abs() <= largest / 4 + 1e-9).all()
    relative = (once - weights()).square().sum().sqrt() / weights().square().sum().sqrt()
    assert relative < 0.13


def test_gradients_pass_straight_through() -> None:
    weight = weights().requires_grad_()
    value = straight_through(weight, torch.tensor(1.0))
    torch.testing.assert_close(value, rounded(weights()), atol=1e-4, rtol=1e-6)
    value.sum().backward()
    assert weight.grad is not None and (weight.grad == 1).all()
    torch.testing.assert_close(straight_through(weights(), torch.tensor(0.0)), weights(), atol=0, rtol=0)
