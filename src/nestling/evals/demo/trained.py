"""Training a model of the demonstration, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nestling.evals.demo.measures import BITS, peak_mb
from nestling.evals.demo.setup import Domains, Size, model_config, training
from nestling.models import HopeForCausalLM
from nestling.train import Progress, train


def once(path: Path, work: Any) -> dict[str, Any]:
    """The result of `work()`, from its file when it was done before."""
    if not path.exists():
        result = work()
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(result))
        temporary.replace(path)
    return json.loads(path.read_text())


def trained(
    architecture: str, seed: int, size: Size, data: Domains, folder: Path, say: Callable[[str], None]
) -> tuple[HopeForCausalLM, dict[str, Any]]:
    """The model, from `folder` when it was trained before, and how its training went."""

    def work() -> dict[str, Any]:
        torch.manual_seed(seed)
        model = HopeForCausalLM(model_config(architecture))
        config = training(architecture, size, seed)
        every = max(1, config.steps // 10)

        def report(p: Progress) -> None:
            if p.step % every == 0:
                say(
                    f"{architecture}, seed {seed}: {p.tokens:,} bytes, {p.loss * BITS:.2f} bits, {p.tokens_per_s:,.0f} a second"
                )

        history = train(model, data.train, config, report)
        model.save_pretrained(folder / "model")
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens": history[-1].tokens,
            "lr": config.lr,
            "tokens_per_s": history[-1].tokens_per_s,
            "peak_memory_mb": peak_mb(),
            "curve": {"tokens": [p.tokens for p in history], "bpb": [p.loss * BITS for p in history]},
        }

    result = once(folder / "training.json", work)
    model = HopeForCausalLM.from_pretrained(folder / "model").eval()
    return model, result
