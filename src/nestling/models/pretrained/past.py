"""What a transformers decoder has read: every layer's keys and values, as a state whose rows are strangers.

`B` batch, `H` heads, `T` columns, `d` head width. Rows are right-aligned: the last `position[b]` columns of row b are its
tokens, whatever is before them is not attended to. So a token's distance in columns is its distance in tokens, which
sliding windows count, and the next token of every row comes right after its last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from nestling.ops import State

Layers = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Past(State):
    """position: `[B]` int64 on the CPU, tokens since attention last began. layers: keys and values `[B, H, T, d]`."""

    position: Tensor
    layers: Layers

    @property
    def width(self) -> int:
        """Columns: the longest row's tokens, or more."""
        return self.layers[0][0].shape[2]

    def where(self, rows: Tensor, other: Self) -> Self:
        width = max(self.width, other.width)
        return super(Past, self._padded(width)).where(rows, other._padded(width))

    def _padded(self, width: int) -> Self:
        return replace(self, layers=_map(self.layers, lambda x: F.pad(x, (0, 0, width - x.shape[2], 0))))


def begin(batch: int, layers: int, like: Tensor) -> Past:
    """No token read yet. Heads and head width are not known before one is: 1, which fits all."""
    empty = like.new_zeros(batch, 1, 0, 1)
    return Past(torch.zeros(batch, dtype=torch.int64), ((empty, empty),) * layers)


def read(
    model: PreTrainedModel, x: Tensor, lengths: Tensor | None, past: Past, window: int, keep: int | Tensor = 0
) -> tuple[Tensor, Past]:
    """Logits of left-aligned ids `[B, L]` or embeddings `[B, L, D]` after the past, and the past with them.

    lengths: `[B]` int64 on the CPU, the real tokens of each row, None for all.
    window: tokens after which attention begins anew, in the row that has so many.
    keep: as transformers' `logits_to_keep`.
    """
    past = _renewed(past, window)
    batch, length = x.shape[:2]
    cache = DynamicCache(past.layers) if past.width else DynamicCache()
    options: dict[str, Any] = {"logits_to_keep": keep} if isinstance(keep, Tensor) or keep else {}
    after = past.position + (length if lengths is None else lengths)
    if lengths is not None or bool((past.position != past.width).any()):
        # padding comes after a row's tokens, so that none of them can see it: only what is before them is masked
        seen = torch.arange(past.width) >= past.width - past.position[:, None]
        mask = torch.cat([seen, torch.ones(batch, length, dtype=torch.bool)], dim=1)
        last = (after - 1).clamp_min(0)[:, None]  # a padded token has no position; it borrows one that exists
        positions = (past.position[:, None] + torch.arange(length)).minimum(last)
        options |= {"attention_mask": mask.to(x.device), "position_ids": positions.to(x.device)}
    given = {"inputs_embeds" if x.is_floating_point() else "input_ids": x}
    out = model(**given, past_key_values=cache, use_cache=True, **options)
    return out.logits, Past(after, _aligned(_layers(cache), past.width, lengths, after))


def _renewed(past: Past, window: int) -> Past:
    """Rows that have read a window of tokens begin anew: they see nothing of it."""
    if not bool((past.position >= window).any()):
        return past
    position = torch.where(past.position >= window, 0, past.position)
    return Past(position, _last(past.layers, int(position.max())))


def _layers(cache: DynamicCache) -> Layers:
    found = []
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            raise ValueError(
                f"the model keeps a {type(layer).__name__}, where keys and values of attention were expected; "
                "convert a model all of whose blocks attend"
            )
        found.append((layer.keys, layer.values))
    return tuple(found)


def _aligned(layers: Layers, before: int, lengths: Tensor | None, after: Tensor) -> Layers:
    """Right-align rows after reading: row b's tokens end at column `before + lengths[b]`, and are `after[b]`."""
    width = int(after.max())
    if lengths is None:
        layers = _last(layers, width)
    else:
        columns = (before + lengths[:, None] - width + torch.arange(width)).clamp_min(0)
        layers = _map(layers, lambda x: x.gather(2, _wide(columns, x).expand(-1, x.shape[1], -1, x.shape[3])))
    other = torch.arange(width) < width - after[:, None]
    return _map(layers, lambda x: x.masked_fill(_wide(other, x), 0.0)) if bool(other.any()) else layers


def _wide(columns: Tensor, x: Tensor) -> Tensor:
    """`[B, T] -> [B, 1, T, 1]`, beside `x [B, H, T, d]`."""
    return columns.to(x.device)[:, None, :, None]


def _last(layers: Layers, width: int) -> Layers:
    return _map(layers, lambda x: x[:, :, x.shape[2] - width :])


def _map(layers: Layers, function: Any) -> Layers:
    return tuple((function(keys), function(values)) for keys, values in layers)
