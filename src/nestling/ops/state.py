"""States are data: trees of tensors whose first dimension is the batch row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def tree_map(function: Callable[..., Tensor], tree: T, *others: T) -> T:
    """Apply `function` to every tensor of a tree of dataclasses, tuples, dicts and None; `others` have its shape."""
    return _map(function, tree, *others)


def _map(function: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, State):
        fields = [field.name for field in dataclasses.fields(tree)]
        values = {f: _map(function, getattr(tree, f), *(getattr(o, f) for o in others)) for f in fields}
        return dataclasses.replace(tree, **values)
    if isinstance(tree, tuple):
        return tuple(_map(function, *items) for items in zip(tree, *others, strict=True))
    if isinstance(tree, dict):
        return {key: _map(function, item, *(o[key] for o in others)) for key, item in tree.items()}
    raise TypeError(f"a state holds tensors, tuples, dicts, states and None, not {type(tree).__name__}")


def where_rows(rows: Tensor, x: Tensor, other: Tensor | float = 0.0) -> Tensor:
    """Rows of `x` that are True in `rows [B]`, the others from `other`."""
    return torch.where(rows.to(x.device).view(-1, *[1] * (x.dim() - 1)), x, other)


def once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function`, computed once for the same arguments: the same objects, not equal ones.

    What states have in common they so keep in common, as one tensor, until something changes it in one of them.
    """
    made: dict[tuple[int, ...], tuple[tuple[Any, ...], Tensor]] = {}

    def found(*arguments: Any) -> Tensor:
        key = tuple(map(id, arguments))
        if key not in made:
            made[key] = arguments, function(*arguments)  # kept, since the id of what is gone may come again
        return made[key][1]

    return found


@lru_cache(maxsize=4096)
def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The one tensor of zeros of its kind; it takes the room of a number. Do not write to it."""
    with torch.inference_mode(False):
        return torch.zeros((), dtype=dtype, device=device).expand(shape)


def laid_out(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """The same numbers in memory of their own, in the order that strides say, of which products round; along those of 0 there is one."""
    one = tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)]
    own = torch.empty_strided(
        one.shape, [max(stride, 1) for stride in strides], dtype=tensor.dtype, device=tensor.device
    )
    return own.copy_(one).expand(tensor.shape)


def nbytes(tree: Any) -> int:
    """Bytes that the tensors of a state take; what it holds twice is counted once."""
    storages = [tensor.untyped_storage() for tensor in named_tensors(tree).values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def named_tensors(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a state under a dotted name, for files and for tests."""
    if tree is None:
        return {}
    if isinstance(tree, Tensor):
        return {prefix: tree}
    if isinstance(tree, State):
        items = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    elif isinstance(tree, dict):
        items = list(tree.items())
    else:
        items = [(str(i), item) for i, item in enumerate(tree)]
    return {n: t for key, item in items for n, t in named_tensors(item, f"{prefix}/{key}" if prefix else key).items()}


def with_tensors(tree: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """The state `tree` with its tensors taken from `tensors` (the inverse of `named_tensors`)."""
    names = iter(named_tensors(tree, prefix))
    return tree_map(lambda old: tensors[next(names)].to(old.device), tree)


@dataclasses.dataclass(frozen=True)
class State:
    """Base of every state. Frozen: an update makes a new state, so an old one can be kept by keeping its name."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return tree_map(function, self)

    def select(self, rows: Tensor) -> Self:
        """Rows in a new order (beam search), repeated or dropped; `rows` int64."""
        return self.map(lambda t: t.index_select(0, rows.to(t.device)))

    def where(self, rows: Tensor, other: Self) -> Self:
        """Rows that are True in `rows [B]` from this state, the others from `other`; what both have in common stays so."""
        return tree_map(lambda x, old: x if x is old else where_rows(rows, x, old), self, other)

    def detach(self) -> Self:
        return self.map(Tensor.detach)
