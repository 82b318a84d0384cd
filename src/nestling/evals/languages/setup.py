"""How much of everything, and who is compared at which settings."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.continual.baselines import Replay
from nestling.evals.adaptation.contenders import adamw, grid, sgd
from nestling.evals.languages.backbone import Backbone
from nestling.evals.languages.lessons import Lesson
from nestling.evals.languages.methods import CLIP, KEPT, PERIODS, Reading, in_context, levelled, tuned
from nestling.evals.tuning import Setting
from nestling.levels import Level
from nestling.memory import RetainPredictions


@dataclass(frozen=True)
class Size:
    """backbone: what is trained. languages: read one after the other. parallel, asked: sentences of each. window: tokens of the
    context. passes: over each document. shown: rows of the last lesson, to levels that retain. settings: of each method, how many
    are tried, None for all. seeds: of the languages, where none are named.
    """

    backbone: Backbone
    languages: int
    parallel: int
    asked: int
    window: int
    passes: int
    shown: int
    settings: int | None
    seeds: tuple[int, ...]


def retaining(period: int, setting: Setting) -> Level:
    """Protects what was predicted so far, of what the backbone knew and of what was read."""
    rule = RetainPredictions(setting["damping"], setting["damping"])
    return Level(period, lr=setting["lr"], rule=rule, clip=CLIP)


def plain(period: int, setting: Setting) -> Level:
    """Plain steps."""
    return Level(period, lr=setting["lr"], clip=CLIP)


RETAINED = grid(lr=(8.0, 16.0), damping=(0.3,))  # around the best of a first look (docs/LOG.md)
SGD = grid(lr=(0.05, 0.1, 0.2))
ADAMW = grid(lr=(2.5e-4, 5e-4, 1e-3))

METHODS: dict[str, Reading] = {
    "in context only": Reading(in_context, ({},), 0),
    **{
        f"{count} level{'s' * (count > 1)}": Reading(levelled(count, retaining), RETAINED, count) for count in (1, 2, 3)
    },
    "3 levels, plain steps": Reading(levelled(3, plain), SGD),
    "SGD, all weights": Reading(tuned(lambda s: sgd(s["lr"])), SGD),
    "AdamW, all weights": Reading(tuned(lambda s: adamw(s["lr"])), ADAMW),
    "replay, AdamW": Reading(tuned(lambda s: Replay(adamw(s["lr"]), KEPT, PERIODS[0])), ADAMW),
}

SIZES = {
    "quick": Size(
        Backbone(64, 2, 4, 3e-3, (Lesson(40, 8, 60, (2, 1, 1), sentences=False), Lesson(40, 8, 96, (2, 2, 1)))),
        languages=2,
        parallel=4,
        asked=4,
        window=1024,
        passes=1,
        shown=2,
        settings=1,
        seeds=(0,),
    ),
    "default": Size(
        Backbone(
            width=128,
            blocks=2,
            heads=4,
            lr=3e-3,
            lessons=(
                Lesson(150, 16, 120, (2, 1, 1), sentences=False),
                Lesson(400, 16, 144, (3, 2, 2)),
                Lesson(300, 10, 240, (5, 4, 3)),
                Lesson(300, 5, 480, (8, 6, 4)),
                Lesson(150, 5, 480, (4, 3, 2), languages=2),
            ),
        ),
        languages=2,
        parallel=24,
        asked=16,
        window=2048,
        passes=10,
        shown=4,
        settings=None,
        seeds=(0, 1, 2),
    ),
}
