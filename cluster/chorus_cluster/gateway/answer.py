"""Tokens of one request in, typed events out."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from chorus_cluster.errors import ChorusError, DeadlineExceeded, RequestFailed, Unavailable
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.logprobs import LogprobQueue
from chorus_cluster.gateway.stop_strings import StopStrings
from chorus_cluster.harmony.deltas import AnswerDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallStarted
from chorus_cluster.harmony.parser import StreamParser
from chorus_protos.v1 import engine_pb2


def new_tool_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class TokenParser(Protocol):
    """Makes deltas of tokens; see `StreamParser`."""

    @property
    def repairs(self) -> Mapping[str, int]: ...

    @property
    def num_reasoning_tokens(self) -> int: ...

    @property
    def num_tool_calls(self) -> int: ...

    def feed(self, token_ids: Iterable[int]) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


class AnswerAssembler:
    """Parses harmony, matches stop strings, pairs log probabilities with text, and counts.

    Feed it every response of the engine until `finished` or `failure` is set; it is pure and knows neither tasks nor
    clocks.
    """

    def __init__(
        self,
        *,
        num_prompt_tokens: int,
        include_reasoning: bool = True,
        stop: tuple[str, ...] = (),
        with_logprobs: bool = False,
        parser: TokenParser | None = None,
        new_id: Callable[[], str] = new_tool_call_id,
    ) -> None:
        """`parser`: of the tokens; by default one of harmony that knows of no tools."""
        self._parser = StreamParser() if parser is None else parser
        self._stop = StopStrings(stop)
        self._logprobs = LogprobQueue() if with_logprobs else None
        self._include_reasoning = include_reasoning
        self._new_id = new_id
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0
        self._num_cached_tokens = 0
        # Of the text that the stop strings hold back.
        self._is_preamble = False
        self.finished: ev.Finished | None = None
        # Why the engine ended the request without a whole answer; to be raised after the events so far.
        self.failure: ChorusError | None = None

    @property
    def usage(self) -> ev.Usage:
        return ev.Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=self._num_tokens,
            cached_tokens=self._num_cached_tokens,
            reasoning_tokens=self._parser.num_reasoning_tokens,
        )

    @property
    def repairs(self) -> dict[str, int]:
        """How often each class of malformed harmony was repaired."""
        return dict(self._parser.repairs)

    def feed(self, response: engine_pb2.GenerateResponse) -> list[ev.Event]:
        """Returns the events of one engine response; the last one of all is `Finished`, unless `failure` is set."""
        if self._num_tokens == 0:
            self._num_cached_tokens = response.num_cached_tokens
        if self._logprobs is not None:
            self._logprobs.extend(self._num_tokens, response.logprobs)
        token_ids = response.token_ids[:]  # A list at once: iteration would ask for each element.
        self._num_tokens += len(token_ids)
        events = self._to_events(self._parser.feed(token_ids))
        if self._stop.matched:
            return self._finish(events, "stop")
        reason = response.finish_reason
        if not reason:
            return events
        events += self._to_events(self._parser.finish())
        if self._stop.matched:
            return self._finish(events, "stop")
        self._append_answer(events, self._stop.finish())
        self.failure = _failure_of(reason)
        if self.failure is not None:
            return events
        if reason == engine_pb2.FINISH_REASON_LENGTH:
            return self._finish(events, "length")
        return self._finish(events, "tool_calls" if self._parser.num_tool_calls else "stop")

    def _finish(self, events: list[ev.Event], reason: ev.FinishReason) -> list[ev.Event]:
        self.finished = ev.Finished(reason, self.usage)
        events.append(self.finished)
        return events

    def _to_events(self, deltas: Iterable[Delta]) -> list[ev.Event]:
        events: list[ev.Event] = []
        for delta in deltas:
            if isinstance(delta, AnswerDelta):
                self._take_answer(events, delta)
                if self._stop.matched:
                    break
            elif isinstance(delta, ReasoningDelta):
                if self._include_reasoning:
                    events.append(ev.Reasoning(delta.text))
            elif isinstance(delta, ToolCallArguments):
                events.append(ev.ToolCallArguments(delta.index, delta.text))
            elif isinstance(delta, ToolCallStarted):
                # No answer follows a call's text into it: what the stop strings hold back comes before.
                self._append_answer(events, self._stop.finish())
                events.append(ev.ToolCallStart(delta.index, self._new_id(), delta.name))
        return events

    def _take_answer(self, events: list[ev.Event], delta: AnswerDelta) -> None:
        is_break = not delta.token_indices
        if is_break or delta.is_preamble != self._is_preamble:
            # What is held back is of the message before: no stop string matches across, nor in a break.
            self._append_answer(events, self._stop.finish())
            self._is_preamble = delta.is_preamble
        if self._logprobs is not None:
            self._logprobs.spell(delta.text, delta.token_indices)
        if is_break:
            self._append_answer(events, delta.text, ev.Break)
        else:
            self._append_answer(events, self._stop.feed(delta.text))

    def _append_answer(self, events: list[ev.Event], text: str, event: type[ev.Answer] = ev.Answer) -> None:
        logprobs: tuple[ev.Logprob, ...] = ()
        if self._logprobs is not None:
            logprobs = self._logprobs.pop_shown(text)
        if text or logprobs:
            events.append(event(text, logprobs, self._is_preamble))


def _failure_of(reason: "engine_pb2.FinishReason.ValueType") -> ChorusError | None:
    if reason == engine_pb2.FINISH_REASON_DEADLINE:
        return DeadlineExceeded()
    if reason == engine_pb2.FINISH_REASON_ERROR:
        return RequestFailed()
    if reason == engine_pb2.FINISH_REASON_ABORT:
        return Unavailable("The worker ended the request.")
    return None
