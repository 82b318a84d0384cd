"""One task: train one architecture with one seed, and let it meet the stream in every way. A task is one process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from nestling.continual import Learner
from nestling.continual.baselines import FineTuning, Follower
from nestling.evals.demo.measures import bits, of_stream
from nestling.evals.demo.setup import FINE_TUNING, PERIOD, SLOW, Domains, Size, domains
from nestling.evals.demo.trained import once, trained
from nestling.models import HopeForCausalLM
from nestling.quiet import quiet
from nestling.train import byte_tokenizer


def main(architecture: str, seed: int, size_name: str, size: Size, text: str | None, folder: Path) -> None:
    """Train, stream, write `folder/result.json`. What is there already is not done again."""
    quiet()
    torch.set_num_threads(1)
    data = domains(size, text)
    model, history = trained(architecture, seed, size, data, folder, _say)
    ways: dict[str, Any] = {"frozen": lambda: _learner(model, data, size, folder, learn=False)}
    ways["levels"] = lambda: _learner(model, data, size, folder, learn=True)
    if architecture == "Transformer++":
        for kind, steps in FINE_TUNING.items():
            for step in steps if size_name != "quick" else steps[1:3]:
                ways[f"{kind} {step:g}"] = lambda kind=kind, step=step: _fine_tuned(model, data, kind, step)
    learners = {}
    for name, way in ways.items():
        learners[name] = once(folder / f"{name.replace(' ', '-')}.json", way)
        _say(f"{architecture}, seed {seed}: {name} done, {learners[name]['last_quarter']:.3f} bits a byte at the end")
    result = {"model": history, "learners": learners}
    (folder / "result.json").write_text(json.dumps(result))


def _learner(model: HopeForCausalLM, data: Domains, size: Size, folder: Path, learn: bool) -> dict[str, Any]:
    """The stream past a learner, its levels moving or (frozen) not."""
    model.config.learning = "context"
    learner = Learner(model, byte_tokenizer())
    before = bits(learner.evaluate(data.heldout))
    if not learn:
        begun = time.perf_counter()
        losses, updates = learner.evaluate(data.stream), {}
        seconds, restart = time.perf_counter() - begun, None
    else:
        learner.forget()
        learner.calibrate(data.train[: size.calibration])
        begun, parts = time.perf_counter(), []
        updates = {"fast": [], "slow": []}
        for chunk in data.stream.split(SLOW.period):
            seen = learner.observe(chunk)
            parts.append(seen.losses)
            for name, norm in zip(updates, seen.norms, strict=True):
                updates[name].append(norm)
        losses, seconds = torch.cat(parts), time.perf_counter() - begun
        restart = _restart(learner, data, folder)
        learner.end_context()
    return {
        "kind": "levels" if learn else "frozen",
        "step": None,
        **of_stream(losses, seconds),
        "old_before": before,
        "old_after": bits(learner.evaluate(data.heldout)),
        "later": bits(learner.evaluate(data.later)),
        "updates": updates,
        "restart": restart,
        "sample": learner.generate("def ", max_new_tokens=120),
    }


def _fine_tuned(model: HopeForCausalLM, data: Domains, kind: str, step: float) -> dict[str, Any]:
    """The stream past the same model, all its weights following by SGD or AdamW."""
    model.config.learning = "off"
    make = {"sgd": torch.optim.SGD, "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0)}[kind]
    tuned = Follower(model, FineTuning(lambda weights: make(weights, lr=step)), PERIOD)
    before, begun = bits(tuned.evaluate(data.heldout)), time.perf_counter()
    losses = tuned.observe(data.stream)
    return {
        "kind": kind,
        "step": step,
        **of_stream(losses, time.perf_counter() - begun),
        "old_before": before,
        "old_after": bits(tuned.evaluate(data.heldout)),
        "later": bits(tuned.evaluate(data.later)),
        "updates": {},
    }


def _restart(learner: Learner, data: Domains, folder: Path) -> dict[str, Any]:
    """Save the memory, load it in a new process, and compare what both predict next."""
    memory, answer = folder / "memory.safetensors", folder / "restart.safetensors"
    learner.save(memory)
    learner.model.save_pretrained(folder / "learner")
    text = data.later[:2048]
    command = [sys.executable, "-m", "nestling.evals.demo.restart", folder / "learner", memory, answer]
    done = subprocess.run(list(map(str, command)), input=json.dumps(text.tolist()), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the new process failed: {done.stderr.strip().splitlines()[-1]}")
    theirs, mine = load_file(answer)["losses"], learner.evaluate(text)
    return {
        "identical": bool(torch.equal(mine, theirs)),
        "max_difference": (mine - theirs).abs().max().item(),
        "file_bytes": memory.stat().st_size,
        "tokens": len(data.stream),
    }


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    size = Size(**{**job["size"], "seeds": tuple(job["size"]["seeds"])})
    main(job["architecture"], job["seed"], job["size_name"], size, job["text"], Path(job["folder"]))
