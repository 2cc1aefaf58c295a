"""Attention with sinks against a loop over the formula, and the gathers of paged and ring memory."""

import math

import pytest
import torch
from torch import Tensor

from chorus_kernels.attention import attention, batched_attention, paged_rows, visibility

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 5


def inputs(num_queries: int, num_keys: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(num_queries, NUM_HEADS, HEAD_DIM, generator=generator)
    k, v = torch.randn(2, num_keys, NUM_KV_HEADS, HEAD_DIM, generator=generator)
    return q, k, v, torch.randn(NUM_HEADS, generator=generator)


def formula(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, start: int, first_key: int, window: int | None) -> Tensor:
    out = torch.zeros(q.shape, dtype=torch.float64)
    for t in range(q.shape[0]):
        for h in range(NUM_HEADS):
            total, mixed = math.exp(float(sinks[h])), torch.zeros(HEAD_DIM, dtype=torch.float64)
            for j in range(k.shape[0]):
                distance = start + t - (first_key + j)
                if distance < 0 or (window is not None and distance >= window):
                    continue
                kv_head = h // (NUM_HEADS // NUM_KV_HEADS)
                weight = math.exp(float(q[t, h].double() @ k[j, kv_head].double()) / math.sqrt(HEAD_DIM))
                total += weight
                mixed += weight * v[j, kv_head].double()
            out[t, h] = mixed / total
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "first_key"), [(1, 1, 0), (9, 9, 0), (4, 11, 0), (3, 8, 20), (0, 4, 0)]
)
def test_attention_is_the_formula(num_queries: int, num_keys: int, first_key: int, window: int | None) -> None:
    q, k, v, sinks = inputs(num_queries, num_keys)
    start = first_key + num_keys - num_queries
    out = attention(
        q,
        k,
        v,
        sinks,
        query_positions=torch.arange(start, start + num_queries),
        key_positions=torch.arange(first_key, first_key + num_keys),
        window=window,
    )
    assert torch.allclose(out.double(), formula(q, k, v, sinks, start, first_key, window), atol=1e-6)


def test_visibility_counts_the_query_in_the_window() -> None:
    visible = visibility(torch.tensor([5]), torch.arange(8), 3)
    assert visible.tolist() == [[False, False, False, True, True, True, False, False]]


@pytest.mark.parametrize("num_queries", [1, 4])
def test_batched_attention_equals_attention_of_each_sequence(num_queries: int) -> None:
    lengths, longest = (4, 9, 7), 9
    group = NUM_HEADS // NUM_KV_HEADS
    sinks = inputs(1, 1, seed=9)[3]
    kv = torch.zeros(NUM_KV_HEADS, len(lengths), 1 + longest, 2 * HEAD_DIM)
    # What lies beyond a sequence's end is garbage, but finite: the memory's row of zeros in practice.
    kv[:, :, 1:] = 1e4
    mask = torch.full((len(lengths), 1, num_queries, 1 + longest), -math.inf)
    mask[..., 0] = 0
    q = torch.empty(NUM_KV_HEADS, len(lengths), group * num_queries, HEAD_DIM)
    expected = []
    for s, length in enumerate(lengths):
        one, k, v, _ = inputs(num_queries, length, seed=s)
        positions = torch.arange(length - num_queries, length)
        q[:, s] = one.view(num_queries, NUM_KV_HEADS, group, HEAD_DIM).permute(1, 2, 0, 3).flatten(1, 2)
        kv[:, s, 1 : 1 + length] = torch.cat((k, v), -1).transpose(0, 1)
        mask[s, 0, :, 1 : 1 + length].masked_fill_(visibility(positions, torch.arange(length), None), 0)
        expected.append(
            attention(one, k, v, sinks, query_positions=positions, key_positions=torch.arange(length), window=None)
        )
    out = batched_attention(q, kv, sinks, mask, num_queries)
    for s in range(len(lengths)):
        by_head = out[:, s].view(NUM_KV_HEADS, group, num_queries, HEAD_DIM).permute(2, 0, 1, 3).flatten(1, 2)
        assert torch.allclose(by_head, expected[s], atol=1e-6)


def test_batched_attention_without_a_mask_sees_everything() -> None:
    q, k, v, sinks = inputs(1, 6)
    kv = torch.cat((torch.zeros(NUM_KV_HEADS, 1, 1, 2 * HEAD_DIM), torch.cat((k, v), -1).transpose(0, 1)[:, None]), 2)
    out = batched_attention(q.view(NUM_KV_HEADS, 1, -1, HEAD_DIM), kv, sinks, None)
    assert torch.allclose(out.view(1, NUM_HEADS, HEAD_DIM).double(), formula(q, k, v, sinks, 5, 0, None), atol=1e-6)


def test_paged_rows_follow_the_block_table() -> None:
    assert paged_rows(torch.tensor([4, 0, 7]), 3).tolist() == [12, 13, 14, 0, 1, 2, 21, 22, 23]
    assert paged_rows(torch.tensor([[1], [2]]), 2).tolist() == [[2, 3], [4, 5]]
