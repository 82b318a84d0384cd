"""Numbers and frequencies as people read them."""

from __future__ import annotations

import math

from nestling.levels.description.component import Component, Size
from nestling.memory.part import Context


def frequency(component: Component) -> str:
    """Updates per token, or per data point."""
    value = component.frequency
    if value == math.inf:
        return "∞"
    if not value:
        return "0"
    return "1" if value == 1 else f"1 / {round(1 / value):,}"


def size(value: Size | None) -> str:
    """Numbers and bytes."""
    if value is None:
        return "grows"
    return f"{short(value.numbers)} ({storage(value.bytes)})" if value.numbers else "-"


def context(value: Context) -> str:
    """How many of what, and how many of the newest hold 99% of it."""
    most = value.most is not None and value.most != value.effective
    newest = f" (99%: {short(value.most)})" if most and value.most else ""
    return f"{amount(value)}{newest}" + (f"; {value.note}" if value.note else "")


def amount(value: Context) -> str:
    """How many of what."""
    if value.effective is None:
        return f"{value.unit} of the context"
    if value.effective == 0:
        return "nothing: it stands still"
    return f"{'all' if value.effective == math.inf else short(value.effective)} {value.unit}"


def ratio(value: float | None) -> str:
    """Context over state."""
    if value is None:
        return "-"
    return "∞" if value == math.inf else f"{short(value)} : 1"


def name(component: Component) -> str:
    """With the number of layers, where there are several."""
    return f"{component.name}, {component.layers} layers" if component.layers > 1 else component.name


def short(value: float) -> str:
    """Three digits and a letter from a hundred thousand on."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(unit, 1e5):
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.3g}"


def storage(value: int) -> str:
    """Bytes in powers of 1024."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.3g} {unit}"
    return f"{value} B"


def knowledge(component: Component) -> str:
    """Kinds of transfer with their sources; many sources are a few and a number."""
    kinds: dict[str, list[str]] = {}
    for transfer in component.knowledge:
        kinds.setdefault(transfer.kind, []).append(transfer.source)
    return "; ".join(f"{kind} ({listed(sources)})" for kind, sources in kinds.items()) or "-"


def listed(names: list[str]) -> str:
    """The first three of them, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
