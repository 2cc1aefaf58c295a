"""Sets of tokens as bits over the logits' columns."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# int32 [ceil(N / 32)]: bit i % 32, from the lowest, of word i // 32 is set where column i may be drawn.
TokenMask: TypeAlias = NDArray[np.int32]


class Columns:
    """Which column of the logits stands for which token."""

    def __init__(self, token_ids: Sequence[int] | None, vocab_size: int) -> None:
        """token_ids: each column's; None: column i is token i, and there are vocab_size of them."""
        self.token_ids: Sequence[int] = range(vocab_size) if token_ids is None else token_ids
        self._columns = None if token_ids is None else {token_id: i for i, token_id in enumerate(token_ids)}
        self.num_words = -(-len(self.token_ids) // 32)
        self._all = np.full(self.num_words, -1, np.int32)
        if left := len(self.token_ids) % 32:
            self._all[-1] = (1 << left) - 1

    def column(self, token_id: int) -> int | None:
        """None for a token that the logits don't have."""
        if self._columns is not None:
            return self._columns.get(token_id)
        return token_id if token_id < len(self.token_ids) else None

    def only(self, token_ids: Iterable[int]) -> TokenMask:
        """These tokens, as far as there are columns for them."""
        mask = np.zeros(self.num_words, np.int32)
        self.add(mask, token_ids)
        return mask

    def all_but(self, token_ids: Iterable[int]) -> TokenMask:
        return self._all & ~self.only(token_ids)

    def add(self, mask: TokenMask, token_ids: Iterable[int]) -> None:
        """Sets the tokens' bits, in place."""
        words = mask.view(np.uint32)
        for token_id in token_ids:
            column = self.column(token_id)
            if column is not None:
                words[column >> 5] |= np.uint32(1 << (column & 31))
