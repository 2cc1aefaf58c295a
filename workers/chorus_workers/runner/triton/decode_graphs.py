"""Decode steps as CUDA graphs: what the host does for a step is one copy and two launches.

A graph is captured for some batch sizes, and a batch runs in the next larger one, padded with sequences of length 0,
which write nothing and whose logits nobody reads. All graphs read the same buffers, which a kernel before them fills.
Block tables stay on the device, a row for each slot, and get the pages that are new.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chorus_kernels.decode_inputs import GatheredInputs
from chorus_kernels.decode_inputs.reference import LENGTHS, POSITIONS, SLOTS, TOKENS
from chorus_workers.runner.base import RunnerInfo, SequenceChunk
from chorus_workers.runner.triton.step import is_prefill
from chorus_workers.runner.triton.transfer import Sent, Upload
from chorus_workers.runner.triton.transformer import DeviceTransformer

logger = logging.getLogger(__name__)

# Up to 8 tokens, each one more is felt; from there on a step is bound by what all experts weigh.
_SMALL, _STEP, _LARGE_STEP, _LARGE = 8, 8, 32, 64
_MAX_SIZE = 512


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
        most, num_pages = self._sizes[-1], -(-info.max_model_len // info.block_size)
        config, dtype = transformer.model.config, transformer.model.embedding.dtype
        self._inputs = GatheredInputs.zeros(most, config.hidden_size, config.head_dim, num_pages, dtype, device)
        self._tables = torch.zeros(info.num_slots + 1, num_pages, dtype=torch.int32, device=device)
        # The host's list of a slot's pages, and how many of them its row has.
        self._written: dict[int, tuple[Sequence[int], int]] = {}
        rows = transformer.model.head.shape[0] if transformer.model.head is not None else 0
        self._logits = torch.empty(most, rows, dtype=torch.float32, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """Captures the graphs, on a GPU: compiles what isn't compiled yet. Without one, steps run launch by launch."""
        begin = time.monotonic()
        self.fill_with_padding()
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

    def fill_with_padding(self) -> None:
        """Sends a step of padding, and compiles what launches before a graph."""
        sent = torch.zeros(4, self._sizes[-1], dtype=torch.int32, device=self._tables.device)
        sent[SLOTS] = self._padding
        self._transformer.gather(sent, self._last_tokens, self._tables, self._inputs)

    def takes(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Whether a step of these chunks is one for a graph."""
        invariant = self._transformer.batch_invariant
        return len(chunks) <= self._sizes[-1] and not any(
            chunk.sample is None or chunk.restore is not None or is_prefill(chunk, invariant) for chunk in chunks
        )

    def run(self, chunks: Sequence[SequenceChunk], upload: Upload) -> tuple[Tensor, Tensor, Sent]:
        """Launches a step. Returns float32 [S, N], which the next step overwrites, and the slots, int64 [S]; and
        `upload`, which is sent with what the step needs."""
        size = self._sizes[bisect_left(self._sizes, len(chunks))]
        host = np.zeros((4, size), np.int32)
        host[SLOTS] = self._padding
        host[TOKENS, : len(chunks)] = [chunk.token_ids[0] for chunk in chunks]
        host[POSITIONS, : len(chunks)] = [chunk.start for chunk in chunks]
        host[LENGTHS, : len(chunks)] = host[POSITIONS, : len(chunks)] + 1
        slots = [chunk.slot for chunk in chunks]
        host[SLOTS, : len(chunks)] = slots
        inputs, slots_sent = upload.add(host), upload.add(slots, np.int64)
        places, pages = self._new_pages(chunks)
        places_sent, pages_sent = upload.add(places, np.int64), upload.add(pages)
        sent = upload.to(self._tables.device)
        if places:
            self._tables.view(-1).index_copy_(0, sent[places_sent], sent[pages_sent])
        self._transformer.gather(sent[inputs], self._last_tokens, self._tables, self._inputs.first(size))
        if size in self._graphs:
            self._graphs[size].replay()
        else:
            self._forward(size)
        return self._logits[: len(chunks)], sent[slots_sent], sent

    def _new_pages(self, chunks: Sequence[SequenceChunk]) -> tuple[list[int], list[int]]:
        """Entries of the tables that change: places among all entries, and what is written there."""
        places: list[int] = []
        pages: list[int] = []
        width = self._tables.shape[1]
        for chunk in chunks:
            table, known = self._written.get(chunk.slot, ((), 0))
            # A list belongs to one stay of a request in its slot, and only grows: a page that another replaces is in
            # another list.
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
        self._transformer.logits(self._transformer.decode(self._inputs.first(size)), out=self._logits[:size])
