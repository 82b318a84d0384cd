"""The ablation as one command: every row with every seed, none twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from nestling.evals.ablation.learn import RATE, SIZES, Size, run
from nestling.evals.ablation.rows import ROWS
from nestling.evals.runs import chosen, kept, side_by_side, where, write


def ablation(rows: list[str] | None, size_name: str, out: str, jobs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Results by row, also in `out`/results.json. What is there already is not run again.

    Raises:
        UserError: an unknown row, or data that cannot be found.
    """
    size, folder = SIZES[size_name], Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = chosen("row", rows or [name for name in ROWS if name not in size.without], list(ROWS))
    tasks = [(name, seed, folder, size) for name in names for seed in size.seeds]
    found: dict[tuple[str, int], Any] = {}
    for (name, seed, *_), met in side_by_side(_once, tasks, jobs):
        found[name, seed] = met
        say(f"{name}, seed {seed}: {met['bits']:.3f} bits a byte in {met['seconds']:.0f} s")
    results = {
        "title": "Hope, less one part each",
        "about": f"{where()}, one thread a run",
        "rows": {name: {"runs": [found[name, seed] for seed in size.seeds], "sign": ROWS[name].sign} for name in names},
    }
    write(folder / "results.json", results)
    return results


def _once(name: str, seed: int, folder: Path, size: Size) -> dict[str, Any]:
    place = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    setting = f"{name} {ROWS[name].settings} {ROWS[name].levels} {RATE} {seed} {size}"
    return kept(place, setting, lambda: {"day": date.today().isoformat(), **run(name, seed, size)})
