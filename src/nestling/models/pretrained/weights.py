"""Weights of each row in the linear maps of a model that knows nothing of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nestling.models.pretrained.structure import matrix


@contextmanager
def in_place(maps: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, every map uses its weight of `weights`, `[B, out, in]`, by row.

    One row: the weight itself is exchanged, so that the model costs what it always does. Several rows: the map keeps its
    weight `W_0` and each row adds what differs, `x (W - W_0)^T`. Either way a difference of zero gives the bits of `W_0`.
    The maps are what they were when the block ends.

    Raises:
        ValueError: several rows, and a map whose input is not `[B, L, in]`.
    """
    with ExitStack() as stack:
        for name, weight in weights.items():
            module = maps[name]
            if len(weight) == 1:
                stack.enter_context(_exchanged(module, weight.squeeze(0)))
            else:
                handle = module.register_forward_hook(_adding(name, weight - matrix(module)))
                stack.callback(handle.remove)
        yield


@contextmanager
def _exchanged(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """The module's parameter is `weight [out, in]`: as `torch.func.functional_call` does it, for a single module."""
    own = module._parameters["weight"]
    # a layout of its own would give other bits
    module._parameters["weight"] = weight.T.contiguous() if isinstance(module, Conv1D) else weight  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        module._parameters["weight"] = own


def _adding(name: str, difference: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A forward hook: the output, and what the difference `[B, out, in]` makes of the input."""

    def add(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = arguments[0]
        if x.dim() != 3 or len(x) != len(difference):
            raise ValueError(
                f"{name} sees {tuple(x.shape)}, where [B, L, in] with B = {len(difference)} was expected; its rows cannot be "
                "told apart. Read one sequence at a time, or leave it out of assign"
            )
        return output + torch.matmul(x, difference.mT)

    return add
