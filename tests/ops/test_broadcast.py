"""Shapes that broadcast, as torch says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.ops.broadcast import broadcast

SHAPES = st.lists(st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=3), min_size=1, max_size=3)


@given(shapes=SHAPES)
def test_is_that_of_torch(shapes):
    """The shape, or an error where there is none."""
    try:
        expected = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        with pytest.raises(RuntimeError, match="do not broadcast"):
            broadcast(*shapes)
    else:
        assert broadcast(*shapes) == expected
