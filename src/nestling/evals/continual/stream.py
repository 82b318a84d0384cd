"""A stream of experiences: what any scenario of continual learning fills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.errors import UserError

KINDS = ("class", "domain", "task")


@dataclass(frozen=True)
class Examples:
    """inputs: texts, or a tensor `[N, ..]`. labels: `[N]` int64."""

    inputs: Sequence[str] | Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, places: Tensor) -> Examples:
        """Those at some places `[n]` int64, in their order."""
        if isinstance(self.inputs, Tensor):
            return Examples(self.inputs[places], self.labels[places])
        return Examples([self.inputs[int(place)] for place in places.tolist()], self.labels[places])

    def of(self, classes: Sequence[int]) -> Examples:
        """Those of some classes."""
        return self.pick(torch.isin(self.labels, torch.tensor(classes)).nonzero()[:, 0])

    def shuffled(self, draws: torch.Generator) -> Examples:
        """In another order."""
        return self.pick(torch.randperm(len(self), generator=draws))


def joined(parts: Sequence[Examples]) -> Examples:
    """One after the other."""
    labels = torch.cat([part.labels for part in parts])
    tensors = [part.inputs for part in parts if isinstance(part.inputs, Tensor)]
    if len(tensors) == len(parts):
        return Examples(torch.cat(tensors), labels)
    texts: list[Any] = [text for part in parts for text in part.inputs]
    return Examples(texts, labels)


@dataclass(frozen=True)
class Experience:
    """What is learnt before the next thing comes, and how it is judged. classes: those that are in it."""

    classes: tuple[int, ...]
    train: Examples
    test: Examples


@dataclass(frozen=True)
class Stream:
    """Experiences in order, in one of three settings (van de Ven et al. 2022).

    kind: "class": new classes in every experience, and a prediction is among all that came so far; "task": the same, but at
        test it is known which experience an example belongs to; "domain": the same classes in every experience.
    names: of the classes; a label is a place among them.

    Raises:
        UserError: an unknown kind, a class that comes twice, is empty, or is tested and never trained.
    """

    kind: str
    names: tuple[str, ...]
    experiences: tuple[Experience, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind={self.kind!r} is unknown; choose 'class', 'domain' or 'task'")
        at: dict[int, int] = {}
        for number, experience in enumerate(self.experiences, start=1):
            for label in experience.classes:
                before = at.get(label)
                if before == number or (before is not None and self.kind != "domain"):
                    raise UserError(
                        f"class {self.names[label]!r} is in experiences {before} and {number}; give each class to one "
                        "experience alone"
                    )
                at[label] = number
            self._check(experience, number)

    def _check(self, experience: Experience, number: int) -> None:
        """That the experience trains what it names, and tests what it trains."""
        trained, tested = set(experience.train.labels.tolist()), set(experience.test.labels.tolist())
        for what, found in (("training", trained), ("test", tested)):
            for label in experience.classes:
                if label not in found:
                    raise UserError(
                        f"class {self.names[label]!r} of experience {number} has no {what} examples; add some, or leave "
                        "the class out"
                    )
        if never := tested - trained:
            names = ", ".join(repr(self.names[label]) for label in sorted(never))
            raise UserError(f"class {names} is tested in experience {number} but never trained there; leave it out")

    def chance(self) -> list[float]:
        """Accuracy of a guess in each experience, among the classes that it is judged with."""
        if self.kind == "class":
            classes = len({label for experience in self.experiences for label in experience.classes})
            return [1 / classes] * len(self.experiences)
        return [1 / len(experience.classes) for experience in self.experiences]


@dataclass(frozen=True)
class Labelled:
    """A data set: examples to train on and to test on, and the names of the classes that labels are places of."""

    train: Examples
    test: Examples
    names: tuple[str, ...]

    def split(self, kind: str, groups: Sequence[Sequence[int]]) -> Stream:
        """A stream whose experiences are groups of classes.

        Raises:
            UserError: as of `Stream`; a class that is tested is in no group.
        """
        given = {label for group in groups for label in group}
        if never := set(self.test.labels.tolist()) - given:
            names = ", ".join(repr(self.names[label]) for label in sorted(never)[:3])
            raise UserError(
                f"class {names} is tested but never trained; add training examples, or leave it out of the test"
            )
        experiences = (Experience(tuple(group), self.train.of(group), self.test.of(group)) for group in groups)
        return Stream(kind, self.names, tuple(experiences))

    def trained(self) -> list[int]:
        """Labels that have training examples."""
        return self.train.labels.unique().tolist()


def validation(stream: Stream, seed: int, limit: int, share: float = 0.2) -> Stream:
    """A stream to tune on, from the training examples alone: some of each class to judge by, the rest to learn.

    share: of each class that judges, but at least one example; a class of a single example does both.
    limit: examples that are learnt, about; all experiences are cut alike.
    """
    draws = torch.Generator().manual_seed(seed)
    total = sum(len(experience.train) for experience in stream.experiences)
    kept = min(1.0, limit / total)

    def cut(experience: Experience) -> Experience:
        learnt, judged = [], []
        for label in experience.classes:
            found = experience.train.of([label]).shuffled(draws)
            found = found.pick(torch.arange(min(len(found), max(2, round(kept * len(found))))))
            few = max(1, round(share * len(found)))
            judged.append(found.pick(torch.arange(few)))
            learnt.append(found.pick(torch.arange(few, len(found))) if few < len(found) else found)
        return Experience(experience.classes, joined(learnt), joined(judged))

    return Stream(stream.kind, stream.names, tuple(map(cut, stream.experiences)))
