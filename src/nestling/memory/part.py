"""What a component says of itself: the objective, context and rule of Definition 4 (arXiv 2512.24695, section 3).

A module or an optimiser is made of components that are associative memories each. Whoever has some inherits from `Described`
and lists them; `nestling.levels.describe` puts them in order.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

from torch import Tensor

LOSS = "the loss"  # the source of what backpropagation brings, where that is no component
# A module's parameters: those its memories start from, and the others.
STARTS, PROJECTIONS = "initial states", "projections"


@dataclass(frozen=True)
class Context:
    """How much of what reaches it a component compresses.

    unit: what is counted.
    effective: how many: all weights over the newest one's, `1 / (1 - beta)` for a decay `beta`. Infinite where nothing fades;
        None where it is as many as the context has.
    most: how many of the newest hold 99% of it, at least, or None where that is not known.
    note: what the numbers leave out.
    """

    unit: str = "tokens"
    effective: float | None = math.inf
    most: int | None = None
    note: str = ""

    @classmethod
    def fading(cls, decay: float, unit: str = "gradients", each: float = 1) -> Context:
        """Of a memory that keeps `decay`, in [0, 1], of itself with every `each` that come."""
        if decay >= 1:
            return cls(unit)
        if decay == 0:
            return cls(unit, float(each), round(each))
        most = math.ceil(math.log(0.01) / math.log(decay) - 1e-9)  # of 0.1 it is 2, and rounding must not make it 3
        return cls(unit, float(f"{each / (1 - decay):.6g}"), most * round(each))


@dataclass(frozen=True)
class Part:
    """One component, as whoever has it describes it.

    name, objective, rule: in words and equations, a line each.
    period: between two of its updates, in tokens for a module, in steps for an optimiser. 0 is a memory that is not fitted but
        answers from the context itself, as attention does.
    context: how much it compresses.
    needs: names of the components whose state its own of the same moment is made of.
    knowledge: how it comes by what it knows, a kind of `nestling.levels.Transfer` and the name of the source: another
        component, `STARTS`, `PROJECTIONS` or `LOSS`.
    state: its tensors, for one sequence; None where they grow with the context. What matters is how large they are.
    keys: of an optimiser instead: which entries of a parameter's state are its own.
    item: how many numbers one token brings it.
    parameters: of the module, those it starts from; of an optimiser, those it is kept for where that is not all.
    """

    name: str
    objective: str
    rule: str
    period: float = 1
    context: Context = Context()
    needs: tuple[str, ...] = ()
    knowledge: tuple[tuple[str, str], ...] = ()
    state: tuple[Tensor, ...] | None = ()
    keys: tuple[str, ...] = ()
    item: int = 0
    parameters: tuple[Tensor, ...] = ()


def attending(window: int | None = None, state: tuple[Tensor, ...] | None = None) -> Part:
    """Softmax attention as a memory: the value that fits best near a query, answered from all pairs, or the last `window`."""
    return Part(
        "attention",
        "sum_i K(q, k_i) |y - v_i|^2 over y",
        "keeps every key and value" if window is None else f"keeps the last {window} keys and values",
        period=0,
        context=Context(effective=window),
        knowledge=(("direct non-parametric", PROJECTIONS),),
        state=state,
    )


class Described(abc.ABC):
    """A module that says what it remembers."""

    @abc.abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """Its components. Parameters that none of them starts from are taken to be what it is made of otherwise."""


def remembered(
    name: str,
    keys: tuple[str, ...],
    decay: float,
    objective: str,
    rule: str,
    needs: tuple[str, ...] = (),
    period: int = 1,
) -> Part:
    """A memory of gradients, of which `decay` stays at each of its updates."""
    return Part(name, objective, rule, period, Context.fading(decay, each=period), needs, keys=keys)


def called(part: object) -> str:
    """The name of an objective or a rule: as it prints itself, or its class where that would be an address."""
    text = repr(part)
    return type(part).__name__ if " at 0x" in text else text
