"""A head that is an associative memory: one pair written an example, from features to the class's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nestling.continual.heads.classifier import Head
from nestling.continual.heads.met import codes, padded
from nestling.memory import L2, AssociativeMemory, DotProduct, Features, GradientDescent, LeastSquares, Matrix
from nestling.memory.state import MemoryState

FeatureMap = Callable[[Tensor], Tensor]


def plain(x: Tensor) -> Tensor:
    """Features as they are."""
    return x


class Growing:
    """A linear memory whose values get one more component with every class.

    The columns of a linear memory learn apart, and a class that never came would have left its own at zero: growing gives
    what the memory would hold had all classes been known from the start, exactly.
    """

    def __init__(self, feature_map: FeatureMap, width: int, make: Callable[[Features], AssociativeMemory]) -> None:
        self.feature_map, self.width, self.make = feature_map, width, make
        self.memory: AssociativeMemory | None = None
        self.state: MemoryState | None = None

    def write(self, x: Tensor, codes: Tensor) -> None:
        """Pairs `[B, d] -> [B, C]` in the order of the batch; `C` may be larger than it was."""
        self._grow(codes.shape[-1], x.dtype)
        assert self.memory is not None
        ones = torch.ones(1, 1, len(x), dtype=x.dtype)
        _, self.state = self.memory(None, x[None, None], codes[None, None], ones, state=self.state)

    @property
    def weight(self) -> Tensor:
        """`[n, C]`."""
        assert self.state is not None
        return self.state.weights[0][0, 0]

    def tensors(self) -> list[Tensor]:
        """What it carries from one call to the next (`start` is a copy of the weight, except within a chunk)."""
        return [] if self.state is None else [*self.state.weights, *self.state.carried]

    def _grow(self, classes: int, dtype: torch.dtype) -> None:
        if self.memory is not None and self.memory.network.dim_value == classes:
            return
        matrix = Matrix(self.width, classes, learnt=False).to(dtype)
        self.memory = self.make(Features(self.feature_map, matrix))
        if self.state is not None:
            wider = [tuple(padded(w, classes, dim=-1) for w in part) for part in (self.state.weights, self.state.start)]
            self.state = replace(self.state, weights=wider[0], start=wider[1])


class Readout(Protocol):
    """How what a memory reads becomes a score of each class."""

    means: bool  # whether it needs the means of the classes' features

    def __call__(self, read: Tensor, weight: Tensor, means: Tensor | None, counts: Tensor) -> Tensor:
        """Scores `[B, C]` from what was read `[B, C]`, the weight `[n, C]`, the means `[C, n]` and the counts `[C]`."""
        ...


class Largest:
    """The class whose code the memory answers most strongly."""

    means = False

    def __call__(self, read: Tensor, weight: Tensor, means: Tensor | None, counts: Tensor) -> Tensor:
        return read


class Discriminant:
    """The linear discriminant that the memory holds: `StreamingLDA`'s score, read out of least squares.

    With `U [C, n]` the classes' means, `D` the diagonal of their counts and `V` the scatter within classes plus `ridge I`,
    least squares of one-hot codes is `W = (V + U^T D U)^-1 U^T D`. Woodbury's identity turns its reads into those of `V^-1`:

        x V^-1 U^T = x W D^-1 (I - M^T)^-1,    M = U W    (the memory's reads at the means of its classes)

    and so `score_c(x) = x V^-1 mu_c^T - 1/2 mu_c V^-1 mu_c^T` needs no covariance. It is SLDA's with the shrinkage `s` for which
    `s / (1 - s) = ridge / N`: a ridge is a shrinkage that fades as examples come. With `Largest`, classes of few examples
    answer weakly; here all weigh the same.
    """

    means = True

    def __call__(self, read: Tensor, weight: Tensor, means: Tensor | None, counts: Tensor) -> Tensor:
        assert means is not None
        inner = means @ weight
        system = torch.eye(len(inner), dtype=inner.dtype) - inner.mT
        both = torch.linalg.solve(system, torch.cat([read, inner]) / counts, left=False)
        linear, own = both.tensor_split([len(read)])
        return linear - 0.5 * own.diagonal()


class MemoryHead(Head):
    """A nestling memory as a head: `AssociativeMemory(Features(feature_map, Matrix), L2(), rule)`, and a readout.

        head = MemoryHead(RandomReLU(2000, 384), 2000, LeastSquares(ridge=1.0))                   # RanPAC, recursively
        head = MemoryHead(plain, 384, LeastSquares(ridge=1.0), Discriminant())                    # SLDA

    With `Discriminant` there is a second memory of the same pairs, Hebbian, which holds the sums of the classes' features.
    Every example is written once, nothing is solved again, and the order does not matter where the rule is least squares. Pairs
    are gathered until they fill a chunk, or a prediction is asked for.

    Args:
        feature_map: `[B, d] -> [B, width]`. rule: of a linear memory of `L2`. readout: `Largest()` or `Discriminant()`.
        chunk_size: examples in one exact step of the rule.

    Raises:
        ValueError: `Discriminant` without `LeastSquares`.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        width: int,
        rule: Any = None,
        readout: Readout | None = None,
        chunk_size: int = 256,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        readout = readout or Largest()
        rule = LeastSquares() if rule is None else rule
        if isinstance(readout, Discriminant) and not isinstance(rule, LeastSquares):
            raise ValueError(
                f"Discriminant() reads the optimum of least squares, not {rule}; use rule=LeastSquares(ridge)"
            )
        self.readout, self.dtype, self.chunk_size = readout, dtype, chunk_size
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.optimal = Growing(feature_map, width, _made(L2(), rule, chunk_size))
        self.hebbian: Growing | None = None
        if readout.means:
            self.hebbian = Growing(feature_map, width, _made(DotProduct(), GradientDescent(), chunk_size))

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.waiting.append((x.to(self.dtype), columns))
        if sum(len(columns) for _, columns in self.waiting) >= self.chunk_size:
            self.write()

    def write(self) -> None:
        """Write the pairs that wait."""
        if not self.waiting:
            return
        x, columns = (torch.cat(part) for part in zip(*self.waiting, strict=True))
        self.waiting = []
        for memory in filter(None, (self.optimal, self.hebbian)):
            memory.write(x, codes(columns, len(self.met), self.dtype))

    def scores(self, x: Tensor) -> Tensor:
        self.write()
        weight = self.optimal.weight
        means = None if self.hebbian is None else (self.hebbian.weight / self.met.counts).mT
        read = self.optimal.feature_map(x.to(self.dtype)) @ weight
        return self.readout(read, weight, means, self.met.counts)

    def stored(self) -> Iterable[Tensor]:
        yield from (tensor for pair in self.waiting for tensor in pair)
        yield from self.optimal.tensors()
        if self.hebbian is not None:
            yield from (*self.hebbian.tensors(), self.met.counts)
        if isinstance(self.optimal.feature_map, nn.Module):
            yield from self.optimal.feature_map.buffers()

    def parameters(self) -> int:
        kept = self.optimal.state
        inverse = sum(tensor.numel() for tensor in kept.carried) if kept else 0
        waiting = sum(tensor.numel() for pair in self.waiting for tensor in pair)
        return sum(tensor.numel() for tensor in self.stored()) - inverse - waiting


def _made(objective: Any, rule: Any, chunk_size: int) -> Callable[[Features], AssociativeMemory]:
    """A memory, given its network."""
    return lambda network: AssociativeMemory(network, objective, rule, chunk_size)
