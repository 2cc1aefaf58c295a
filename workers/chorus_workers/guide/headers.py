"""The headers that may come, as a tree of tokens."""

from collections.abc import Iterable

from chorus_workers.guide.columns import Columns, TokenMask
from chorus_workers.guide.spec import GuidedMessage


class HeaderNode:
    """A place in a header: the tokens that may follow, and the message that begins here if it is a header's end."""

    __slots__ = ("_mask", "children", "message")

    def __init__(self) -> None:
        self.children: dict[int, HeaderNode] = {}
        self.message: GuidedMessage | None = None
        self._mask: TokenMask | None = None

    def mask(self, columns: Columns) -> TokenMask:
        """What may be drawn here. Not to be changed."""
        if self._mask is None:
            self._mask = columns.only(self.children)
        return self._mask


def build_tree(messages: Iterable[GuidedMessage], columns: Columns) -> HeaderNode:
    """The tree of the headers that the model's vocabulary can write."""
    root = HeaderNode()
    for message in messages:
        if any(columns.column(token_id) is None for token_id in message.header):
            continue
        node = root
        for token_id in message.header:
            node = node.children.setdefault(token_id, HeaderNode())
        # Of a message without a header, that is the root.
        node.message = message
    return root


def prepend(token_ids: Iterable[int], node: HeaderNode) -> HeaderNode:
    """A tree in which these tokens lead to `node`."""
    for token_id in reversed(list(token_ids)):
        before = HeaderNode()
        before.children[token_id] = node
        node = before
    return node
