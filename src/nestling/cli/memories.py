"""What a memory file holds: looking into it, going back, and levels that stand still or go back to their start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.cli.folders import load_learning, refuse_to_overwrite
from nestling.quiet import quiet

if TYPE_CHECKING:
    from nestling.continual import Learner


def show(model: str, memory: str) -> None:
    """Say what a memory holds: its levels, and its snapshots.

    Args:
        model: folder of a model with levels.
        memory: a memory file.
    """
    learner = _learner(model, memory)
    for number, level in enumerate(learner.standing()):
        state = "frozen" if level.frozen else f"last update {level.norm:.3g}, surprise {level.surprise:.3g}"
        print(f"level {number}: period {level.period}, {level.updates} updates, {level.refused} refused, {state}")
    print(f"snapshots: {', '.join(learner.snapshots()) or 'none'}")


def snapshot(model: str, memory: str, name: str | None = None) -> None:
    """Keep what a memory holds now under a name, to go back to.

    Args:
        model: folder of a model with levels.
        memory: a memory file; the snapshot is kept in it.
        name: of the snapshot; none is the next free number.
    """
    _change(model, memory, lambda learner: f"snapshot {learner.snapshot(name=name)} taken")


def rollback(model: str, memory: str, snapshot: str) -> None:
    """Go back to a snapshot: what was read since then has not been learnt.

    Args:
        model: folder of a model with levels.
        memory: a memory file.
        snapshot: its name; `nestling memory show` lists them.
    """

    def back(learner: Learner) -> str:
        learner.rollback("default", snapshot)
        return f"back at snapshot {snapshot}"

    _change(model, memory, back)


def fork(model: str, memory: str, out: str) -> None:
    """Begin another memory that knows what this one knows.

    Args:
        model: folder of a model with levels.
        memory: a memory file.
        out: the new memory file; it must not exist yet.
    """
    refuse_to_overwrite(out)
    _learner(model, memory).save(out)
    print(f"{out} knows what {memory} knows")


def freeze(model: str, memory: str, level: int) -> None:
    """Let a level stand still: it is used and does not learn.

    Args:
        model: folder of a model with levels.
        memory: a memory file.
        level: number of the level, 0 the fastest.
    """
    _change(model, memory, lambda learner: learner.freeze(level) or f"level {level} stands still")


def unfreeze(model: str, memory: str, level: int) -> None:
    """Let a level learn again.

    Args:
        model: folder of a model with levels.
        memory: a memory file.
        level: number of the level, 0 the fastest.
    """
    _change(model, memory, lambda learner: learner.unfreeze(level) or f"level {level} learns again")


def reset(model: str, memory: str, level: int) -> None:
    """Forget what one level has learnt.

    Args:
        model: folder of a model with levels.
        memory: a memory file.
        level: number of the level, 0 the fastest.
    """
    _change(model, memory, lambda learner: learner.reset(level) or f"level {level} is back at its start")


COMMANDS = {function.__name__: function for function in (show, snapshot, rollback, fork, freeze, unfreeze, reset)}
EXAMPLES = {
    "show": "nestling memory show --model model --memory me.safetensors",
    "snapshot": "nestling memory snapshot --model model --memory me.safetensors --name today",
    "rollback": "nestling memory rollback --model model --memory me.safetensors --snapshot before-notes",
    "fork": "nestling memory fork --model model --memory me.safetensors --out you.safetensors",
    "freeze": "nestling memory freeze --model model --memory me.safetensors --level 0",
    "unfreeze": "nestling memory unfreeze --model model --memory me.safetensors --level 0",
    "reset": "nestling memory reset --model model --memory me.safetensors --level 0",
}


def _learner(model: str, memory: str) -> Learner:
    """A learner whose one user is a memory file's."""
    quiet()
    from nestling.continual import Learner

    learner = Learner(*load_learning(model))
    learner.load(memory)
    return learner


def _change(model: str, memory: str, change: Callable[[Learner], str]) -> None:
    """Change a memory and write it again, whole or not at all; say what `change` says."""
    learner = _learner(model, memory)
    said = change(learner)
    learner.save(memory)
    print(f"{said}; saved in {Path(memory)}")
