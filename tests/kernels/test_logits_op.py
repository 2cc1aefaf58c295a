"""Bias and penalties before the draw and log probabilities after it, on the device, against the reference."""

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from chorus_kernels.sampling import op, reference
from chorus_kernels.sampling.op import LogitBias, Penalties

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def penalties(num_tokens: int, generated: Tensor, **changes: Tensor) -> Penalties:
    """Four entries over logits of six rows, one of them skipped; histories of different lengths in other rows."""
    num_prompt, num_known = torch.tensor([40, 0, 9, 3]), torch.tensor([59, 17, 9, 33])
    history = torch.randint(0, num_tokens // 3, (7, 61), generator=torch.Generator().manual_seed(1))
    history[:, 5] = -1  # a token without a column
    history[4, 40:59] = generated
    values = Penalties(
        rows=torch.tensor([5, 0, -1, 2]),
        history=history,
        history_rows=torch.tensor([4, 1, 0, 6]),
        num_prompt_tokens=num_prompt.int(),
        num_tokens=num_known.int(),
        repetition=torch.tensor([1.3, 0.8, 2.0, 1.0]),
        frequency=torch.tensor([0.37, -0.21, 9.0, 0.0]),
        presence=torch.tensor([0.11, 0.0, 9.0, -1.7]),
        counts=torch.zeros(4, num_tokens, dtype=torch.int32),
    )
    return replace(values, **changes)


def on_device(values: Penalties) -> Penalties:
    return Penalties(**{field.name: getattr(values, field.name).to(DEVICE) for field in fields(values)})


def penalised_by_reference(logits: Tensor, values: Penalties) -> Tensor:
    expected = logits.clone()
    for i, row in enumerate(values.rows.tolist()):
        if row < 0:
            continue
        history = values.history[values.history_rows[i], : int(values.num_tokens[i])].long()
        generated = history[int(values.num_prompt_tokens[i]) :]
        reference.apply_penalties(
            expected[row],
            history[history >= 0],
            generated[generated >= 0],
            repetition=float(values.repetition[i]),
            frequency=float(values.frequency[i]),
            presence=float(values.presence[i]),
        )
    return expected


@pytest.mark.parametrize("history_dtype", [torch.int32, torch.int64])
def test_penalties_have_the_references_bits(monkeypatch: pytest.MonkeyPatch, history_dtype: torch.dtype) -> None:
    monkeypatch.setattr(op, "_ENTRIES", 16)  # histories over several programs
    logits = normal(6, 101, seed=2)
    values = penalties(101, torch.arange(19) % 4)
    values = replace(values, history=values.history.to(history_dtype))
    actual, placed = logits.to(DEVICE, copy=True), on_device(values)
    op.apply_bias_and_penalties(actual, None, placed)
    expected = penalised_by_reference(logits, values)
    assert torch.equal(actual.cpu(), expected)
    assert (expected != logits).any(-1).tolist() == [True, False, True, False, False, True]
    assert not placed.counts.any()


@pytest.mark.parametrize("repetition", [1e-39, 3e38])
def test_extreme_repetition_leaves_finite_logits_and_hides_no_infinity(repetition: float) -> None:
    logits = normal(6, 101, seed=3)
    values = penalties(101, torch.arange(19), repetition=torch.full((4,), repetition))
    expected = penalised_by_reference(logits, values)
    assert expected.isfinite().all()
    actual = logits.to(DEVICE, copy=True)
    op.apply_bias_and_penalties(actual, None, on_device(values))
    assert torch.equal(actual.cpu(), expected)
    broken = torch.full((6, 101), math.inf, device=DEVICE)
    broken[2] = math.nan
    op.apply_bias_and_penalties(broken, None, on_device(values))
    assert not broken.isfinite().any()


def test_bias_comes_before_penalties() -> None:
    logits = normal(6, 101, seed=4)
    values = penalties(101, torch.arange(19))
    rows, columns = torch.tensor([5, 5, -1, 0, 3, 1]), torch.tensor([0, 100, 7, 3, 50, -1])
    bias = torch.tensor([-100.0, 4.5, 1e9, 0.25, 100.0, 1e9])
    expected = logits.clone()
    for row, column, value in zip(rows.tolist(), columns.tolist(), bias.tolist(), strict=True):
        if row >= 0 and column >= 0:
            expected[row, column] += value
    actual = logits.to(DEVICE, copy=True)
    placed = LogitBias(rows.to(DEVICE), columns.int().to(DEVICE), bias.to(DEVICE))
    op.apply_bias_and_penalties(actual, placed, on_device(values))
    assert torch.equal(actual.cpu(), penalised_by_reference(expected, values))
    op.apply_bias_and_penalties(actual)
    assert torch.equal(actual.cpu(), penalised_by_reference(expected, values))


def test_no_entries_and_what_does_not_fit() -> None:
    logits, values = normal(6, 101, seed=5).to(DEVICE), on_device(penalties(101, torch.arange(19)))
    before = logits.clone()
    per_entry = {field.name: getattr(values, field.name)[:0] for field in fields(values)}
    none = Penalties(**per_entry | {"history": values.history})
    empty = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    op.apply_bias_and_penalties(logits, LogitBias(empty, empty, empty.float()), none)
    assert torch.equal(logits, before)
    with pytest.raises(ValueError, match=r"penalties.counts must be \[4, 101\]"):
        op.apply_bias_and_penalties(logits, None, replace(values, counts=values.counts[:, :100]))
    with pytest.raises(ValueError, match="penalties.num_tokens must be"):
        op.apply_bias_and_penalties(logits, None, replace(values, num_tokens=values.num_tokens.long()))
    with pytest.raises(ValueError, match=r"bias.rows must be \[3\]"):
        op.apply_bias_and_penalties(logits, LogitBias(empty, empty, torch.zeros(3, device=DEVICE)))
    with pytest.raises(ValueError, match="count must be at least 0"):
        op.top_logprobs(logits[:0], empty, -1)


@pytest.mark.parametrize(("num_tokens", "count"), [(3, 20), (130, 0), (271, 20)])
def test_top_logprobs(num_tokens: int, count: int) -> None:
    size = 3
    logits = normal(size, num_tokens, seed=6)
    logits[1] = (logits[1] * 2).round() / 2  # many equals
    logits[2, 1:] = -math.inf  # hardly any to list
    chosen = torch.tensor([num_tokens - 1, 2, 0])
    chosen_logprobs, columns, logprobs = op.top_logprobs(logits.to(DEVICE), chosen.to(DEVICE), count)
    listed = min(count, num_tokens)
    expected = logits.double().log_softmax(-1)
    # Float32 sums of up to some hundred exponentials, and a subtraction at magnitudes up to 16: 2^-19.
    assert torch.allclose(chosen_logprobs.cpu().double(), expected.gather(1, chosen[:, None])[:, 0], rtol=0, atol=4e-6)
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :listed]
    assert torch.equal(columns.cpu(), order) and logprobs.shape == (size, listed)
    assert torch.allclose(logprobs.cpu().double(), expected.gather(1, order), rtol=0, atol=4e-6)
    for row in range(2):
        single = reference.top_logprobs(logits[row], int(chosen[row]), count)
        assert single[0] == pytest.approx(float(chosen_logprobs[row]), abs=4e-6)
        assert single[2] == pytest.approx(logprobs[row].tolist(), abs=4e-6)


def test_rows_with_nan_disturb_no_other() -> None:
    logits = normal(3, 140, seed=7)
    chosen = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    expected = op.top_logprobs(logits.to(DEVICE), chosen, 4)
    logits[1] = math.nan
    actual = op.top_logprobs(logits.to(DEVICE), chosen, 4)
    for part, whole in zip(actual, expected, strict=True):
        assert torch.equal(part[[0, 2]], whole[[0, 2]])
    assert ((actual[1] >= 0) & (actual[1] < 140)).all()
