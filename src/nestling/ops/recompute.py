"""Backpropagation that keeps only where a function started, and computes the rest again when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nestling.ops.state import named_tensors, tree_map


def recompute(function: Callable[[Any], Any], inputs: Any, parameters: Sequence[Tensor]) -> Any:
    """`function(inputs)`, trees of tensors both; its graph is built only in the backward pass, from the inputs.

    It runs twice, so that it must be a function: of its inputs, of `parameters` (leaves, the same objects that it uses) and of
    nothing else that a gradient is wanted for. Random numbers and autocast are the second time what they were the first.
    The function may take gradients inside, which `torch.utils.checkpoint` would answer by running it once more for each. The
    gradient that results has no gradient itself.
    """
    found: list[Any] = []
    leaves = list(named_tensors(inputs).values())

    def run(tensors: Sequence[Tensor]) -> Any:
        remaining = iter(tensors)
        return function(tree_map(lambda _: next(remaining), inputs))

    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    outputs = iter(_Recompute.apply(run, found, len(leaves), *leaves, *wanted))
    return tree_map(lambda _: next(outputs), found[0])


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, found: list[Any], count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.around, ctx.parameters = run, _surroundings(tensors), tensors[count:]
        ctx.save_for_backward(*tensors)  # the parameters, too: one that was changed in between is noticed
        ctx.set_materialize_grads(False)
        ctx.count = count
        outputs = run(tensors[:count])
        found.append(outputs)
        # autograd writes on what is returned where it came from; what the function took from elsewhere, as a constant that
        # states share, has to stay without a history
        return tuple(tensor.detach() for tensor in named_tensors(outputs).values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = [t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors[: ctx.count]]
        with ctx.around(), torch.enable_grad():
            outputs = named_tensors(ctx.run(inputs)).values()
        pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None and y.requires_grad]
        leaves = [*inputs, *ctx.parameters]
        wanted = [x for x in leaves if x.requires_grad]
        if not pairs or not wanted:
            return None, None, None, *(None for _ in leaves)
        found = iter(_slopes(pairs, wanted))
        return None, None, None, *(next(found) if x.requires_grad else None for x in leaves)


def _slopes(pairs: list[tuple[Tensor, Tensor]], wanted: list[Tensor]) -> tuple[Tensor | None, ...]:
    outputs, gradients = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)


def _surroundings(tensors: Sequence[Tensor]) -> Callable[[], Any]:
    """A context in which random numbers and autocast are as they are now."""
    kind = next((t.device.type for t in tensors if t.device.type != "cpu"), "cpu")
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]
    cast = {"enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}

    @contextmanager
    def around() -> Iterator[None]:
        with torch.random.fork_rng(devices), torch.autocast(kind, **cast):
            torch.set_rng_state(states[0])
            for device, state in zip(devices, states[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield

    return around
