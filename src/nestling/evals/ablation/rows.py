"""The rows of the ablation: a change of the configuration, or of the finished layers, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nestling.layers import SelfModifyingTitans
from nestling.layers.recurrent import KEY, VALUE
from nestling.memory import Given, GradientDescent


def nothing(layer: SelfModifyingTitans) -> None:
    """The layer as it is."""


def plain_descent(layer: SelfModifyingTitans) -> None:
    """The memories' rule without its erasure."""
    layer.memories.rule = GradientDescent(momentum=layer.memories.rule.momentum)


def shared_target(layer: SelfModifyingTitans) -> None:
    """Every memory writes the value itself (Eq. 79-82), and none a target of its own making."""
    layer.memories.target = Given()


def no_decay(layer: SelfModifyingTitans) -> None:
    """All is retained: alpha = 1."""

    def hook(gates: nn.Module, given: Any, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        eta, alpha = found
        return eta, torch.ones_like(alpha)

    layer.gates.register_forward_hook(hook)


def static(place: int) -> Callable[[SelfModifyingTitans], None]:
    """One of the memories stays what its initial weights say: it neither writes nor forgets."""

    def edit(layer: SelfModifyingTitans) -> None:
        moves = torch.arange(5).ne(place).view(5, 1, 1)  # memories, heads, tokens

        def hook(memories: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            q, k, v, eta, alpha, *others = given
            on = moves.to(eta.device)
            return q, k, v, torch.where(on, eta, 0.0), torch.where(on, alpha, 1.0), *others

        layer.memories.register_forward_pre_hook(hook)

    return edit


@dataclass(frozen=True)
class Row:
    """settings: of the configuration. levels: how many MLPs, each at a period of its own, make up the continuum memory.
    edit: of every layer. sign: the paper's perplexity less that of the whole, or None.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    levels: int = 2
    edit: Callable[[SelfModifyingTitans], None] = nothing
    sign: float | None = None


FULL = "full"
ROWS: dict[str, Row] = {
    FULL: Row(),
    "w/o DGD": Row(edit=plain_descent, sign=13.41 - 12.24),
    "w/o momentum": Row({"memory_momentum": False}, sign=13.58 - 12.24),
    "w/o weight decay": Row(edit=no_decay, sign=13.71 - 12.24),
    "w/o CMS": Row(levels=1, sign=13.04 - 12.24),
    "static k": Row(edit=static(KEY), sign=13.77 - 12.24),
    "static v": Row(edit=static(VALUE), sign=13.90 - 12.24),
    "adaptive q": Row({"memory_query": "memory"}, sign=12.24 - 12.19),
    "chunk 1": Row({"chunk_size": 1}),
    "chunk 16": Row({"chunk_size": 16}),
    "chunk 256": Row({"chunk_size": 256}),
    "read chunk": Row({"memory_read": "chunk"}),
    "tied targets": Row(edit=shared_target),
}
