"""Class-incremental learning as one command: every method on every scenario, tuned, with every seed, and none twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nestling.continual.heads import OnFeatures
from nestling.errors import UserError
from nestling.evals.continual.contenders import CONTENDERS, Problem, Setting
from nestling.evals.continual.metrics import last_accuracy
from nestling.evals.continual.protocol import final_accuracy, learn, run, squared_error
from nestling.evals.continual.scenarios import SCENARIOS, Scenario
from nestling.evals.continual.stream import Stream, validation
from nestling.evals.runs import chosen, kept, side_by_side, where, write
from nestling.evals.tuning import TUNING, at_edge, judging, spread, told


@dataclass(frozen=True)
class Size:
    """projections: random features. settings: how many of each method's are tried, None for all. tuning: examples that are
    learnt for a trial, about. batch: examples that are observed at a time. seeds: of class orders, where none are named.
    """

    projections: int
    settings: int | None
    tuning: int
    batch: int
    seeds: tuple[int, ...]


SIZES = {"quick": Size(500, 2, 2_000, 32, (0,)), "default": Size(2000, None, 12_000, 32, (0, 1, 2))}


def continual(
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

    data: folder of the data sets; None is the one that NESTLING_DATA names.

    Raises:
        UserError: an unknown scenario or method, seeds that come twice, fewer than one job, or data that cannot be used.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    size = SIZES[size_name]
    seeds = judging(seeds, size.seeds)
    places = chosen("scenario", scenarios, [*SCENARIOS])
    names = chosen("method", methods, [*CONTENDERS])
    for (
        place
    ) in places:  # before any process starts: what is wrong with the data is told at once, texts are encoded once
        _prepared(place, size_name, data, out)
        say(f"{place}: {SCENARIOS[place].about}")
    best = _tuned([(place, name) for place in places for name in names], size_name, data, out, jobs)
    tasks = [(*pair, setting, seed, size_name, data, out) for pair, (setting, _) in best.items() for seed in seeds]
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for (place, name, setting, seed, *_), met in side_by_side(_once, tasks, jobs):
        found[place, name, seed] = met
        last = last_accuracy(met["matrix"], met["sizes"])
        say(f"{place}, {' '.join([name, told(setting)]).strip()}, seed {seed}: {100 * last:.1f}% at the end")
    results = {
        "title": "Class-incremental learning on frozen features",
        "about": f"{where()}, one thread a run",
        "projections": size.projections,
        "batch": size.batch,
        "seeds": seeds,
        "ours": [name for name in names if CONTENDERS[name].ours],
        "scenarios": {
            place: {
                "about": SCENARIOS[place].about,
                "kind": SCENARIOS[place].kind,
                "methods": {
                    name: {
                        "setting": best[place, name][0],
                        "edge": best[place, name][1],
                        "runs": [found[place, name, seed] for seed in seeds],
                    }
                    for name in names
                },
            }
            for place in places
        },
    }
    write(Path(out) / "results.json", results)
    return results


def _tuned(
    pairs: Sequence[tuple[str, str]], size_name: str, data: str | None, out: str, jobs: int
) -> dict[tuple[str, str], tuple[Setting, bool]]:
    """The best setting of each method for each scenario, and whether it is at the edge of what was tried."""
    tried = {pair: spread(CONTENDERS[pair[1]].settings, SIZES[size_name].settings) for pair in pairs}
    tasks = [
        (*pair, setting, size_name, data, out) for pair, every in tried.items() if len(every) > 1 for setting in every
    ]
    merits: dict[tuple[str, str], dict[str, float]] = {pair: {} for pair in pairs}
    for (place, name, setting, *_), met in side_by_side(_try, tasks, jobs):
        merits[place, name][told(setting)] = met["merit"]
    return {pair: _best(every, merits[pair]) for pair, every in tried.items()}


def _best(order: Sequence[Setting], merits: dict[str, float]) -> tuple[Setting, bool]:
    """The setting of the highest merit (of equal ones the first in order), and whether one of its numbers is at an edge."""
    best = max(order, key=lambda setting: merits.get(told(setting), 0.0))
    return best, at_edge(best, order)


@lru_cache(maxsize=1)  # the tasks of a process come by scenario
def _prepared(place: str, size_name: str, data: str | None, out: str) -> tuple[Scenario, Any, Any, Any]:
    """A scenario's data, groups and features."""
    scenario = SCENARIOS[place]
    examples, groups = scenario.data(data, quick=size_name == "quick")
    scenario.stream(examples, groups, TUNING)  # so that what is wrong with it is told now
    return scenario, examples, groups, scenario.encode(examples, Path(out) / "features")


def _ready(
    place: str, name: str, setting: Setting, seed: int, size_name: str, data: str | None, out: str
) -> tuple[Stream, OnFeatures]:
    """A stream and a method that has seen nothing."""
    scenario, examples, groups, encode = _prepared(place, size_name, data, out)
    stream = scenario.stream(examples, groups, seed)
    problem = Problem(scenario.dim, SIZES[size_name].projections, len(examples.names), seed)
    return stream, OnFeatures(encode, CONTENDERS[name].make(problem, setting))


def _try(place: str, name: str, setting: Setting, size_name: str, data: str | None, out: str) -> dict[str, Any]:
    """One trial on the validation stream, unless it was run before."""
    size, contender = SIZES[size_name], CONTENDERS[name]

    def make() -> dict[str, Any]:
        stream, method = _ready(place, name, setting, TUNING, size_name, data, out)
        tuning = validation(stream, TUNING, size.tuning)
        learn(method, tuning, size.batch, contender.passes, TUNING)
        if contender.tuned == "squared error":
            return {"merit": -squared_error(method, tuning)}
        return {"merit": final_accuracy(method, tuning)}

    return kept(
        _folder(out, place),
        f"try {name} {setting} {size} {contender.passes} {contender.tuned} {version('nestling')}",
        make,
    )


def _once(
    place: str, name: str, setting: Setting, seed: int, size_name: str, data: str | None, out: str
) -> dict[str, Any]:
    """One method with one seed, unless it was run before."""
    size, contender = SIZES[size_name], CONTENDERS[name]

    def make() -> dict[str, Any]:
        stream, method = _ready(place, name, setting, seed, size_name, data, out)
        return run(method, stream, size.batch, contender.passes, contender.judgements, seed)

    depends = f"{size.projections} {size.batch} {contender.passes} {contender.judgements}"
    given = f"run {name} {setting} {depends} {seed} {version('nestling')}"
    return kept(_folder(out, place), given, make)


def _folder(out: str, place: str) -> Path:
    return Path(out) / place
