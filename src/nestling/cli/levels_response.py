"""`nestling levels --response`: which frequencies of a gradient move a level, and how far."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.cli.folders import outline
from nestling.cli.terminal import progress
from nestling.errors import UserError
from nestling.settings import LevelSettings

if TYPE_CHECKING:
    from nestling.levels import Level

HIGHEST = 0.49  # cycles a token; at 1/2 the mean of an even period is zero
POINTS = 40


def three_levels() -> list[LevelSettings]:
    """Of one rate a token: a fast level that fades, a plain one, and a slow one with momentum."""
    momentum = {"name": "StepOf", "optimizer": "PreconditionedMomentum", "momentum": 0.75}
    fast, middle = LevelSettings(4, 0.04, reset=0.9), LevelSettings(32, 0.32)
    return [fast, middle, LevelSettings(256, 0.64, rule=momentum)]


def response(model: str | None = None, levels: list[LevelSettings] | None = None, svg: str | None = None) -> None:
    """Measure the gain with which a gradient of each frequency moves each level, and set the closed form beside it.

    Args:
        model: folder of a model with levels, whose response it is.
        levels: instead, from fast to slow, without clip and rank; none is three that show what period, momentum and decay do.
        svg: a file to draw the gains into; none draws nothing.
    """
    import torch
    from rich.console import Console

    from nestling.levels.response import measure, poles
    from nestling.report import response as pages
    from nestling.report.svg import standalone

    given = _levels(model, levels)
    lowest = min(HIGHEST / 1e3, 0.02 / given[-1].period)  # three decades, and well below the cutoff of every period
    frequencies = torch.logspace(math.log10(lowest), math.log10(HIGHEST), POINTS, dtype=torch.float64)
    for level in given:
        poles(level)  # raises where there is no response to measure, before there is a bar
    with progress("measuring levels", len(given)) as advance:
        measured = measure(given, frequencies, each=lambda: advance(1, ""))
    Console().print(pages.tables(given, frequencies, measured))
    if svg is not None:
        Path(svg).write_text(standalone(pages.figure(given, frequencies, measured)), encoding="utf-8")
        print(f"the drawing is {svg}")


def _levels(model: str | None, levels: list[LevelSettings] | None) -> list[Level]:
    """Those of the model, those given, or three that tell."""
    from nestling.levels import Level, as_levels

    if model is not None and levels is not None:
        raise UserError("both a model and --levels were given; leave one of them out")
    if levels is not None and not levels:
        raise UserError("levels=[] is empty; give at least one, or leave it out for three that show what they do")
    if model is None:
        return as_levels([Level.from_dict(one.to_dict()) for one in levels or three_levels()])
    found = getattr(outline(model).config, "levels", None)
    if not found:
        raise UserError(
            f"{model} has no levels; `nestling convert` gives a model some, and --levels takes them as they are"
        )
    return as_levels(found)
