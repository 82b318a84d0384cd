"""The comparison of optimisers as one command: which problems there are, and what is kept of a run."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nestling.errors import UserError
from nestling.evals.optimizers.compare import compare
from nestling.evals.optimizers.contenders import CONTENDERS
from nestling.evals.optimizers.language import Language
from nestling.evals.optimizers.problem import Problem, named
from nestling.evals.optimizers.quadratic import RotatingQuadratic
from nestling.evals.optimizers.vision import Digits, Mnist

PROBLEMS: list[Problem] = [RotatingQuadratic(), Digits(), Mnist(), Language("transformer"), Language("hope", tokens=40_000)]
QUICK: list[Problem] = [RotatingQuadratic(steps=200), Digits(epochs=3)]


def run(
    problems: list[str] | None,
    optimizers: list[str] | None,
    quick: bool,
    out: str,
    jobs: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Tune and run; results by problem and optimiser, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: an unknown problem or optimiser, or data that cannot be found.
    """
    if unknown := set(optimizers or ()) - set(CONTENDERS):
        raise UserError(f"unknown optimiser {', '.join(sorted(unknown))}; choose from {', '.join(CONTENDERS)}")
    chosen = named(QUICK if quick else PROBLEMS, problems)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    found = compare(
        chosen, [name for name in CONTENDERS if optimizers is None or name in optimizers], folder, jobs, say
    )
    about = (
        f"{datetime.date.today().isoformat()}, torch {torch.__version__}, {platform.machine()} CPU, one thread a run"
    )
    results = {"title": "Optimisers compared", "about": about, "problems": found}
    (folder / "results.json").write_text(json.dumps(results))
    return results
