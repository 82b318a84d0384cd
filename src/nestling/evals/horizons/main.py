"""Horizons as one command: models first, then every setting at its factors, then with every seed, none twice."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from pathlib import Path
from typing import Any

from nestling.errors import UserError
from nestling.evals.adaptation.models import folder_of, parameters, place_of, ready
from nestling.evals.adaptation.readers import Reader
from nestling.evals.adaptation.setup import domains
from nestling.evals.demo.measures import bits
from nestling.evals.demo.setup import FAST, SLOW
from nestling.evals.horizons.documents import documents, to_tune
from nestling.evals.horizons.learn import readers, run
from nestling.evals.horizons.setup import FASTEST, SETTINGS, SIZES, Size
from nestling.evals.runs import chosen, kept, side_by_side, where, write

MODEL = "Transformer++"


def horizons(
    settings: list[str] | None, size_name: str, out: str, jobs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Results by setting, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: an unknown setting, fewer than one job, or a book that is not here.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    size = SIZES[size_name]
    names = chosen("setting", settings or (list(size.settings) if size.settings else None), list(SETTINGS))
    documents(size, seed=0)  # what is missing is told before anything is trained
    folder, seeds = folder_of(out, size.models), size.models.seeds
    models = [(MODEL, seed, folder, size.models) for seed in seeds]
    for (_, seed, *_), count in side_by_side(parameters, models, jobs):
        say(f"{MODEL}, seed {seed}: {count:,} parameters, trained")
    tuned: dict[str, dict[float, float]] = {}
    for (name, *_), tried in side_by_side(_tune, [(name, folder, size) for name in names], jobs):
        tuned[name] = tried
        say(f"{name}, by factor of its rates: {', '.join(f'{factor:g}: {met:.3f}' for factor, met in tried.items())}")
    best = {name: least(tried) for name, tried in tuned.items()}
    found: dict[tuple[str, int], Any] = {}
    tasks = [(name, best[name], seed, folder, size) for seed in seeds for name in names]
    for (name, _, seed, *_), met in side_by_side(_measure, tasks, jobs):
        found[name, seed] = met
        say(f"{name}, seed {seed}: {met['python']['second_half']:.3f} bits a byte of Python's second half")
    results = {
        "title": "Horizons: how many levels, and how slow the slowest",
        "about": f"{where()}, one thread a run",
        "seeds": list(seeds),
        "python": size.python,
        "prose": size.prose,
        "facts": size.facts,
        "times": size.times,
        "settings": {
            name: {
                "periods": SETTINGS[name],
                "factor": best[name],
                "edge": len(tuned[name]) > 1 and best[name] in (min(tuned[name]), max(tuned[name])),
                "trials": [{"factor": factor, "bits": met} for factor, met in sorted(tuned[name].items())],
                "runs": [found[name, seed] for seed in seeds],
            }
            for name in names
        },
    }
    write(Path(out) / "results.json", results)
    return results


def least(tried: dict[float, float]) -> float:
    """The factor with the fewest bits, never one that diverged."""
    return min(tried, key=lambda factor: tried[factor] if isfinite(tried[factor]) else inf)


def _tune(name: str, folder: Path, size: Size) -> dict[float, float]:
    """Bits of the document to tune by, read by the first seed's model, at every factor tried."""
    seed, tried = size.models.seeds[0], {}

    def attempt(factor: float) -> None:
        def make() -> dict[str, Any]:
            return {"bits": bits(_readers(name, factor, seed, folder, size)().observe(to_tune(size).ids))}

        read = (size.tuning, size.calibration)
        tried[factor] = kept(place_of(MODEL, seed, folder), f"tuning {_given(name, factor)} {read}", make)["bits"]

    for factor in size.factors if SETTINGS[name] else (1.0,):
        attempt(factor)
    for _ in range(size.further if SETTINGS[name] else 0):
        factor = least(tried)
        if factor in (min(tried), max(tried)):
            attempt(2 * factor if factor == max(tried) else factor / 2)
    return tried


def _measure(name: str, factor: float, seed: int, folder: Path, size: Size) -> dict[str, Any]:
    """One setting at its factor with one seed, unless it was run before."""

    def make() -> dict[str, Any]:
        return run(_readers(name, factor, seed, folder, size), documents(size, seed))

    read = (size.python, size.prose, size.facts, size.times, size.calibration)
    return kept(place_of(MODEL, seed, folder), f"{_given(name, factor)} {read}", make)


def _readers(name: str, factor: float, seed: int, folder: Path, size: Size) -> Callable[[], Reader]:
    sample = domains(size.models).train[: size.calibration]
    return readers(ready(MODEL, seed, folder, size.models)[0], SETTINGS[name], factor, sample)


def _given(name: str, factor: float) -> str:
    """What every run of a setting depends on, beside the model."""
    return f"{SETTINGS[name]} {factor} {FASTEST} {FAST} {SLOW}"
