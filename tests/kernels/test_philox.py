"""The counter-based generator: known answers, an independent implementation, and exact bits."""

import math
import os
import subprocess
import sys

import pytest
import torch

from chorus_kernels.sampling import gumbel_noise, gumbel_noise_grid, philox_4x32, random_words, split_seed
from chorus_kernels.sampling.philox import MAX_GUMBEL, MIN_GUMBEL

MASK = 0xFFFFFFFF
# From the authors' own test vectors (Random123, kat_vectors, philox4x32 with 10 rounds): counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
GOLDEN_BITS = [1034794557, -1080819157, 996455666, 1065603244, 1066615072, 1069653901]
SEEDS = (0, 1, 77, 2**32, 2**63 + 5, 2**64 - 1)


def philox_in_integers(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return tuple(c)


def words(seed: int, position: int, token_ids: list[int]) -> list[int]:
    size = len(token_ids)
    seeds = torch.tensor([split_seed(seed)]).expand(size, 2)
    return random_words(seeds, torch.full((size,), position), torch.tensor(token_ids)).tolist()


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    assert philox_in_integers(counter, key) == answer
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    assert (
        tuple(int(word) for word in philox_4x32((c0, c1, c2, c3), (torch.tensor(key[0]), torch.tensor(key[1]))))
        == answer
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("position", [0, 1, 131071])
def test_words_are_those_of_seed_position_and_token(seed: int, position: int) -> None:
    token_ids = [0, 1, 2, 3, 4, 201087, 200000, 5]
    expected = [philox_in_integers((t // 4, position, 0, 0), (seed & MASK, seed >> 32))[t % 4] for t in token_ids]
    assert words(seed, position, token_ids) == expected


def test_noise_has_the_bits_it_always_had() -> None:
    """A change here would give every seeded request other tokens."""
    noise = gumbel_noise(torch.tensor([split_seed(s) for s in SEEDS]), torch.arange(6) * 1000, torch.arange(6) * 40000)
    assert noise.view(torch.int32).tolist() == GOLDEN_BITS


def test_noise_is_the_same_in_another_process() -> None:
    code = (
        "import torch; from chorus_kernels.sampling import gumbel_noise, split_seed\n"
        f"s = torch.tensor([split_seed(x) for x in {SEEDS}])\n"
        "print(gumbel_noise(s, torch.arange(6) * 1000, torch.arange(6) * 40000).view(torch.int32).tolist())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == str(GOLDEN_BITS)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 20000])
def test_noise_does_not_depend_on_how_many_are_drawn(size: int) -> None:
    token_ids = torch.arange(size) * 7 % 201088
    seeds = torch.tensor([split_seed(9)]).expand(size, 2)
    noise = gumbel_noise(seeds, torch.full((size,), 3), token_ids)
    assert noise.shape == (size,)
    for i in range(0, size, max(1, size // 5)):
        assert torch.equal(gumbel_noise(seeds[i : i + 1], torch.tensor([3]), token_ids[i : i + 1]), noise[i : i + 1])


def test_noise_has_gumbels_moments_and_lies_within_the_stated_bounds() -> None:
    size = 400_000
    seeds = torch.tensor([split_seed(2)]).expand(size, 2)
    noise = gumbel_noise(seeds, torch.arange(size) // 1000, torch.arange(size) % 1000).double()
    # Mean: Euler's constant; variance: pi^2 / 6; five standard errors.
    assert float(noise.mean()) == pytest.approx(0.5772156649, abs=5 * 1.2825 / size**0.5)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    extremes = [-math.log(-math.log((word + 0.5) * 2.0**-32)) for word in (0, MASK)]
    assert MIN_GUMBEL < extremes[0] < -3.12 and 22.87 < extremes[1] < MAX_GUMBEL


@pytest.mark.parametrize(("num_sequences", "num_tokens"), [(1, 1), (3, 5000), (40, 333), (2, 30000), (0, 7), (2, 0)])
def test_the_grid_holds_the_same_numbers(num_sequences: int, num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    seeds = torch.randint(0, 2**32, (num_sequences, 2), generator=generator)
    positions = torch.randint(0, 131072, (num_sequences,), generator=generator)
    token_ids = torch.randperm(201088, generator=generator)[:num_tokens]
    grid = gumbel_noise_grid(seeds, positions, token_ids)
    assert grid.shape == (num_sequences, num_tokens)
    for s in range(0, num_sequences, 7):
        one = gumbel_noise(seeds[s].expand(num_tokens, 2), positions[s].expand(num_tokens), token_ids)
        assert torch.equal(grid[s], one)
