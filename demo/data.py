"""Batches of packed documents, made by worker processes. The stream depends on the seed alone, not on their number."""

import multiprocessing as mp
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue

import numpy as np
from numpy.typing import NDArray

import chorus_vocabulary as v
from demo.encode import Encoder
from demo.generator import Generator, Split
from demo.sample import Sample
from demo.vocabulary import rare_words, rows_of

ROW_LENGTH = 512
IGNORED = -100
Array = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Packed rows, int32 [rows, ROW_LENGTH] each. `labels` holds the next token where it is to be learned, IGNORED
    elsewhere; `documents` numbers the documents of a row from 1."""

    tokens: Array
    positions: Array
    documents: Array
    labels: Array
    # (row, number) of each document in the order of the stream.
    order: list[tuple[int, int]]


class Packer:
    """Turns samples into rows of vocabulary-row numbers."""

    def __init__(self, encoder: Encoder, rows: Sequence[int]) -> None:
        self._encoder = encoder
        self._row_of = {token: row for row, token in enumerate(rows)}

    def document(self, sample: Sample) -> tuple[list[int], int] | None:
        """(row numbers of prompt and completion, length of the prompt); None if it is too long or holds an answer that
        the rows can't spell."""
        prompt = [self._row_of.get(token, 0) for token in self._encoder.prompt(sample)]
        completion = [self._row_of.get(token, 0) for token in self._encoder.completion(sample.target)]
        if 0 in completion or len(prompt) + len(completion) > ROW_LENGTH:
            return None
        return prompt + completion, len(prompt)

    def pack(
        self, documents: Iterator[tuple[list[int], int]], num_rows: int
    ) -> tuple[Chunk, list[tuple[list[int], int]]]:
        """Fills rows first-fit, and closes when a document fits nowhere; returns the chunk and the documents in it."""
        shape = (num_rows, ROW_LENGTH)
        tokens, positions, numbers = (np.zeros(shape, np.int32) for _ in range(3))
        chunk = Chunk(tokens, positions, numbers, np.full(shape, IGNORED, np.int32), [])
        used, held = [0] * num_rows, [0] * num_rows
        packed: list[tuple[list[int], int]] = []
        for document in documents:
            ids, start = document
            row = next((row for row in range(num_rows) if used[row] + len(ids) <= ROW_LENGTH), None)
            if row is None:
                return chunk, packed
            begin, end = used[row], used[row] + len(ids)
            held[row] += 1
            used[row] = end
            chunk.tokens[row, begin:end] = ids
            chunk.positions[row, begin:end] = range(len(ids))
            chunk.documents[row, begin:end] = held[row]
            chunk.labels[row, begin + start - 1 : end - 1] = ids[start:]
            chunk.order.append((row, held[row]))
            packed.append(document)
        return chunk, packed


def make_chunk(
    packer: Packer, rare: Sequence[str], seed: int, index: int, num_rows: int, split: Split = "train"
) -> Chunk:
    samples = Generator(f"{seed}-{index}", split, rare)
    documents = (document for sample in samples if (document := packer.document(sample)) is not None)
    return packer.pack(documents, num_rows)[0]


def vocabulary_rows(encoder: Encoder, seed: int, num_samples: int, least: int) -> list[int]:
    """The rows that the generated conversations need, found by generating some."""
    samples = iter(Generator(f"{seed}-rows", "train", ("something", "other")))

    def documents() -> Iterator[list[int]]:
        for _ in range(num_samples):
            sample = next(samples)
            yield encoder.prompt(sample) + encoder.completion(sample.target)

    specials = (v.START, v.CHANNEL, v.CONSTRAIN, v.MESSAGE, v.END, v.RETURN, v.CALL)
    numbers = [token for number in range(1000) for token in encoder.text(str(number))]
    return rows_of(documents(), specials, numbers, least)


# Each chunk is used twice, this many chunks apart: drawing conversations is slower than learning from them.
REUSE_DISTANCE = 400


def _work(rows: list[int], seed: int, first: int, step: int, num_rows: int, queue: "Queue[Chunk]") -> None:
    os.nice(10)
    encoder = Encoder()
    packer, rare = Packer(encoder, rows), rare_words(encoder.encoding)
    index = first
    while True:
        queue.put(make_chunk(packer, rare, seed, index, num_rows))
        index += step


class Stream:
    """Chunks first, first + 1, ... of the training stream, each once more later."""

    def __init__(self, rows: list[int], seed: int, first: int, num_workers: int, num_rows: int) -> None:
        context = mp.get_context("spawn")
        self._queues: list[Queue[Chunk]] = [context.Queue(6) for _ in range(num_workers)]
        self._workers = [
            context.Process(target=_work, args=(rows, seed, first + i, num_workers, num_rows, queue), daemon=True)
            for i, queue in enumerate(self._queues)
        ]
        for worker in self._workers:
            worker.start()
        self._next = 0
        self._used: deque[Chunk] = deque()
        self._again = False

    def get(self) -> Chunk:
        self._again = not self._again and len(self._used) > REUSE_DISTANCE
        if self._again:
            return self._used.popleft()
        chunk = self._queues[self._next % len(self._queues)].get()
        self._next += 1
        self._used.append(chunk)
        return chunk

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
