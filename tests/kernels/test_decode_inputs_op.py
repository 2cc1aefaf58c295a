"""What a decode step begins with, against the reference."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from chorus_kernels.decode_inputs import GatheredInputs, op, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAGE = 4


def inputs(num_sequences: int, width: int, head_dim: int, num_pages: int) -> dict[str, Tensor]:
    """Every second sequence takes the token that was drawn for its slot; the last one is padding."""
    generator = torch.Generator().manual_seed(0)
    num_slots = num_sequences + 3
    sent = torch.zeros(4, num_sequences, dtype=torch.int32)
    sent[reference.TOKENS] = torch.randint(0, 30, (num_sequences,), generator=generator)
    sent[reference.TOKENS, ::2] = -1
    sent[reference.POSITIONS] = torch.randint(0, num_pages * PAGE, (num_sequences,), generator=generator)
    sent[reference.LENGTHS] = sent[reference.POSITIONS] + 1
    sent[reference.SLOTS] = torch.randperm(num_slots, generator=generator)[:num_sequences]
    sent[1:3, -1] = 0
    return {
        "sent": sent.to(DEVICE),
        "last_tokens": torch.randint(0, 30, (num_slots,), generator=generator, dtype=torch.int32).to(DEVICE),
        "embedding": torch.randn(30, width, generator=generator).bfloat16().to(DEVICE),
        "rope": torch.randn(num_pages * PAGE, head_dim, generator=generator).to(DEVICE),
        "tables": torch.randint(1, 99, (num_slots, num_pages), generator=generator, dtype=torch.int32).to(DEVICE),
    }


def buffers(num_sequences: int, width: int, head_dim: int, num_pages: int) -> GatheredInputs:
    def integers(*shape: int) -> Tensor:
        return torch.full(shape, -7, dtype=torch.int32, device=DEVICE)

    return GatheredInputs(
        torch.full((num_sequences, width), torch.nan, dtype=torch.bfloat16, device=DEVICE),
        torch.full((num_sequences, head_dim), torch.nan, device=DEVICE),
        integers(num_sequences, num_pages),
        integers(num_sequences),
        integers(num_sequences, 1),
    )


# Rows of more than a program copies: embeddings, block tables.
@pytest.mark.parametrize("shape", [(1, 7, 4, 3), (5, 1500, 6, 2), (3, 9, 4, 1100)])
@pytest.mark.parametrize("compact", [False, True])
def test_gather(shape: tuple[int, int, int, int], compact: bool) -> None:
    arguments = inputs(*shape)
    rows = torch.arange(30, device=DEVICE).flip(0) if compact else None
    out = buffers(*shape)
    op.gather(**arguments, embedding_rows=rows, page_size=PAGE, out=out)
    expected = reference.gather(**arguments, embedding_rows=rows)
    seen = -(-expected.lengths // PAGE)[:, None] > torch.arange(shape[3], device=DEVICE)
    expected = replace(expected, block_tables=torch.where(seen, expected.block_tables, -7))
    for field in fields(GatheredInputs):
        assert torch.equal(getattr(out, field.name), getattr(expected, field.name)), field.name


def test_no_sequences() -> None:
    arguments = inputs(1, 7, 4, 3)
    arguments["sent"] = arguments["sent"][:, :0].contiguous()
    op.gather(**arguments, embedding_rows=None, page_size=PAGE, out=buffers(0, 7, 4, 3))


def test_what_does_not_fit_is_refused() -> None:
    shape = (2, 7, 4, 3)
    arguments, out = inputs(*shape), buffers(*shape)
    wrong: list[tuple[str, dict[str, Tensor]]] = [
        ("sent", {"sent": arguments["sent"].long()}),
        ("last_tokens", {"last_tokens": arguments["last_tokens"][:1]}),
        ("embedding", {"embedding": arguments["embedding"].float()}),
        ("rope", {"rope": arguments["rope"].double()}),
        ("tables", {"tables": arguments["tables"].t().contiguous().t()}),
    ]
    for name, changed in wrong:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            op.gather(**arguments | changed, embedding_rows=None, page_size=PAGE, out=out)
    with pytest.raises(ValueError, match="^embedding_rows must be"):
        op.gather(**arguments, embedding_rows=torch.arange(30).int(), page_size=PAGE, out=out)
    with pytest.raises(ValueError, match=r"^out\.slots must be"):
        op.gather(**arguments, embedding_rows=None, page_size=PAGE, out=replace(out, slots=out.slots[:, 0]))
