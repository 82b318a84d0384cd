"""How much can a memory hold?

Pairs of keys and values pass once through `AssociativeMemory`; then all keys are read from the last state. Recall error is the
mean squared error of what was read over the mean square of the values: 0 is perfect, 1 is no better than silence. Measured against
the number of pairs for every network x objective x rule, at equal state size (`benchmarks.memories`), on unrelated pairs and on
maps (`benchmarks.pairs`), whose other keys are read as well.

    python -m benchmarks.capacity [--quick] [--seeds 5] [--only PART_OF_A_NAME] [--out docs/results/capacity]

First a parity gate: every memory must do what its token-loop oracle does. Then each has its own best constant rate for each number of
pairs, chosen on draws of their own. Networks with hidden layers start at random, anew in every draw: nothing is meta-learnt. One
thread, about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import rich
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.memories import THETA, Choice, choices
from benchmarks.pairs import TASKS, Task, delta, hebbian, least_squares
from benchmarks.recall import recall
from nestling.report import capacity as pages

VALIDATION = 1_000  # the first of the seeds that rates are chosen on
EXACT = 1e-9
RAN_OFF = 10.0  # an error that no memory comes to that is stable


@dataclass(frozen=True)
class Size:
    """seeds: to judge by, beside those that rates are chosen on. longest: pairs at most, in units of d."""

    seeds: int = 5
    validation: int = 8
    longest: float = 64.0
    dim: int = 12

    def individuals(self, draws: int) -> list[int]:
        """A number for every draw, those to choose rates on first."""
        seeds = [*range(VALIDATION, VALIDATION + self.validation), *range(self.seeds)]
        return [seed * draws + i for seed in seeds for i in range(draws)]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    size = Size(arguments.seeds, longest=4.0) if arguments.quick else Size(arguments.seeds)
    wanted = [choice for choice in choices() if arguments.only in str(choice)]
    results = run(wanted, size)
    rich.print(pages.tables(results))
    if arguments.out:
        write(results, Path(arguments.out))


def run(wanted: Sequence[Choice], size: Size) -> dict[str, Any]:
    """Everything, as plain data."""
    largest = max(parity(choice) for choice in track(wanted, "parity"))
    tasks = {name: replace(task, counts=_up_to(task.counts, size.longest)) for name, task in TASKS.items()}
    memories = [_measured(choice, tasks, size) for choice in track(wanted, "recall")]
    return {
        "title": "Capacity: how much a memory holds",
        "about": f"{date.today()}, torch {torch.__version__}, {platform.machine()} CPU, one thread",
        "dim": size.dim,
        "seeds": size.seeds,
        "validation": size.validation,
        "theta": THETA,
        "parity": {"memories": len(wanted), "largest": largest},
        "tasks": {
            name: {"title": task.title, "pairs": task.numbers(size.dim), "draws": task.draws, "map": task.map}
            for name, task in tasks.items()
        },
        "theory": _theory(tasks["unrelated"].numbers(size.dim), size.dim),
        "memories": memories,
    }


def write(results: dict[str, Any], to: Path) -> None:
    """Data, tables and drawings, beside each other."""
    to.with_suffix(".json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    to.with_suffix(".md").write_text(pages.markdown(results), encoding="utf-8")
    to.with_suffix(".html").write_text(pages.html(results), encoding="utf-8")


@torch.no_grad()
def parity(choice: Choice, dim: int = 6) -> float:
    """The largest difference to the token-loop oracle, in what is read and in the last state; an error where it is not rounding."""
    torch.manual_seed(0)
    network = choice.make(dim).double()
    k, v = (torch.nn.functional.normalize(torch.randn(2, 1, 19, dim, dtype=torch.float64), dim=-1) for _ in "kv")
    eta = torch.full((2, 1, 19), choice.rates(network, k)[len(choice.powers) // 3], dtype=torch.float64)
    theta = torch.full_like(eta, THETA) if choice.momentum else None
    found = []
    for backend in ("auto", "reference"):
        y, state = choice.memory(network, backend)(k, k, v, eta, theta=theta)
        found.append([y, *state.weights])
    off = max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(*found, strict=True))
    if not off <= EXACT:
        raise AssertionError(f"{choice} differs from its oracle by {off:.2g}: no figure is worth anything")
    return off


def _measured(choice: Choice, tasks: dict[str, Task], size: Size) -> dict[str, Any]:
    """A memory on all tasks."""
    weights, carried = choice.numbers(size.dim)
    met: dict[str, Any] = {"stored": {}, "unseen": {}}
    for _, group in groupby(tasks, lambda name: tasks[name].counts):
        names = list(group)
        found = recall(choice, [tasks[name] for name in names], size.individuals(tasks[names[0]].draws), size.dim)
        for i, name in enumerate(names):
            for measure in ("stored", "unseen") if tasks[name].map else ("stored",):
                met[measure][name] = _chosen(found.rates, getattr(found, measure)[:, :, i], size)
    parts = {"network": choice.network, "objective": choice.objective, "rule": choice.rule, "size": choice.size}
    return {**parts, "kind": choice.kind, "weights": weights, "carried": carried, **met}


def _chosen(rates: list[float], errors: Tensor, size: Size) -> dict[str, Any]:
    """At each number of pairs the rate that is best on the draws to choose on, and the errors at it on the others.

    Only rates up to half the smallest at which one of the former ran off count: beyond, another draw soon would.
    """
    draws = errors.shape[-1] // (size.validation + size.seeds)
    tried, judged = errors.split((size.validation * draws, size.seeds * draws), -1)  # [numbers of pairs, R, draws]
    grid, at = torch.tensor(rates, dtype=errors.dtype), torch.arange(len(errors))
    unsafe = torch.where((tried > RAN_OFF).any(-1), grid, math.inf).amin(1, keepdim=True)
    means = torch.where(grid <= unsafe / 2, tried.mean(-1), math.inf)
    best = means.argmin(1)
    judged = judged[at, best].unflatten(-1, (size.seeds, draws)).mean(-1)
    return {
        "rates": [_short(rates[i]) for i in best],
        "edge": [len(rates) > 1 and int(i) in (0, len(rates) - 1) for i in best],
        "validation": [_short(error) for error in means[at, best].tolist()],
        "errors": [[_short(error) for error in row] for row in judged.tolist()],
    }


def _short(value: float) -> float | None:
    """Four digits; None for a memory that ran off, as JSON has no infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _theory(numbers: Sequence[int], dim: int) -> dict[str, list[float]]:
    """Closed forms of a matrix's recall error on unrelated pairs, at the best rate for each number of pairs, and at 1."""
    rates = [i / 200 for i in range(1, 241)]
    best = {
        f"{name}, best rate": [min(form(n, dim, rate) for rate in rates) for n in numbers]
        for name, form in (("dot product", hebbian), ("delta rule", delta))
    }
    fixed = {
        "dot product, rate 1": [hebbian(n, dim, 1.0) for n in numbers],
        "delta rule, rate 1": [delta(n, dim, 1.0) for n in numbers],
    }
    return best | fixed | {"least squares": [least_squares(n, dim) for n in numbers]}


def _up_to(counts: Sequence[float], longest: float) -> tuple[float, ...]:
    return tuple(count for count in counts if count <= longest)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no more pairs than four times the width")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="memories whose name has this in it, as 'Matrix, L2'")
    parser.add_argument("--out", help="path, without a suffix, of the JSON, Markdown and HTML to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
