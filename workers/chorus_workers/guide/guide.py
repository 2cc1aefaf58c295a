"""Follows an answer through its messages.

Between two messages and in headers, and in bodies that have a grammar, only what fits may be drawn. In other bodies
anything may, and no mask is made: that costs nothing. Two things are noticed there after the fact: that the body ended,
and a stop token that would end the answer where it must not end, in the middle of the reasoning, say. Such a token is
drawn again.

An answer that is one grammar's text is a message whose header is over before it begins.
"""

from collections.abc import Mapping
from enum import StrEnum

from chorus_vocabulary import CHANNEL, END, START, STOP_TOKEN_IDS
from chorus_workers.guide.columns import Columns, TokenMask
from chorus_workers.guide.grammars import GrammarError, Grammars, Matcher
from chorus_workers.guide.headers import HeaderNode, build_tree, prepend
from chorus_workers.guide.spec import Grammar, GuidedMessage, GuideSpec


class Constraint(StrEnum):
    """What a mask is for; interventions are counted by it."""

    HEADER = "header"
    GRAMMAR = "grammar"
    # The body of reasoning has to end.
    REASONING_BUDGET = "reasoning_budget"
    # The answer must not end here.
    EARLY_STOP = "early_stop"


class Guide:
    """One answer's. Tokens are to be given to `advance` in order, each after its mask, if one was made."""

    __slots__ = (
        "_closings",
        "_columns",
        "_left",
        "_matcher",
        "_matchers",
        "_may_not_stop",
        "_message",
        "_node",
        "_openings",
        "_reasons_once",
        "_roots",
    )

    def __init__(self, spec: GuideSpec, columns: Columns, matchers: Mapping[Grammar, Matcher]) -> None:
        """matchers: of all the spec's grammars, at their beginnings. Errors: GrammarError, where the model's vocabulary
        can't write any header, or an end."""
        self._columns = columns
        self._matchers = matchers
        # Tokens of reasoning that are left.
        self._left = spec.max_reasoning_tokens
        self._reasons_once = spec.reasons_once
        # Headers of all messages, and of those that are no reasoning, for when none of it is left.
        answers = [message for message in spec.messages if not message.is_reasoning]
        self._roots = (build_tree(spec.messages, columns), build_tree(answers, columns))
        if (alone := self._root.message) is not None:
            if not any(columns.only(alone.end_token_ids)):
                raise GrammarError("the model's vocabulary has none of the stop tokens")
        elif not self._root.children:
            raise GrammarError("the model's vocabulary can't write any of the headers")
        self._openings = (prepend(spec.opening, self._roots[0]), prepend(spec.opening, self._roots[1]))
        # Stop tokens that may come instead of another message.
        self._closings: frozenset[int] = frozenset()
        self._message: GuidedMessage | None = None
        self._matcher: Matcher | None = None
        # Whether a token that would have ended the answer was refused: the next draw is at its place.
        self._may_not_stop = False
        # Where a header is being written; None in a body.
        self._node: HeaderNode | None = None
        self._go_to(self._root)

    @property
    def constraint(self) -> Constraint | None:
        """What limits the next draw; None if nothing does."""
        if self._node is not None:
            return Constraint.HEADER
        if self._matcher is not None:
            return Constraint.GRAMMAR
        if self._is_reasoning and self._left == 0:
            return Constraint.REASONING_BUDGET
        return Constraint.EARLY_STOP if self._may_not_stop else None

    def advance(self, token_id: int) -> bool:
        """Takes in a token. False: it must not come here, and is to be drawn again, by the next mask.

        Errors: GrammarError, after which the guide is of no use.
        """
        if self._node is not None:
            self._read_header(token_id)
            return True
        message = self._message
        assert message is not None
        if token_id in message.end_token_ids or token_id == END:
            self._end(message)
        elif token_id in STOP_TOKEN_IDS:
            self._may_not_stop = True
            return False
        elif self._matcher is not None:
            self._consume(token_id)
        else:
            self._read_body(token_id)
        self._may_not_stop = False
        return True

    def mask(self, grammars: Grammars) -> TokenMask | None:
        """What may be drawn next; None: anything. Not to be changed. Errors: GrammarError."""
        if self._node is not None:
            mask = self._node.mask(self._columns)
            if self._closings:
                mask = mask.copy()
                self._columns.add(mask, self._closings)
            return mask
        assert self._message is not None
        if self._matcher is not None:
            mask, may_end = grammars.mask(self._matcher)
            if may_end:
                self._columns.add(mask, self._message.end_token_ids)
            return mask
        if self._is_reasoning and self._left == 0:
            return self._columns.only(self._message.end_token_ids)
        if self._may_not_stop:
            return self._columns.all_but(set(STOP_TOKEN_IDS) - self._message.end_token_ids)
        return None

    @property
    def _root(self) -> HeaderNode:
        return self._roots[self._left == 0]

    @property
    def _opening(self) -> HeaderNode:
        return self._openings[self._left == 0]

    @property
    def _is_reasoning(self) -> bool:
        return self._message is not None and self._message.is_reasoning

    def _read_header(self, token_id: int) -> None:
        assert self._node is not None
        node = self._node.children.get(token_id)
        self._closings = frozenset()
        if node is None:
            # The end of an answer that may end here; or one that an earlier worker drew without a guide.
            if token_id not in STOP_TOKEN_IDS:
                raise GrammarError("the answer so far doesn't follow its guide")
            return
        self._go_to(node)

    def _go_to(self, node: HeaderNode) -> None:
        """A place in a header, or the body behind it."""
        self._node = node
        if node.message is not None:
            self._node, self._message = None, node.message
            grammar = node.message.grammar
            self._matcher = None if grammar is None else self._matchers[grammar].copy()

    def _read_body(self, token_id: int) -> None:
        """In a body of anything; there a header may begin although nothing ended the body."""
        if token_id in (START, CHANNEL):
            self._leave()
            node = self._opening if token_id == START else self._root
            if (child := node.children.get(token_id)) is not None:
                self._node, self._message = child, None
        elif self._left and self._is_reasoning:
            self._left -= 1

    def _consume(self, token_id: int) -> None:
        assert self._matcher is not None
        column = self._columns.column(token_id)
        if column is None:
            raise GrammarError("the answer holds a token that the model doesn't have")
        self._matcher.consume(column)

    def _leave(self) -> None:
        """Counts a message as written."""
        if self._reasons_once and self._is_reasoning:
            self._left = 0

    def _end(self, message: GuidedMessage) -> None:
        self._leave()
        self._node, self._message, self._matcher = self._opening, None, None
        self._closings = message.end_token_ids - {END}
