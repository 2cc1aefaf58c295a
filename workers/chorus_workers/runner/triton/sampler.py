"""Draws a step's tokens on the device; the host sees no more than what was drawn, and only when it asks."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from chorus_kernels.sampling import MIN_TEMPERATURE, split_seed
from chorus_kernels.sampling.op import LogitBias, Penalties, apply_bias_and_penalties, sample, top_logprobs
from chorus_workers.model.weights import Vocabulary
from chorus_workers.runner.base import SampledToken, SampleRequest
from chorus_workers.runner.triton.transfer import Download, Upload
from chorus_workers.sampling_params import SamplingParams


class PendingDraw:
    """Tokens that the device draws. `token_ids`: int64 [S] there, -1 for a row that failed."""

    def __init__(self, token_ids: Tensor, counts: Mapping[int, int], download: Download) -> None:
        """counts: of the rows that want log probabilities, in order, how many; download: token_ids, and for these rows
        the chosen token's log probability, the likeliest token ids, and theirs."""
        self.token_ids = token_ids
        self._counts, self._download = counts, download

    def result(self) -> list[SampledToken]:
        """Waits for the device."""
        token_ids, *logprobs = (tensor.tolist() for tensor in self._download.result())
        drawn = [SampledToken(token_id) if token_id >= 0 else SampledToken(0, failed=True) for token_id in token_ids]
        for (row, count), logprob, top, values in zip(self._counts.items(), *(logprobs or ([], [], [])), strict=True):
            if not drawn[row].failed:
                pairs = zip(top[:count], values[:count], strict=True)
                drawn[row] = SampledToken(token_ids[row], logprob, tuple(pairs))
        return drawn


class DeviceSampler:
    """Turns logits into tokens as `chorus_workers.runner.sampler` does; one request's logits can't touch another's."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        self._device = device
        self._logit_rows = vocabulary.logit_rows
        # The kernels' default, that column i is token i, is a plain vocabulary.
        self._token_ids = None if vocabulary.logit_rows is None else vocabulary.token_ids.to(device)
        self._counts = torch.empty(0, 0, dtype=torch.int32, device=device)

    def launch(self, logits: Tensor, requests: Sequence[SampleRequest]) -> "PendingDraw":
        """Begins to draw one token for each request. logits: float32 [S, N] over the vocabulary's rows; changed in
        place."""
        params = [request.params for request in requests]
        upload = Upload()
        numbers = {
            "temperature": upload.add([p.temperature for p in params], np.float32),
            "top_k": upload.add([p.top_k for p in params], np.int64),
            "top_p": upload.add([p.top_p for p in params], np.float32),
            "min_p": upload.add([p.min_p for p in params], np.float32),
            "seeds": upload.add([split_seed(p.seed) for p in params], np.int64),
            "positions": upload.add([request.position for request in requests], np.int64),
        }
        bias, penalties = self._add_bias(upload, params), self._add_penalties(upload, requests)
        with_logprobs = [row for row, p in enumerate(params) if p.num_top_logprobs is not None]
        picked = upload.add(with_logprobs, np.int64)
        sent = upload.to(self._device)
        counts = self._zeros(sum(p.has_penalties for p in params), logits.shape[1])
        apply_bias_and_penalties(
            logits,
            LogitBias(**sent.named(bias)) if bias else None,
            Penalties(**sent.named(penalties), counts=counts) if penalties else None,
        )
        truncated = any(_is_truncated(p) for p in params)
        columns, finite = sample(logits, **sent.named(numbers), token_ids=self._token_ids, truncated=truncated)
        token_ids = torch.where(finite, self._to_ids(columns), -1)
        sent_back = [token_ids]
        counts_of = {row: params[row].num_top_logprobs or 0 for row in with_logprobs}
        if with_logprobs:
            rows = sent[picked]
            chosen, top, values = top_logprobs(logits[rows], columns[rows], max(counts_of.values()))
            sent_back += [chosen, self._to_ids(top), values]
        return PendingDraw(token_ids, counts_of, Download(sent_back))

    def _add_bias(self, upload: Upload, params: Sequence[SamplingParams]) -> dict[str, int]:
        """The numbers of the arrays that are LogitBias's fields; none, if there is no bias."""
        rows = [row for row, p in enumerate(params) for _ in p.logit_bias]
        if not rows:
            return {}
        return {
            "rows": upload.add(rows),
            "columns": upload.add([column for p in params for column in self._columns(list(p.logit_bias))]),
            "values": upload.add([value for p in params for value in p.logit_bias.values()], np.float32),
        }

    def _add_penalties(self, upload: Upload, requests: Sequence[SampleRequest]) -> dict[str, int]:
        """The numbers of the arrays that are Penalties' fields, but for the last; none, if there are no penalties."""
        rows = [row for row, request in enumerate(requests) if request.params.has_penalties]
        if not rows:
            return {}
        asked = [requests[row] for row in rows]
        history = np.full((len(asked), max(len(request.all_token_ids) for request in asked)), -1, np.int32)
        for known, request in zip(history, asked, strict=True):
            known[: len(request.all_token_ids)] = self._columns(request.all_token_ids)
        return {
            "rows": upload.add(rows, np.int64),
            "history": upload.add(history),
            "history_rows": upload.add(np.arange(len(asked)), np.int64),
            "num_prompt_tokens": upload.add([request.num_prompt_tokens for request in asked]),
            "num_tokens": upload.add([len(request.all_token_ids) for request in asked]),
            "repetition": upload.add([request.params.repetition_penalty for request in asked], np.float32),
            "frequency": upload.add([request.params.frequency_penalty for request in asked], np.float32),
            "presence": upload.add([request.params.presence_penalty for request in asked], np.float32),
        }

    def _zeros(self, num_rows: int, num_columns: int) -> Tensor:
        """int32 zeros, which the kernels leave as zeros."""
        if self._counts.shape[0] < num_rows or self._counts.shape[1] != num_columns:
            self._counts = torch.zeros(num_rows, num_columns, dtype=torch.int32, device=self._device)
        return self._counts[:num_rows]

    def _columns(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The logits' columns of token ids, -1 for those that the vocabulary doesn't list."""
        if self._logit_rows is None:
            return token_ids
        columns: list[int] = self._logit_rows[torch.tensor(token_ids, dtype=torch.int64)].tolist()
        return columns

    def _to_ids(self, columns: Tensor) -> Tensor:
        return columns if self._token_ids is None else self._token_ids[columns]


def _is_truncated(params: SamplingParams) -> bool:
    is_random = params.temperature >= MIN_TEMPERATURE
    return is_random and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)
