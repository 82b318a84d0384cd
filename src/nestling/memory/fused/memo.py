"""What a forward pass leaves to its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Few = TypeVar("Few", bound="tuple[Tensor, ...]")


class Memo:
    """Remembers what is dear, in the order in which it is made, so that a second run need not make it again.

    frugal: what is cheap beside the memory that it takes is made again. made: what the first run remembered.
    """

    def __init__(self, frugal: bool, made: tuple[Tensor, ...] | None = None) -> None:
        self.frugal = frugal
        self.made: list[Tensor] = []
        self.left = None if made is None else iter(made)

    def __call__(self, make: Callable[[], Tensor]) -> Tensor:
        if self.left is not None:
            return next(self.left)
        self.made.append(make())
        return self.made[-1]

    def cheap(self, make: Callable[[], Tensor]) -> Tensor:
        """Made again if frugal."""
        return make() if self.frugal else self(make)

    def few(self, kind: Callable[..., Few], make: Callable[[], Few], cheap: bool = False) -> Few:
        """A tuple, of that kind, of tensors that take little room: calls are what they cost. cheap: as the method."""
        if cheap and self.frugal:
            return make()
        if self.left is not None:
            fields: Any = kind
            return kind(*(next(self.left) for _ in fields._fields))
        few = make()
        self.made.extend(few)
        return few
