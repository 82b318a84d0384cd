"""Second moments, whole and in blocks."""

import pytest
import torch

from nestling.memory.moments import left, right, second_moment, shape
from tests.helpers import close, randn

WIDTHS = [(7, None), (7, 7), (7, 9), (7, 3), (6, 3), (7, 1), (11, 6)]


def dense(matrix, width):
    """`[B, n, n]` of a matrix in either form."""
    whole = matrix if matrix.dim() == 3 else torch.stack([torch.block_diag(*row) for row in matrix])
    assert not whole[:, width:].any() and not whole[..., width:].any()
    return whole[:, :width, :width]


@pytest.mark.parametrize(("width", "block"), WIDTHS)
def test_blocks_are_those_of_the_whole_matrix(width, block):
    """Inside of them the same sums, outside nothing; never wider than asked, and as few as that allows."""
    x = randn(2, 10, width)
    whole, found = x.mT @ x, second_moment(x, block)
    assert found.shape[1:] == shape(width, block)
    runs, size = (1, width) if found.dim() == 3 else found.shape[1:3]
    run = torch.arange(width) // size
    close(dense(found, width), torch.where(run[:, None] == run, whole, 0.0))
    assert size <= (block or width) and runs == -(-width // min(block or width, width))


@pytest.mark.parametrize(("width", "block"), WIDTHS)
def test_products_are_those_with_the_whole_matrix(width, block):
    x, matrix = randn(2, 5, width), second_moment(randn(2, 10, width), block)
    close(right(x, matrix), x @ dense(matrix, width))
    close(left(matrix, x.mT), dense(matrix, width) @ x.mT)
