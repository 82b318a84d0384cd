"""Tune every optimiser with the same number of trials, then run it with seeds that nothing was tuned on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nestling.evals.optimizers.contenders import CONTENDERS, Contender
from nestling.evals.optimizers.problem import Problem
from nestling.evals.runs import kept, side_by_side

SEEDS = (0, 1, 2)
TUNING_SEED = 100


def compare(
    problems: list[Problem], contenders: list[str], folder: Path, jobs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Results by problem and optimiser. What `folder` holds of an earlier run is not run again."""
    tasks = [(p, name, folder) for p in problems for name in contenders if p.name not in CONTENDERS[name].without]
    found: dict[str, Any] = {problem.name: {"measure": problem.measure, "optimizers": {}} for problem in problems}
    for (problem, name, _), met in side_by_side(_pair, tasks, jobs):
        found[problem.name]["optimizers"][name] = met
        say(f"{problem.name}, {name}: {summary(met['scores'])} at lr {met['lr']:g}, {met['knob']}")
    for entry in found.values():  # in the order of the table, not of arrival
        entry["optimizers"] = {name: entry["optimizers"][name] for name in contenders if name in entry["optimizers"]}
    return found


def summary(scores: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(scores):.3f} ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else f"{scores[0]:.3f}"


def _pair(problem: Problem, name: str, folder: Path) -> dict[str, Any]:
    """One optimiser on one problem: the rate first, then the one other setting at the best rate, then the seeds."""
    contender = CONTENDERS[name]
    trials: dict[tuple[float, float], float] = {}

    def score(lr: float, knob: float) -> float:
        found = _run(problem, name, contender, lr, knob, TUNING_SEED, False, folder)["score"]
        trials[lr, knob] = math.inf if math.isnan(found) else found
        return trials[lr, knob]

    lr = min(contender.rates, key=lambda lr: score(lr, contender.knobs[0]))
    knob = min(contender.knobs, key=lambda knob: score(lr, knob))
    runs = [_run(problem, name, contender, lr, knob, seed, True, folder) for seed in SEEDS]
    return {
        "lr": lr,
        "knob": f"{contender.knob} {knob:g}",
        "edge": lr in (contender.rates[0], contender.rates[-1]),
        "trials": [{"lr": lr, "knob": knob, "score": score} for (lr, knob), score in trials.items()],
        "scores": [run["score"] for run in runs],
        "runs": runs,
    }


def _run(
    problem: Problem, name: str, contender: Contender, lr: float, knob: float, seed: int, final: bool, folder: Path
) -> dict[str, Any]:
    """One run, from its file where it was done before."""
    setting = f"{problem!r} {lr} {knob} {seed} {final}"

    def outcome() -> dict[str, Any]:
        return asdict(problem.run(lambda model: contender.make(model, lr, knob), seed, final))

    return kept(folder / problem.name / name, setting, outcome)
