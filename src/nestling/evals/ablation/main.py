"""The ablation as one command: every row with every seed, none twice."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nestling.errors import UserError
from nestling.evals.ablation.learn import RATE, SIZES, Size, run
from nestling.evals.ablation.rows import ROWS
from nestling.evals.optimizers.problem import write
from nestling.evals.runs import kept, side_by_side


def ablation(rows: list[str] | None, size_name: str, out: str, jobs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Results by row, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: an unknown row, or data that cannot be found.
    """
    if unknown := set(rows or ()) - set(ROWS):
        raise UserError(f"unknown row {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    size, folder = SIZES[size_name], Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in ROWS if (name in rows if rows else name not in size.without)]
    tasks = [(name, seed, folder, size) for name in chosen for seed in size.seeds]
    found: dict[tuple[str, int], Any] = {}
    for (name, seed, *_), met in side_by_side(_once, tasks, jobs):
        found[name, seed] = met
        say(f"{name}, seed {seed}: {met['bits']:.3f} bits a byte in {met['seconds']:.0f} s")
    results = {
        "title": "Hope, less one part each",
        "about": f"{datetime.date.today().isoformat()}, torch {torch.__version__}, {platform.machine()}, one thread a run",
        "rows": {
            name: {"runs": [found[name, seed] for seed in size.seeds], "sign": ROWS[name].sign} for name in chosen
        },
    }
    write(folder / "results.json", results)
    return results


def _once(name: str, seed: int, folder: Path, size: Size) -> dict[str, Any]:
    place = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    setting = f"{name} {ROWS[name].settings} {ROWS[name].levels} {RATE} {seed} {size}"
    return kept(place, setting, lambda: run(name, seed, size))
