"""From logits to a token: bias, penalties, temperature, truncation and the draw.

The order: logit bias; repetition, frequency and presence penalties; log probabilities are of these logits; division by
the temperature; min-p; top-k; top-p. Then Gumbel-max: argmax over the tokens left of z + g draws from softmax(z), with
g from `philox.gumbel_noise`, a function of (seed, position, token id). Truncation goes by likelihood alone: tokens
as likely as the last one kept are kept too.

Sources: Gumbel, "Statistical Theory of Extreme Values" (1954); Holtzman et al., "The Curious Case of Neural Text
Degeneration" (2020) for top-p; Keskar et al., "CTRL" (2019) for the repetition penalty; Nguyen et al., "Turning Up the
Heat: Min-p Sampling" (2024); the OpenAI API reference for frequency and presence penalties.
"""

import math

import torch
from torch import Tensor

from chorus_kernels.sampling.philox import MAX_GUMBEL, MIN_GUMBEL, gumbel_noise, gumbel_noise_grid

# Below this a temperature is greedy: differences of logits divided by it leave float32's useful range.
MIN_TEMPERATURE = 1e-5
# Most nuclei are small: top-p looks at this many of the likeliest tokens first, and at all only when it must.
_FIRST_NUCLEUS = 64
_NUCLEUS_GROWTH = 16


def greedy(logits: Tensor) -> Tensor:
    """The most likely rows: float [S, N] to int64 [S]; the first of equals."""
    return logits.max(-1).indices


def apply_penalties(
    logits: Tensor, seen: Tensor, generated: Tensor, *, repetition: float, frequency: float, presence: float
) -> None:
    """Penalises tokens in place: logits float32 [N]; seen (prompt and generated), generated: int64 rows, repeated as
    they occurred.

    Repetition r, for rows seen: l / r if l > 0, else l r, kept finite. Then for rows generated n times:
    l - n frequency - presence.
    """
    if repetition != 1.0:
        rows = seen.unique()
        values = logits[rows]
        penalised = torch.where(values > 0, values / repetition, values * repetition)
        largest = torch.finfo(logits.dtype).max
        logits[rows] = penalised.clamp(-largest, largest)
    if frequency != 0.0 or presence != 0.0:
        rows, counts = generated.unique(return_counts=True)
        logits[rows] -= counts * frequency + presence


def truncation_threshold(z: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The least z that may be drawn: a token is kept when its z is at least this. [S, N] to [S], both float32.

    z: log probabilities but for a constant, the largest of each row 0.
    top_k: int64 [S], 0 is off; top_p, min_p: float32 [S], off at 1 and 0. Each looks at what the ones before it kept:
    min-p keeps p >= min_p max(p); top-k keeps the k likeliest; top-p the fewest likeliest with mass >= top_p.
    """
    num_tokens = z.shape[-1]
    # In float64 and rounded once: libraries whose logarithms differ in the last bit agree.
    threshold = min_p.double().log().float()
    limited = ((top_k > 0) & (top_k < num_tokens)).nonzero().squeeze(-1)
    if limited.numel():
        k = top_k[limited]
        likeliest = z[limited].topk(int(k.max()), -1).values
        kth = likeliest.gather(-1, k.unsqueeze(-1) - 1).squeeze(-1)
        threshold[limited] = threshold[limited].maximum(kth)
    nucleus = (top_p < 1.0).nonzero().squeeze(-1)
    if nucleus.numel():
        kept = z[nucleus]
        kept = kept.masked_fill(kept < threshold[nucleus].unsqueeze(-1), float("-inf"))
        threshold[nucleus] = threshold[nucleus].maximum(_nucleus_threshold(kept, top_p[nucleus]))
    return threshold


def sample(
    logits: Tensor,
    token_ids: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Draws one row of each distribution; returns int64 [S].

    logits: float32 [S, N], finite; token_ids: int64 [N], the rows' token ids (they choose the random numbers);
    temperature: float32 [S], at least MIN_TEMPERATURE; top_k: int64 [S]; top_p, min_p: float32 [S]; seeds: int64
    [S, 2] of `philox.split_seed`; positions: int64 [S], of the tokens to be drawn.
    """
    z = (logits - logits.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)  # the largest is 0
    # A token this far behind loses to the likeliest one even with the best noise against the worst.
    threshold = truncation_threshold(z, top_k, top_p, min_p).clamp_min(MIN_GUMBEL - MAX_GUMBEL)
    kept = z >= threshold.unsqueeze(-1)
    if int(kept.sum()) * 2 > kept.numel():
        scores = z + gumbel_noise_grid(seeds, positions, token_ids)
        return scores.masked_fill_(~kept, -math.inf).max(-1).indices
    sequence, row = kept.nonzero(as_tuple=True)
    noise = gumbel_noise(seeds[sequence], positions[sequence], token_ids[row])
    scores = torch.full_like(z, -math.inf).index_put_((sequence, row), z[sequence, row] + noise)
    return scores.max(-1).indices


def top_logprobs(logits: Tensor, chosen: int, count: int) -> tuple[float, list[int], list[float]]:
    """Natural log probabilities of one distribution, float32 [N]: the chosen row's, and the `count` likeliest rows with
    theirs, most likely first."""
    normaliser = logits.logsumexp(-1)
    values, rows = logits.topk(min(count, logits.shape[-1]))
    return float(logits[chosen] - normaliser), rows.tolist(), (values - normaliser).tolist()


def _nucleus_threshold(z: Tensor, top_p: Tensor) -> Tensor:
    """The least z of each nucleus, float32 [S]; z: [S, N], at most 0, -inf where already dropped.

    A partition suffices: the likeliest few tokens, more of them only while their mass falls short.
    """
    num_tokens = z.shape[-1]
    total = z.exp().sum(-1, keepdim=True, dtype=torch.float64)
    count = min(_FIRST_NUCLEUS, num_tokens)
    while True:
        likeliest = z.topk(count, -1).values
        mass = likeliest.double().exp().cumsum(-1) / total  # [S, count]
        short = mass < top_p.unsqueeze(-1)
        if count == num_tokens or not bool(short[:, -1].any()):
            # The first entry that reaches the mass belongs to the nucleus; rounding may leave it short at the very end.
            last = short.sum(-1, keepdim=True).clamp_max(count - 1)
            return likeliest.gather(-1, last).squeeze(-1)
        count = min(count * _NUCLEUS_GROWTH, num_tokens)
