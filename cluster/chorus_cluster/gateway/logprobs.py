"""Log probabilities of the answer's tokens, delivered together with the text that the tokens spell."""

from collections import deque
from collections.abc import Iterable, Sequence

from chorus_cluster.gateway import events as ev
from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import NUM_TEXT_TOKENS
from chorus_vocabulary.token_table import token_bytes, token_text

_MAX_UNSPELLED = 512


class LogprobQueue:
    """Holds the log probabilities of the tokens whose text was not shown yet.

    A token is shown with the piece of text that holds its first byte. Those of text that a stop string cuts off are
    dropped with it.
    """

    def __init__(self) -> None:
        # Of all tokens since the last answer text, by their index in the stream.
        self._by_index: dict[int, engine_pb2.PositionLogprobs] = {}
        # Answer tokens in order, with the place (in bytes of the answer) where they begin.
        self._waiting: deque[tuple[int, engine_pb2.PositionLogprobs]] = deque()
        self._num_spelled = 0
        self._num_shown = 0

    def extend(self, first_index: int, logprobs: Iterable[engine_pb2.PositionLogprobs]) -> None:
        """Takes the engine's log probabilities of the tokens from `first_index` on."""
        # Reasoning is never spelled here; the parser holds back a header's length at most.
        oldest = first_index - _MAX_UNSPELLED
        while self._by_index and next(iter(self._by_index)) < oldest:
            del self._by_index[next(iter(self._by_index))]
        self._by_index.update(enumerate(logprobs, first_index))

    def spell(self, text: str, token_indices: Sequence[int]) -> None:
        """The parser took these tokens for this part of the answer."""
        start = self._num_spelled
        for index in token_indices:
            position = self._by_index.pop(index, None)
            if position is not None:
                self._waiting.append((start, position))
                start += len(token_bytes(position.sampled.token_id))
        self._num_spelled += len(text.encode())
        if token_indices:
            # What came before and is no answer never will be.
            last = token_indices[-1]
            self._by_index = {index: held for index, held in self._by_index.items() if index > last}

    def pop_shown(self, text: str) -> tuple[ev.Logprob, ...]:
        """The entries due with the next `text` that is shown; with the answer's last text, all that are left.

        No token begins behind the text that it is part of: what isn't UTF-8 takes no less room as U+FFFD.
        """
        self._num_shown += len(text.encode())
        shown: list[ev.Logprob] = []
        while self._waiting and self._waiting[0][0] < self._num_shown:
            shown.append(_to_logprob(self._waiting.popleft()[1]))
        return tuple(shown)


def _to_logprob(position: engine_pb2.PositionLogprobs) -> ev.Logprob:
    # Harmony's markup may be a likely alternative anywhere, and never reaches a client.
    top = tuple(_candidate(entry) for entry in position.top if entry.token_id < NUM_TEXT_TOKENS)
    return ev.Logprob(_candidate(position.sampled), top)


def _candidate(entry: engine_pb2.TokenLogprob) -> ev.Candidate:
    return ev.Candidate(token_text(entry.token_id), token_bytes(entry.token_id), entry.logprob)
