"""Sequential languages as one command: a backbone, every method tuned on languages of its own, then with every seed, none twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from nestling.errors import UserError
from nestling.evals.languages.backbone import trained
from nestling.evals.languages.documents import Document, document
from nestling.evals.languages.learn import ASKED, Run, at_the_end, run, worth
from nestling.evals.languages.lessons import FIRST
from nestling.evals.languages.methods import CLIP, PERIODS, Problem, Setting
from nestling.evals.languages.setup import METHODS, SIZES, Size
from nestling.evals.languages.students import Course
from nestling.evals.languages.words import NAMES
from nestling.evals.runs import chosen, kept, side_by_side, where, write
from nestling.evals.tuning import TUNING, at_edge, judging, spread, told


def languages(
    methods: list[str] | None,
    seeds: Sequence[int] | None,
    size_name: str,
    out: str,
    jobs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Results by method, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: an unknown method, seeds that come twice, or fewer than one job.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    size = SIZES[size_name]
    seeds, names = judging(seeds, size.seeds), chosen("method", methods, [*METHODS])
    folder = folder_of(out, size)
    if max(seeds) * len(NAMES) >= FIRST or min(seeds) < 0:
        raise UserError(f"seeds={seeds} must be from 0 to {FIRST // len(NAMES) - 1}: languages beyond are to train on")
    training = trained(size.backbone, 0, folder, say)
    tries = {name: spread(METHODS[name].settings, size.settings) for name in names}
    asked = [(name, setting, TUNING, folder, size) for name, every in tries.items() for setting in every]
    trials = _done(asked, jobs, say)
    best = {name: max(every, key=lambda s: worth(trials[name, told(s), TUNING])) for name, every in tries.items()}
    asked = [(name, best[name], seed, folder, size) for seed in seeds for name in names]
    judged = _done(asked, jobs, say)
    first = documents(seeds[0], size)
    results = {
        "title": "Sequential languages: what is left of one when others were learnt after it",
        "about": f"{where()}, one thread a run",
        "seeds": seeds,
        "backbone": {"parameters": training["parameters"], "tokens": training["curve"][-1]["tokens"]},
        "languages": size.languages,
        "tokens": round(fmean(len(one.text().replace("\n", " . ").split()) for one in first)),
        "parallel": size.parallel,
        "asked": size.asked,
        "window": size.window,
        "passes": size.passes,
        "lines": Course(size.passes).lines,
        "methods": {
            name: {
                "levels": METHODS[name].levels,
                "setting": best[name],
                "edge": at_edge(best[name], tries[name]),
                "trials": [{"setting": s, "worth": worth(trials[name, told(s), TUNING])} for s in tries[name]],
                "runs": [judged[name, told(best[name]), seed] for seed in seeds],
            }
            for name in names
        },
    }
    write(Path(out) / "results.json", results)
    return results


def folder_of(out: str, size: Size) -> Path:
    """Where the backbone of a size, and what is measured of it, belong."""
    return Path(out) / hashlib.sha256(f"{size.backbone} {version('nestling')}".encode()).hexdigest()[:12]


def documents(seed: int, size: Size) -> list[Document]:
    """Of the languages of a seed, each under a name of its own; no two seeds have one in common."""
    return [
        document(name, len(NAMES) * seed + at, size.parallel, size.asked)
        for at, name in enumerate(NAMES[: size.languages])
    ]


def _done(tasks: list[tuple[Any, ...]], jobs: int, say: Callable[[str], None]) -> dict[tuple[str, str, int], Run]:
    """Every run by method, setting and seed."""
    found = {}
    for (name, setting, seed, *_), met in side_by_side(_once, tasks, jobs):
        found[name, told(setting), seed] = met
        which = "tried" if seed == TUNING else f"seed {seed}"
        ends = (f"{fmean(met[kind]['alone']):.1f} and {at_the_end(met[kind]):.1f} by {kind}" for kind in ASKED)
        say(f"{' '.join((name, told(setting))).strip()}, {which}, alone and in sequence: {', '.join(ends)}")
    return found


def _once(name: str, setting: Setting, seed: int, folder: Path, size: Size) -> Run:
    """One method with one seed, unless it was run before."""
    problem = Problem(size.backbone, folder, size.window, Course(size.passes), size.shown)
    read = (size.languages, size.parallel, size.asked, size.window, size.passes, size.shown)

    def make() -> Run:
        return run(METHODS[name].make(problem, setting), documents(seed, size))

    return kept(folder / "runs", f"languages {name} {setting} {read} {PERIODS} {CLIP} {seed}", make)
