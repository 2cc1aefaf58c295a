"""From the guide that a request asks for to one that follows its answer. Grammars are compiled beside the engine's
loop."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from chorus_workers.engine.request import GenerationRequest, Refusal, RefusalReason, Refused
from chorus_workers.guide.columns import Columns, TokenMask
from chorus_workers.guide.grammars import GrammarError, Grammars, Matcher
from chorus_workers.guide.guide import Guide
from chorus_workers.guide.spec import Grammar, GuideSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, with its grammars as they are or will be compiled."""

    request: GenerationRequest
    matchers: Mapping[Grammar, Future[Matcher]]

    @property
    def is_ready(self) -> bool:
        return all(future.done() for future in self.matchers.values())


class GuideMaker:
    """Holds requests while their grammars are compiled, and makes guides. Its methods are for the engine's thread."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._grammars = Grammars(columns)
        self._waiting: dict[str, Prepared] = {}
        # Ids of which a grammar is ready, from whichever thread; the request may have left since.
        self._news: deque[str] = deque()
        # Called from another thread as soon as there is something for `take_ready`.
        self.on_news: Callable[[], None] = lambda: None

    @property
    def has_news(self) -> bool:
        return bool(self._news)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def load(self) -> None:
        """Begins to load what the first grammar would wait for."""
        self._grammars.load()

    def prepare(self, request: GenerationRequest) -> Prepared | None:
        """The request, if it can be admitted now; else `take_ready` has it later.

        Errors: Refused, if one of its id waits.
        """
        grammars = () if request.guide is None else request.guide.grammars
        prepared = Prepared(request, {grammar: self._grammars.compile(grammar) for grammar in grammars})
        if prepared.is_ready:
            return prepared
        if request.request_id in self._waiting:
            message = "a request of this id is waiting already"
            raise Refused(Refusal(RefusalReason.INVALID_ARGUMENT, message, field="request_id"))
        self._waiting[request.request_id] = prepared
        for future in prepared.matchers.values():
            future.add_done_callback(lambda _: self._announce(request.request_id))
        return None

    def take_ready(self) -> Iterator[Prepared]:
        """Requests that waited and can be admitted now, each once."""
        while self._news:
            request_id = self._news.popleft()
            prepared = self._waiting.get(request_id)
            if prepared is not None and prepared.is_ready:
                del self._waiting[request_id]
                yield prepared

    def forget(self, request_id: str) -> bool:
        """Drops a request that waits. Whether there was one."""
        return self._waiting.pop(request_id, None) is not None

    def make(self, prepared: Prepared) -> Guide | None:
        """The guide that a request asks for, as far as its resumed tokens have led it; None if it asks for none.

        Errors: Refused, where a grammar can't be used, or the tokens don't follow the guide.
        """
        request = prepared.request
        if request.guide is None:
            return None
        matchers = {
            grammar: self._matcher(request.guide, grammar, future) for grammar, future in prepared.matchers.items()
        }
        try:
            guide = Guide(request.guide, self._columns, matchers)
        except GrammarError as error:
            raise Refused(Refusal(RefusalReason.INVALID_ARGUMENT, str(error), field="guide.messages")) from None
        resumed = request.prompt_token_ids[len(request.prompt_token_ids) - request.num_resumed_tokens :]
        try:
            followed = all(guide.advance(token_id) for token_id in resumed)
        except GrammarError:
            followed = False
        if not followed:
            message = "the resumed tokens don't follow the guide"
            raise Refused(Refusal(RefusalReason.INVALID_ARGUMENT, message, field="num_resumed_tokens"))
        return guide

    def mask(self, guide: Guide) -> TokenMask | None:
        """What may be drawn next in an answer; None: anything. Errors: GrammarError, if it can't go on."""
        return guide.mask(self._grammars)

    def close(self) -> None:
        self._grammars.close()

    def _matcher(self, spec: GuideSpec, grammar: Grammar, future: Future[Matcher]) -> Matcher:
        try:
            return future.result()
        except GrammarError as error:
            index = next(i for i, message in enumerate(spec.messages) if message.grammar == grammar)
            field = f"guide.messages[{index}].grammar"
            raise Refused(Refusal(RefusalReason.INVALID_ARGUMENT, str(error), field=field)) from None

    def _announce(self, request_id: str) -> None:
        self._news.append(request_id)
        self.on_news()
