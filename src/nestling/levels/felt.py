"""The gradients at the outputs of linear maps, as the rules of some levels ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """While open, every forward pass of a module leaves its output, which asks for a gradient, under the module's name."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def record(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            found[name] = output if output.requires_grad else output.requires_grad_()

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def moment(gradient: Tensor) -> Tensor:
    """The sum of `g g^T [B, out, out]` over gradients `[B, L, out]` at an output, in float32 or better."""
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient.mT @ gradient
