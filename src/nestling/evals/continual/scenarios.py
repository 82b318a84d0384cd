"""The scenarios by name: a data set, cut into experiences by a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nestling.evals.continual import sets
from nestling.evals.continual.encoder import WIDTH, Encode, MiniLM, table, unit_pixels
from nestling.evals.continual.stream import Examples, Experience, Labelled, Stream

Groups = list[list[int]]


@dataclass(frozen=True)
class Scenario:
    """about: the data and how it is cut. kind: as of `Stream`. dim: width of its features. text: whether an encoder makes them.

    load: from a folder (None: NESTLING_DATA's) to the data, and the groups that its classes belong to where it has some.
    experiences: how many groups are drawn, where it has none; of a domain-incremental one, how many domains.
    few: examples of each class to train and to test on in a quick run. domains: what makes a domain-incremental stream of it.
    """

    about: str
    load: Callable[[str | None], tuple[Labelled, Groups | None]]
    experiences: int
    dim: int
    kind: str = "class"
    text: bool = True
    few: tuple[int, int] = (20, 5)
    domains: Callable[[Labelled, int, torch.Generator], Stream] | None = None

    def data(self, folder: str | None, quick: bool) -> tuple[Labelled, Groups | None]:
        """The examples and groups."""
        data, groups = self.load(folder)
        return (sets.few(data, *self.few) if quick else data), groups

    def stream(self, data: Labelled, groups: Groups | None, seed: int) -> Stream:
        """Its experiences in the order of a seed; classes that are grouped stay together."""
        draws = torch.Generator().manual_seed(seed)
        if self.domains is not None:
            return self.domains(data, self.experiences, draws)
        if groups is None:
            classes = torch.tensor(data.trained())
            order = classes[torch.randperm(len(classes), generator=draws)]
            return data.split(self.kind, [part.tolist() for part in order.tensor_split(self.experiences)])
        return data.split(self.kind, [groups[i] for i in torch.randperm(len(groups), generator=draws).tolist()])

    def encode(self, data: Labelled, folder: Path) -> Encode | Callable[[torch.Tensor], torch.Tensor]:
        """What makes features of its inputs; those of texts are kept in `folder`."""
        if not self.text:
            return unit_pixels
        texts: Sequence[str] = [text for part in (data.train, data.test) for text in part.inputs]  # type: ignore[misc]
        return table(texts, folder, MiniLM.name, MiniLM)


def permuted(data: Labelled, domains: int, draws: torch.Generator, train: int = 10_000, test: int = 1_000) -> Stream:
    """Every domain has an order of the pixels of its own (Goodfellow et al., arXiv 1312.6211)."""
    classes = tuple(data.trained())
    found = []
    for _ in range(domains):
        order = torch.randperm(torch.as_tensor(data.train.inputs).shape[1], generator=draws)
        parts = (
            part.shuffled(draws).pick(torch.arange(min(count, len(part))))
            for part, count in ((data.train, train), (data.test, test))
        )
        found.append(
            Experience(classes, *(Examples(torch.as_tensor(part.inputs)[:, order], part.labels) for part in parts))
        )
    return Stream("domain", data.names, tuple(found))


def paired(data: Labelled, domains: int, draws: torch.Generator) -> Stream:
    """Every domain is two classes of its own, and the question is always which of the two: the first or the second.

    Split MNIST in the domain-incremental setting (van de Ven et al. 2022).
    """
    classes = torch.tensor(data.trained())[torch.randperm(len(data.trained()), generator=draws)]
    found = []
    for pair in classes[: 2 * domains].view(domains, 2):
        parts = (part.of(pair.tolist()) for part in (data.train, data.test))
        found.append(Experience((0, 1), *(Examples(part.inputs, (part.labels == pair[1]).long()) for part in parts)))
    return Stream("domain", ("first", "second"), tuple(found))


def _alone(load: Callable[[str | None], Labelled]) -> Callable[[str | None], tuple[Labelled, None]]:
    return lambda folder: (load(folder), None)


def _digits(folder: str | None) -> Labelled:
    return sets.digits()


_SPLIT_DIGITS = Scenario("scikit-learn's digits, 5 x 2 classes", _alone(_digits), 5, 64, text=False, few=(40, 15))
_SPLIT_MNIST = Scenario("MNIST, 5 x 2 classes", _alone(sets.mnist_images), 5, 784, text=False, few=(100, 30))

SCENARIOS: dict[str, Scenario] = {
    "clinc150": Scenario("CLINC150, the official split, its 10 domains of 15 intents", sets.clinc150, 10, WIDTH),
    "clinc150-cil": Scenario("CLINC150, cil_text, 10 x 15", _alone(lambda f: sets.cil_text("clinc", f)), 10, WIDTH),
    "banking77": Scenario("Banking77, the official split, 7 x 11 intents", _alone(sets.banking77), 7, WIDTH),
    "banking77-cil": Scenario("Banking77, cil_text, 7 x 11", _alone(lambda f: sets.cil_text("banking", f)), 7, WIDTH),
    "dbpedia70-cil": Scenario("DBpedia, cil_text, 7 x 10", _alone(lambda f: sets.cil_text("dbpedia", f)), 7, WIDTH),
    "split-digits": _SPLIT_DIGITS,
    "split-digits-task": replace(
        _SPLIT_DIGITS, about="scikit-learn's digits, 5 x 2 classes, the pair known at test", kind="task"
    ),
    "permuted-digits": replace(
        _SPLIT_DIGITS,
        about="scikit-learn's digits, 10 orders of pixels",
        kind="domain",
        experiences=10,
        domains=permuted,
    ),
    "split-mnist": _SPLIT_MNIST,
    "split-mnist-domain": replace(
        _SPLIT_MNIST, about="MNIST, 5 pairs of classes: the first of two or the second?", kind="domain", domains=paired
    ),
    "permuted-mnist": replace(
        _SPLIT_MNIST,
        about="MNIST, 10 orders of pixels, 10,000 images each",
        kind="domain",
        experiences=10,
        domains=permuted,
    ),
}  # fmt: skip
