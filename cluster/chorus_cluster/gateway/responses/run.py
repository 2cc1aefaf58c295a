"""One response while it is made: from the model's events to its object and its events."""

import logging
from collections.abc import Callable

from chorus_cluster.errors import ChorusError, to_client_error
from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.responses.body import TERMINAL_EVENTS, Body, failed_body, finished_body
from chorus_cluster.gateway.responses.writer import ResponseWriter

logger = logging.getLogger(__name__)


class ResponseRun:
    """`body` is the response as it is at present; each method returns the events that are due."""

    def __init__(self, body: Body, writer: ResponseWriter, clock: Callable[[], float]) -> None:
        self.body = body
        self._writer = writer
        self._clock = clock

    @property
    def num_events(self) -> int:
        """So far."""
        return self._writer.num_events

    def created(self) -> list[str]:
        """The response is queued, or in progress at once."""
        return self._writer.response(self.body, "response.created", f"response.{self.body['status']}")

    def dequeued(self) -> list[str]:
        self.body = self.body | {"status": "in_progress"}
        return self._writer.response(self.body, "response.in_progress")

    def take(self, events: list[ev.Event]) -> list[str]:
        """The model's next events. The last one of all is `Finished`: then `body` is whole."""
        written = self._writer.events(events)
        finished = events[-1]
        if isinstance(finished, ev.Finished):
            written += self._writer.close(is_cut=finished.reason == "length")
            self.body = finished_body(self.body, self._writer.output, finished, int(self._clock()))
        return written

    def fail(self, error: ChorusError) -> list[str]:
        events = self._writer.close(is_cut=True)
        self.body = failed_body(self.body, error, self._writer.output)
        return events

    def ended(self) -> list[str]:
        """The last event, of a response that is whole or has failed."""
        return self._writer.response(self.body, TERMINAL_EVENTS[self.body["status"]])


def shown_error(error: Exception, response_id: str) -> ChorusError:
    """What the client is told of an error. What he is not told is logged."""
    shown = to_client_error(error)
    if shown is not error:
        logger.error("Response %s failed unexpectedly", response_id, exc_info=error)
    return shown
