"""How a piece of a chunk is computed, for the choices that make a memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nestling.memory.checks import loop_alone
from nestling.memory.closed import closed_form
from nestling.memory.compound import Compound
from nestling.memory.matrix_rule import MatrixRule, one_by_one, whole
from nestling.memory.queries import for_all
from nestling.memory.reference import token_loop
from nestling.memory.state import Moved
from nestling.memory.trajectory import trajectory

if TYPE_CHECKING:
    from nestling.memory.associative import AssociativeMemory

Form = Callable[..., tuple[Tensor | None, Moved]]


def form_of(memory: AssociativeMemory, frugal: bool = False) -> tuple[str, Form]:
    """The fastest exact form, or the oracle where that is asked for or there is no other; with its name.

    frugal: where the form has a choice, it is the one that keeps less for the backward pass.
    """
    own = isinstance(memory.rule, MatrixRule)
    if memory.backend == "reference" or loop_alone(memory):
        return "token-loop oracle", _of_all(one_by_one if own else token_loop)
    if own:
        return "chunk", _of_all(whole)
    if isinstance(memory.rule, Compound) or (memory.retention.maps and memory.read != "chunk"):
        return "trajectory", trajectory
    return "fused" if memory.fused else "chunk", partial(closed_form, frugal=frugal)


def _of_all(form: Form) -> Form:
    """A form that reads all memories, of which the queries may be for the last ones alone."""

    def run(memory: AssociativeMemory, q: Tensor | None, *given: Any, **state: Any) -> tuple[Tensor | None, Moved]:
        y, moved = form(memory, for_all(q, state["state"].weights), *given, **state)
        return (y if y is None or q is None else y[:, -q.shape[1] :]), moved

    return run
