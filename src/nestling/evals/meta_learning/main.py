"""The comparison as one command: plain weights, every arm tuned on one seed, the other seeds, and what each reads; none twice."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from nestling.errors import UserError
from nestling.evals.adaptation.models import folder_of, parameters, ready
from nestling.evals.demo.measures import bits
from nestling.evals.meta_learning.learn import judged, read, trained
from nestling.evals.meta_learning.setup import ARMS, SIZES, Setting, Size
from nestling.evals.meta_learning.texts import sorts
from nestling.evals.runs import chosen, kept, side_by_side, where, write
from nestling.models import HopeForCausalLM

MODEL = "Transformer++"


def meta_learning(
    arms: list[str] | None, size_name: str, out: str, jobs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Results by arm, also in `out`/results.json. What is there already is not run again.

    Each arm's setting and the level's rate at test are those with the fewest bits a byte of the validation documents, read
    with learning by the model of the first seed.

    Raises:
        UserError: an unknown arm, fewer than one job, or data that cannot be found.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    names, size = chosen("arm", arms, list(ARMS)), SIZES[size_name]
    folder, seeds = folder_of(out, size.models), size.models.seeds
    texts(size)  # what is missing is told before anything runs
    for (_, seed, *_), count in side_by_side(parameters, [(MODEL, seed, folder, size.models) for seed in seeds], jobs):
        say(f"seed {seed}: {count:,} parameters, trained plainly")

    swept: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    tasks = [(name, setting, seeds[0], folder, size) for name in names for setting in settings(name, size)]
    for (name, setting, *_), met in side_by_side(_tune, tasks, jobs):
        swept[name].append({**met, "setting": vars(setting)})
        say(f"{name}, {vars(setting)}: {min(met['valid'].values()):.3f} bits a byte of validation text")
    tuned = {name: best(found) for name, found in swept.items()}

    tasks = [(name, Setting(**tuned[name][0]), tuned[name][1], seed, folder, size) for name in names for seed in seeds]
    found = {}
    for (name, _, _, seed, *_), met in side_by_side(_test, tasks, jobs):
        found[name, seed] = met
        say(f"{name}, seed {seed}: read {len(met['read'])} sorts of documents")
    results = {
        "title": "Meta-learned initial weights against plain ones, at equal compute",
        "about": f"{where()}, one thread a run",
        "size": {"passes": size.passes, "length": size.length, "period": size.period, "document": size.document},
        "ends": size.ends,
        "sorts": {
            name: {"trained": sort.train is not None, "documents": len(sort.test)} for name, sort in texts(size).items()
        },
        "arms": {
            name: {
                "setting": tuned[name][0],
                "rate": tuned[name][1],
                "swept": sorted(swept[name], key=lambda met: str(met["setting"])),
                "runs": [found[name, seed] for seed in seeds],
            }
            for name in names
        },
    }
    write(Path(out) / "results.json", results)
    return results


def best(swept: list[dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """The setting and the rate at test with the fewest bits of validation documents, read with learning."""
    _, rate, setting = min(
        ((found, float(rate), met["setting"]) for met in swept for rate, found in met["valid"].items()),
        key=lambda one: one[0],
    )
    return setting, rate


def settings(name: str, size: Size) -> tuple[Setting, ...]:
    """Those of an arm that are tried: all, or the first few."""
    return ARMS[name].settings[: size.settings]


def texts(size: Size) -> Any:
    """The documents of a size."""
    return sorts(size.document, size.valid, size.test)


def _arm(name: str, setting: Setting, seed: int, folder: Path, size: Size) -> tuple[Path, str]:
    """Where an arm's model is kept, and what it depends on."""
    given = f"{ARMS[name].outer} {ARMS[name].share} {setting} {seed} {size}"
    return folder / "arms" / hashlib.sha256(given.encode()).hexdigest()[:16], given


def _train(name: str, setting: Setting, seed: int, folder: Path, size: Size) -> tuple[HopeForCausalLM, dict[str, Any]]:
    """An arm's model, and what its training cost, unless it was trained before."""
    place, given = _arm(name, setting, seed, folder, size)

    def make() -> dict[str, Any]:
        ids = torch.cat([sort.train for sort in texts(size).values() if sort.train is not None])
        model, spent = trained(ready(MODEL, seed, folder, size.models)[0], ARMS[name], setting, size, ids, seed)
        model.save_pretrained(place / "model")
        return spent

    spent = kept(place, f"trained {given}", make)
    del spent["setting"]
    return HopeForCausalLM.from_pretrained(place / "model").eval(), spent


def _tune(name: str, setting: Setting, seed: int, folder: Path, size: Size) -> dict[str, Any]:
    """Bits a byte of validation documents, the mean over the sorts, by the level's rate; infinite where training failed."""
    place, given = _arm(name, setting, seed, folder, size)

    def make() -> dict[str, Any]:
        try:
            model, spent = _train(name, setting, seed, folder, size)
        except UserError:  # the loss is not finite
            return {"valid": {str(rate): math.inf for rate in size.rates}}
        documents = [sort.valid for sort in texts(size).values() if sort.valid is not None]
        return {
            "valid": {str(r): fmean(bits(read(model, each, size.level(r))) for each in documents) for r in size.rates},
            **spent,
        }

    return kept(place, f"tuned {given}", make)


def _test(arm: str, setting: Setting, rate: float, seed: int, folder: Path, size: Size) -> dict[str, Any]:
    """Every sort's test documents, read without learning and with it; and what training cost."""
    place, given = _arm(arm, setting, seed, folder, size)

    def make() -> dict[str, Any]:
        model, spent = _train(arm, setting, seed, folder, size)
        found = {
            name: {
                how: judged(model, sort.test, level, size.ends)
                for how, level in (("off", None), ("on", size.level(rate)))
            }
            for name, sort in texts(size).items()
        }
        return {**spent, "read": found}

    return kept(place, f"tested {given} {rate}", make)
