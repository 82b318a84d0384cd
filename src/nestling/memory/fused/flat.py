"""Batched products want one dimension for all matrices that stand side by side: `[.., n, m]` as `[G, n, m]`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def flat(x: Tensor, lead: Sequence[int]) -> Tensor:
    """`[.., n, m]` as `[G, n, m]`, one matrix for every member of `lead`, those that share one included."""
    if x.shape[:-2] == lead:
        return x.flatten(0, -3)
    return x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:])


def spread(x: Tensor, few: Sequence[int], many: Sequence[int]) -> Tensor:
    """The matrices `[S, n, m]` of `few` for every member of `many`: `[G, n, m]`."""
    return x if few == many else flat(x.unflatten(0, few), many)


def shared(x: Tensor, many: Sequence[int], few: Sequence[int]) -> Tensor:
    """The gradient of `spread`: the sum over those that share a matrix."""
    return x if few == many else summed(x, many, (*few, *x.shape[-2:])).flatten(0, -3)


def summed(x: Tensor, lead: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The gradient of `flat`: `[G, n, m]` of `lead` as a tensor of that shape."""
    return x.unflatten(0, lead).sum_to_size(shape)


def last(x: Tensor, lead: Sequence[int], count: int) -> Tensor:
    """Of the first dimension of heads the last `count`, `[R, n, m]` of `[G, n, m]`."""
    return x.unflatten(0, lead)[:, -count:].flatten(0, -3)


def upper(x: Tensor) -> Tensor:
    """Of two matrices over each other, `[G, 2 n, m]`, the one above."""
    return x[:, : x.shape[1] // 2]


def lower(x: Tensor) -> Tensor:
    """The one below."""
    return x[:, x.shape[1] // 2 :]


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Of rows, `[.., n, 1]`."""
    return (x * y).sum(-1, keepdim=True)


def below(size: int, like: Tensor, value: float = 1.0) -> Tensor:
    """`[size, size]`: the value below the diagonal. Do not write to it."""
    return _below(size, value, like.dtype, like.device)


@lru_cache(maxsize=64)
def _below(size: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((size, size), value, dtype=dtype, device=device).tril(-1)
