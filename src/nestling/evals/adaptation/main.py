"""Adaptation as one command: models first, then every method at every setting with every seed, none twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nestling.errors import UserError
from nestling.evals.adaptation.contenders import CONTENDERS, Setting
from nestling.evals.adaptation.learn import run
from nestling.evals.adaptation.setup import FAST, SIZES, SLOW, Size, domains, texts
from nestling.evals.demo import setup as demo
from nestling.evals.demo.trained import trained
from nestling.evals.runs import chosen, kept, side_by_side, where, write


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
    given = repr((size.models, demo.ARCHITECTURES, version("nestling")))
    folder = Path(out) / hashlib.sha256(given.encode()).hexdigest()[:12]
    models = [(architecture, seed, folder, size) for architecture in kinds for seed in size.models.seeds]
    for (architecture, seed, *_), parameters in side_by_side(_train, models, jobs):
        say(f"{architecture}, seed {seed}: {parameters:,} parameters, trained")
    tasks = [
        (architecture, seed, folder, size, name, setting)
        for architecture, seed, *_ in models
        for name in names
        for setting in settings(name, size)
    ]
    found: dict[tuple[Any, ...], Any] = {}
    for (architecture, seed, _, _, name, setting), met in side_by_side(_once, tasks, jobs):
        found[architecture, name, _key(setting), seed] = met
        say(
            f"{architecture}, {name} {_key(setting)}, seed {seed}: {met['stretches']['B']['bits']:.3f} bits a byte of B"
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
                        "runs": [found[architecture, name, _key(setting), seed] for seed in size.models.seeds],
                    }
                    for setting in settings(name, size)
                ]
                for name in names
            }
            for architecture in kinds
        },
        "ours": [name for name in names if CONTENDERS[name].ours],
    }
    write(Path(out) / "results.json", results)
    return results


def settings(name: str, size: Size) -> tuple[Setting, ...]:
    """Those of a method that are run: all, or some spread over them."""
    every = CONTENDERS[name].settings
    step = 1 if size.settings is None else -(-len(every) // size.settings)
    return every[::step]


def _key(setting: Setting) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def _train(architecture: str, seed: int, folder: Path, size: Size) -> int:
    place = _place(architecture, seed, folder)
    place.mkdir(parents=True, exist_ok=True)
    return _model(architecture, seed, folder, size)[1]["parameters"]


def _once(architecture: str, seed: int, folder: Path, size: Size, name: str, setting: Setting) -> dict[str, Any]:
    """One method at one setting, unless it was run before."""

    def make() -> dict[str, Any]:
        data = texts(size)
        model, _ = _model(architecture, seed, folder, size)
        return run(CONTENDERS[name].make(model, data.sample, setting), data)

    given = f"{name} {setting} {size} {FAST} {SLOW} {demo.FAST} {demo.SLOW}"
    return kept(_place(architecture, seed, folder), given, make)


def _model(architecture: str, seed: int, folder: Path, size: Size) -> Any:
    place = _place(architecture, seed, folder)
    return trained(architecture, seed, size.models, domains(size.models), place, _silent)


def _silent(line: str) -> None:
    """Training reports nothing: its lines would mix with those of other processes."""


def _place(architecture: str, seed: int, folder: Path) -> Path:
    return folder / f"{architecture.lower().replace('+', '')}-{seed}"
