"""What a replica and its engine process say to each other: pickled messages, each behind its length.

Both ends are one program in one version, on a socket pair that nobody else can open, so pickle is safe here and the
cheapest of the standard library. The replica sends a WorkerConfig first, then Submit and Abort; the engine process
answers Ready or Failed, then sends a StepOutput for each step that has news, a Report every now and then, and Failed
when it can't go on. The end of the stream means that the other process is gone.
"""

import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from chorus_workers.engine.request import GenerationRequest
from chorus_workers.engine.stats import EngineLoad, EngineStats
from chorus_workers.runner.base import RunnerInfo

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Submit:
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded. `info.max_model_len` is what a request may have, given the KV memory."""

    info: RunnerInfo


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine can't start, or can't go on. For operators: the message may name files and devices."""

    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """A snapshot of what the engine counts."""

    load: EngineLoad
    stats: EngineStats


def encode(message: object) -> bytes:
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(payload)) + payload


class Decoder:
    """Turns received bytes, however cut, back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[object]:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            message = pickle.loads(self._buffer[start + _LENGTH.size : end])
            start = end
            yield message
        del self._buffer[:start]
