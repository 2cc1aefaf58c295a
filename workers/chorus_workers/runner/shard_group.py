"""One engine over several processes: each holds some of the heads and some of the experts (see `Transformer`).

Shard 0 lives in the engine's process. It sends every batch to the others, runs its own share, and samples; the others,
the followers, run theirs, and hold the KV of their heads. They meet in two sums a layer, over gloo.

    shard 0                      followers
    join                         join                   the addresses of all are exchanged
    load its share               load theirs
    await all                    await all
    send RunnerInfo              reserve KV memory alike
    await all                    await all
    send a batch, run, sample    receive it, run        again and again
    close                        end

A shard whose process ends is noticed by all others within milliseconds, in whatever they wait for: their connections
close. A shard that hangs in a step is noticed after TIMEOUT.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from chorus_workers.model.weights import ReferenceModel
from chorus_workers.runner.base import RunnerError, RunnerInfo, SequenceChunk
from chorus_workers.runner.reference import ReferenceRunner

# To meet at start; for what one shard waits for another within a step, and shard 0 for all to take its message: they do
# equal work, so it is far less.
TIMEOUT = timedelta(seconds=60)
# Followers wait this long for work, and all for the slowest to load.
_IDLE_TIMEOUT = timedelta(days=3650)
# Numbers that go with a message's length at once: most decode steps fit.
_FIRST_PART = 1024


class ShardLinks:
    """This process's connections to the other shards: messages from shard 0 to all, and sums over all.

    Errors: RunnerError, when another shard is lost, or doesn't join in time. Used as a context, it closes the
    connections if the block fails, so that the other shards notice.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        # Another shard was lost, or hangs.
        self.is_broken = False
        self._messages = dist.new_group(backend="gloo", timeout=_IDLE_TIMEOUT if rank else TIMEOUT)

    @classmethod
    def join(cls, rank: int, size: int, address: str) -> "ShardLinks":
        """Meets the other shards at shard 0's address, host:port. A process joins one group at a time."""
        try:
            dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=TIMEOUT)
            return cls(rank, size)
        except (RuntimeError, ValueError) as error:
            raise RunnerError(f"shard {rank} of {size} could not join the others at {address}") from error

    def all_reduce(self, x: Tensor) -> Tensor:
        """The transformer's `Collective`: sums x over the shards, in place."""
        x = x.contiguous()
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            self.is_broken = True
            raise RunnerError(f"shard {self.rank} lost another shard in a step") from error
        return x

    def send(self, numbers: Sequence[int]) -> None:
        """Sends 32-bit numbers from shard 0 to the others, which must be about to receive them."""
        message = torch.tensor([len(numbers), *numbers], dtype=torch.int32)
        first = torch.zeros(_FIRST_PART, dtype=torch.int32)
        first[: len(message)] = message[:_FIRST_PART]
        self._broadcast(first)
        if len(message) > _FIRST_PART:
            self._broadcast(message[_FIRST_PART:])

    def receive(self) -> list[int]:
        """What shard 0 sent; waits for it."""
        first = torch.empty(_FIRST_PART, dtype=torch.int32)
        self._broadcast(first)
        count = int(first[0])
        if count < _FIRST_PART:
            return first[1 : 1 + count].tolist()
        rest = torch.empty(1 + count - _FIRST_PART, dtype=torch.int32)
        self._broadcast(rest)
        return [*first[1:].tolist(), *rest.tolist()]

    def await_all(self) -> None:
        """Returns when every shard has called this, however long that takes."""
        try:
            dist.monitored_barrier(self._messages, timeout=_IDLE_TIMEOUT)
        except RuntimeError as error:
            raise RunnerError(f"shard {self.rank} lost another shard before it was ready") from error

    @property
    def is_open(self) -> bool:
        return dist.is_initialized()

    def close(self) -> None:
        if self.is_open:
            dist.destroy_process_group()

    def __enter__(self) -> "ShardLinks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None or self.rank:
            self.close()

    def _broadcast(self, message: Tensor) -> None:
        try:
            dist.broadcast(message, 0, group=self._messages)
        except RuntimeError as error:
            self.is_broken = True
            raise RunnerError(f"shard {self.rank} lost another shard") from error


class ShardLeader(ReferenceRunner):
    """Shard 0: the runner that the engine sees."""

    def __init__(self, model: ReferenceModel, info: RunnerInfo, links: ShardLinks) -> None:
        super().__init__(model, info, links)
        self._links = links
        links.await_all()
        links.send(dataclasses.astuple(info))
        links.await_all()

    def forward(self, chunks: Sequence[SequenceChunk]) -> Tensor:
        self._links.send(encode_chunks(chunks))
        return super().forward(chunks)

    def close(self) -> None:
        """Ends the followers."""
        if not self._links.is_open:
            return
        # A follower that is gone needs no telling, and one that hangs would never take it.
        if not self._links.is_broken:
            with contextlib.suppress(RunnerError):
                self._links.send(())
        self._links.close()


def follow(model: ReferenceModel, links: ShardLinks) -> None:
    """Runs shard 0's batches on this shard until shard 0 closes. Errors: RunnerError when another shard is lost."""
    links.await_all()
    info = RunnerInfo(*links.receive())  # type: ignore[arg-type]  # has_window_layers comes as 0 or 1
    runner = ReferenceRunner(model, info, links)
    links.await_all()
    while numbers := links.receive():
        runner.forward(decode_chunks(numbers))


def encode_chunks(chunks: Sequence[SequenceChunk]) -> list[int]:
    """What followers need of a batch, as numbers: how many chunks; then for each slot, start, the snapshot to restore
    (-1: none), counts, and contents."""
    numbers = [len(chunks)]
    for chunk in chunks:
        restore = -1 if chunk.restore is None else chunk.restore
        numbers += (chunk.slot, chunk.start, restore, len(chunk.token_ids), len(chunk.block_table), len(chunk.saves))
        numbers += chunk.token_ids
        numbers += chunk.block_table
        for save in chunk.saves:
            numbers += save
    return numbers


def decode_chunks(numbers: Sequence[int]) -> list[SequenceChunk]:
    """The inverse of `encode_chunks`, without request ids and sampling: followers need neither."""
    chunks, rest = [], iter(numbers)
    for _ in range(next(rest)):
        slot, start, restore, num_tokens, num_blocks, num_saves = islice(rest, 6)
        token_ids, table = list(islice(rest, num_tokens)), list(islice(rest, num_blocks))
        saves = [(next(rest), next(rest)) for _ in range(num_saves)]
        restored = None if restore == -1 else restore
        chunks.append(SequenceChunk("", slot, start, token_ids, table, None, restored, saves))
    return chunks
