"""Metrics of continual learning, by their standard definitions.

`R` is the accuracy matrix (Lopez-Paz and Ranzato, arXiv 1706.08840): `R[i][j]` is the accuracy on the test of experience `j` after
learning experience `i`, both from 0 to `T - 1`, in [0, 1]; None where experience `j` cannot be judged yet, because its classes
have not come. Every function here is plain arithmetic on such lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float | None]]


def seen_accuracy(matrix: Matrix, sizes: Sequence[int]) -> list[float]:
    """After each experience: accuracy over all test examples of the experiences so far (iCaRL, Rebuffi et al., arXiv 1611.07725).

    sizes: test examples of each experience.
    """
    return [_weighted(row[: i + 1], sizes[: i + 1]) for i, row in enumerate(matrix)]


def last_accuracy(matrix: Matrix, sizes: Sequence[int]) -> float:
    """Over all test examples, after the last experience."""
    return seen_accuracy(matrix, sizes)[-1]


def average_incremental_accuracy(matrix: Matrix, sizes: Sequence[int]) -> float:
    """The mean of `seen_accuracy` over the experiences (Rebuffi et al., arXiv 1611.07725; Douillard et al., arXiv 2004.13513)."""
    return fmean(seen_accuracy(matrix, sizes))


def average_accuracy(matrix: Matrix) -> float:
    """ACC: the mean of the last row, every experience counting alike (Lopez-Paz and Ranzato, arXiv 1706.08840)."""
    return fmean(map(_known, matrix[-1]))


def forgetting(matrix: Matrix) -> float:
    """What was lost of each experience but the last since it was known best, on average (Chaudhry et al., arXiv 1801.10112).

    `1/(T-1) sum_{j<T-1} max_{i<T-1} R[i][j] - R[T-1][j]`, where it could be judged; 0 for one experience. It may be negative.
    """
    last = len(matrix) - 1
    best = [
        max(_known(row[j]) for i, row in enumerate(matrix[:last]) if i >= j or row[j] is not None) for j in range(last)
    ]
    losses = [value - _known(matrix[last][j]) for j, value in enumerate(best)]
    return fmean(losses) if losses else 0.0


def backward_transfer(matrix: Matrix) -> float:
    """BWT: what later experiences did to each but the last (Lopez-Paz and Ranzato, arXiv 1706.08840).

    `1/(T-1) sum_{j<T-1} R[T-1][j] - R[j][j]`; 0 for one experience.
    """
    last = len(matrix) - 1
    changes = [_known(matrix[last][j]) - _known(matrix[j][j]) for j in range(last)]
    return fmean(changes) if changes else 0.0


def forward_transfer(matrix: Matrix, base: Sequence[float]) -> float:
    """FWT: what earlier experiences did for each but the first, before it was learnt (Lopez-Paz and Ranzato, arXiv 1706.08840).

    `1/(T-1) sum_{j>0} R[j-1][j] - base[j]`, where base is the accuracy without learning. NaN for one experience, and where classes
    that have not come cannot be judged.
    """
    gains = [(matrix[j - 1][j], base[j]) for j in range(1, len(matrix))]
    known = [met - guess for met, guess in gains if met is not None]
    return fmean(known) if known and len(known) == len(gains) else math.nan


def anytime_accuracy(points: Sequence[tuple[int, float]]) -> float:
    """The area under the curve of accuracy on the classes met so far, against examples learnt (Koh et al., arXiv 2110.10031).

    points: examples learnt and accuracy then, in order; each accuracy stands for the examples since the point before.
    """
    before, area = 0, 0.0
    for learnt, accuracy in points:
        area += (learnt - before) * accuracy
        before = learnt
    return area / before if before else math.nan


def macro_accuracy(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """The mean over classes of the accuracy on their own examples: recall, every class counting alike."""
    right: dict[int, list[bool]] = {}
    for label, found in zip(labels, predicted, strict=True):
        right.setdefault(label, []).append(label == found)
    return fmean(fmean(hits) for hits in right.values()) if right else math.nan


def forgetting_so_far(matrix: Matrix) -> list[float]:
    """`forgetting` after each experience, had it been the last."""
    return [forgetting(matrix[: i + 1]) for i in range(len(matrix))]


def _weighted(values: Sequence[float | None], weights: Sequence[int]) -> float:
    return sum(_known(v) * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError(
            "the accuracy matrix has None where an experience was learnt already; judge all that came before"
        )
    return value
