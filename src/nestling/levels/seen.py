"""The inputs of linear maps, as the rules of some levels ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn

from nestling.memory.moments import second_moment


@contextmanager
def second_moments(
    modules: Mapping[str, nn.Module],
    mask: Tensor | None,
    factors: Mapping[str, Tensor | None] = MappingProxyType({}),
    exact: bool = False,
    blocks: Mapping[str, int | None] = MappingProxyType({}),
) -> Iterator[dict[str, Tensor]]:
    """While open, every forward pass of a module leaves the `sum x x^T [B, in, in]` of its inputs under the module's name.

    mask: `[B, L]`, True where a token is real. factors: `A [r, in]` by name; there it is the sum of `A x x^T A^T`. exact: the
    sums carry a gradient where the inputs do. blocks: their width by name, where only such are wanted.
    Inputs `[L, in]` are one row's. Modules that are fed one after another with the same
    tensor, as the projections of attention are, get the same sum. The hooks go when the block ends.
    """
    found: dict[str, Tensor] = {}
    last: tuple[Tensor, int, Tensor | None, int | None, Tensor] | None = None

    def sums(x: Tensor, a: Tensor | None, block: int | None) -> Tensor:
        x = x if exact else x.detach()
        x = x if x.dim() > 2 else x[None]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x if a is None else x @ a.to(x.dtype).mT
        x = x if mask is None else x * mask[..., None]
        return second_moment(x, block)

    def shared(x: Tensor, a: Tensor | None, block: int | None) -> Tensor:
        nonlocal last
        if last is None or last[0] is not x or last[1] != x._version or last[2] is not a or last[3] != block:
            last = x, x._version, a, block, sums(x, a, block)
        return last[4]

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            new = shared(arguments[0], factors.get(name), blocks.get(name))
            found[name] = found[name] + new if name in found else new

        return record

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
