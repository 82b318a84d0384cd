"""The methods, and the settings that each is tuned over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from nestling.continual.heads import (
    Descent,
    Discriminant,
    Head,
    Joint,
    Largest,
    MemoryHead,
    NearestClassMean,
    RandomReLU,
    RanPAC,
    Replay,
    StreamingLDA,
    adam,
    gaussian,
    orthogonal,
    plain,
)
from nestling.continual.heads.random_relu import Directions
from nestling.evals.tuning import Setting
from nestling.memory import LeastSquares

REAL = 8  # bytes of a number of the statistics, float64


@dataclass(frozen=True)
class Problem:
    """What a method may know before the stream. dim: width of the features. projections: random features of those who use them.
    classes: how many there will be, which sets the bytes of a buffer and nothing else. seed: of what is drawn.
    """

    dim: int
    projections: int
    classes: int
    seed: int

    def lda_bytes(self) -> int:
        """What `StreamingLDA` keeps."""
        return REAL * (self.dim**2 + self.dim * self.classes + self.classes)

    def ranpac_bytes(self) -> int:
        """What `RanPAC` keeps."""
        return REAL * (self.projections**2 + self.projections * self.classes) + 4 * self.dim * self.projections

    def random(self, directions: Directions) -> RandomReLU:
        """The random features of this seed."""
        return RandomReLU(self.projections, self.dim, self.seed, directions)


@dataclass(frozen=True)
class Contender:
    """make: a head for a problem at a setting. settings: those that are tried on the validation stream; one is not tuned.
    tuned: the measure of the validation stream, "accuracy" or "squared error" of the scores from one-hot codes.
    passes: over each experience. judgements: within each. ours: whether it is a memory of this library.
    """

    make: Callable[[Problem, Setting], Head]
    settings: tuple[Setting, ...] = ({},)
    tuned: str = "accuracy"
    passes: int = 1
    judgements: int = 2
    ours: bool = False


def grid(**swept: tuple[Any, ...]) -> tuple[Setting, ...]:
    """Every combination."""
    return tuple(dict(zip(swept, values, strict=True)) for values in product(*swept.values()))


def replaying(size: Callable[[Problem], int], hidden: int = 0, **swept: tuple[Any, ...]) -> Contender:
    """Replay with a buffer that makes it as large as another method; a hidden layer takes half of the bytes at most."""

    def make(p: Problem, s: Setting) -> Head:
        most = size(p) // (2 * 3 * 4 * p.dim)  # weights and Adam's two averages, in float32
        return Replay(p.dim, adam(s["lr"]), size(p), min(hidden, most), s["replays"], seed=p.seed)

    return Contender(make, grid(**swept))


def probing(passes: int) -> Contender:
    """A linear probe that goes over each experience some times."""
    return Contender(lambda p, s: Descent(p.dim, adam(s["lr"])), grid(lr=PROBE_RATES), passes=passes)


def ranpac(ridges: tuple[float, ...], tuned: str = "accuracy") -> Contender:
    """RanPAC, its ridge tuned by a measure."""
    return Contender(lambda p, s: RanPAC(p.random(gaussian), s["ridge"]), grid(ridge=ridges), tuned)


def remembering(p: Problem, s: Setting) -> Head:
    """The memory as a head on random features."""
    rule, readout = LeastSquares(s["ridge"]), READOUTS[s["readout"]]()
    return MemoryHead(p.random(orthogonal), p.projections, rule, readout)


READOUTS = {"largest": Largest, "discriminant": Discriminant}
PROBE_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
# six trials each, but for those that have nothing to tune
CONTENDERS: dict[str, Contender] = {
    "nearest class mean": Contender(lambda p, s: NearestClassMean(p.dim)),
    "SLDA, as published": Contender(lambda p, s: StreamingLDA(p.dim, s["shrinkage"]), grid(shrinkage=(1e-4,))),
    "SLDA": Contender(
        lambda p, s: StreamingLDA(p.dim, s["shrinkage"]), grid(shrinkage=(1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2))
    ),
    # its authors choose the ridge by squared error; accuracy chooses better where classes are of unequal size
    "RanPAC, as published": ranpac((0.001, 0.01, 0.1, 1.0, 10.0, 100.0), tuned="squared error"),
    "RanPAC": ranpac(RIDGES),
    "linear probe": probing(1),
    "linear probe, 10 passes": probing(10),
    "replay, bytes of SLDA": replaying(Problem.lda_bytes, lr=(0.01, 0.03, 0.1), replays=(1, 4)),
    "replay, bytes of RanPAC": replaying(Problem.ranpac_bytes, lr=(0.01, 0.03, 0.1), replays=(1, 4)),
    "replay MLP, bytes of RanPAC": replaying(Problem.ranpac_bytes, 512, lr=(0.001, 0.003, 0.01), replays=(1, 4)),
    "memory": Contender(remembering, grid(ridge=(0.01, 0.1, 1.0), readout=("largest", "discriminant")), ours=True),
    "memory, plain features": Contender(
        lambda p, s: MemoryHead(plain, p.dim, LeastSquares(s["ridge"]), Discriminant()),
        grid(ridge=RIDGES),
        ours=True,
    ),
    "joint, linear": Contender(
        lambda p, s: Joint(p.dim, s["decay"]), grid(decay=(1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3)), judgements=1
    ),
}
