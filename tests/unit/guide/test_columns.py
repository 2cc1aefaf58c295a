"""Sets of tokens as bits over columns."""

import numpy as np
import pytest

from chorus_workers.guide.columns import Columns, TokenMask

SPARSE = [7, 3, 40, 41, 1000, *range(2000, 2035)]


def tokens(mask: TokenMask, columns: Columns) -> set[int]:
    return {columns.token_ids[i] for i in np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]}


@pytest.mark.parametrize("columns", [Columns(SPARSE, 3000), Columns(None, 3000), Columns(None, 64), Columns(None, 1)])
def test_only_and_all_but_are_each_other_s_complement(columns: Columns) -> None:
    some = [token_id for token_id in (7, 41, 63, 1000, 2034) if columns.column(token_id) is not None]
    only, rest = columns.only(some), columns.all_but(some)
    assert tokens(only, columns) == set(some)
    assert tokens(rest, columns) == set(columns.token_ids) - set(some)
    assert only.dtype == rest.dtype == np.int32 and len(only) == len(rest) == columns.num_words


def test_tokens_without_a_column_are_left_out() -> None:
    assert tokens(Columns(SPARSE, 3000).only([7, 8, 2999]), Columns(SPARSE, 3000)) == {7}
    assert Columns(None, 64).column(64) is None
