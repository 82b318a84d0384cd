"""Levels as a picture, in the manner of the paper's diagrams: a band a level, a box a component, arrows for what is passed on.

One file of its own: no fonts, styles or scripts from outside. A box's full text shows where the pointer rests on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

from nestling.levels.description import words
from nestling.levels.description.component import KINDS, Component, Size
from nestling.levels.description.table import title
from nestling.memory.part import LOSS

if TYPE_CHECKING:
    from nestling.levels.description.description import Description

INK, MUTED, BAND, EDGE = "#2a2f38", "#656c79", "#f3f5f8", "#c4cad3"
COLOURS: dict[str, str] = dict(zip(KINDS, ("#0072b2", "#3b93c9", "#d55e00", "#009e73", "#b8568f"), strict=True))
DASHES: dict[str, str] = dict(
    zip(KINDS, ("", "2 3", "", "7 3", "10 3 2 3"), strict=True)
)  # so that no colour is needed to tell them apart
BOX, TALL, GAP, ACROSS = 214, 58, 12, 3  # a box, the space around it, and how many stand side by side
LEFT, TOP, LANE = 150, 58, 16  # the column of frequencies, the title, and the way of one arrow
STRIP = 30  # the height of the loss, below all levels, from which gradients come
LETTERS = 26, 33  # of the name in a box, and of the lines below it


@dataclass(frozen=True)
class Arrow:
    """Knowledge of one kind that goes from one level to another; the loss counts as one more level, below the others."""

    kind: str
    source: int
    target: int


def svg(description: Description) -> str:
    """The picture as a document."""
    arrows = _arrows(description)
    heights = [GAP + (TALL + GAP) * -(-len(level) // ACROSS) for level in description.levels]
    heights += [STRIP] if any(arrow.source == len(heights) for arrow in arrows) else []
    tops = [TOP + sum(heights[:i]) + GAP * i for i in range(len(heights))]
    right = LEFT + GAP + (BOX + GAP) * ACROSS
    width = right + LANE * (len(arrows) + 1) + GAP
    bottom = tops[-1] + heights[-1] if tops else TOP
    root = _root(max(width, right + GAP), bottom + 54, title(description))
    _text(root, GAP, 24, title(description), "600 15px", INK)
    _text(root, GAP, 44, "updates a token", "12px", MUTED)
    for number, level in enumerate(description.levels):
        _band(root, tops[number], heights[number], right)
        _level(root, number, level, tops[number], heights[number])
    if len(tops) > len(description.levels):
        _band(root, tops[-1], STRIP, right)
        _text(root, 2 * GAP, tops[-1] + 19, LOSS, "600 13px", INK)
    ports = _ports(arrows, tops, heights)
    for lane, arrow in enumerate(arrows):
        _draw(root, arrow, ports[arrow], right, right + LANE * (lane + 1))
    _legend(root, bottom + 30, {arrow.kind for arrow in arrows})
    return tostring(root, encoding="unicode") + "\n"


def _arrows(description: Description) -> list[Arrow]:
    """One for each kind, source and target, the shortest first; what stays in a level is in the boxes' text."""
    at = {component.name: i for i, level in enumerate(description.levels) for component in level}
    at[LOSS] = len(description.levels)
    found = {
        Arrow(transfer.kind, at[transfer.source], at[component.name])
        for component in description
        for transfer in component.knowledge
        if transfer.source in at and at[transfer.source] != at[component.name]
    }
    return sorted(
        found, key=lambda a: (abs(a.source - a.target), min(a.source, a.target), KINDS.index(a.kind), a.source)
    )


def _ports(arrows: list[Arrow], tops: list[int], heights: list[int]) -> dict[Arrow, tuple[float, float]]:
    """The heights at which each arrow leaves its source and reaches its target, spread over the edge of a band."""
    ends: list[list[tuple[int, Arrow]]] = [[] for _ in tops]
    for arrow in arrows:
        ends[arrow.source].append((arrow.target, arrow))
        ends[arrow.target].append((arrow.source, arrow))
    places: dict[tuple[int, Arrow], float] = {}
    for level, its in enumerate(ends):
        for i, (_, arrow) in enumerate(sorted(its, key=lambda end: end[0])):
            places[level, arrow] = tops[level] + heights[level] * (i + 1) / (len(its) + 1)
    return {arrow: (places[arrow.source, arrow], places[arrow.target, arrow]) for arrow in arrows}


def _root(width: int, height: int, heading: str) -> Element:
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "font-family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif",
        },
    )
    SubElement(root, "title").text = heading
    SubElement(root, "rect", {"width": str(width), "height": str(height), "fill": "#ffffff"})
    return root


def _band(root: Element, top: int, height: int, right: int) -> None:
    place = {"x": str(GAP), "y": str(top), "width": str(right - GAP), "height": str(height), "rx": "6"}
    SubElement(root, "rect", {**place, "fill": BAND})


def _level(root: Element, number: int, level: tuple[Component, ...], top: int, height: int) -> None:
    """Its number, from 1, its frequency, and a box for each component."""
    _text(root, 2 * GAP, top + height / 2 - 5, f"level {number + 1}", "600 13px", INK)
    _text(root, 2 * GAP, top + height / 2 + 14, words.frequency(level[0]), "13px", MUTED)
    for i, component in enumerate(level):
        _box(root, component, LEFT + GAP + (BOX + GAP) * (i % ACROSS), top + GAP + (TALL + GAP) * (i // ACROSS))


def _box(root: Element, component: Component, x: int, y: int) -> None:
    group = SubElement(root, "g")
    lines = [component.rule, f"objective: {component.objective}", f"knowledge: {words.knowledge(component)}"]
    SubElement(group, "title").text = "\n".join([words.name(component), *lines])
    place = {"x": str(x), "y": str(y), "width": str(BOX), "height": str(TALL), "rx": "4"}
    SubElement(group, "rect", {**place, "fill": "#ffffff", "stroke": EDGE})
    _text(group, x + 10, y + 20, _short(component.name, LETTERS[0]), "600 12px", INK)
    _text(group, x + 10, y + 36, _short(_holds(component), LETTERS[1]), "11px", INK)
    _text(group, x + 10, y + 50, _short(words.amount(component.context), LETTERS[1]), "11px", MUTED)


def _holds(component: Component) -> str:
    """How large it is."""
    kinds = (("parameters", component.parameters), ("of state", component.state or Size()))
    found = [f"{words.short(size.numbers)} {kind}" for kind, size in kinds if size.numbers]
    found += ["grows"] if component.state is None else []
    return ", ".join([*([f"{component.layers} layers"] if component.layers > 1 else []), *found])


def _draw(root: Element, arrow: Arrow, ends: tuple[float, float], edge: int, lane: int) -> None:
    """Out of a band, along its lane, into the other band."""
    start, end = (f"{y:.1f}" for y in ends)
    line = {
        "d": f"M {edge} {start} H {lane} V {end} H {edge + 6}",
        "fill": "none",
        "stroke": COLOURS[arrow.kind],
        "stroke-width": "1.6",
        "stroke-linejoin": "round",
    }
    if dashes := DASHES[arrow.kind]:
        line["stroke-dasharray"] = dashes
    path = SubElement(root, "path", line)
    SubElement(path, "title").text = f"{arrow.kind}, to level {arrow.target + 1}"
    head = f"{edge},{end} {edge + 8},{ends[1] - 4:.1f} {edge + 8},{ends[1] + 4:.1f}"
    SubElement(root, "polygon", {"points": head, "fill": COLOURS[arrow.kind]})


def _legend(root: Element, y: int, used: set[str]) -> None:
    x = GAP
    for kind in KINDS:
        if kind in used:
            line = {"x1": str(x), "x2": str(x + 30), "y1": str(y), "y2": str(y), "stroke": COLOURS[kind]}
            SubElement(root, "line", {**line, "stroke-width": "1.6", "stroke-dasharray": DASHES[kind] or "none"})
            _text(root, x + 36, y + 4, kind, "12px", INK)
            x += 60 + 7 * len(kind)


def _text(parent: Element, x: float, y: float, text: str, font: str, colour: str) -> None:
    *weight, size = font.split()
    style = {"x": f"{x:g}", "y": f"{y:g}", "font-size": size, "fill": colour}
    SubElement(parent, "text", style | ({"font-weight": weight[0]} if weight else {})).text = text


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
