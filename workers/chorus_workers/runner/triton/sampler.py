"""Draws a step's tokens on the device; the host sees no more than what was drawn, and only when it asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chorus_kernels.sampling import MIN_TEMPERATURE, split_seed
from chorus_kernels.sampling.op import (
    LatestTokens,
    LogitBias,
    Penalties,
    apply_bias_and_penalties,
    sample,
    top_logprobs,
)
from chorus_workers.model.weights import Vocabulary
from chorus_workers.runner.base import SampledToken, SampleRequest
from chorus_workers.runner.triton.transfer import Download, Sent, Upload
from chorus_workers.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class PreparedDraw:
    """What a draw asks for, as numbers of an upload's arrays: those of `sample`; those of `LogitBias` and of
    `Penalties`, but for the last of these (none, if there are none); the rows that want log probabilities, int64."""

    numbers: Mapping[str, int]
    bias: Mapping[str, int]
    penalties: Mapping[str, int]
    num_penalised: int
    truncated: bool
    picked: int
    # Of these rows, in order, how many.
    num_logprobs: Mapping[int, int]


class PendingDraw:
    """Tokens that the device draws."""

    def __init__(self, counts: Mapping[int, int], download: Download) -> None:
        """counts: of the rows that want log probabilities, in order, how many; download: token ids, int64 [S], -1 for a
        row that failed, and for these rows the chosen token's log probability, the likeliest token ids, and theirs."""
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

    def prepare(self, upload: Upload, requests: Sequence[SampleRequest]) -> PreparedDraw:
        """Adds what a draw of one token for each request needs to an upload."""
        params = [request.params for request in requests]
        numbers = {
            "temperature": upload.add([p.temperature for p in params], np.float32),
            "top_k": upload.add([p.top_k for p in params], np.int64),
            "top_p": upload.add([p.top_p for p in params], np.float32),
            "min_p": upload.add([p.min_p for p in params], np.float32),
            "seeds": upload.add([split_seed(p.seed) for p in params], np.int64),
            "positions": upload.add([request.position for request in requests], np.int64),
        }
        num_logprobs = {row: p.num_top_logprobs for row, p in enumerate(params) if p.num_top_logprobs is not None}
        return PreparedDraw(
            numbers,
            self._add_bias(upload, params),
            self._add_penalties(upload, requests),
            sum(p.has_penalties for p in params),
            any(_is_truncated(p) for p in params),
            upload.add(list(num_logprobs), np.int64),
            num_logprobs,
        )

    def launch(self, logits: Tensor, draw: PreparedDraw, sent: Sent, latest: LatestTokens | None = None) -> PendingDraw:
        """Begins to draw. logits: float32 [S, N] over the vocabulary's rows; changed in place. sent: of the upload;
        latest: gets the tokens, too."""
        counts = self._zeros(draw.num_penalised, logits.shape[1])
        apply_bias_and_penalties(
            logits,
            LogitBias(**sent.named(draw.bias)) if draw.bias else None,
            Penalties(**sent.named(draw.penalties), counts=counts) if draw.penalties else None,
        )
        columns, token_ids = sample(
            logits, **sent.named(draw.numbers), token_ids=self._token_ids, truncated=draw.truncated, latest=latest
        )
        sent_back = [token_ids]
        if draw.num_logprobs:
            rows = sent[draw.picked]
            chosen, top, values = top_logprobs(logits[rows], columns[rows], max(draw.num_logprobs.values()))
            sent_back += [chosen, self._to_ids(top), values]
        return PendingDraw(draw.num_logprobs, Download(sent_back))

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
