"""Networks that learn in their body as one command: every method on every scenario, tuned, with every seed, and none twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from nestling.continual.bodies import Body
from nestling.errors import UserError
from nestling.evals.bodies.methods import BATCH, METHODS, Problem, Setting
from nestling.evals.continual.metrics import Matrix, average_accuracy
from nestling.evals.continual.protocol import final_accuracy, learn, run
from nestling.evals.continual.scenarios import SCENARIOS, Scenario
from nestling.evals.continual.stream import Labelled, Stream
from nestling.evals.runs import chosen, kept, side_by_side, where, write
from nestling.evals.tuning import TUNING, at_edge, judging, spread, told

PLACES = ("permuted-mnist", "split-mnist-domain", "permuted-digits")
Run = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """hidden: widths of the hidden layers. settings: how many of each method's are tried, None for all. seeds: where none are named."""

    hidden: tuple[int, ...]
    settings: int | None
    seeds: tuple[int, ...]


SIZES = {"quick": Size((64, 64), 2, (0,)), "default": Size((256, 256), None, (0, 1, 2))}


def bodies(
    scenarios: list[str] | None,
    methods: list[str] | None,
    seeds: Sequence[int] | None,
    size_name: str,
    data: str | None,
    out: str,
    jobs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Results by scenario and method, also in `out`/results.json. What is there already is not run again.

    scenarios: None is permuted-mnist. data: folder of the data sets; None is the one that NESTLING_DATA names.

    Raises:
        UserError: an unknown scenario or method, seeds that come twice, fewer than one job, or data that cannot be used.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    size = SIZES[size_name]
    seeds = judging(seeds, size.seeds)
    places = chosen("scenario", scenarios or ["permuted-mnist"], [*PLACES])
    names = chosen("method", methods, [*METHODS])
    for place in places:
        _data(place, size_name, data)  # before any process starts: what is wrong with it is told at once
    pairs = [(place, name) for place in places for name in names]
    tries = {pair: spread(METHODS[pair[1]].settings, size.settings) for pair in pairs}
    asked = [(*pair, setting, TUNING, size_name, data, out) for pair, every in tries.items() for setting in every]
    trials = _done(asked, jobs, say)
    best = {
        pair: max(every, key=lambda setting: _last(trials[*pair, told(setting), TUNING]))
        for pair, every in tries.items()
    }
    asked = [(*pair, setting, seed, size_name, data, out) for pair, setting in best.items() for seed in seeds]
    judged = _done(asked, jobs, say)
    results = {
        "title": "Networks that learn task after task",
        "about": f"{where()}, one thread a run",
        "batch": BATCH,
        "hidden": list(size.hidden),
        "seeds": seeds,
        "scenarios": {
            place: {
                "about": SCENARIOS[place].about,
                "kind": SCENARIOS[place].kind,
                "methods": {
                    name: {
                        "ours": METHODS[name].ours,
                        "levels": METHODS[name].levels,
                        "setting": best[place, name],
                        "edge": at_edge(best[place, name], tries[place, name]),
                        "trials": [
                            {"setting": setting, **_point(trials[place, name, told(setting), TUNING])}
                            for setting in tries[place, name]
                        ],
                        "runs": [judged[place, name, told(best[place, name]), seed] for seed in seeds],
                    }
                    for name in names
                },
            }
            for place in places
        },
    }
    write(Path(out) / "results.json", results)
    return results


def learnt(matrix: Matrix) -> float | None:
    """The mean accuracy on each experience right after it: plasticity. None where it was not judged then."""
    found = [row[at] for at, row in enumerate(matrix)]
    return fmean(known) if len(known := [value for value in found if value is not None]) == len(found) else None


def at_the_end(body: Body, stream: Stream, seed: int) -> Run:
    """What `run` returns, of a method that is judged after the last experience alone: the rows before are None."""
    begun = time.process_time()
    learn(body, stream, BATCH, seed=seed)
    alone = [replace(stream, experiences=(experience,)) for experience in stream.experiences]
    final_accuracy(body, alone[0])  # what it has put off is part of learning
    seconds = time.process_time() - begun
    row = [final_accuracy(body, one) for one in alone]
    matrix = [[None] * len(row)] * (len(row) - 1) + [row]
    kept = {"seconds": seconds, "bytes": body.bytes(), "parameters": body.parameters()}
    return {"matrix": matrix, "chance": stream.chance(), **kept}


def _point(met: Run) -> dict[str, float | None]:
    return {"learnt": learnt(met["matrix"]), "last": _last(met), "seconds": met["seconds"]}


def _last(met: Run) -> float:
    return average_accuracy(met["matrix"])


def _done(tasks: list[tuple[Any, ...]], jobs: int, say: Callable[[str], None]) -> dict[tuple[str, str, str, int], Run]:
    """Every run by scenario, method, setting and seed."""
    found = {}
    for (place, name, setting, seed, *_), met in side_by_side(_once, tasks, jobs):
        found[place, name, told(setting), seed] = met
        which = "tried" if seed == TUNING else f"seed {seed}"
        say(f"{place}, {name}, {told(setting)}, {which}: {100 * _last(met):.1f}% at the end")
    return found


@lru_cache(maxsize=1)
def _data(place: str, size_name: str, data: str | None) -> tuple[Scenario, Labelled]:
    scenario = SCENARIOS[place]
    return scenario, scenario.data(data, quick=size_name == "quick")[0]


def _stream(place: str, seed: int, size_name: str, data: str | None) -> Stream:
    """Of the seed; of the one to tune on, from the training examples alone."""
    scenario, examples = _data(place, size_name, data)
    return scenario.stream(held_out(examples) if seed == TUNING else examples, None, seed)


def held_out(data: Labelled) -> Labelled:
    """Of the training examples alone: a sixth to judge by, the others to learn."""
    every = data.train.shuffled(torch.Generator().manual_seed(TUNING))
    few = len(every) // 6
    return Labelled(every.pick(torch.arange(few, len(every))), every.pick(torch.arange(few)), data.names)


def _once(place: str, name: str, setting: Setting, seed: int, size_name: str, data: str | None, out: str) -> Run:
    """One method with one seed, unless it was run before."""
    size = SIZES[size_name]

    def make() -> Run:
        stream = _stream(place, seed, size_name, data)
        classes = len({label for experience in stream.experiences for label in experience.classes})
        examples = sum(len(experience.train) for experience in stream.experiences)
        problem = Problem((SCENARIOS[place].dim, *size.hidden, classes), examples, seed)
        body = METHODS[name].make(problem, setting)
        return (
            at_the_end(body, stream, seed) if METHODS[name].upper else run(body, stream, BATCH, judgements=0, seed=seed)
        )

    given = f"body {name} {setting} {size.hidden} {BATCH} {seed} {version('nestling')}"
    return kept(Path(out) / f"{place}-{size_name}", given, make)
