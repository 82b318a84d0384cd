"""Formal languages as one command: a rate for every model on every language, then the seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from nestling.evals.formal.compiled import compiles
from nestling.evals.formal.contenders import CONTENDERS, PARAMETERS
from nestling.evals.formal.learn import Size, run
from nestling.evals.formal.machines import MACHINES
from nestling.evals.runs import chosen, kept, side_by_side, where, write

SEEDS = (0, 1, 2)
TUNING_SEED = 100
QUICK = Size(steps=100, each=1)


def formal_languages(
    languages: list[str] | None,
    models: list[str] | None,
    quick: bool,
    out: str,
    jobs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Tune and run; results by language and model, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: an unknown language or model.
    """
    languages, models = chosen("language", languages, list(MACHINES)), chosen("model", models, list(CONTENDERS))
    folder, size = Path(out), QUICK if quick else Size()
    folder.mkdir(parents=True, exist_ok=True)
    if any(name.startswith("Hope") for name in models) and not compiles():
        say("torch finds no C++ compiler here: Hope learns uncompiled, which takes several times as long")
    found: dict[tuple[str, str], Any] = {}
    tasks = [(language, name, folder, size) for language in languages for name in models]
    for (language, name, *_), met in side_by_side(_pair, tasks, jobs):
        found[language, name] = met
        say(f"{language}, {name}: {', '.join(map(_percent, accuracies(met)))} at lr {met['lr']:g}")
    results = {
        "title": "Formal languages",
        "about": f"{where()} CPU, one thread a run",
        "languages": {language: {name: found[language, name] for name in models} for language in languages},
    }
    write(folder / "results.json", results)
    return results


def accuracies(met: dict[str, Any]) -> list[list[float]]:
    """For each bin and each seed the mean accuracy over the bin's lengths."""
    return [[fmean(b["accuracy"]) for b in seeds] for seeds in zip(*(r["bins"] for r in met["runs"]), strict=True)]


def _percent(values: list[float]) -> str:
    return " / ".join(f"{100 * value:.1f}" for value in values)


def _pair(language: str, name: str, folder: Path, size: Size) -> dict[str, Any]:
    """One model on one language: the rate that knows most validation words, the soonest; then the seeds."""

    contender = CONTENDERS[name]

    def once(lr: float, seed: int, final: bool) -> dict[str, Any]:
        setting = f"{language} {contender} {PARAMETERS} {lr} {seed} {size} {final}"
        return kept(
            folder / _plain(language) / _plain(name), setting, lambda: run(language, name, lr, seed, size, final)
        )

    trials = {lr: once(lr, TUNING_SEED, final=False) for lr in contender.rates}
    lr = min(trials, key=lambda lr: (trials[lr]["error"], trials[lr]["steps"], trials[lr]["loss"]))
    return {
        "lr": lr,
        "edge": lr in (contender.rates[0], contender.rates[-1]),
        "trials": [{"lr": lr, **met} for lr, met in trials.items()],
        "runs": [once(lr, seed, final=True) for seed in SEEDS],
    }


def _plain(name: str) -> str:
    """A name that a folder can have."""
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
