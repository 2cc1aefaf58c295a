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
from chorus_workers.runner.triton.masks import MaskUpload
from chorus_workers.runner.triton.transfer import Download, Sent, Upload
from chorus_workers.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class DrawNumbers:
    """What a draw asks for that is known early, as numbers of an upload's arrays: those of `sample`; those of
    `LogitBias` (none, if there is none); the rows that want log probabilities, int64."""

    numbers: Mapping[str, int]
    bias: Mapping[str, int]
    truncated: bool
    picked: int
    # Of these rows, in order, how many.
    num_logprobs: Mapping[int, int]


class PendingDraw:
    """Tokens that the device draws."""

    def __init__(self, counts: Mapping[int, int], download: Download, *, masked: bool) -> None:
        """counts: of the rows that want log probabilities, in order, how many; download: token ids, int64 [S], -1 for a
        row that failed; if masked, which rows were overruled, int32 [S]; and for the rows of `counts` the chosen
        token's log probability, the likeliest token ids, and theirs."""
        self._counts, self._download, self._masked = counts, download, masked

    def result(self) -> list[SampledToken]:
        """Waits for the device."""
        token_ids, *rest = (tensor.tolist() for tensor in self._download.result())
        overruled, logprobs = (rest[0], rest[1:]) if self._masked else ([0] * len(token_ids), rest)
        drawn = [
            SampledToken(token_id, overruled=lost != 0) if token_id >= 0 else SampledToken(0, failed=True)
            for token_id, lost in zip(token_ids, overruled, strict=True)
        ]
        for (row, count), logprob, top, values in zip(self._counts.items(), *(logprobs or ([], [], [])), strict=True):
            if not drawn[row].failed:
                drawn[row].logprob, drawn[row].top = logprob, tuple(zip(top[:count], values[:count], strict=True))
        return drawn


@dataclass(frozen=True, slots=True)
class PreparedDraw:
    """A draw from logits that the device computes."""

    sampler: "DeviceSampler"
    requests: Sequence[SampleRequest]
    logits: Tensor
    numbers: DrawNumbers
    sent: Sent
    latest: LatestTokens | None = None

    def launch(self) -> PendingDraw:
        """Begins it, when all tokens before those to be drawn are known."""
        return self.sampler.launch(self.logits, self.requests, self.numbers, self.sent, self.latest)


class DeviceSampler:
    """Turns logits into tokens as `chorus_workers.runner.sampler` does; one request's logits can't touch another's."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        self._device = device
        self._logit_rows = vocabulary.logit_rows
        # The kernels' default, that column i is token i, is a plain vocabulary.
        self._token_ids = None if vocabulary.logit_rows is None else vocabulary.token_ids.to(device)
        self._counts = torch.empty(0, 0, dtype=torch.int32, device=device)
        self._masks = MaskUpload(device)

    def prepare(self, upload: Upload, requests: Sequence[SampleRequest]) -> DrawNumbers:
        """Adds to an upload what is known early of a draw of one token for each request."""
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
        return DrawNumbers(
            numbers,
            self._add_bias(upload, params),
            any(_is_truncated(p) for p in params),
            upload.add(list(num_logprobs), np.int64),
            num_logprobs,
        )

    def launch(
        self,
        logits: Tensor,
        requests: Sequence[SampleRequest],
        draw: DrawNumbers,
        sent: Sent,
        latest: LatestTokens | None = None,
    ) -> PendingDraw:
        """Begins to draw. logits: float32 [S, N] over the vocabulary's rows; changed in place. sent: of the upload;
        latest: gets the tokens, too."""
        penalties, mask = self._penalties(requests, logits.shape[1]), self._masks.send(requests)
        bias = LogitBias(**sent.named(draw.bias)) if draw.bias else None
        apply_bias_and_penalties(logits, bias, penalties)
        drawn = sample(
            logits,
            **sent.named(draw.numbers),
            token_ids=self._token_ids,
            token_mask=mask,
            truncated=draw.truncated,
            latest=latest,
        )
        sent_back = [drawn.token_ids] if drawn.overruled is None else [drawn.token_ids, drawn.overruled]
        if draw.num_logprobs:
            rows = sent[draw.picked]
            most = max(draw.num_logprobs.values())
            chosen, top, values = top_logprobs(logits[rows], drawn.columns[rows], most)
            sent_back += [chosen, self._to_ids(top), values]
        return PendingDraw(draw.num_logprobs, Download(sent_back), masked=mask is not None)

    def _penalties(self, requests: Sequence[SampleRequest], num_columns: int) -> Penalties | None:
        """They depend on the last token before a draw, and are sent by themselves; None, if there are none."""
        upload = Upload()
        numbers = self._add_penalties(upload, requests)
        if not numbers:
            return None
        num_penalised = sum(request.params.has_penalties for request in requests)
        sent = upload.to(self._device)
        return Penalties(**sent.named(numbers), counts=self._zeros(num_penalised, num_columns))

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
