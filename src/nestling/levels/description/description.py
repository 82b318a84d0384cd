"""The result: levels from fast to slow, as data, a table, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nestling.levels.description.component import Component, Size

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Description:
    """A model and what trains it, as nested levels (arXiv 2512.24695, Def. 2-4).

    levels: from fast to slow, each the components of one frequency of which none needs another.
    tokens_per_step: tokens (data points) of an optimiser's step, None without one. notes: what is not in the table.
    """

    model: str
    optimizers: tuple[str, ...]
    tokens_per_step: int | None
    levels: tuple[tuple[Component, ...], ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Component]:
        """All components, from fast to slow."""
        return (component for level in self.levels for component in level)

    def __getitem__(self, name: str) -> Component:
        """The component of a name.

        Raises:
            KeyError: there is none; the message lists the names.
        """
        found = {component.name: component for component in self}
        if name not in found:
            raise KeyError(f"{name!r} is no component; there are {', '.join(found)}")
        return found[name]

    @property
    def parameters(self) -> Size:
        """Of the model, each once."""
        return sum((component.parameters for component in self), Size())

    @property
    def state(self) -> Size:
        """Beside the parameters, where it does not grow with the context."""
        return sum((component.state or Size() for component in self), Size())

    def to_dict(self) -> dict[str, Any]:
        """Plain data; infinity is "inf"."""
        return {
            "model": self.model,
            "optimizers": list(self.optimizers),
            "tokens_per_step": self.tokens_per_step,
            "levels": [[component.to_dict() for component in level] for level in self.levels],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """`to_dict` as text, in an order that does not change."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_svg(self) -> str:
        """A picture of the levels, fast above slow, with arrows along which knowledge goes."""
        from nestling.levels.description.svg import svg

        return svg(self)

    def __rich__(self) -> Group:
        from nestling.levels.description.table import tables

        return tables(self)

    def __str__(self) -> str:
        from nestling.levels.description.table import text

        return text(self)
