"""Rows that are strangers: pieces tile every row, cross no boundary of any row, and are put back where they stood."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.ops.ragged import check_lengths, join, pieces, split

LENGTH = 13
rows = st.lists(st.tuples(st.integers(0, 40), st.integers(0, LENGTH)), min_size=1, max_size=4)


def cut_of(given_rows, period):
    position, lengths = (torch.tensor(column) for column in zip(*given_rows, strict=True))
    return position, lengths, pieces(position, lengths, LENGTH, period)


@given(rows=rows, period=st.integers(1, 9))
def test_pieces_tile_each_row_within_its_own_chunks(rows, period):
    """Every real token is in exactly one piece, in order; in a piece no row crosses a multiple of the period."""
    position, lengths, cut = cut_of(rows, period)
    for b, length in enumerate(lengths.tolist()):
        stretches = [(int(p.start[b]), int(p.count[b])) for p in cut if p.count[b] > 0]
        assert [t for start, count in stretches for t in range(start, start + count)] == list(range(length))
        for start, count in stretches:
            first = int(position[b]) + start
            assert first // period == (first + count - 1) // period


@given(rows=rows.filter(lambda rows: any(length for _, length in rows)), period=st.integers(1, 9))
def test_join_undoes_split(rows, period):
    """Cut and put back, every real token is where it was, and padding reads zero."""
    _, lengths, cut = cut_of(rows, period)
    x = torch.randn(len(rows), 2, LENGTH, 3)
    parts = split(x, cut, dim=2)
    real = (torch.arange(LENGTH) < lengths[:, None])[:, None, :, None]
    assert torch.equal(join(parts, cut, LENGTH, dim=2), x * real)
    for piece, part in zip(cut, parts, strict=True):
        mask = piece.mask(x.device)
        expected = torch.arange(piece.width) < piece.count[:, None]
        assert torch.equal(expected if mask is None else mask, expected) and part.shape[2] == piece.width


def test_rows_in_step_are_sliced():
    """Where all rows are in the same phase and of the same length nothing is gathered."""
    cut = pieces(torch.tensor([3, 11]), None, LENGTH, 8)
    assert all(piece.uniform for piece in cut) and [piece.width for piece in cut] == [5, 8]


@pytest.mark.parametrize(
    ("lengths", "word"),
    [
        (torch.tensor([1, 2, 3]), "(3,)"),
        (torch.tensor([1.0, 2.0]), "float32"),
        (torch.tensor([1, 9]), "[1, 9]"),
        (torch.tensor([-1, 2]), "[-1, 2]"),
    ],
)
def test_lengths_that_do_not_fit_raise(lengths, word):
    """The message repeats what was given."""
    with pytest.raises(ValueError) as caught:
        check_lengths(lengths, batch=2, length=8)
    assert word in str(caught.value)
