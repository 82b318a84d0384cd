"""One run: a model learns a machine from words of the first bin, and is judged on words of every length."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.evals.formal.compiled import compile_recurrence
from nestling.evals.formal.contenders import CONTENDERS, count
from nestling.evals.formal.machines import MACHINES, Machine, Word
from nestling.evals.formal.words import BINS, IGNORED, batches, judged, tensors


@dataclass(frozen=True)
class Size:
    """How long a run is.

    steps: of training, fewer once the validation words' loss is below `enough`; looked at every `look` steps.
    batch: words a step. each: words of a length to be judged by.
    """

    steps: int = 500
    batch: int = 32
    look: int = 25
    enough: float = 3e-5
    each: int = 5


def run(language: str, name: str, lr: float, seed: int, size: Size, final: bool) -> dict[str, Any]:
    """Train, then judge: by validation words of the first bin (to tune), or by other words of all bins (`final`).

    `error` is the share of validation words that have a wrong answer anywhere. Times are of the processor.
    """
    machine, begun = MACHINES[language], time.process_time()
    torch.manual_seed(seed)
    model = CONTENDERS[name].model(max(len(machine.symbols), len(machine.labels)))
    compile_recurrence(model)
    outcome = {"parameters": count(model), **train(model, machine, lr, seed, size)}
    if final:
        outcome["bins"] = [by_length(model, machine, low, high, size.each) for low, high in BINS]
    return outcome | {"seconds": time.process_time() - begun}


def train(model: nn.Module, machine: Machine, lr: float, seed: int, size: Size) -> dict[str, Any]:
    """AdamW, a rate that rises and falls, until the validation words are known or the steps are over."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, size.steps, pct_start=0.1, cycle_momentum=False)
    validation = judged(machine, *BINS[0], each=1, seed=f"{machine.name}, validation")
    words, loss, error, step = 0, float("inf"), 1.0, 0
    for step, (symbols, answers) in enumerate(batches(machine, size.batch, seed), start=1):
        optimizer.zero_grad()
        cross_entropy(model(symbols), answers).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        words += len(symbols)
        if step % size.look == 0 or step == size.steps:
            loss, right = judge(model, machine, validation)
            error = 1 - sum(right) / len(right)
        if loss < size.enough or step == size.steps:
            break
    return {"steps": step, "words": words, "loss": loss, "error": error}


def cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    """Mean over the answers that are asked for, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def judge(model: nn.Module, machine: Machine, words: list[Word], batch: int = 256) -> tuple[float, list[bool]]:
    """Mean loss an answer, and for each word whether every answer is right."""
    losses, right = [], []
    for start in range(0, len(words), batch):
        symbols, answers = tensors(machine, words[start : start + batch])
        logits = model(symbols)
        losses.append(cross_entropy(logits, answers).item())
        right += ((logits.argmax(-1) == answers) | (answers == IGNORED)).all(1).tolist()
    return sum(losses) / len(losses), right


def by_length(model: nn.Module, machine: Machine, low: int, high: int, each: int) -> dict[str, list[float]]:
    """For each length of a bin the share of its words that are all right."""
    words = judged(machine, low, high, each, seed=f"{machine.name}, test")
    _, right = judge(model, machine, words)
    found: dict[int, list[bool]] = {}
    for word, fine in zip(words, right, strict=True):
        found.setdefault(len(word), []).append(fine)
    return {"lengths": list(found), "accuracy": [sum(fine) / len(fine) for fine in found.values()]}
