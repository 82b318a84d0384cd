"""How much of everything, and who is compared: arms of equal compute, all from the same plainly trained weights.

Compute is counted in passes: 1 is one byte's way forward through the model's products with weights. A backward pass is 2, one
for the gradients of what is multiplied and one for those of the weights. The inner one is 1.25: it wants the gradients of the
MLPs alone, and goes no further down than the first of them. Of a byte

    read only       forward 1, backward 2                                                                   3
    first-order     forward 1, inner backward 1.25, backward 2                                              4.25
    second-order    forward and inner backward; both again, recorded; backward through both: 4 times 2.25   9

The last segment of a window has no label after it, so that it is only read.
"""

from __future__ import annotations

from dataclasses import dataclass

from nestling.evals.demo import setup as demo
from nestling.levels import Level

SEGMENTS = 8  # of a training window
INNER = 1.25
PASSES = {None: 3, "first-order": 3 + INNER, "second-order": 4 * (1 + INNER)}  # of a byte that is learnt


def cost(outer: str | None) -> float:
    """Passes a byte, the mean over a window."""
    return (PASSES[outer] * (SEGMENTS - 1) + PASSES[None]) / SEGMENTS


@dataclass(frozen=True)
class Setting:
    """lr: of the outer AdamW. inner: rate of the level while training; an arm that trains no reading that learns has none."""

    lr: float
    inner: float | None = None


@dataclass(frozen=True)
class Arm:
    """outer: what training sees of the inner updates; None trains the model that does not learn. settings: those tried.
    share: of the compute.
    """

    outer: str | None
    settings: tuple[Setting, ...]
    share: float = 1.0


RATES = (5e-4, 1e-3, 2e-3, 4e-3)
PLAIN = tuple(Setting(lr) for lr in RATES)
META = (*(Setting(lr, 0.8) for lr in RATES), Setting(2e-3, 0.4), Setting(2e-3, 1.6))
ARMS = {
    "as it was": Arm(None, (Setting(0.0),), share=0.0),
    "plain": Arm(None, PLAIN),
    "plain, as many bytes as second-order": Arm(None, PLAIN, share=cost(None) / cost("second-order")),
    "first-order": Arm("first-order", META),
    "second-order": Arm("second-order", META),
}


@dataclass(frozen=True)
class Size:
    """models: how the weights that all arms start from are trained, and the seeds. passes: of every arm.
    batch: windows of a step. period: of the level, in bytes. document: bytes that are read of one.
    valid, test: documents of each sort. ends: of the parts of a document that are judged apart. rates: of the level at test,
    those tried. settings: how many of each arm's are tried, None for all.
    """

    models: demo.Size
    passes: float
    batch: int
    period: int
    document: int
    valid: int
    test: int
    ends: tuple[int, ...]
    rates: tuple[float, ...] = (0.4, 0.8, 1.6)
    settings: int | None = None

    def level(self, rate: float) -> Level:
        """The one level, which moves the MLPs; its context is the document."""
        return Level(self.period, lr=rate, clip=0.5, reset="context")

    def tokens(self, arm: Arm) -> int:
        """Bytes that an arm's compute pays for, in whole steps."""
        step = self.batch * self.length
        return round(arm.share * self.passes / cost(arm.outer) / step) * step

    @property
    def length(self) -> int:
        """Of a training window, in bytes."""
        return SEGMENTS * self.period


def models(seeds: tuple[int, ...], train: int) -> demo.Size:
    """Trained as the demonstration's, on as many bytes."""
    return demo.Size(seeds, train, stream=1, later=1, heldout=1, calibration=1)


SIZES = {
    "quick": Size(
        models((0,), 32_768), 4e4, batch=1, period=64, document=1024, valid=1, test=2, ends=(512, 1024),
        rates=(0.4, 0.8), settings=1,
    ),
    "default": Size(
        models((0, 1, 2), 512_000), 8e5, batch=1, period=128, document=8192, valid=2, test=3,
        ends=(1024, 2048, 4096, 8192),
    ),
}  # fmt: skip
