"""A component: objective, context, parameters and rule (arXiv 2512.24695, Def. 4), and how knowledge reaches it (3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from nestling.memory.part import Context

KINDS: tuple[str, ...] = (
    "direct parametric",
    "direct non-parametric",
    "backpropagation",
    "initialisation",
    "generation",
)


@dataclass(frozen=True)
class Size:
    """How many numbers, and how many bytes they take."""

    numbers: int = 0
    bytes: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.numbers + other.numbers, self.bytes + other.bytes)

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Size:
        """Of tensors, which may be without memory."""
        tensors = list(tensors)
        return cls(sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors))


@dataclass(frozen=True)
class Transfer:
    """A way by which knowledge reaches a component (section 3.3).

    kind: "direct parametric", what it does depends on the source's state; "direct non-parametric", on the source's output
        alone; "backpropagation", through gradients; "initialisation", it starts from the source; "generation", the source
        makes its weights, or the data that it learns from, as an architecture makes an optimiser's gradients.
    source: the name of a component, or "the loss".
    """

    kind: str
    source: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} of a transfer is unknown; choose {' or '.join(map(repr, KINDS))}")


@dataclass(frozen=True)
class Component:
    """One row of the table.

    frequency: updates per token (per data point, where the model reads no tokens): `math.inf` where nothing is fitted, 0.0 where
        nothing moves.
    layers: in how many layers of the model it is found, 0 where that means nothing.
    parameters: of the model, those that it moves in place. Over all components they add up to the model's.
    state: what it keeps beside; for one sequence, if each has its own. None grows with the context.
    compression: how many numbers of its context there are to one of its parameters and state; None where it is not known.
    needs: names of the components whose state its own is made of at the same moment (Def. 2).
    """

    name: str
    layers: int
    frequency: float
    parameters: Size
    state: Size | None
    objective: str
    context: Context
    compression: float | None
    rule: str
    needs: tuple[str, ...]
    knowledge: tuple[Transfer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is infinite is "inf", since JSON has no number for it."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return "inf" if value == math.inf else value
