"""Any model and optimiser as nested levels of associative memories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nestling.levels.description.component import Size
from nestling.levels.description.continuum import Moving, by_optimizer, moving_in, while_reading
from nestling.levels.description.description import Description
from nestling.levels.description.optimizers import Mover, movers
from nestling.levels.description.order import ordered
from nestling.levels.description.row import Reference, Row, components
from nestling.levels.description.structure import COUNTED, Structure, structure
from nestling.levels.optimizer import LevelOptimizer
from nestling.memory.part import LOSS, Context, Part

Optimizer = torch.optim.Optimizer | LevelOptimizer
# Of a step where nothing is said: the half a million of GPT-3's smallest model (arXiv 2005.14165, Table 2.1).
TOKENS = 2**19


def describe(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    tokens_per_step: int | None = None,
) -> Description:
    """The level table of a model: every component with its frequency, sizes, objective, context, rule and sources.

        print(nestling.levels.describe(model, torch.optim.AdamW(model.parameters()), tokens_per_step=4096))

    How frequencies are told (arXiv 2512.24695, Def. 2; one token, or one data point of another kind, is one unit of time):
        - attention is fitted to nothing and answers from the context itself: infinite;
        - a memory that is written token by token has 1, also where a chunk of tokens takes its gradients at one state: the
          chunk says at which weights a gradient is taken, and the state moves at every token none the less;
        - a level of a continuum memory has 1 over its period;
        - weights that an optimiser moves, and its memories, have 1 over the tokens of a step (a slow memory less often);
        - what nothing moves has 0: frozen weights, and without an optimiser all weights.

    Modules are recognised by their structure, ours by what they say (`nestling.memory.part.Described`, `HasLevels`), which any
    module may. Buffers that nothing moves, such as tables of positions, are left out.

    Args:
        model: any module, on any device; `torch.device("meta")` will do, nothing is computed.
        optimizer: what moves its parameters: one, several, or None for the model as it is used. Before its first step its state is
            the one that this step will make, and after it the one that is there.
        tokens_per_step: how many tokens a step of the optimisers sees; None is half a million.

    Raises:
        ValueError: no module; an optimiser of another model, or two for one parameter; an optimiser that must make a step first;
            tokens_per_step that is no whole number of at least 1, or without an optimiser.
    """
    optimizers = _checked(model, optimizer, tokens_per_step)
    tokens = TOKENS if tokens_per_step is None else tokens_per_step
    by_level = [o for o in optimizers if isinstance(o, LevelOptimizer)]
    moved = movers(o for o in optimizers if not isinstance(o, LevelOptimizer))
    found = structure(model)
    levelled: set[Tensor] = {o.weights[name] for o in by_level for name in o.moved}
    _check_parameters(found, moved, levelled)
    rows = [
        *_memories(found),
        *(row for moving in _reading(model, levelled) for row in while_reading(moving, lambda w: _role(found, w))),
        *_optimizers(found, moved, tokens),
        *_averages(found, tokens if optimizers else None),
        *(row for o in by_level for row in by_optimizer(o, tokens, lambda w: _role(found, w))),
        *_weights(found, moved, levelled, tokens, bool(optimizers)),
    ]
    return Description(
        model=type(model).__name__,
        optimizers=tuple(type(o).__name__ for o in optimizers),
        tokens_per_step=tokens if optimizers else None,
        levels=ordered(components(rows)),
        notes=found.notes,
    )


def _checked(model: Any, optimizer: Any, tokens_per_step: int | None) -> tuple[Optimizer, ...]:
    """The optimisers as a tuple; ValueError for what cannot be described."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    optimizers = () if optimizer is None else tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise ValueError(
                f"optimizer is a {type(one).__name__}; give a torch.optim.Optimizer, a LevelOptimizer, or several of them"
            )
    if tokens_per_step is not None and not optimizers:
        raise ValueError(
            f"tokens_per_step={tokens_per_step} without an optimizer: no step is made; give one, or leave it out"
        )
    whole = isinstance(tokens_per_step, int) and not isinstance(tokens_per_step, bool)
    if tokens_per_step is not None and not (whole and tokens_per_step >= 1):
        raise ValueError(f"tokens_per_step={tokens_per_step!r} must be a whole number of tokens, at least 1")
    return optimizers


def _check_parameters(found: Structure, moved: dict[Tensor, Mover], levelled: set[Tensor]) -> None:
    """What is moved is the model's, by one optimiser each."""
    foreign = [p for p in (*moved, *levelled) if p not in found.places]
    if foreign:
        raise ValueError(
            f"the optimizer moves {len(foreign)} parameters that the model does not have, one of shape {list(foreign[0].shape)}; "
            "give the model that it was made for"
        )
    if twice := [p for p in levelled if p in moved]:
        raise ValueError(
            f"{len(twice)} weights are moved by a LevelOptimizer and by {moved[twice[0]].label}; give the latter those that no level moves"
        )


def _reading(model: nn.Module, levelled: set[Tensor]) -> Iterator[Moving]:
    """What moves while the model reads; not what an optimiser moves instead."""
    for moving in moving_in(model):
        if not all(moving.weights[name] in levelled for names in moving.moves for name in names):
            yield moving


def _memories(found: Structure) -> Iterator[Row]:
    """What mixes tokens and remembers them."""
    for part, place in found.parts:
        state = None if part.state is None else Size.of(part.state)
        yield _row(part, 1.0, state, part.item, part.name, "", frozenset([place]))


def _row(
    part: Part,
    frequency: float,
    state: Size | None,
    item: int,
    base: str,
    mover: str,
    places: frozenset[str] = frozenset(),
) -> Row:
    """A part as a row; `frequency` is that of a part whose period is 1."""
    return Row(
        base=base,
        frequency=frequency / part.period if part.period else float("inf"),
        objective=part.objective,
        rule=part.rule,
        context=part.context,
        mover=mover,
        places=places,
        state=state,
        item=item,
        needs=tuple((need, mover or None) for need in part.needs),
        knowledge=tuple((kind, (source, None)) for kind, source in part.knowledge),
    )


def _role(found: Structure, weight: Tensor) -> str:
    """Of a parameter, or of a transposed view of one."""
    own = weight if weight in found.places else weight._base
    assert own is not None and own in found.places
    return found.places[own].role


def _optimizers(found: Structure, moved: dict[Tensor, Mover], tokens: int) -> Iterator[Row]:
    """What optimisers remember of gradients, which the model makes for them."""
    for parameter, mover in moved.items():
        for part, size in mover.memories:
            item = part.item or (parameter.numel() if part.keys else 0)  # a count of steps is brought nothing
            row = _row(part, 1 / tokens, size, item, part.name, mover.label)
            source: Reference = (found.places[parameter].role, mover.label)
            yield Row(**{**vars(row), "knowledge": (*row.knowledge, ("generation", source))})


def _averages(found: Structure, tokens: int | None) -> Iterator[Row]:
    """Running means and variances of what goes through a norm: memories without an outer gradient."""
    for module in found.averages.values():
        decay = None if module.momentum is None else 1 - module.momentum
        buffers = [b for b in (module.running_mean, module.running_var, module.num_batches_tracked) if b is not None]
        yield Row(
            base="running statistics",
            frequency=1 / tokens if tokens else 0.0,
            objective="1/2 |m - x|^2",
            rule="m <- mean of all batches" if decay is None else f"m <- {decay:g} m + {1 - decay:g} mean(x)",
            context=Context.fading(1.0 if decay is None else decay, "batches") if tokens else Context("batches", 0.0),
            state=Size.of(buffers),
            item=2 * module.num_features,
            knowledge=(
                ("direct non-parametric", ("convolutions", None)),
                ("direct non-parametric", ("linear maps", None)),
            ),
        )


def _weights(
    found: Structure, moved: dict[Tensor, Mover], levelled: set[Tensor], tokens: int, trained: bool
) -> Iterator[Row]:
    """The parameters, by role and by what moves them."""
    for parameter, place in found.places.items():
        if parameter in levelled:
            continue
        common = {
            "base": place.role,
            "places": frozenset([place.block]) if place.role in COUNTED else frozenset(),
            "parameters": Size.of([parameter]),
            "item": parameter.numel(),
        }
        if parameter in moved:
            yield Row(**common, **_trained(moved[parameter], tokens))
        else:
            yield Row(
                **common,
                frequency=0.0,
                mover="frozen" if trained else "",
                objective="none",
                rule="nothing moves it",
                context=Context("gradients", 0.0),
            )


def _trained(mover: Mover, tokens: int) -> dict[str, Any]:
    memories = tuple((part.name, mover.label) for part, _ in mover.memories)
    return {
        "frequency": 1 / tokens,
        "mover": mover.label,
        "objective": LOSS,
        "rule": mover.rule,
        "context": mover.context,
        "needs": memories,
        "knowledge": (
            ("backpropagation", (LOSS, None)),
            *(("direct parametric", memory) for memory in memories),
        ),
    }
