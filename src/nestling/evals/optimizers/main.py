"""The comparison of optimisers as one command: which problems there are, and what is kept of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nestling.evals.optimizers import editing, orthogonal, psi
from nestling.evals.optimizers.compare import compare
from nestling.evals.optimizers.contenders import CONTENDERS
from nestling.evals.optimizers.language import Language
from nestling.evals.optimizers.problem import Problem
from nestling.evals.optimizers.quadratic import RotatingQuadratic
from nestling.evals.optimizers.vision import Digits, Mnist
from nestling.evals.runs import chosen, where, write

STUDIES = {
    "psi": psi.study,
    "orthogonal": orthogonal.study,
    "editing": editing.study,
}  # of one property; nothing is tuned alike for all there
PROBLEMS: list[Problem] = [
    RotatingQuadratic(),
    Digits(),
    Mnist(),
    Language("transformer"),
    Language("hope", tokens=24_000, batch=2),
]
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
    contenders = chosen("optimiser", optimizers, list(CONTENDERS))
    studies, compared = _chosen(problems, quick)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    seen = {name: _study(name, folder, say) for name in studies}
    found = compare(compared, contenders, folder, jobs, say)
    about = f"{where()} CPU, one thread a run"
    results = {"title": "Optimisers compared", "about": about, "problems": found, "studies": seen}
    write(folder / "results.json", results)
    return results


def _chosen(wanted: list[str] | None, quick: bool) -> tuple[list[str], list[Problem]]:
    """Studies and problems by name; None is all of them, or two small problems."""
    problems = {problem.name: problem for problem in (QUICK if quick else PROBLEMS)}
    if wanted is None:
        return ([] if quick else list(STUDIES)), list(problems.values())
    names = chosen("problem", wanted, [*STUDIES, *problems])
    return [name for name in names if name in STUDIES], [problems[name] for name in names if name in problems]


def _study(name: str, folder: Path, say: Callable[[str], None]) -> Any:
    """One study, from its file where it was done before."""
    path = folder / f"{name}.json"
    if not path.exists():
        write(path, STUDIES[name](say))
    return json.loads(path.read_text())
