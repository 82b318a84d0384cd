"""The order of components (arXiv 2512.24695, Def. 2): by frequency, then by dependence."""

from __future__ import annotations

from collections.abc import Iterable

from nestling.levels.description.component import Component

Levels = tuple[tuple[Component, ...], ...]


def ordered(components: Iterable[Component]) -> Levels:
    """Levels from fast to slow. `A` is faster than `B` if `f_A > f_B`, or if they are equal and `B`'s state needs `A`'s.

    Components of one frequency of which neither needs the other share a level; one that nothing of its frequency needs is in the
    slowest level that this allows.

    Raises:
        ValueError: components of one frequency need each other in a circle, so that none is faster.
    """
    components = list(components)
    by_name = {component.name: component for component in components}
    heights: dict[str, int] = {}

    def height(component: Component, above: tuple[str, ...] = ()) -> int:
        """How many levels of its frequency are slower."""
        if component.name in above:
            raise ValueError(f"{' needs '.join((*above, component.name))}: none of them is the faster one")
        if component.name not in heights:
            path = (*above, component.name)
            slower = [c for c in components if component.name in c.needs and c.frequency == component.frequency]
            heights[component.name] = max((height(c, path) + 1 for c in slower), default=0)
        return heights[component.name]

    levels: dict[tuple[float, int], list[Component]] = {}
    for component in by_name.values():
        levels.setdefault((component.frequency, height(component)), []).append(component)
    return tuple(tuple(levels[key]) for key in sorted(levels, reverse=True))
