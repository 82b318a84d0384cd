"""Tune every optimiser with the same number of trials, then run it with seeds that nothing was tuned on."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from nestling.evals.optimizers.contenders import CONTENDERS, Contender
from nestling.evals.optimizers.problem import Problem, write
from nestling.quiet import quiet

SEEDS = (0, 1, 2)
TUNING_SEED = 100


def compare(
    problems: list[Problem], contenders: list[str], folder: Path, jobs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Results by problem and optimiser. What `folder` holds of an earlier run is not run again."""
    pairs = [(p, name) for p in problems for name in contenders if p.name not in CONTENDERS[name].without]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        waiting = {pool.submit(_pair, problem, name, folder): (problem, name) for problem, name in pairs}
        found: dict[str, Any] = {problem.name: {"measure": problem.measure, "optimizers": {}} for problem in problems}
        for done in as_completed(waiting):
            problem, name = waiting[done]
            met = found[problem.name]["optimizers"][name] = done.result()
            say(f"{problem.name}, {name}: {summary(met['scores'])} at lr {met['lr']:g}, {met['knob']}")
    for entry in found.values():  # in the order of the table, not of arrival
        entry["optimizers"] = {name: entry["optimizers"][name] for name in contenders if name in entry["optimizers"]}
    return found


def summary(scores: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(scores):.3f} ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else f"{scores[0]:.3f}"


def _one_thread() -> None:
    quiet()
    torch.set_num_threads(1)


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
    path = folder / problem.name / name / f"{hashlib.sha256(setting.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        outcome = asdict(problem.run(lambda model: contender.make(model, lr, knob), seed, final))
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, {"setting": setting, **outcome})
    return json.loads(path.read_text())
