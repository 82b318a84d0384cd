"""Queries of some memories, for all of them."""

from __future__ import annotations

import torch
from torch import Tensor


def for_all(q: Tensor | None, weights: tuple[Tensor, ...]) -> Tensor | None:
    """Queries for every memory: zero for those that are not read."""
    missing = 0 if q is None else weights[0].shape[1] - q.shape[1]
    if q is None or not missing:
        return q
    return torch.cat([q.new_zeros(q.shape[0], missing, *q.shape[2:]), q], dim=1)
