"""From the tasks' results to the report's."""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Iterable
from typing import Any

import torch

from nestling.evals.demo.setup import FINE_TUNING, Domains

Found = dict[tuple[str, int], dict[str, Any]]
KINDS = {"sgd": "SGD", "adamw": "AdamW"}


def collect(found: Found, size_name: str, data: Domains) -> dict[str, Any]:
    """The report's results (`nestling.report`) from each task's, by architecture and seed."""
    seeds = sorted({seed for _, seed in found})
    by = {name: [found[name, seed] for seed in seeds] for name in ("Hope", "Transformer++")}
    best = {kind: _best_step(by["Transformer++"], kind) for kind in FINE_TUNING}
    learners = [
        _learner("Hope, frozen", "Hope", by["Hope"], "frozen"),
        _learner("Hope, two levels", "Hope", by["Hope"], "levels"),
        _learner("Transformer++, frozen", "Transformer++", by["Transformer++"], "frozen"),
        _learner("Hope-Attention, two levels", "Transformer++", by["Transformer++"], "levels"),
        *(_learner(f"Transformer++, {KINDS[k]}", "Transformer++", by["Transformer++"], best[k]) for k in best),
    ]
    flag = "" if size_name == "default" else f" --{size_name}"
    return {
        "schema": 1,
        "title": "nestling demo",
        "command": f"nestling demo{flag}",
        "date": datetime.date.today().isoformat(),
        "environment": {"python": platform.python_version(), "torch": torch.__version__, "threads": 1, "device": "cpu"},
        "seeds": seeds,
        "data": {
            "old": {
                "name": "English prose (pydoc_data.topics)",
                "train_bytes": len(data.train),
                "heldout_bytes": len(data.heldout),
            },
            "new": {"name": data.new_name, "stream_bytes": len(data.stream), "later_bytes": len(data.later)},
        },
        "models": [
            _model("Hope", by["Hope"]),
            # superposed levels at rest are zero: Hope-Attention is trained as, and is, the Transformer++
            _model("Transformer++ = Hope-Attention", by["Transformer++"]),
        ],
        "learners": learners,
        "frontier": _frontier(by["Transformer++"]),
        "restart": _restart([*by["Hope"], *by["Transformer++"]]),
        "targets": targets(learners),
        "samples": _samples(by),
    }


def _model(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    trained = [run["model"] for run in runs]
    return {
        "name": name,
        **{key: trained[0][key] for key in ("parameters", "tokens", "lr")},
        "heldout_bpb": [run["learners"]["frozen"]["old_before"] for run in runs],
        "tokens_per_s": [t["tokens_per_s"] for t in trained],
        "peak_memory_mb": [t["peak_memory_mb"] for t in trained],
        "curve": {"tokens": trained[0]["curve"]["tokens"], "bpb": [t["curve"]["bpb"] for t in trained]},
    }


def _learner(name: str, model: str, runs: list[dict[str, Any]], way: str) -> dict[str, Any]:
    met = [run["learners"][way] for run in runs]
    return {
        "name": name,
        "model": model,
        "kind": met[0]["kind"],
        "step": met[0]["step"],
        "stream": {"tokens": met[0]["stream"]["tokens"], "bpb": [m["stream"]["bpb"] for m in met]},
        "last_quarter_bpb": [m["last_quarter"] for m in met],
        "old_before_bpb": [m["old_before"] for m in met],
        "old_after_bpb": [m["old_after"] for m in met],
        "later_bpb": [m["later"] for m in met],
        "tokens_per_s": [m["tokens_per_s"] for m in met],
        "peak_memory_mb": [m["peak_memory_mb"] for m in met],
        "updates": {level: [m["updates"][level] for m in met] for level in met[0]["updates"]},
    }


def _ways(runs: list[dict[str, Any]], kind: str) -> list[str]:
    return [way for way, met in runs[0]["learners"].items() if met["kind"] == kind]


def _mean(runs: list[dict[str, Any]], way: str, key: str) -> float:
    return statistics.fmean(run["learners"][way][key] for run in runs)


def _best_step(runs: list[dict[str, Any]], kind: str) -> str:
    """The step with the fewest bits at the stream's end: chosen on the stream itself, in the baseline's favour."""
    return min(_ways(runs, kind), key=lambda way: _mean(runs, way, "last_quarter"))


def _frontier(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def point(way: str) -> dict[str, float]:
        new, old = _mean(runs, way, "last_quarter"), _mean(runs, way, "old_after")
        return {"step": runs[0]["learners"][way]["step"], "new_bpb": new, "old_bpb": old}

    return [{"name": KINDS[kind], "points": [point(way) for way in _ways(runs, kind)]} for kind in FINE_TUNING]


def _restart(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    checks = [run["learners"]["levels"]["restart"] for run in runs]
    return {
        "identical": all(c["identical"] for c in checks),
        "max_difference": max(c["max_difference"] for c in checks),
        "file_bytes": max(c["file_bytes"] for c in checks),
        "tokens": checks[0]["tokens"],
    }


def targets(learners: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the demonstration set out to show, and whether it did: means over seeds."""
    by = {learner["name"]: learner for learner in learners}
    tuned = min((x for x in learners if x["kind"] in KINDS), key=lambda x: statistics.fmean(x["last_quarter_bpb"]))
    out = []
    hope, other = by["Hope, frozen"]["old_before_bpb"], by["Transformer++, frozen"]["old_before_bpb"]
    out.append(_target("Hope's held-out bits a byte, before the stream", hope, "at most the Transformer's", other, 1.0))
    for name, frozen in (("Hope, two levels", "Hope, frozen"), ("Hope-Attention, two levels", "Transformer++, frozen")):
        me, still = by[name], by[frozen]
        end, new, old = me["last_quarter_bpb"], me["later_bpb"], me["old_after_bpb"]
        rival = tuned["last_quarter_bpb"]
        out.append(_target(f"{name}: stream's last quarter", end, f"at most {tuned['name']}'s", rival, 1.0))
        out.append(
            _target(f"{name}: stream's last quarter", end, "at least 30% below frozen", still["last_quarter_bpb"], 0.7)
        )
        out.append(
            _target(f"{name}: old domain, fast level reset", old, "at most 1% worse", me["old_before_bpb"], 1.01)
        )
        out.append(
            _target(
                f"{name}: later new text, fast level reset", new, "at least 5% below frozen", still["later_bpb"], 0.95
            )
        )
    return out


def _target(name: str, values: list[float], aim: str, against: list[float], factor: float) -> dict[str, Any]:
    mean, limit = statistics.fmean(values), statistics.fmean(against)
    change = 100 * (mean / limit - 1)
    measured, wanted = f"{mean:.3f}{_spread(values)} ({change:+.1f}%)", f"{aim} ({limit:.3f})"
    return {"name": name, "value": measured, "target": wanted, "met": mean <= factor * limit}


def _spread(values: list[float]) -> str:
    return f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""


def _samples(by: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    ways = {"Hope, frozen": ("Hope", "frozen"), "Hope, two levels": ("Hope", "levels")}
    return [{"name": n, "prompt": "def ", "text": by[m][0]["learners"][w]["sample"]} for n, (m, w) in ways.items()]
