"""What the benchmark of the truth says of two sets of logits, and of experts."""

import torch
from benchmarks.truth import Distance, Outcome, compare, distance

CPU = torch.device("cpu")


def test_errors_are_relative_to_a_positions_logits() -> None:
    truth = torch.tensor([[3.0, 4.0], [0.0, 10.0], [6.0, 8.0]])
    actual = truth + torch.tensor([[0.0, 0.5], [-1.0, 0.0], [8.0, 0.0]])
    relative, top1 = compare(actual, truth, CPU)
    assert torch.allclose(relative, torch.tensor([0.1, 0.1, 0.8]).double())
    assert top1 == 2 / 3


def test_positions_with_other_experts_are_counted_by_layer() -> None:
    logits = torch.ones(4, 3)
    experts = torch.tensor([[[0, 1]] * 4, [[2, 3]] * 4])
    changed = experts.clone()
    changed[1, 2] = torch.tensor([2, 5])
    found = distance(Outcome(logits, changed), Outcome(logits, experts), CPU)
    assert found == Distance(median=0.0, p99=0.0, top1=1.0, other_experts=1 / 8)
    assert distance(Outcome(logits, changed).last(1), Outcome(logits, experts).last(1), CPU).other_experts == 0


def test_both_the_median_and_the_worst_are_bound() -> None:
    judge = Distance(median=0.1, p99=0.5, top1=0, other_experts=0)
    assert Distance(0.119, 0.599, 0, 0).within(judge)
    assert not Distance(0.121, 0.5, 0, 0).within(judge)
    assert not Distance(0.1, 0.601, 0, 0).within(judge)
