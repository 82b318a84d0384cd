"""The gradients at the outputs of linear maps, as the rules of some levels ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nestling.memory.moments import second_moment

Outputs = list[tuple[str, Tensor]]


@contextmanager
def outputs(modules: Mapping[str, nn.Module]) -> Iterator[Outputs]:
    """While open, every forward pass of a module leaves its name and its output, which asks for a gradient.

    What follows in the model gets a copy, since it may change its input in place.
    """
    found: Outputs = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def record(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            found.append((name, output if output.requires_grad else output.requires_grad_()))
            return output.clone()

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def moment(gradient: Tensor, block: int | None = None) -> Tensor:
    """The sum of `g g^T [B, out, out]`, or its blocks, over gradients `[B, L, out]` at an output, in float32 or better.

    Gradients `[L, out]` are one row's.
    """
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return second_moment(gradient if gradient.dim() > 2 else gradient[None], block)
