"""A dense weight in the order in which the kernel for few tokens reads it.

A weight [N, K] is cut into tiles of 8 rows and 32 columns. A tile's rows follow one another, and so do the tiles of the
same rows: a warp reads 512 neighbouring bytes at once.
"""

from torch import Tensor, contiguous_format
from torch.nn.functional import pad

TILE_ROWS = 8
TILE_COLUMNS = 32


def tiled(weight: Tensor) -> Tensor:
    """The tiles of a weight [N, K], on its device: [ceil(N / 8), ceil(K / 32), 8, 32] of its dtype, zeros beyond N
    and K. Errors: ValueError for another number of dimensions."""
    if weight.ndim != 2:
        raise ValueError(f"weight must be [N, K], not {list(weight.shape)}")
    row_tiles, column_tiles = tiles_shape(weight.shape[0], weight.shape[1])[:2]
    missing_rows = row_tiles * TILE_ROWS - weight.shape[0]
    missing_columns = column_tiles * TILE_COLUMNS - weight.shape[1]
    # Models' weights are whole tiles: one copy of them is made.
    whole = pad(weight, (0, missing_columns, 0, missing_rows)) if missing_rows or missing_columns else weight
    rows = whole.reshape(row_tiles, TILE_ROWS, column_tiles, TILE_COLUMNS)
    return rows.transpose(1, 2).clone(memory_format=contiguous_format)


def tiles_shape(num_rows: int, num_columns: int) -> tuple[int, int, int, int]:
    """The shape of the tiles of a weight [N, K]."""
    return -(-num_rows // TILE_ROWS), -(-num_columns // TILE_COLUMNS), TILE_ROWS, TILE_COLUMNS
