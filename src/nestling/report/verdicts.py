"""Whether one memory recalls better than another, number of pairs by number of pairs, as `python -m benchmarks.capacity` measured.

A difference counts where its mean over the seeds is above its standard deviation: "yes", or "no" where it is so the other way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from nestling.report.values import NOTHING, summary

Memory = dict[str, Any]
RAN_OFF = 10.0  # an error that no memory comes to that is stable
EQUAL = "deep against matrix, nothing carried"
HEADINGS = ("what against what", "task", "yes, at pairs", "even", "no", "difference", "the best there")


@dataclass(frozen=True)
class Contest:
    """One memory against another, or the best of a kind at each number of pairs (by the draws that rates are chosen on).

    measure: "stored" or "unseen" keys. focus: the number of pairs whose difference is shown.
    """

    name: str
    task: str
    measure: str
    pairs: Sequence[int]
    one: Sequence[Memory]
    other: Sequence[Memory]
    focus: int
    answers: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        found = {n: answer(self.differences(i)) for i, n in enumerate(self.pairs)}
        object.__setattr__(self, "answers", found)

    def sides(self, i: int) -> tuple[Memory, Memory]:
        """Who meets at the i-th number of pairs."""
        one, other = (best(of, self.task, self.measure, i) for of in (self.one, self.other))
        return one, other

    def differences(self, i: int) -> list[float]:
        """How much less the one's error is, seed by seed, at the i-th number of pairs."""
        ours, theirs = (errors(memory, self.task, self.measure, i) for memory in self.sides(i))
        return [their - our for our, their in zip(ours, theirs, strict=True)]

    def at(self, which: str) -> list[int]:
        """The numbers of pairs with this answer."""
        return [n for n, said in self.answers.items() if said == which]

    def row(self) -> list[str]:
        """As `HEADINGS` say; sides that are one memory everywhere are not named."""
        lists = [", ".join(map(str, self.at(which))) or NOTHING for which in ("yes", "even", "no")]
        i = self.pairs.index(self.focus)
        fixed = len(self.one), len(self.other)
        there = [named(memory) for memory, count in zip(self.sides(i), fixed, strict=True) if count > 1]
        difference = f"{summary(self.differences(i))} at {self.focus}"
        return [self.name, f"{self.task}, {self.measure}", *lists, difference, " / ".join(there) or NOTHING]


def answer(differences: Sequence[float]) -> str:
    """ "yes", "no" or "even"."""
    mean = fmean(differences)
    spread = stdev(differences) if len(differences) > 1 else 0.0
    return "even" if abs(mean) <= spread else "yes" if mean > 0 else "no"


def named(memory: Memory) -> str:
    """In words."""
    return f"{memory['network']}; {memory['objective']}; {memory['rule']}"


def best(memories: Iterable[Memory], task: str, measure: str, i: int) -> Memory:
    """The one whose error is least on the draws that rates are chosen on."""

    def tried(memory: Memory) -> float:
        error = memory[measure][task]["validation"][i]
        return math.inf if error is None else error

    return min(memories, key=tried)


def errors(memory: Memory, task: str, measure: str, i: int) -> list[float]:
    """Seed by seed; `RAN_OFF` for a memory that did, so that differences stay numbers."""
    return [RAN_OFF if e is None else min(e, RAN_OFF) for e in memory[measure][task]["errors"][i]]


def chosen(results: dict[str, Any], **wanted: Any) -> list[Memory]:
    """The memories with these parts; a value may be a function that says whether one will do."""

    def fits(memory: Memory) -> bool:
        return all(want(memory[key]) if callable(want) else memory[key] == want for key, want in wanted.items())

    return [memory for memory in results["memories"] if fits(memory)]


@dataclass(frozen=True)
class Claim:
    """What theory says, and whether it is so.

    core, within: what the claim is about in the first place, in words, and whether a contest at a number of pairs belongs to it.
    holds: the answers that agree with it.
    """

    title: str
    note: str
    contests: Callable[[dict[str, Any]], list[Contest]]
    core: str
    within: Callable[[Contest, int, int], bool]
    holds: tuple[str, ...] = ("yes",)

    def verdict(self, contests: Sequence[Contest], dim: int) -> str:
        """ "Yes", "No" or "In part", of the core, with counts of it and of all."""
        every = [(said, self.within(contest, n, dim)) for contest in contests for n, said in contest.answers.items()]
        core = Counter(said for said, inside in every if inside)
        agree = sum(core[which] for which in self.holds)
        word = "Yes" if agree == core.total() else "In part" if agree else "No"
        rest = _counts(Counter(said for said, inside in every if not inside))
        return f"{word}. {self.core}: {_counts(core)}. Elsewhere: {rest}."


def _counts(answers: Counter[str]) -> str:
    return ", ".join(f"{answers[which]} {which}" for which in ("yes", "even", "no"))


def hebbian_and_delta(results: dict[str, Any]) -> list[Contest]:
    """The delta rule against Hebbian writes, on the same linear network."""
    names = dict.fromkeys(memory["network"] for memory in chosen(results, rule="delta rule", size=1))
    pairs = {
        name: (
            chosen(results, network=name, rule="delta rule", size=1),
            chosen(results, network=name, objective="dot product", rule="plain", size=1),
        )
        for name in names
    }
    return _contests(results, pairs, [one for one in measures(results) if not results["tasks"][one[0]]["map"]])


def least_squares_and_all(results: dict[str, Any]) -> list[Contest]:
    """Least squares against the best of all other objectives and rules on the same linear network."""
    names = dict.fromkeys(memory["network"] for memory in chosen(results, rule="least squares", size=1))
    pairs = {
        name: (
            chosen(results, network=name, rule="least squares", size=1),
            chosen(results, network=name, rule=lambda rule: rule != "least squares", size=1),
        )
        for name in names
    }
    return _contests(results, pairs, measures(results))


def deep_and_matrix(results: dict[str, Any]) -> list[Contest]:
    """Networks with hidden layers against others, at as many weights, and at as many numbers in all."""
    deep, matrix, alone = {"kind": "deep"}, {"network": "Matrix"}, {"size": 1, "carried": 0}
    features = {"kind": "features"}
    pairs = {
        EQUAL: (deep | alone, matrix | alone),
        "deep against matrix": (deep | {"size": 1}, matrix),
        "deep, 3 times the weights, against matrix": (deep | {"size": 3}, matrix),
        "deep against features": (deep | {"size": 1}, features | {"size": 1}),
        "both with 3 times the weights": (deep | {"size": 3}, features | {"size": 3}),
    }
    found = {name: (chosen(results, **one), chosen(results, **other)) for name, (one, other) in pairs.items()}
    return _contests(results, found, measures(results))


def _contests(
    results: dict[str, Any], pairs: dict[str, tuple[list[Memory], list[Memory]]], where: Iterable[tuple[str, str]]
) -> list[Contest]:
    """On every task and measure; of memories that were measured."""
    return [
        Contest(name, task, measure, results["tasks"][task]["pairs"], one, other, focus(results, task))
        for task, measure in where
        for name, (one, other) in pairs.items()
        if one and other
    ]


def measures(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Tasks, each with stored keys and, of a map, with unseen ones."""
    tasks = results["tasks"]
    return [(name, what) for name in tasks for what in ("stored", "unseen") if what == "stored" or tasks[name]["map"]]


def focus(results: dict[str, Any], task: str) -> int:
    """As many unrelated pairs as a matrix can hold; the most pairs of a map."""
    found = results["tasks"][task]
    return found["pairs"][-1] if found["map"] else results["dim"]


CLAIMS = (
    Claim(
        "Does the delta rule recall more than Hebbian writes?",
        "By task and linear network, each at its own best rate (rate 1: both at 1); the difference is the Hebbian error less the "
        "delta rule's.",
        hebbian_and_delta,
        "In a matrix near capacity, from half as many pairs as keys are wide to twice as many",
        lambda contest, n, dim: contest.name == "Matrix" and dim / 2 <= n <= 2 * dim,
    ),
    Claim(
        "Is least squares the optimum of linear memories?",
        "It is where nothing is better: against the best of all other objectives and rules on the same network. Where stored keys "
        "are read that is so by definition; of unseen keys theory says nothing.",
        least_squares_and_all,
        "Where stored keys are read",
        lambda contest, n, dim: contest.measure == "stored",
        holds=("yes", "even"),
    ),
    Claim(
        "Does a deep memory recall more than a matrix of the same size?",
        "The best deep memory against the best matrix, or the best with fixed features before a matrix, by any objective and "
        "rule, which may carry numbers beside the weights, unless said.",
        deep_and_matrix,
        "Of non-linear maps, by rules that carry nothing",
        lambda contest, n, dim: contest.name == EQUAL and contest.task in ("network", "quadratic"),
    ),
)
