"""One run: a model learns an exam, and is judged on examples that it never saw."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.evals.exams.contenders import Contender
from nestling.evals.exams.metrics import by_order
from nestling.evals.exams.task import IGNORED, Batch, Exam, Task, batches, drawn
from nestling.evals.formal.compiled import compile_recurrence
from nestling.evals.formal.contenders import count


@dataclass(frozen=True)
class Size:
    """How long a run is.

    steps: of training, fewer once `enough` of the validation examples' answers are right; looked at every `look` steps.
    tokens: a step, in as many examples as they make. validation, test: examples to choose by, and to be judged by.
    seeds: of models and examples; the first one chooses the rate. rates: of learning, tried for each model in each exam.
    """

    steps: int = 150
    tokens: int = 1024
    look: int = 15
    enough: float = 0.999
    validation: int = 64
    test: int = 256
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (3e-3, 8e-3)

    def batch(self, task: Task) -> int:
        """Examples a step."""
        return max(1, self.tokens // task.length)


SIZES = {
    "quick": Size(steps=10, tokens=256, look=5, validation=16, test=16, seeds=(0,), rates=(5e-3,)),
    "default": Size(),
    "full": Size(steps=20_000, tokens=16_384, look=100, validation=256, test=1280, rates=(5e-4, 1e-3, 2e-3)),
}


def run(exam: Exam, contender: Contender, lr: float, seed: int, size: Size) -> dict[str, Any]:
    """Train, look at the validation examples, then be judged by those of the test and by further tasks.

    Scores are NaN where the loss became infinite; that of a further task is None where its examples do not fit the model.
    Times are of the processor.
    """
    begun = time.process_time()
    torch.manual_seed(seed)
    model = contender.model(exam.task)
    compile_recurrence(model)
    outcome = {"parameters": count(model), **train(model, exam, lr, seed, size)}
    if math.isnan(outcome["validation"]):
        outcome |= {"score": math.nan, "by_order": [], "further": dict.fromkeys(exam.further, math.nan)}
    else:
        outcome |= judged(model, exam, contender, size)
    return outcome | {"seconds": time.process_time() - begun}


def judged(model: nn.Module, exam: Exam, contender: Contender, size: Size) -> dict[str, Any]:
    """What the test examples say, those of further tasks too."""
    batch = drawn(exam.task, size.test, "test")
    found, _ = answers(model, batch, size.batch(exam.task))
    further = {
        name: judge(model, task, drawn(task, size.test, "test"), size.batch(task))[0] if contender.fits(task) else None
        for name, task in exam.further.items()
    }
    score = exam.task.metric(found, batch.targets)
    return {"score": score, "by_order": by_order(found, batch.targets), "further": further}


def train(model: nn.Module, exam: Exam, lr: float, seed: int, size: Size) -> dict[str, Any]:
    """AdamW, a rate that rises and falls, lesson after lesson, until the validation examples are known or the steps are over.

    The validation score is NaN where the loss became infinite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, size.steps))
    held_out = drawn(exam.task, size.validation, "validation")
    lessons = [batches(task, size.batch(task), seed) for task in exam.lessons]
    curve, loss, step = [], float("inf"), 0
    for step in range(1, size.steps + 1):
        batch = next(lessons[(step - 1) * len(lessons) // size.steps])
        optimizer.zero_grad()
        error = cross_entropy(model(batch.inputs), batch.targets)
        if not error.isfinite():
            return {"steps": step, "loss": math.nan, "validation": math.nan, "curve": curve}
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % size.look == 0 or step == size.steps:
            score, loss = judge(model, exam.task, held_out, size.batch(exam.task))
            curve.append([step, score])
            if score >= size.enough:
                break
    return {"steps": step, "loss": loss, "validation": curve[-1][1], "curve": curve}


def share_of_rate(step: int, steps: int) -> float:
    """It rises linearly in the first tenth of the steps, and falls to 0 as a cosine."""
    return min(1.0, (step + 1) / (1 + steps // 10)) * (1 + math.cos(math.pi * step / steps)) / 2


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def judge(model: nn.Module, task: Task, batch: Batch, size: int) -> tuple[float, float]:
    """What the task's metric says of the likeliest answers, and the mean loss."""
    found, loss = answers(model, batch, size)
    return task.metric(found, batch.targets), loss


@torch.no_grad()
def answers(model: nn.Module, batch: Batch, size: int) -> tuple[Tensor, float]:
    """The likeliest symbols `[B, L]`, and the mean loss; `size` examples at a time."""
    losses, found = [], []
    for part in batch.split(size):
        logits = model(part.inputs)
        losses.append(cross_entropy(logits, part.targets).item())
        found.append(logits.argmax(-1))
    return torch.cat(found), sum(losses) / len(losses)
