"""Components in the making: found one by one, merged where they are alike in everything but their size, then named."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from nestling.levels.description.component import Component, Size, Transfer
from nestling.memory.part import LOSS, Context

Reference = tuple[str, str | None]  # rows of this base that this moves, or whatever moves them


@dataclass(frozen=True)
class Row:
    """A component of one layer or one parameter, not yet named.

    base: its name, if it is the only one of that name. mover: what moves it, which tells rows of one base apart.
    places: the layers it is in. item: how many numbers one unit of its context brings. The rest is as in `Component`.
    """

    base: str
    frequency: float
    objective: str
    rule: str
    context: Context
    mover: str = ""
    places: frozenset[str] = frozenset()
    parameters: Size = Size()  # noqa: RUF009 - frozen
    state: Size | None = Size()  # noqa: RUF009 - frozen
    item: int = 0
    needs: tuple[Reference, ...] = ()
    knowledge: tuple[tuple[str, Reference], ...] = ()


def components(rows: Iterable[Row]) -> list[Component]:
    """Rows merged and named; references become names."""
    merged = _merged(rows)
    names = _names(merged)
    return [_component(row, names[i], merged, names) for i, row in enumerate(merged)]


def _merged(rows: Iterable[Row]) -> list[Row]:
    found: dict[tuple, Row] = {}
    for row in rows:
        key = (row.base, row.mover, row.frequency, row.objective, row.rule, row.context)
        found[key] = _sum(found[key], row) if key in found else row
    return list(found.values())


def _sum(one: Row, other: Row) -> Row:
    state = None if one.state is None or other.state is None else one.state + other.state
    return replace(
        one,
        places=one.places | other.places,
        parameters=one.parameters + other.parameters,
        state=state,
        item=one.item + other.item,
        needs=tuple(dict.fromkeys((*one.needs, *other.needs))),
        knowledge=tuple(dict.fromkeys((*one.knowledge, *other.knowledge))),
    )


def _names(rows: list[Row]) -> list[str]:
    """The base; with what moves it where that tells rows apart; and a number where that does not either."""
    bases = Counter(row.base for row in rows)
    names = [f"{row.base} ({row.mover})" if bases[row.base] > 1 and row.mover else row.base for row in rows]
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return out


def _component(row: Row, name: str, rows: list[Row], names: list[str]) -> Component:
    def resolved(reference: Reference) -> Iterator[str]:
        base, mover = reference
        if base == LOSS:
            yield LOSS
        for other, its in zip(rows, names, strict=True):
            if other.base == base and mover in (None, other.mover):
                yield its

    needs = [found for reference in row.needs for found in resolved(reference)]
    knowledge = [Transfer(kind, found) for kind, source in row.knowledge for found in resolved(source)]
    return Component(
        name=name,
        layers=len(row.places),
        frequency=row.frequency,
        parameters=row.parameters,
        state=row.state,
        objective=row.objective,
        context=row.context,
        compression=_compression(row),
        rule=row.rule,
        needs=tuple(dict.fromkeys(needs)),
        knowledge=tuple(dict.fromkeys(knowledge)),
    )


def _compression(row: Row) -> float | None:
    if row.frequency == math.inf:
        return 1.0  # it keeps what it answers from
    size = row.parameters.numbers + (row.state.numbers if row.state else 0)
    if row.frequency == 0 or row.context.effective is None or not size or not row.item:
        return None
    return float(f"{row.context.effective * row.item / size:.6g}")
