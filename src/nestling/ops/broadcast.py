"""Which shape tensors have together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """As `torch.broadcast_shapes`, which takes as long as a product of small matrices.

    Raises:
        RuntimeError: they do not fit together.
    """
    sizes = [set(each) - {1} for each in zip_longest(*map(reversed, shapes), fillvalue=1)]
    if any(len(size) > 1 for size in sizes):
        raise RuntimeError(f"shapes {', '.join(map(str, map(tuple, shapes)))} do not broadcast")
    return tuple(size.pop() if size else 1 for size in reversed(sizes))
