"""Runs of an evaluation: side by side, one thread each, and none twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from nestling.evals.optimizers.problem import write
from nestling.quiet import quiet

Task = TypeVar("Task", bound=tuple[Any, ...])


def kept(folder: Path, setting: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, as it comes back from JSON; taken from `folder` where the same setting was run before."""
    path = folder / f"{hashlib.sha256(setting.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(path, {"setting": setting, **make()})
    return json.loads(path.read_text())


def side_by_side(function: Callable[..., Any], tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, Any]]:
    """Each task and what `function(*task)` returned, as they are done; `jobs` processes of one thread."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        waiting = {pool.submit(function, *task): task for task in tasks}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def _one_thread() -> None:
    quiet()
    torch.set_num_threads(1)
