"""The protocol: learn an experience, then be judged on all so far."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from nestling.continual.heads import Classifier, OnFeatures
from nestling.evals.continual.metrics import macro_accuracy
from nestling.evals.continual.stream import Examples, Experience, Stream

JUDGED = 1000  # test examples, at most, of a judgement within an experience


def run(
    method: Classifier, stream: Stream, batch: int = 32, passes: int = 1, judgements: int = 4, seed: int = 0
) -> dict[str, Any]:
    """What a method did on a stream, as plain data.

    Args:
        batch: examples that are observed at a time. passes: over each experience; 1 is online, where every example comes once,
            more are epoch-wise.
        judgements: on the classes met so far, spread over each experience; the last one is at its end.
        seed: of the order of examples.

    Returns:
        matrix: accuracies as `nestling.evals.continual.metrics` has them. sizes: test examples of each experience. chance: accuracy
        of a guess there. macro: over all so far, after each experience. anytime: (examples learnt, accuracy) on at most 1,000 test
        examples of the classes met so far. seconds: of the processor, to learn; judging: to be judged. bytes: stored at
        the end; parameters: that a prediction reads, at the end.
    """
    draws = torch.Generator().manual_seed(seed)
    clock, learnt, met = _Clock(), 0, set()
    matrix, macro, anytime = [], [], []
    for number, experience in enumerate(stream.experiences):
        so_far = stream.experiences[: number + 1]
        batches = batches_of(experience.train, batch, passes, draws)
        stops = {round((i + 1) * len(batches) / judgements) for i in range(judgements)} if judgements else set()
        for at, examples in enumerate(batches, start=1):
            with clock.of("seconds"):
                method.observe(examples.inputs, examples.labels)
            learnt += len(examples)
            met |= set(examples.labels.tolist())
            if at in stops:
                with clock.of("judging"):
                    anytime.append((learnt, _anytime(method, stream.kind, so_far, met, draws)))
        with clock.of("seconds"):
            method.end_experience()
        with clock.of("judging"):
            row, mean = _judge(method, stream, number)
        matrix.append(row)
        macro.append(mean)
    sizes = [len(experience.test) for experience in stream.experiences]
    found = {"matrix": matrix, "sizes": sizes, "chance": stream.chance(), "macro": macro, "anytime": anytime}
    return {**found, **clock.seconds, "bytes": method.bytes(), "parameters": method.parameters()}


def learn(method: Classifier, stream: Stream, batch: int = 32, passes: int = 1, seed: int = 0) -> None:
    """All of a stream, and nothing judged."""
    draws = torch.Generator().manual_seed(seed)
    for experience in stream.experiences:
        for examples in batches_of(experience.train, batch, passes, draws):
            method.observe(examples.inputs, examples.labels)
        method.end_experience()


def final_accuracy(method: Classifier, stream: Stream) -> float:
    """Over all test examples."""
    right = [_right(method, stream.kind, experience, experience.test) for experience in stream.experiences]
    return torch.cat(right).double().mean().item()


def squared_error(method: OnFeatures, stream: Stream) -> float:
    """Of a head's scores from the one-hot codes of the classes, over all test examples and classes."""
    found = []
    for experience in stream.experiences:
        scores = method.scores(experience.test.inputs)
        codes = (experience.test.labels[:, None] == method.head.met.labels).to(scores)
        found.append((scores - codes).square().flatten())
    return torch.cat(found).mean().item()


def batches_of(examples: Examples, batch: int, passes: int, draws: torch.Generator) -> list[Examples]:
    """Every example once a pass, in an order of its own."""
    found = []
    for _ in range(passes):
        order = torch.randperm(len(examples), generator=draws)
        found += [examples.pick(places) for places in order.split(batch)]
    return found


class _Clock:
    """Seconds of the processor, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds = {"seconds": 0.0, "judging": 0.0}
        self._what = ""

    def of(self, what: str) -> _Clock:
        self._what = what
        return self

    def __enter__(self) -> None:
        self._begun = time.process_time()

    def __exit__(self, *error: object) -> None:
        self.seconds[self._what] += time.process_time() - self._begun


def _predict(method: Classifier, kind: str, experience: Experience, examples: Examples) -> Tensor:
    among = torch.tensor(experience.classes) if kind == "task" else None
    return method.predict(examples.inputs, among)


def _right(method: Classifier, kind: str, experience: Experience, examples: Examples) -> Tensor:
    return _predict(method, kind, experience, examples) == examples.labels


def _judge(method: Classifier, stream: Stream, number: int) -> tuple[list[float | None], float]:
    """A row of the matrix after experience `number`, and the macro accuracy over all so far."""
    row: list[float | None] = []
    labels, predicted = [], []
    for at, experience in enumerate(stream.experiences):
        if at > number and stream.kind != "domain":
            row.append(None)
            continue
        found = _predict(method, stream.kind, experience, experience.test)
        row.append((found == experience.test.labels).double().mean().item())
        if at <= number:
            labels += experience.test.labels.tolist()
            predicted += found.tolist()
    return row, macro_accuracy(labels, predicted)


def _anytime(
    method: Classifier, kind: str, so_far: tuple[Experience, ...], met: set[int], draws: torch.Generator
) -> float:
    """Accuracy on test examples of the classes met so far, in the experiences so far."""
    tests = [experience.test.of(sorted(met)) for experience in so_far]
    share = min(1.0, JUDGED / sum(map(len, tests)))
    right = []
    for experience, test in zip(so_far, tests, strict=True):
        chosen = test.shuffled(draws).pick(torch.arange(math.ceil(len(test) * share)))
        if len(chosen):
            right.append(_right(method, kind, experience, chosen))
    return torch.cat(right).double().mean().item()
