"""From the guide that a request asks for to one that follows its answer. Grammars are compiled beside the engine's
loop, and a request doesn't wait for them without end."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from chorus_workers.engine.request import GenerationRequest, Refusal, RefusalReason, Refused
from chorus_workers.guide.columns import Columns, TokenMask
from chorus_workers.guide.compilers import Compilation
from chorus_workers.guide.grammars import GrammarError, Grammars, Matcher
from chorus_workers.guide.guide import Guide
from chorus_workers.guide.spec import Grammar, GuideSpec

# For who is refused because too many grammars wait.
_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, with its grammars as they are or will be compiled."""

    request: GenerationRequest
    matchers: Mapping[Grammar, Compilation[Matcher]]

    @property
    def is_ready(self) -> bool:
        """Whether it can be admitted, or be refused."""
        return all(compilation.is_settled for compilation in self.matchers.values())


class GuideMaker:
    """Holds requests while their grammars are compiled, and makes guides. Its methods are for the engine's thread."""

    def __init__(self, columns: Columns, *, clock: Callable[[], float], timeout_s: float) -> None:
        """timeout_s: how long compiling a grammar may take; then requests with it are refused."""
        self._columns = columns
        self._timeout_s = timeout_s
        self._grammars = Grammars(columns, clock=clock, timeout_s=timeout_s)
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

        Errors: Refused, if one of its id waits, or too many grammars do.
        """
        grammars = () if request.guide is None else request.guide.grammars
        if not self._grammars.has_room_for(grammars):
            message = "too many grammars wait to be compiled"
            raise Refused(Refusal(RefusalReason.OVERLOADED, message, retry_after_s=_RETRY_AFTER_S))
        prepared = Prepared(request, {grammar: self._grammars.compile(grammar) for grammar in grammars})
        if prepared.is_ready:
            return prepared
        if request.request_id in self._waiting:
            message = "a request of this id is waiting already"
            raise Refused(Refusal(RefusalReason.INVALID_ARGUMENT, message, field="request_id"))
        self._waiting[request.request_id] = prepared
        for compilation in prepared.matchers.values():
            compilation.future.add_done_callback(lambda _: self._announce(request.request_id))
        return None

    def take_ready(self) -> Iterator[Prepared]:
        """Requests that waited and can be admitted or refused now, each once."""
        if self._waiting and self._grammars.note_late():
            self._news.extend(self._waiting)
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
            grammar: self._matcher(request.guide, grammar, compilation)
            for grammar, compilation in prepared.matchers.items()
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

    def _matcher(self, spec: GuideSpec, grammar: Grammar, compilation: Compilation[Matcher]) -> Matcher:
        try:
            if compilation.future.done():
                return compilation.future.result()
            reason = f"it takes more than {self._timeout_s:g} seconds to compile"
        except GrammarError as error:
            reason = str(error)
        index = next(i for i, message in enumerate(spec.messages) if message.grammar == grammar)
        field = f"guide.messages[{index}].grammar"
        raise Refused(Refusal(RefusalReason.INVALID_ARGUMENT, reason, field=field))

    def _announce(self, request_id: str) -> None:
        self._news.append(request_id)
        self.on_news()
