"""Decode steps as CUDA graphs: what the host does for a step is one copy and one launch.

A graph is captured for some batch sizes, and a batch runs in the next larger one, padded with sequences of length 0,
which write nothing and whose logits nobody reads. All graphs read the same buffers. Block tables stay on the device, a
row for each slot, and get the pages that are new.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chorus_workers.runner.base import RunnerInfo, SequenceChunk
from chorus_workers.runner.triton.step import DecodeInputs, StepInputs, is_prefill
from chorus_workers.runner.triton.transfer import Upload
from chorus_workers.runner.triton.transformer import DeviceTransformer

logger = logging.getLogger(__name__)

# Up to 8 tokens, each one more is felt; from there on a step is bound by what all experts weigh.
_SMALL, _STEP, _LARGE_STEP, _LARGE = 8, 8, 32, 64
_MAX_SIZE = 512
# Rows of the buffer of inputs.
_TOKENS, _POSITIONS, _LENGTHS, _SLOTS = range(4)


def graph_sizes(num_slots: int) -> list[int]:
    """The batch sizes that have graphs: every one up to 8, then further apart, up to num_slots or 512."""
    most = min(num_slots, _MAX_SIZE)
    sizes = [*range(1, _SMALL + 1), *range(_SMALL + _STEP, _LARGE + 1, _STEP)]
    sizes += range(_LARGE + _LARGE_STEP, _MAX_SIZE + 1, _LARGE_STEP)
    return [*(size for size in sizes if size < most), most]


class DecodeGraphs:
    """Runs batches in which every sequence has one token and draws one."""

    def __init__(self, transformer: DeviceTransformer, info: RunnerInfo, last_tokens: Tensor) -> None:
        """last_tokens: int32 [slots + 1], the token that was drawn for each slot last; the last one is padding's."""
        device = last_tokens.device
        self._transformer, self._last_tokens = transformer, last_tokens
        self._sizes = graph_sizes(info.num_slots)
        self._padding = info.num_slots
        num_pages = -(-info.max_model_len // info.block_size)
        self._inputs = torch.zeros(4, self._sizes[-1], dtype=torch.int32, device=device)
        self._inputs[_SLOTS] = self._padding
        self._tables = torch.zeros(info.num_slots + 1, num_pages, dtype=torch.int32, device=device)
        # The host's list of a slot's pages, and how many of them its row has.
        self._written: dict[int, tuple[Sequence[int], int]] = {}
        rows = transformer.model.head.shape[0] if transformer.model.head is not None else 0
        self._logits = torch.empty(self._sizes[-1], rows, dtype=torch.float32, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """Captures the graphs, on a GPU: compiles what isn't compiled yet. Without one, steps run launch by launch."""
        begin = time.monotonic()
        stream, pool = torch.cuda.Stream(), None
        stream.wait_stream(torch.cuda.current_stream())
        for size in reversed(self._sizes):
            with torch.cuda.stream(stream):
                self._forward(size)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self._forward(size)
            pool = pool or graph.pool()
            self._graphs[size] = graph
        logger.info("captured %d graphs in %.1f s", len(self._graphs), time.monotonic() - begin)

    def takes(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Whether a step of these chunks is one for a graph."""
        return len(chunks) <= self._sizes[-1] and not any(
            chunk.sample is None or chunk.restore is not None or is_prefill(chunk) for chunk in chunks
        )

    def run(self, chunks: Sequence[SequenceChunk]) -> tuple[Tensor, Tensor]:
        """Launches a step. Returns float32 [S, N], which the next step overwrites, and the slots, int64 [S]."""
        size = self._sizes[bisect_left(self._sizes, len(chunks))]
        host = np.zeros((4, size), np.int32)
        host[_SLOTS] = self._padding
        host[_TOKENS, : len(chunks)] = [chunk.token_ids[0] for chunk in chunks]
        host[_POSITIONS, : len(chunks)] = [chunk.start for chunk in chunks]
        host[_LENGTHS, : len(chunks)] = host[_POSITIONS, : len(chunks)] + 1
        slots = [chunk.slot for chunk in chunks]
        host[_SLOTS, : len(chunks)] = slots
        upload = Upload()
        inputs, slots_sent = upload.add(host), upload.add(slots, np.int64)
        places, pages = self._new_pages(chunks)
        places_sent, pages_sent = upload.add(places, np.int64), upload.add(pages)
        sent = upload.to(self._inputs.device)
        self._inputs[:, :size].copy_(sent[inputs])
        if places:
            self._tables.view(-1).index_copy_(0, sent[places_sent], sent[pages_sent])
        if size in self._graphs:
            self._graphs[size].replay()
        else:
            self._forward(size)
        return self._logits[: len(chunks)], sent[slots_sent]

    def _new_pages(self, chunks: Sequence[SequenceChunk]) -> tuple[list[int], list[int]]:
        """Entries of the tables that change: places among all entries, and what is written there."""
        places: list[int] = []
        pages: list[int] = []
        width = self._tables.shape[1]
        for chunk in chunks:
            table, known = self._written.get(chunk.slot, ((), 0))
            # A list belongs to one stay of a request in its slot, and only grows.
            if table is not chunk.block_table:
                known = 0
            elif known == len(chunk.block_table):
                continue
            fresh = chunk.block_table[known:width]
            first = chunk.slot * width + known
            places.extend(range(first, first + len(fresh)))
            pages.extend(fresh)
            self._written[chunk.slot] = chunk.block_table, known + len(fresh)
        return places, pages

    def _forward(self, size: int) -> None:
        """The step of what the buffers hold, into the buffer of logits."""
        inputs = self._inputs[:, :size]
        slots = inputs[_SLOTS]
        drawn = self._last_tokens.index_select(0, slots)
        decode = DecodeInputs(inputs[_LENGTHS], self._tables.index_select(0, slots), slots.unsqueeze(1))
        token_ids = torch.where(inputs[_TOKENS] < 0, drawn, inputs[_TOKENS])
        step = StepInputs(token_ids, inputs[_POSITIONS], size, decode, prefill=None, sampled_tokens=None)
        self._transformer.logits(self._transformer.forward(step), out=self._logits[:size])
