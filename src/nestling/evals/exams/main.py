"""Exams as one command: a rate for every model on every exam, then the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from nestling.errors import UserError
from nestling.evals.exams.contenders import CONTENDERS, LAYERS, PARAMETERS, USUAL, WIDTH
from nestling.evals.exams.exams import EXAMS, MAD, OTHERS, RECALL
from nestling.evals.exams.learn import SIZES, Size, run
from nestling.evals.runs import chosen, kept, side_by_side, where, write


def exams(
    names: list[str] | None,
    models: list[str] | None,
    seeds: list[int] | None,
    size_name: str,
    out: str,
    jobs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Tune and run; results by exam and model, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: an unknown exam or model, fewer than one job, or data that cannot be found.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    names = chosen("exam", names or [*MAD, *RECALL, *OTHERS], list(EXAMS))
    models = chosen("model", models or USUAL, list(CONTENDERS))
    size = SIZES[size_name]
    seeds = list(seeds or size.seeds)
    tasks = {name: EXAMS[name]().task for name in names}  # what is missing is told before anything is trained
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], Any] = {}
    for (name, model, *_), met in side_by_side(
        _pair, [(name, model, tuple(seeds), folder, size) for name in names for model in models], jobs
    ):
        found[name, model] = met
        scores = " / ".join("-" if (s := run["score"]) is None else f"{100 * s:.1f}" for run in met["runs"])
        say(f"{name}, {model}: {scores} at lr {met['lr']:g}")
    results = {
        "title": "Exams",
        "about": f"{where()} CPU, one thread a run",
        "model": {"width": WIDTH, "blocks": LAYERS, "parameters": PARAMETERS},
        "seeds": seeds,
        "size": {"steps": size.steps, "tokens": size.tokens, "validation": size.validation, "test": size.test},
        "exams": {
            name: {
                "task": str(task),
                "length": task.length,
                "symbols": task.symbols,
                "chance": task.chance,
                "batch": size.batch(task),
                "models": {model: found[name, model] for model in models},
            }
            for name, task in tasks.items()
        },
    }
    write(folder / "results.json", results)
    return results


def _pair(name: str, model: str, seeds: Sequence[int], folder: Path, size: Size) -> dict[str, Any]:
    """One model in one exam: with the first seed the rate that knows most of the validation examples, the soonest; then the seeds.

    A run of the first seed is judged by the test, too, but nothing looks at that to choose.
    """
    exam, contender = EXAMS[name](), CONTENDERS[model]
    place = folder / _plain(name) / _plain(model)

    def once(lr: float, seed: int) -> dict[str, Any]:
        setting = (
            f"{exam} {contender.settings} {WIDTH} {LAYERS} {PARAMETERS} {lr} {seed} {replace(size, seeds=(), rates=())}"
        )
        return kept(place, setting, lambda: run(exam, contender, lr, seed, size))

    trials = {lr: once(lr, seeds[0]) for lr in size.rates}
    lr = max(trials, key=lambda lr: _merit(trials[lr]))
    return {
        "lr": lr,
        "edge": len(size.rates) > 1 and lr in (size.rates[0], size.rates[-1]),
        "trials": [{"lr": lr, "validation": met["validation"], "steps": met["steps"]} for lr, met in trials.items()],
        "runs": [once(lr, seed) for seed in seeds],
    }


def _merit(met: dict[str, Any]) -> tuple[float, ...]:
    """A run that diverged has none; then what is known counts, then how soon."""
    return (round(met["validation"], 3), -met["steps"], -met["loss"]) if isfinite(met["validation"]) else (-1.0,)


def _plain(name: str) -> str:
    """A name that a folder can have."""
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
