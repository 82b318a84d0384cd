"""What is trained, and what is streamed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from nestling.evals.demo import setup as demo
from nestling.levels import Level
from nestling.memory import RetainPredictions
from nestling.models import Recall

if TYPE_CHECKING:
    from torch import Tensor


PERIOD = demo.PERIOD  # tokens between two steps of every method
# rules, rates and the recall's settings: the best on another stream (docs/LOG.md)
FAST = Level(PERIOD, lr=16.0, rule=RetainPredictions(0.3, 0.3), reset="context", clip=0.5)
SLOW = Level(PERIOD, lr=32.0, rule=RetainPredictions(0.1, 0.1), clip=0.5)
RECALL = Recall()


@dataclass(frozen=True)
class Size:
    """How much of everything, in bytes (a token is a byte).

    models: how they are trained; its `heldout` is all prose that was not trained on, its `stream` the code.
    first, again: prose before and after the code; the rest of `heldout` judges.
    architectures: of the models, where none are named. settings: how many of each method's settings are run, None for all.
    """

    models: demo.Size
    first: int
    again: int
    architectures: tuple[str, ...] = ("Transformer++",)
    settings: int | None = None


SIZES = {
    "quick": Size(
        demo.Size((0,), 32_768, 4_096, 1_024, 3_072, 8_192),
        first=1_024,
        again=1_024,
        settings=2,
    ),
    "default": Size(
        demo.Size((0, 1, 2), 512_000, 131_072, 16_384, 40_960, 65_536),
        first=12_288,
        again=12_288,
    ),
}


@dataclass(frozen=True)
class Texts:
    """Token ids. stretches: of the stream, in order. old, later: of prose and of code, to judge by, never learnt from.
    sample: of the training text, for the methods that ask for one.
    """

    stretches: dict[str, Tensor]
    old: Tensor
    later: Tensor
    sample: Tensor


@cache  # a process runs many settings on the same texts
def domains(models: demo.Size) -> demo.Domains:
    """English prose to train on, prose that is not trained on, and Python source."""
    return demo.domains(models, None)


def texts(size: Size) -> Texts:
    """English prose that the models were not trained on, Python source, and other such prose."""
    data = domains(size.models)
    first, again, old = data.heldout.tensor_split([size.first, size.first + size.again])
    stretches = {"A": first, "B": data.stream, "A again": again}
    return Texts(stretches, old, data.later, data.train[: size.models.calibration])
