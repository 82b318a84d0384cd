"""Run the demonstration's tasks side by side, and gather their results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from nestling.errors import UserError
from nestling.evals.demo.collect import collect
from nestling.evals.demo.setup import ARCHITECTURES, FAST, FINE_TUNING, SIZES, SLOW, domains


def run(size_name: str, text: str | None, out: str | None, jobs: int) -> dict[str, Any]:
    """Train, stream, compare. Tasks that an earlier run finished are taken from `out`. Returns the report's results.

    Raises:
        UserError: the text cannot be used, a place cannot be written, or a task failed (its log is named).
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    size, console = SIZES[size_name], Console()
    data = domains(size, text)  # a bad text is found before anything is trained
    if len(data.later) < 64:
        raise UserError(f"{text} has {len(data.stream) + len(data.later)} bytes; the demonstration needs at least 400")
    folder = Path(out or f"runs/demo/{size_name}") / _key(size_name, text)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(name, seed) for seed in size.seeds for name in ARCHITECTURES]
    _run_all(tasks, size_name, text, folder, jobs, console)
    found = {(name, seed): json.loads((_place(folder, name, seed) / "result.json").read_text()) for name, seed in tasks}
    results = collect(found, size_name, data)
    (folder / "results.json").write_text(json.dumps(results))
    console.print(f"data in {folder / 'results.json'}", highlight=False)
    return results


def _key(size_name: str, text: str | None) -> str:
    """What a result depends on: another setting, text or version starts anew."""
    settings = [SIZES[size_name], ARCHITECTURES, FINE_TUNING, FAST, SLOW, version("nestling")]
    content = hashlib.sha256(Path(text).read_bytes()).hexdigest() if text else ""
    return hashlib.sha256(repr((settings, content)).encode()).hexdigest()[:12]


def _place(folder: Path, architecture: str, seed: int) -> Path:
    return folder / f"{architecture.lower().replace('+', '')}-{seed}"


def _run_all(
    tasks: list[tuple[str, int]], size_name: str, text: str | None, folder: Path, jobs: int, console: Console
) -> None:
    """`jobs` processes at a time; their lines appear as they come."""
    waiting = [task for task in tasks if not (_place(folder, *task) / "result.json").exists()]
    running: dict[subprocess.Popen[str], tuple[str, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running[_start(task, size_name, text, _place(folder, *task))] = task
            for process in [p for p in running if p.poll() is not None]:
                task = running.pop(process)
                _show(_place(folder, *task), console)
                if process.returncode:
                    log = _place(folder, *task) / "log.txt"
                    raise UserError(
                        f"{task[0]}, seed {task[1]} failed: {log.read_text().strip().splitlines()[-1]} (see {log})"
                    )
            for task in running.values():
                _show(_place(folder, *task), console)
            time.sleep(0.2)
    finally:
        for process in running:
            process.kill()


def _start(task: tuple[str, int], size_name: str, text: str | None, place: Path) -> subprocess.Popen[str]:
    place.mkdir(parents=True, exist_ok=True)
    job = {"architecture": task[0], "seed": task[1], "size_name": size_name, "text": text, "folder": str(place)}
    job["size"] = dataclasses.asdict(SIZES[size_name])
    log = (place / "log.txt").open("w")
    shown.pop(place, None)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nestling.evals.demo.task", json.dumps(job)]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)


shown: dict[Path, int] = {}


def _show(place: Path, console: Console) -> None:
    """Print what is new in a task's log."""
    text = (place / "log.txt").read_text()
    start = shown.get(place, 0)
    end = text.rfind("\n") + 1
    for line in text[start:end].splitlines():
        console.print(line, highlight=False, markup=False)
    shown[place] = max(start, end)
