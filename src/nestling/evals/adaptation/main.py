"""Adaptation as one command: models first, then every method at every setting with every seed, none twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nestling.errors import UserError
from nestling.evals.adaptation.contenders import CONTENDERS, Setting
from nestling.evals.adaptation.learn import run
from nestling.evals.adaptation.models import folder_of, parameters, place_of, ready
from nestling.evals.adaptation.setup import SIZES, Size, texts
from nestling.evals.demo import setup as demo
from nestling.evals.runs import chosen, kept, side_by_side, where, write
from nestling.evals.tuning import told


def adaptation(
    methods: list[str] | None,
    architectures: list[str] | None,
    size_name: str,
    out: str,
    jobs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Results by architecture, method and setting, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: an unknown method or architecture, or fewer than one job.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    names, size = chosen("method", methods, list(CONTENDERS)), SIZES[size_name]
    kinds = chosen("architecture", architectures or [*size.architectures], [*demo.ARCHITECTURES])
    folder = folder_of(out, size.models)
    models = [(architecture, seed, folder, size.models) for architecture in kinds for seed in size.models.seeds]
    for (architecture, seed, *_), count in side_by_side(parameters, models, jobs):
        say(f"{architecture}, seed {seed}: {count:,} parameters, trained")
    tasks = [
        (architecture, seed, folder, size, name, setting)
        for architecture, seed, *_ in models
        for name in names
        for setting in settings(name, size)
    ]
    found: dict[tuple[Any, ...], Any] = {}
    for (architecture, seed, _, _, name, setting), met in side_by_side(_once, tasks, jobs):
        found[architecture, name, told(setting), seed] = met
        say(
            f"{architecture}, {name} {told(setting)}, seed {seed}: {met['stretches']['B']['bits']:.3f} bits a byte of B"
        )
    results = {
        "title": "Adaptation to a stream",
        "about": f"{where()}, one thread a run",
        "seeds": list(size.models.seeds),
        "architectures": {
            architecture: {
                name: [
                    {
                        "setting": setting,
                        "runs": [found[architecture, name, told(setting), seed] for seed in size.models.seeds],
                    }
                    for setting in settings(name, size)
                ]
                for name in names
            }
            for architecture in kinds
        },
        "ours": [name for name in names if CONTENDERS[name].levels],
    }
    write(Path(out) / "results.json", results)
    return results


def settings(name: str, size: Size) -> tuple[Setting, ...]:
    """Those of a method that are run: all, or some spread over them."""
    every = CONTENDERS[name].settings
    step = 1 if size.settings is None else -(-len(every) // size.settings)
    return every[::step]


def _once(architecture: str, seed: int, folder: Path, size: Size, name: str, setting: Setting) -> dict[str, Any]:
    """One method at one setting, unless it was run before."""
    contender = CONTENDERS[name]

    def make() -> dict[str, Any]:
        data = texts(size)
        model, _ = ready(architecture, seed, folder, size.models)
        return run(contender.make(model, data.sample, setting), data)

    given = f"{name} {setting} {size} {contender.levels}" + (f" {contender.recall}" if contender.recall else "")
    return kept(place_of(architecture, seed, folder), given, make)
