"""The parameter regime: one set of weights, levels as groups that gather gradients and step at their periods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from nestling.levels.fast import LevelState, initial
from nestling.levels.level import Level
from nestling.levels.seen import second_moments
from nestling.levels.update import gather, step
from nestling.memory import RetainSeen
from nestling.ops.state import named_tensors, with_tensors


class LevelOptimizer:
    """Moves a module's own weights, each level at its period.

    Usage, beside an ordinary optimiser for the weights that no level moves:

        with optimizer.watch():            # sees the inputs that `RetainSeen` asks for
            loss = model(...).loss
        loss.backward()
        optimizer.step(tokens)             # tokens this backward pass was the mean over

    Args:
        module: where the weights live. levels: fast to slow. moves: for each level the weights it moves, by name;
            superposed levels name the same weights, and what they add is folded into them at once.

    Raises:
        ValueError: a level resets, or has a rank. Without a difference of its own there is nothing to reset, and nothing that
            would be smaller: use learning="context".
    """

    def __init__(self, module: nn.Module, levels: list[Level], moves: list[list[str]]) -> None:
        for level in levels:
            if level.reset is not None:
                raise ValueError(
                    f"reset={level.reset!r} needs learning='context'; in the parameter regime use reset=None"
                )
            if level.rank is not None:
                raise ValueError(f"rank={level.rank} needs learning='context'; in the parameter regime use rank=None")
        self.module, self.levels = module, levels
        self.weights: Mapping[str, nn.Parameter] = dict(module.named_parameters())
        self.state = initial(levels, moves, self.weights, batch=1)
        asking = [names for level, names in zip(levels, moves, strict=True) if isinstance(level.rule, RetainSeen)]
        watched = sorted({name for names in asking for name in names})
        self.watched = {name: module.get_submodule(name.removesuffix(".weight")) for name in watched}
        self.seen: dict[str, Tensor] = {}

    @property
    def moved(self) -> set[str]:
        """Names of the weights that some level moves."""
        return {name for level in self.state for name in level.weights}

    def watch(self) -> _Watch:
        """A context in which a forward pass shows its inputs to the levels that retain what was seen."""
        return _Watch(self)

    @torch.no_grad()
    def step(self, tokens: int) -> None:
        """Gather the gradients (of a mean loss over `tokens` tokens), move the levels that are due, clear the gradients."""
        if missing := set(self.watched) - set(self.seen):
            raise ValueError(
                f"nothing was seen of {sorted(missing)}; run the forward pass inside `with optimizer.watch():`"
            )
        count = torch.tensor([float(tokens)], dtype=torch.float64)
        gradients = {name: self._gradient(name)[None] * tokens for name in self.moved}
        before = gather(self.state, gradients, self.seen, count, count)
        after = step(self.levels, before)
        self.state = tuple(self._fold(state) for state in after)
        self.seen = {}
        for name in self.moved:
            self.weights[name].grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Clocks, gathered gradients, what was seen and what optimisers remember, as tensors by name."""
        return {name: tensor.clone() for name, tensor in named_tensors(self.state).items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was taken, the module's weights being those of then.

        Raises:
            ValueError: tensors of other levels or weights; nothing has changed.
        """
        own = named_tensors(self.state)
        fitting = [name for name in own if name in tensors and tensors[name].shape == own[name].shape]
        if len(fitting) != len(own) or len(own) != len(tensors):
            wrong = sorted({*own, *tensors} - {*fitting})
            raise ValueError(
                f"the state is of other levels or weights ({', '.join(wrong[:3])}, ..); load it where it was taken"
            )
        self.state = with_tensors(self.state, {name: tensor.clone() for name, tensor in tensors.items()})

    def _gradient(self, name: str) -> Tensor:
        gradient = self.weights[name].grad
        if gradient is None:
            raise ValueError(f"{name} has no gradient; call backward() before step()")
        return gradient

    def _fold(self, state: LevelState) -> LevelState:
        """Add a level's difference to the weight itself, and start again from zero."""
        folded = {}
        for name, difference in state.weights.items():
            self.weights[name].add_(difference.value[0].to(self.weights[name].dtype))
            folded[name] = replace(difference, value=torch.zeros_like(difference.value))
        return replace(state, weights=folded)


class _Watch:
    def __init__(self, optimizer: LevelOptimizer) -> None:
        self.optimizer = optimizer
        self.hooks = second_moments(optimizer.watched, None)

    def __enter__(self) -> None:
        self.found = self.hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(None, None, None)
        for name, moment in self.found.items():
            moment = moment.detach().sum(0, keepdim=True)
            self.optimizer.seen[name] = self.optimizer.seen.get(name, 0) + moment
