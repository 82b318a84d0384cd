"""The tokens that a window still sees when a piece of a chunk begins."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.memory.network import Network

Recent = tuple[Tensor, ...]  # keys, values [B, H, window - 1, d]; whether each is there [B, window - 1]


def nothing_yet(network: Network, weight: Tensor, heads: int, window: int) -> Recent:
    """Before the first token. weight: `[B, H, in, out]`, with as many dimensions `heads` of H."""
    lead, past = weight.shape[: 1 + heads], window - 1
    assert network.dim_key is not None  # checked with the rule
    k, v = (weight.new_zeros(*lead, past, dim) for dim in (network.dim_key, network.dim_value))
    return k, v, torch.zeros(lead[0], past, dtype=torch.bool, device=weight.device)


def joined(recent: Recent, k: Tensor, v: Tensor, mask: Tensor | None) -> Recent:
    """With the tokens `[B, H, n, d]` of a piece, of which `mask [B, n]` are real (None: all) behind them."""
    lead = recent[0].shape[:-2]
    real = recent[2].new_ones(lead[0], k.shape[-2]) if mask is None else mask
    k, v = (torch.cat([old, new.expand(*lead, *new.shape[-2:])], -2) for old, new in zip(recent, (k, v), strict=False))
    return k, v, torch.cat([recent[2], real], 1)


def latest(seen: Recent, window: int) -> Recent:
    """The last `window - 1` of each row of what `joined` gave."""
    k, v, there = seen
    past = window - 1
    counts = there[:, past:].sum(1)
    places = counts[:, None] + torch.arange(past, device=there.device)  # [B, past]; real tokens come first in a piece
    index = places.view(places.shape[0], *[1] * (k.dim() - 3), past, 1)
    k, v = (x.gather(-2, index.expand(*x.shape[:-2], past, x.shape[-1])) for x in (k, v))
    return k, v, there.gather(1, places)
