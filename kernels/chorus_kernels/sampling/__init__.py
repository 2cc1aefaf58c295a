from chorus_kernels.sampling.philox import gumbel_noise, gumbel_noise_grid, philox_4x32, random_words, split_seed
from chorus_kernels.sampling.reference import (
    MIN_TEMPERATURE,
    apply_penalties,
    greedy,
    sample,
    top_logprobs,
    truncation_threshold,
)

__all__ = [
    "MIN_TEMPERATURE",
    "apply_penalties",
    "greedy",
    "gumbel_noise",
    "gumbel_noise_grid",
    "philox_4x32",
    "random_words",
    "sample",
    "split_seed",
    "top_logprobs",
    "truncation_threshold",
]
