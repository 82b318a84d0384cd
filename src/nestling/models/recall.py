"""Recall: the highest frequency of a continuum, a memory that learns at every token, exactly and without a gradient.

Levels learn what a period's tokens have in common. What was read once, a name or the line above, they know only after many
steps, or never. Recall keeps the last predictions as they were: what the head was given, and which token then came. A new
prediction asks what came where the model stood alike before, and mixes the answer into the model's own:

    p(v) = (1 - c_t) softmax(logits)_v + c_t sum_s w_ts [x_{s+1} = v] / sum_s w_ts,   w_ts = exp(sharpness (cos(h_t, h_s) - 1))
    c_t = share sum_s w_ts / (sum_s w_ts + prior)

over the `window` tokens s before t. It is the non-parametric associative memory of keys h and values x (Nadaraya-Watson
regression, which softmax attention is, arXiv 2512.24695, section 3), read at the output: the continuous cache of Grave et al.
(arXiv 1612.04426), with a share that goes to nothing where nothing alike was met. It ends with its context, as attention does. Levels
go on to learn from the model's own prediction: what they are to keep is not left to what will be gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.ops import State

NOTHING, PENDING = -1, -2  # in place of a token: there is no prediction; the token has not come
QUERIES = 256  # answered at once: what that takes is this many times the window


@dataclass(frozen=True)
class Recall:
    """Settings of a model's recall.

    window: how many of the last predictions are kept; a user's context takes that many vectors of the head's width.
    sharpness: of the cosine between what the head was given now and then. prior: the weight of evidence, a prediction from the very
        same place counting 1, at which half of the share is given.
    share: of the prediction, in (0, 1), at most.
    """

    window: int = 4096
    sharpness: float = 30.0
    share: float = 0.6
    prior: float = 0.03

    def __post_init__(self) -> None:
        if type(self.window) is not int or self.window < 1:
            raise ValueError(f"window={self.window} of a recall must be a whole number, at least 1")
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share} of a recall must be between 0 and 1")
        for name in ("sharpness", "prior"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} of a recall must be above 0, and finite")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a configuration file."""
        return dataclasses.asdict(self)


def as_recall(given: Recall | dict[str, Any] | None) -> Recall | None:
    """The settings from themselves or from plain data; None is no recall. Raises ValueError for unknown keys."""
    if not isinstance(given, dict):
        return given
    known = {field.name for field in dataclasses.fields(Recall)}
    if unknown := set(given) - known:
        raise ValueError(f"unknown key {sorted(unknown)} of a recall; allowed are {sorted(known)}")
    return Recall(**given)


@dataclass(frozen=True)
class Recent(State):
    """The last predictions of each row, the newest at the right.

    keys: `[B, W, D]`, what the head was given, of norm 1. tokens: `[B, W]` int64, what came after, or `NOTHING` or `PENDING`.
    """

    keys: Tensor
    tokens: Tensor


def nothing_yet(recall: Recall, batch: int, like: Tensor) -> Recent:
    """Before the first token. like: `[.., D]`, of the device and dtype of what the head is given."""
    tokens = torch.full((batch, recall.window), NOTHING, dtype=torch.int64, device=like.device)
    return Recent(like.new_zeros(batch, recall.window, like.shape[-1]), tokens)


def recalled(
    recall: Recall, logits: Tensor, hidden: Tensor, ids: Tensor, lengths: Tensor | None, recent: Recent
) -> tuple[Tensor, Recent]:
    """Logarithms of the mixed probabilities `[B, L, V]`, in float32 or better, and what is recent after the tokens.

    logits: `[B, L, V]`, the model's own. hidden: `[B, L, D]`, what the head was given. ids: `[B, L]`, the tokens. All are left-aligned;
    lengths: `[B]` int64 on the CPU, the real tokens of each row, None for all.
    """
    window, length = recall.window, ids.shape[1]
    exact = torch.promote_types(hidden.dtype, torch.float32)
    keys = torch.cat([recent.keys, F.normalize(hidden.to(exact), dim=-1).to(recent.keys.dtype)], 1)
    last = recent.tokens[:, -1:]
    came = torch.where(last == PENDING, ids[:, :1], last)
    tokens = torch.cat([recent.tokens[:, :-1], came, ids[:, 1:], torch.full_like(last, PENDING)], 1)
    answers = [
        _mixed(
            recall, logits[:, i : i + QUERIES], keys[:, i : i + window + QUERIES], tokens[:, i : i + window + QUERIES]
        )
        for i in range(0, length, QUERIES)
    ]
    return torch.cat(answers, 1), _latest(recent, keys, tokens, lengths)


def _mixed(recall: Recall, logits: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
    """keys: `[B, W + n, D]`, the last n of them those of the logits `[B, n, V]`. tokens: `[B, W + n]`, what came after."""
    window, exact = recall.window, torch.promote_types(logits.dtype, torch.float32)
    keys, places = keys.to(exact), torch.arange(keys.shape[1], device=keys.device)
    now = places[window:, None]
    seen = (places < now) & (places >= now - window) & (tokens >= 0)[:, None]
    below = keys.new_full((1, 1, 1), -recall.sharpness)
    alike = torch.baddbmm(below, recall.sharpness * keys[:, window:], keys.mT).exp().masked_fill(~seen, 0.0)
    total = alike.sum(-1, keepdim=True)
    each = tokens.clamp_min(0)[:, None].expand_as(alike)
    evidence = torch.zeros_like(logits, dtype=exact).scatter_add(-1, each, alike)
    own = logits.to(exact).softmax(-1)
    mixed = own + recall.share / (total + recall.prior) * (evidence - total * own)
    return mixed.clamp_min(torch.finfo(exact).tiny).log()


def _latest(recent: Recent, keys: Tensor, tokens: Tensor, lengths: Tensor | None) -> Recent:
    """The last of each row, as many as `recent` has, whose columns go on with `lengths [B]` real ones, None for all of them."""
    window = recent.tokens.shape[1]
    if lengths is None:
        return Recent(keys[:, -window:].clone(), tokens[:, -window:].clone())
    places = (lengths[:, None] + torch.arange(window)).to(tokens.device)
    kept = tokens.gather(1, places)
    read = (lengths > 0).to(tokens.device)  # then the column behind the last is padding
    kept[:, -1] = torch.where(read, PENDING, recent.tokens[:, -1])
    return Recent(keys.gather(1, places[..., None].expand(-1, -1, keys.shape[-1])), kept)


@contextmanager
def given_to(head: nn.Module) -> Iterator[list[Tensor]]:
    """While open, every input `[B, L, D]` of a module is left behind."""
    found: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    try:
        yield found
    finally:
        handle.remove()
