"""What a decode step begins with: from tokens, positions and slots to what the first layer reads."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of what the host sends for a step of S sequences, int32 [4, S]: the token, or -1 for the one that the step before
# draws; its position; the positions that the sequence sees, 0 for padding; the sequence's slot.
TOKENS, POSITIONS, LENGTHS, SLOTS = range(4)


@dataclass(frozen=True, slots=True)
class GatheredInputs:
    """Of S sequences with one token each."""

    x: Tensor  # [S, H], the embeddings
    cos_sin: Tensor  # float32 [S, D]
    block_tables: Tensor  # int32 [S, B]
    lengths: Tensor  # int32 [S]
    slots: Tensor  # int32 [S, 1]

    @staticmethod
    def zeros(
        num_sequences: int, width: int, head_dim: int, num_pages: int, dtype: torch.dtype, device: torch.device
    ) -> "GatheredInputs":
        """Buffers for S sequences, H, D and B; dtype: of the embeddings."""
        return GatheredInputs(
            torch.zeros(num_sequences, width, dtype=dtype, device=device),
            torch.zeros(num_sequences, head_dim, device=device),
            torch.zeros(num_sequences, num_pages, dtype=torch.int32, device=device),
            torch.zeros(num_sequences, dtype=torch.int32, device=device),
            torch.zeros(num_sequences, 1, dtype=torch.int32, device=device),
        )

    def first(self, count: int) -> "GatheredInputs":
        """Views of the first sequences'."""
        return GatheredInputs(
            self.x[:count],
            self.cos_sin[:count],
            self.block_tables[:count],
            self.lengths[:count],
            self.slots[:count],
        )


def gather(
    sent: Tensor,
    last_tokens: Tensor,
    embedding: Tensor,
    embedding_rows: Tensor | None,
    rope: Tensor,
    tables: Tensor,
) -> GatheredInputs:
    """sent: int32 [4, S], see above; last_tokens: int32 [M], each slot's token that was drawn last; embedding: [R, H];
    embedding_rows: int64 [V], a token id's row of it, None where that is the id; rope: float32 [P, D], by position;
    tables: int32 [M, B], each slot's pages. Returns new tensors."""
    slots = sent[SLOTS]
    token_ids = torch.where(sent[TOKENS] < 0, last_tokens[slots], sent[TOKENS])
    rows = token_ids if embedding_rows is None else embedding_rows[token_ids]
    return GatheredInputs(embedding[rows], rope[sent[POSITIONS]], tables[slots], sent[LENGTHS].clone(), slots[:, None])
