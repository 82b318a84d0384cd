"""Who is compared: nothing but a context, one to three levels under it, and all weights following what is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from nestling.continual import Learner
from nestling.continual.baselines import Follower, Frozen, Method
from nestling.evals.languages.backbone import Backbone, with_levels
from nestling.evals.languages.lessons import rows
from nestling.evals.languages.students import Context, Course, Student, Tuned
from nestling.evals.languages.words import tokenizer
from nestling.evals.tuning import Setting
from nestling.levels import Level

PERIODS = (64, 256, 1024)  # tokens: of the first, second and third level
CLIP = 0.5
KEPT = 2**20  # bytes of replay: all that is ever read fits
SHOWN = 10**8  # seeds from here on: of the languages that levels are shown; in training there are fewer


@dataclass(frozen=True)
class Problem:
    """What is read with. folder: of the trained backbone. window: tokens of the context. course: of what learns.
    shown: rows of the backbone's last lesson that levels which retain have been shown.
    """

    backbone: Backbone
    folder: Path
    window: int
    course: Course
    shown: int

    def sample(self) -> Tensor:
        """Token ids of what the backbone knows, of languages of their own."""
        return rows(SHOWN, replace(self.backbone.lessons[-1], batch=self.shown)).flatten()


NewReader = Callable[[], Student | Tuned]


@dataclass(frozen=True)
class Reading:
    """A way to learn. make: from a problem and a setting something that makes readers who have read nothing. settings: those tried.
    levels: how many beside the context; None of a baseline.
    """

    make: Callable[[Problem, Setting], NewReader]
    settings: tuple[Setting, ...]
    levels: int | None = None


def in_context(problem: Problem, setting: Setting) -> NewReader:
    """Nothing moves."""
    model = with_levels(problem.backbone, problem.folder, ())
    return lambda: Tuned(Follower(model, Frozen(), PERIODS[0]), Context(problem.window))


def tuned(method: Callable[[Setting], Method]) -> Callable[[Problem, Setting], NewReader]:
    """All weights move, as often as the fastest level."""

    def make(problem: Problem, setting: Setting) -> NewReader:
        model, moved = with_levels(problem.backbone, problem.folder, ()), method(setting)
        return lambda: Tuned(Follower(model, moved, PERIODS[0]), Context(problem.window), problem.course)

    return make


def levelled(count: int, level: Callable[[int, Setting], Level]) -> Callable[[Problem, Setting], NewReader]:
    """The first `count` periods, a level each, which have been shown what the backbone knows."""

    def make(problem: Problem, setting: Setting) -> NewReader:
        levels = tuple(level(period, setting) for period in PERIODS[:count])
        learner = Learner(with_levels(problem.backbone, problem.folder, levels), tokenizer())
        learner.calibrate(problem.sample())
        names = itertools.count()
        return lambda: Student(learner, f"reader {next(names)}", Context(problem.window), problem.course)

    return make
