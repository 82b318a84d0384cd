"""Every exam by its name, at the sizes that are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nestling.evals.exams.babilong import LABELS, Babilong
from nestling.evals.exams.mad import Compression, FuzzyRecall, Memorisation, Recall, SelectiveCopying
from nestling.evals.exams.mqar import MQAR
from nestling.evals.exams.needles import ruler
from nestling.evals.exams.regression import Regression
from nestling.evals.exams.task import Exam

LEARNT = 1024  # bytes of the haystacks learnt from
LENGTHS = (1024, 2048, 4096, 8192)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CURRICULUM = (0, 1024, 2048, 4096)
LATER = (0, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)

MAD: dict[str, Callable[[], Exam]] = {
    "compression": lambda: Exam((Compression(),)),
    "in-context recall": lambda: Exam((Recall(),)),
    "fuzzy recall": lambda: Exam((FuzzyRecall(),)),
    "noisy recall": lambda: Exam((Recall(symbols=32, noise_symbols=16, noise=0.2),)),
    "selective copying": lambda: Exam((SelectiveCopying(),)),
    "memorisation": lambda: Exam((Memorisation(),)),
}
RECALL: dict[str, Callable[[], Exam]] = {
    f"MQAR {size}": lambda size=size: Exam((MQAR(size, pairs=size // 16),)) for size in (64, 128, 256)
}


def _needles(name: str) -> Exam:
    """Learnt at one length, and judged at others: a single needle at each depth."""
    task = ruler(LEARNT)[name]
    if task.kinds * task.values > 1:
        return Exam((task,), {f"{size}": replace(task, size=size) for size in LENGTHS})
    return Exam(
        (task,), {f"{size} at {depth:g}": replace(task, size=size, depth=depth) for size in LENGTHS for depth in DEPTHS}
    )


def _babilong(number: int) -> Exam:
    """A curriculum of growing sizes, then sizes up to many times what was learnt; sizes that the facts need more than are left out."""
    smallest = Babilong(number).longest[0]

    def every(sizes: tuple[int, ...]) -> list[Babilong]:
        return [Babilong(number, size) for size in sizes if size == 0 or size >= smallest]

    return Exam(tuple(every(CURRICULUM)), {f"{task.size}": task for task in every(LATER)})


NEEDLES: dict[str, Callable[[], Exam]] = {
    name: lambda name=name: _needles(name)
    for name in (*(f"S-NIAH-{n}" for n in (1, 2, 3)), *(f"MK-NIAH-{n}" for n in (1, 2, 3)), "MV-NIAH", "MQ-NIAH")
}
BABILONG: dict[str, Callable[[], Exam]] = {
    f"BABILong qa{number}": lambda number=number: _babilong(number) for number in LABELS
}
OTHERS: dict[str, Callable[[], Exam]] = {"regression": lambda: Exam((Regression(),))}
EXAMS = MAD | RECALL | OTHERS | NEEDLES | BABILONG
