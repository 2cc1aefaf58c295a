"""RMSNorm and YaRN RoPE against their formulas and against Transformers' own."""

import math

import pytest
import torch
from transformers import GptOssConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from chorus_kernels.linear import embedding, linear
from chorus_kernels.norm_rope import apply_rope, rms_norm, rope_tables, yarn_concentration, yarn_inverse_frequencies


def test_rms_norm() -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).double()
    weight = torch.linspace(0.5, 2, 7).double()
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert torch.allclose(rms_norm(x.float(), weight.float(), 1e-5).double(), expected, atol=1e-6)
    assert rms_norm(x.bfloat16(), weight.float(), 1e-5).dtype == torch.bfloat16
    assert rms_norm(x[:0].float(), weight.float(), 1e-5).shape == (0, 7)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "original"), [(64, 150000.0, 32.0, 4096), (20, 9000.0, 5.0, 512)]
)
def test_frequencies_are_those_of_transformers(
    head_dim: int, theta: float, factor: float, original: int, truncate: bool
) -> None:
    parameters = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": truncate,
        "original_max_position_embeddings": original,
    }
    config = GptOssConfig(head_dim=head_dim, rope_parameters=parameters, max_position_embeddings=int(original * factor))
    expected, concentration = ROPE_INIT_FUNCTIONS["yarn"](config, device=torch.device("cpu"))
    actual = yarn_inverse_frequencies(
        head_dim, theta=theta, factor=factor, original_max_position=original, truncate=truncate
    )
    assert torch.allclose(actual, expected, rtol=1e-6, atol=0)
    assert yarn_concentration(factor) == pytest.approx(concentration)


def test_without_scaling_it_is_plain_rope() -> None:
    actual = yarn_inverse_frequencies(8, theta=100.0, factor=1.0, original_max_position=64)
    assert torch.allclose(actual, torch.tensor([100.0 ** (-i / 4) for i in range(4)]))
    assert yarn_concentration(1.0) == 1.0


def test_rope_turns_pairs_of_halves() -> None:
    frequencies, concentration = torch.tensor([1.0, 0.25, 0.01]), 1.3
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([3, 70])
    out = apply_rope(x, *rope_tables(positions, frequencies, concentration))
    for t, position in enumerate(positions.tolist()):
        for i, frequency in enumerate(frequencies.tolist()):
            turned = torch.complex(x[t, :, i].double(), x[t, :, i + 3].double()) * complex(
                math.cos(position * frequency), math.sin(position * frequency)
            )
            assert torch.allclose(out[t, :, i].double(), turned.real * concentration, atol=1e-5)
            assert torch.allclose(out[t, :, i + 3].double(), turned.imag * concentration, atol=1e-5)


def test_linear_and_embedding() -> None:
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [3.0, -1.0], [0.0, 2.0]]), torch.ones(3)
    assert linear(x, weight, bias).tolist() == [[2.0, 2.0, 5.0]]
    assert linear(x[:0], weight).shape == (0, 3)
    rows = embedding(torch.tensor([2, 0]), weight.bfloat16())
    assert rows.dtype == torch.float32 and rows.tolist() == [[0.0, 2.0], [1.0, 0.0]]
