"""Counter-based random numbers: what is drawn for (seed, position, token id) is a function of these three alone.

Philox-4x32-10 turns a 128-bit counter and a 64-bit key into four 32-bit words, with integer arithmetic only. Here the
key is the request's seed, and the counter (token_id // 4, position, 0, 0): token ids 4b to 4b + 3 share a block, and
token id t takes its word t mod 4. So a token's noise doesn't depend on the batch, on which other tokens are candidates,
nor on how a vocabulary is stored or split.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), whose known answers the tests hold.
"""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_MASK = 0xFFFFFFFF
# Numbers drawn at a time on a CPU: ten rounds over more than the inner caches hold take twice as long.
_CHUNK = 8192

# -log(-log(u)) for the smallest and the largest u that a 32-bit word gives, rounded outwards.
MIN_GUMBEL = -3.14
MAX_GUMBEL = 22.88


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random 32-bit words for each counter and key.

    All tensors are int64 that hold 32-bit unsigned values, of shapes that broadcast; so are the four returned.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        # The product wraps modulo 2^64, so both halves of the unsigned product are right once masked.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((product0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK, (k1 + _KEY_INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def random_words(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """One 32-bit word, in int64, for each (seed, position, token id).

    seeds: int64 [..., 2], the low and the high 32 bits; positions, token_ids: int64 [...]; shapes broadcast.
    """
    zero = torch.zeros_like(positions)
    words = philox_4x32((token_ids >> 2, positions, zero, zero), (seeds[..., 0], seeds[..., 1]))
    return torch.stack(torch.broadcast_tensors(*words)).gather(0, (token_ids & 3).expand(words[0].shape)[None])[0]


def gumbel_noise(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log(u)), u = (word + 1/2) / 2^32, of `random_words`; float32.

    seeds: int64 [M, 2]; positions, token_ids: int64 [M]; returns [M]. Computed in float64 and rounded once, so that
    libraries whose logarithms differ in the last bit agree.
    """
    parts = zip(seeds.split(_CHUNK), positions.split(_CHUNK), token_ids.split(_CHUNK), strict=True)
    return torch.cat([_gumbel_noise(*part) for part in parts])


def gumbel_noise_grid(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """The same numbers for every sequence and token: seeds [S, 2], positions [S], token_ids [N] to float32 [S, N].

    A block of four token ids is drawn once: several times cheaper than `gumbel_noise`, where most are wanted.
    """
    blocks, inverse = (token_ids >> 2).unique(return_inverse=True)
    columns = inverse * 4 + (token_ids & 3)
    zero = torch.zeros(1, 1, dtype=torch.int64, device=token_ids.device)
    num_rows = max(1, _CHUNK // max(1, blocks.shape[0]))
    rows = []
    for seed, position in zip(seeds.unsqueeze(1).split(num_rows), positions.unsqueeze(1).split(num_rows), strict=True):
        words = philox_4x32((blocks.unsqueeze(0), position, zero, zero), (seed[..., 0], seed[..., 1]))
        words_by_token = torch.stack(torch.broadcast_tensors(*words), -1).flatten(1).index_select(1, columns)
        rows.append(_to_gumbel(words_by_token))
    return torch.cat(rows)


def _gumbel_noise(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    return _to_gumbel(random_words(seeds, positions, token_ids))


def _to_gumbel(words: Tensor) -> Tensor:
    uniform = (words.double() + 0.5) * 2.0**-32
    return uniform.log_().neg_().log_().neg_().float()


def split_seed(seed: int) -> tuple[int, int]:
    """The low and the high 32 bits of a 64-bit seed, for `random_words`."""
    return seed & _MASK, (seed >> 32) & _MASK
