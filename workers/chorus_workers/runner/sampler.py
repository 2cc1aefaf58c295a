"""Draws the tokens that a step asks for."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chorus_kernels.sampling import MIN_TEMPERATURE, apply_penalties, greedy, sample, split_seed, top_logprobs
from chorus_workers.model.weights import Vocabulary
from chorus_workers.runner.base import SampledToken, SampleRequest
from chorus_workers.sampling_params import SamplingParams


class Sampler:
    """Turns logits into tokens, each request by its own parameters; one request's logits can't touch another's."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def draw(self, logits: Tensor, requests: Sequence[SampleRequest]) -> list[SampledToken]:
        """One token for each request. logits: float32 [S, N] over the vocabulary's rows; changed in place."""
        # A sum is finite only if everything in it is.
        finite = logits.sum(-1).isfinite().tolist()
        for row, request in enumerate(requests):
            self._adjust(logits[row], request)
        allowed, overruled = self._mask(logits, requests)
        drawable = [is_finite and top > -torch.inf for is_finite, top in zip(finite, allowed.amax(-1), strict=True)]
        chosen = greedy(allowed)
        random = [i for i, r in enumerate(requests) if drawable[i] and r.params.temperature >= MIN_TEMPERATURE]
        if random:
            picked = torch.tensor(random)
            chosen[picked] = self._draw_random(allowed[picked], [requests[i] for i in random])
        rows, token_ids = chosen.tolist(), self._vocabulary.token_ids[chosen].tolist()
        return [
            self._result(logits[i], rows[i], token_ids[i], request.params, i in overruled)
            if drawable[i]
            else SampledToken(0, failed=True)
            for i, request in enumerate(requests)
        ]

    def _mask(self, logits: Tensor, requests: Sequence[SampleRequest]) -> tuple[Tensor, frozenset[int]]:
        """Logits with -inf for what masks forbid, [S, N]; and the rows of which that is the likeliest."""
        masked = [i for i, request in enumerate(requests) if request.mask is not None]
        if not masked:
            return logits, frozenset()
        words = torch.from_numpy(np.stack([request.mask for request in requests if request.mask is not None]))
        columns = torch.arange(logits.shape[1])
        forbidden = (words[:, columns >> 5] >> (columns & 31)) & 1 == 0
        allowed = logits.clone()
        allowed[masked] = logits[masked].masked_fill(forbidden, -torch.inf)
        is_overruled = logits[masked].amax(-1) > allowed[masked].amax(-1)
        return allowed, frozenset(i for i, lost in zip(masked, is_overruled.tolist(), strict=True) if lost)

    def _adjust(self, logits: Tensor, request: SampleRequest) -> None:
        """Logit bias and penalties, in place; logits: [N]."""
        params = request.params
        if params.logit_bias:
            rows = self._logit_rows(list(params.logit_bias))
            listed = rows >= 0
            logits[rows[listed]] += torch.tensor(list(params.logit_bias.values()))[listed]
        if params.has_penalties:
            rows = self._logit_rows(request.all_token_ids)
            generated = rows[request.num_prompt_tokens :]
            apply_penalties(
                logits,
                rows[rows >= 0],
                generated[generated >= 0],
                repetition=params.repetition_penalty,
                frequency=params.frequency_penalty,
                presence=params.presence_penalty,
            )

    def _logit_rows(self, token_ids: Sequence[int]) -> Tensor:
        """Rows of token ids, -1 for those that the vocabulary doesn't list."""
        ids = torch.tensor(token_ids, dtype=torch.int64)
        return ids if self._vocabulary.logit_rows is None else self._vocabulary.logit_rows[ids]

    def _draw_random(self, logits: Tensor, requests: Sequence[SampleRequest]) -> Tensor:
        params = [request.params for request in requests]
        return sample(
            logits,
            self._vocabulary.token_ids,
            temperature=torch.tensor([p.temperature for p in params]),
            top_k=torch.tensor([p.top_k for p in params]),
            top_p=torch.tensor([p.top_p for p in params]),
            min_p=torch.tensor([p.min_p for p in params]),
            seeds=torch.tensor([split_seed(p.seed) for p in params]),
            positions=torch.tensor([request.position for request in requests]),
        )

    def _result(self, logits: Tensor, row: int, token_id: int, params: SamplingParams, overruled: bool) -> SampledToken:
        if params.num_top_logprobs is None:
            return SampledToken(token_id, overruled=overruled)
        logprob, rows, logprobs = top_logprobs(logits, row, params.num_top_logprobs)
        token_ids = self._vocabulary.token_ids[rows].tolist()
        return SampledToken(token_id, logprob, tuple(zip(token_ids, logprobs, strict=True)), overruled=overruled)
