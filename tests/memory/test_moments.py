"""Second moments, whole and in blocks."""

import pytest
import torch

from nestling.memory.moments import Moments, times
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
    x, moments = randn(2, 10, width), Moments(block)
    whole, found = x.mT @ x, moments.of(x)
    assert found.shape[1:] == moments.shape(width)
    runs, size = (1, width) if found.dim() == 3 else found.shape[1:3]
    run = torch.arange(width) // size
    close(dense(found, width), torch.where(run[:, None] == run, whole, 0.0))
    assert size <= (block or width) and runs == -(-width // min(block or width, width))


@pytest.mark.parametrize(("width", "block"), WIDTHS)
def test_products_are_those_with_the_whole_matrix(width, block):
    x, matrix = randn(2, 5, width), Moments(block).of(randn(2, 10, width))
    close(times(x, matrix), x @ dense(matrix, width))


def test_every_third_token_is_the_first_the_fourth_and_so_on():
    x = randn(2, 10, 4)
    close(Moments(every=3).of(x), Moments().of(x[:, [0, 3, 6, 9]]))
