"""The level table on a terminal, or as text."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from nestling.levels.description import words
from nestling.levels.description.component import Component

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from nestling.levels.description.description import Description

Columns = dict[str, Callable[[Component], str]]
SIZES: Columns = {
    "component": words.name,
    "updates / token": words.frequency,
    "parameters": lambda c: words.size(c.parameters),
    "state": lambda c: words.size(c.state),
    "context": lambda c: words.context(c.context),
    "ratio": lambda c: words.ratio(c.compression),
}
LEARNING: Columns = {
    "component": words.name,
    "objective": lambda c: c.objective,
    "rule": lambda c: c.rule,
    "knowledge reaches it by": words.knowledge,
}
NUMBERS = ("updates / token", "parameters", "state", "ratio")
NARROWEST = 120


def tables(description: Description) -> Group:
    """How fast and how large everything is, and how it learns: two tables, a section a level, from fast to slow."""
    from rich.console import Group
    from rich.text import Text

    lines = [title(description), *description.notes]
    return Group(Text(lines[0]), _table(description, SIZES), _table(description, LEARNING), *map(Text, lines[1:]))


def title(description: Description) -> str:
    """What is described, in one line."""
    if not description.optimizers:
        return f"{description.model} as it is used: nothing trains it"
    moved = " and ".join(description.optimizers)
    tokens = description.tokens_per_step
    return f"{description.model}, trained by {moved}, a step every {'token' if tokens == 1 else f'{tokens:,} tokens'}"


def text(description: Description) -> str:
    """The tables as plain text, as wide as the terminal, and wide enough to be read."""
    from rich.console import Console

    width = max(NARROWEST, shutil.get_terminal_size((NARROWEST, 24)).columns)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(tables(description))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _table(description: Description, columns: Columns) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("level", justify="right", no_wrap=True)
    for column in columns:
        out.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
    for number, level in enumerate(description.levels, start=1):
        for i, component in enumerate(level):
            cells = ["" if i else str(number), *(cell(component) for cell in columns.values())]
            out.add_row(*(Text(cell) for cell in cells), end_section=i + 1 == len(level))
    return out
