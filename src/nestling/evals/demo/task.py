"""One task: train one architecture with one seed, and let it meet the stream in every way. A task is one process."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nestling.continual import Learner
from nestling.continual.baselines import FineTuning, Follower
from nestling.evals.demo.setup import FINE_TUNING, PERIOD, SLOW, Domains, Size, domains, model_config, training
from nestling.models import HopeForCausalLM
from nestling.quiet import quiet
from nestling.train import Progress, byte_tokenizer, train

BITS = 1 / math.log(2)


def main(architecture: str, seed: int, size_name: str, size: Size, text: str | None, folder: Path) -> None:
    """Train, stream, write `folder/result.json`. What is there already is not done again."""
    quiet()
    torch.set_num_threads(1)
    data = domains(size, text)
    model, trained = _trained(architecture, seed, size, data, folder)
    ways: dict[str, Any] = {"frozen": lambda: _learner(model, data, size, folder, learn=False)}
    ways["levels"] = lambda: _learner(model, data, size, folder, learn=True)
    if architecture == "Transformer++":
        for kind, steps in FINE_TUNING.items():
            for step in steps if size_name != "quick" else steps[1:3]:
                ways[f"{kind} {step:g}"] = lambda kind=kind, step=step: _fine_tuned(model, data, kind, step)
    learners = {}
    for name, way in ways.items():
        learners[name] = _once(folder / f"{name.replace(' ', '-')}.json", way)
        _say(f"{architecture}, seed {seed}: {name} done, {learners[name]['last_quarter']:.3f} bits a byte at the end")
    result = {"model": trained, "learners": learners}
    (folder / "result.json").write_text(json.dumps(result))


def _once(path: Path, work: Any) -> dict[str, Any]:
    """The result of `work()`, from its file when it was done before."""
    if not path.exists():
        result = work()
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(result))
        temporary.replace(path)
    return json.loads(path.read_text())


def _trained(
    architecture: str, seed: int, size: Size, data: Domains, folder: Path
) -> tuple[HopeForCausalLM, dict[str, Any]]:
    def work() -> dict[str, Any]:
        torch.manual_seed(seed)
        model = HopeForCausalLM(model_config(architecture))
        config = training(architecture, size, seed)
        every = max(1, config.steps // 10)

        def report(p: Progress) -> None:
            if p.step % every == 0:
                _say(
                    f"{architecture}, seed {seed}: {p.tokens:,} bytes, {p.loss * BITS:.2f} bits, {p.tokens_per_s:,.0f} a second"
                )

        history = train(model, data.train, config, report)
        model.save_pretrained(folder / "model")
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens": history[-1].tokens,
            "lr": config.lr,
            "tokens_per_s": history[-1].tokens_per_s,
            "peak_memory_mb": _peak_mb(),
            "curve": {"tokens": [p.tokens for p in history], "bpb": [p.loss * BITS for p in history]},
        }

    result = _once(folder / "training.json", work)
    model = HopeForCausalLM.from_pretrained(folder / "model").eval()
    return model, result


def _learner(model: HopeForCausalLM, data: Domains, size: Size, folder: Path, learn: bool) -> dict[str, Any]:
    """The stream past a learner, its levels moving or (frozen) not."""
    model.config.learning = "context"
    learner = Learner(model, byte_tokenizer())
    before = _bits(learner.evaluate(data.heldout))
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
        **_of_stream(losses, seconds),
        "old_before": before,
        "old_after": _bits(learner.evaluate(data.heldout)),
        "later": _bits(learner.evaluate(data.later)),
        "updates": updates,
        "restart": restart,
        "sample": learner.generate("def ", max_new_tokens=120),
    }


def _fine_tuned(model: HopeForCausalLM, data: Domains, kind: str, step: float) -> dict[str, Any]:
    """The stream past the same model, all its weights following by SGD or AdamW."""
    model.config.learning = "off"
    make = {"sgd": torch.optim.SGD, "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0)}[kind]
    tuned = Follower(model, FineTuning(lambda weights: make(weights, lr=step)), PERIOD)
    before, begun = _bits(tuned.evaluate(data.heldout)), time.perf_counter()
    losses = tuned.observe(data.stream)
    return {
        "kind": kind,
        "step": step,
        **_of_stream(losses, time.perf_counter() - begun),
        "old_before": before,
        "old_after": _bits(tuned.evaluate(data.heldout)),
        "later": _bits(tuned.evaluate(data.later)),
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


def _of_stream(losses: Tensor, seconds: float) -> dict[str, Any]:
    """Bits a byte of each chunk and of the last quarter."""
    chunks = [part.mean().item() * BITS for part in losses.split(PERIOD * 4)]
    ends = [min((i + 1) * PERIOD * 4, len(losses)) for i in range(len(chunks))]
    return {
        "stream": {"tokens": ends, "bpb": chunks},
        "last_quarter": _bits(losses[3 * len(losses) // 4 :]),
        "tokens_per_s": len(losses) / seconds,
        "peak_memory_mb": _peak_mb(),
    }


def _bits(losses: Tensor) -> float:
    return losses.mean().item() * BITS


def _peak_mb() -> float:
    """Highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    size = Size(**{**job["size"], "seeds": tuple(job["size"]["seeds"])})
    main(job["architecture"], job["seed"], job["size_name"], size, job["text"], Path(job["folder"]))
