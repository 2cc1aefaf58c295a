"""What the benchmark of fp8 KV says of two sets of logits."""

import math

import torch
from benchmarks.kv_dtype import Difference


def test_differences_are_those_of_the_distributions() -> None:
    expected = torch.tensor([[1.0, -1.0], [3.0, 5.0]])
    difference = Difference()
    difference.add(expected + 7, expected, torch.tensor([0, 0]))
    row = difference.row()
    assert (row["relative_rms"], row["top1"], row["kl"]) == (0, 1, 0)
    nll = (math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2
    assert row["nll"] == row["nll_of_model_dtype"] == round(nll, 5)

    difference.add(torch.tensor([[1.5, -1.5]]), torch.tensor([[-1.0, 1.0]]), torch.tensor([1]))
    row = difference.row()
    assert row["positions"] == 3 and row["top1"] == round(2 / 3, 5)
    # Of six centered logits of +-1, two are off by 2.5.
    assert row["relative_rms"] == round((2 * 2.5**2 / 6) ** 0.5, 5)
    p = 1 / (1 + math.exp(-2))
    kl = p * math.log(p * (1 + math.exp(3))) + (1 - p) * math.log((1 - p) * (1 + math.exp(-3)))
    assert row["kl"] == round(kl / 3, 6)
