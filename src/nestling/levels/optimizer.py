"""The parameter regime: one set of weights, levels as groups that gather gradients and step at their periods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from nestling.levels.factor import blocks
from nestling.levels.fast import FastWeights, LevelState, end_context, initial
from nestling.levels.felt import moment, outputs
from nestling.levels.level import Level
from nestling.levels.seen import second_moments
from nestling.levels.update import gather, step
from nestling.memory import DeltaGradientDescent
from nestling.ops.state import named_tensors, nbytes, with_tensors, zeros


class LevelOptimizer:
    """Moves a module's own weights, each level at its period.

    Usage, beside an ordinary optimiser for the weights that no level moves:

        with optimizer.watch():            # sees what `RetainSeen`, `RetainPredictions` and `DeltaGradientDescent` ask for
            loss = model(...).loss
        loss.backward()
        optimizer.step(tokens)             # how many went in

    Args:
        module: where the weights live. levels: fast to slow. moves: for each level the weights it moves, by name;
            superposed levels name the same weights, and what they add is folded into them at once.

    A level that resets or decays also keeps what it has added, one matrix more a weight, and takes it back from the weight.

    Raises:
        ValueError: a level has a rank, since nothing would be smaller: use learning="context". Or it resets and its rule erases,
            which in this regime is done to the weight as a whole.
    """

    def __init__(self, module: nn.Module, levels: list[Level], moves: list[list[str]]) -> None:
        for level in levels:
            if level.reset is not None and isinstance(level.rule, DeltaGradientDescent):
                raise ValueError(
                    f"reset={level.reset!r} with DeltaGradientDescent needs learning='context'; in the parameter regime use reset=None"
                )
            if level.rank is not None:
                raise ValueError(f"rank={level.rank} needs learning='context'; in the parameter regime use rank=None")
        self.module, self.levels = module, levels
        self.weights: Mapping[str, nn.Parameter] = dict(module.named_parameters())
        self.state = initial(levels, moves, self.weights, batch=1)
        asking = [names for level, names in zip(levels, moves, strict=True) if level.sees]
        watched = sorted({name for names in asking for name in names})
        self.watched = {name: module.get_submodule(name.removesuffix(".weight")) for name in watched}
        self.blocks = blocks(levels, moves)
        self.seen: dict[str, Tensor] = {}
        feeling = [names for level, names in zip(levels, moves, strict=True) if level.feels]
        self.listened = {name: self.watched[name] for names in feeling for name in names}
        self.felt: dict[str, Tensor] = {}

    @property
    def moved(self) -> set[str]:
        """Names of the weights that some level moves."""
        return {name for level in self.state for name in level.weights}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """A context in which a forward pass shows the levels what their rules ask for; the pass backward may come later."""
        with second_moments(self.watched, None, blocks=self.blocks) as seen, outputs(self.listened) as said:
            yield
        for name, moments in seen.items():
            self._see(name, moments)
        for name, output in said:
            output.register_hook(partial(self._feel, name))

    @torch.no_grad()
    def step(self, tokens: int) -> None:
        """Gather the gradients of a mean loss, move the levels that are due, clear the gradients.

        tokens: how many went in, padding included; it is what periods count. The loss is a mean, over them or over as few
            labels as there are.
        """
        if missing := set(self.watched) - set(self.seen):
            raise ValueError(
                f"nothing was seen of {sorted(missing)}; run the forward pass inside `with optimizer.watch():`"
            )
        if missing := set(self.listened) - set(self.felt):
            raise ValueError(
                f"no gradient came to the outputs of {sorted(missing)}; call backward() on a loss of what was read inside "
                "`with optimizer.watch():`, and checkpoint with use_reentrant=False"
            )
        count = torch.tensor([float(tokens)], dtype=torch.float64)
        gradients = {name: self._gradient(name)[None] * tokens for name in self.moved}
        held = tuple(self._hold(*one) for one in zip(self.levels, self.state, strict=True))
        felt = {name: moments * tokens**2 for name, moments in self.felt.items()}  # of the sum, as the gradients
        before = gather(held, gradients, self.seen, count, count, felt)
        after = step(self.levels, before)
        self._take(before, after)
        self.seen, self.felt = {}, {}
        for name in self.moved:
            self.weights[name].grad = None

    @torch.no_grad()
    def end_context(self) -> None:
        """A context has ended: what the levels that reset then have added is taken from the weights."""
        self._take(self.state, end_context(self.levels, self.state))

    @contextmanager
    def at_rest(self, *places: int) -> Iterator[None]:
        """A context in which some levels that reset, by their places, have added nothing: what the others know alone."""
        before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        with torch.no_grad():
            for place in places:
                for name, d in self.state[place].weights.items():
                    self.weights[name].sub_(d.value[0].to(self.weights[name].dtype))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(before[name])

    def bytes(self) -> int:
        """Of its state, beside the weights."""
        return nbytes(self.state)

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
        if not self.weights[name].requires_grad:
            raise ValueError(
                f"{name} is frozen, as adapters leave what is under them; call requires_grad_() on what levels move"
            )
        gradient = self.weights[name].grad
        if gradient is None:
            raise ValueError(f"{name} has no gradient; call backward() before step()")
        return gradient

    def _hold(self, level: Level, state: LevelState) -> LevelState:
        """What a level holds is the weight itself; rules that do not erase need not know."""
        if not isinstance(level.rule, DeltaGradientDescent):
            return state
        held = {name: self.weights[name][None].to(d.value, copy=True) for name, d in state.weights.items()}
        return replace(state, weights={name: replace(d, value=held[name]) for name, d in state.weights.items()})

    def _take(self, before: FastWeights, after: FastWeights) -> None:
        """Levels have moved."""
        self.state = tuple(self._fold(*one) for one in zip(self.levels, before, after, strict=True))

    def _fold(self, level: Level, before: LevelState, after: LevelState) -> LevelState:
        """Add to the weights what a level has moved; one that never resets starts again from zero."""
        folded = {}
        for name, d in after.weights.items():
            moved, old = d.value, before.weights[name].value
            if moved is not old:
                self.weights[name].add_((moved - old)[0].to(self.weights[name].dtype))
            nothing = zeros(tuple(moved.shape), moved.dtype, moved.device)
            folded[name] = d if level.reset is not None else replace(d, value=nothing)
        return replace(after, weights=folded)

    def _see(self, name: str, moments: Tensor) -> None:
        """More of a weight's inputs, `[B, in, in]`: in this regime all rows are one."""
        self.seen[name] = self.seen.get(name, 0) + moments.detach().sum(0, keepdim=True)

    def _feel(self, name: str, gradient: Tensor) -> None:
        """More gradients at a weight's outputs, `[.., out]`."""
        self.felt[name] = self.felt.get(name, 0) + moment(gradient.detach().flatten(0, -2), self.blocks[name])
