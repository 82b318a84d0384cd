"""Runs of an evaluation: side by side, one thread each, and none twice."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from nestling.errors import UserError
from nestling.quiet import quiet

Task = TypeVar("Task", bound=tuple[Any, ...])


def write(path: Path, values: Any) -> None:
    """A JSON file, there as a whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(values))
    temporary.replace(path)


def where() -> str:
    """The day, torch and the processor, for a report."""
    return f"{datetime.date.today().isoformat()}, torch {torch.__version__}, {platform.machine()}"


def chosen(kind: str, wanted: list[str] | None, known: list[str]) -> list[str]:
    """Those of `known` that are wanted, in its order; None is all of them. Raises UserError for an unknown one."""
    if unknown := set(wanted or ()) - set(known):
        raise UserError(f"unknown {kind} {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    return [name for name in known if wanted is None or name in wanted]


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
