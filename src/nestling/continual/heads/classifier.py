"""What learns classes from a stream of examples, and the part that all heads on features share."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nestling.continual.heads.met import Met

Inputs = Sequence[str] | Tensor  # texts, or anything with examples along its first dimension


class Classifier(abc.ABC):
    """Learns to tell classes apart from batches that arrive once, while new classes keep coming.

    A head on features that stand still (`Head`) is one, and so is a whole model that learns in its body. Labels are any
    integers; how many classes there will be is not known.
    """

    @abc.abstractmethod
    def observe(self, inputs: Any, labels: Tensor) -> None:
        """Learn from a batch: `Inputs` or what the classifier takes, and their labels `[B]` int64."""

    @abc.abstractmethod
    def predict(self, inputs: Any, among: Tensor | None = None) -> Tensor:
        """Labels `[B]` int64, of the classes met so far.

        among: labels to choose from, where the task is known at test (task-incremental learning). None: every class met.

        Raises:
            ValueError: no class was met, or none of `among`.
        """

    def end_experience(self) -> None:  # noqa: B027 - most need none
        """An experience is over. What needs no boundaries, as most here, does nothing."""

    @abc.abstractmethod
    def stored(self) -> Iterable[Tensor]:
        """Every tensor that is kept to go on learning and answering, a backbone that never moves apart."""

    @abc.abstractmethod
    def parameters(self) -> int:
        """How many numbers a prediction reads, a backbone that never moves apart."""

    def bytes(self) -> int:
        """Of what is stored."""
        return sum(tensor.nbytes for tensor in self.stored())


class Head(Classifier):
    """A classifier of features `[B, d]` that scores every class met so far."""

    def __init__(self) -> None:
        self.met = Met()

    @abc.abstractmethod
    def learn(self, x: Tensor, columns: Tensor) -> None:
        """Features `[B, d]` and the columns `[B]` of their classes; `len(self.met)` is how many columns there are by now."""

    @abc.abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """`[B, d] -> [B, classes met]`; the largest wins."""

    @torch.no_grad()
    def observe(self, inputs: Tensor, labels: Tensor) -> None:
        if inputs.dim() != 2 or labels.shape != inputs.shape[:1]:
            found = f"features {tuple(inputs.shape)} and labels {tuple(labels.shape)}"
            raise ValueError(f"{found} do not fit; a head takes [B, d] and [B]")
        self.learn(inputs, self.met.add(labels))

    @torch.no_grad()
    def predict(self, inputs: Tensor, among: Tensor | None = None) -> Tensor:
        allowed = self.met.allowed(among)
        return self.met.labels[self.scores(inputs).masked_fill(~allowed, -torch.inf).argmax(-1)]


class OnFeatures(Classifier):
    """A head behind a backbone that never moves.

    encode: from inputs to features `[B, d]`; the head's dtype is theirs.
    """

    def __init__(self, encode: Any, head: Head) -> None:
        self.encode, self.head = encode, head

    def observe(self, inputs: Any, labels: Tensor) -> None:
        self.head.observe(self.encode(inputs), labels)

    def predict(self, inputs: Any, among: Tensor | None = None) -> Tensor:
        return self.head.predict(self.encode(inputs), among)

    def scores(self, inputs: Any) -> Tensor:
        """The head's, `[B, classes met]`."""
        return self.head.scores(self.encode(inputs))

    def end_experience(self) -> None:
        self.head.end_experience()

    def stored(self) -> Iterable[Tensor]:
        return self.head.stored()

    def parameters(self) -> int:
        return self.head.parameters()
