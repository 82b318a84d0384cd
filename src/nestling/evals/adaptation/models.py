"""The trained models that evaluations share: each trained once, in a folder named after what it depends on."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nestling.evals.adaptation.setup import domains
from nestling.evals.demo import setup as demo
from nestling.evals.demo.setup import ARCHITECTURES
from nestling.evals.demo.trained import trained
from nestling.models import HopeForCausalLM


def folder_of(out: str, models: demo.Size) -> Path:
    """Where the models of a size, and what is measured of them, belong."""
    return Path(out) / hashlib.sha256(repr((models, ARCHITECTURES, version("nestling"))).encode()).hexdigest()[:12]


def place_of(architecture: str, seed: int, folder: Path) -> Path:
    """The folder of one model."""
    return folder / f"{architecture.lower().replace('+', '')}-{seed}"


def ready(architecture: str, seed: int, folder: Path, models: demo.Size) -> tuple[HopeForCausalLM, dict[str, Any]]:
    """A model and how its training went; trained now if it is not there."""
    place = place_of(architecture, seed, folder)
    place.mkdir(parents=True, exist_ok=True)
    return trained(architecture, seed, models, domains(models), place, _silent)


def parameters(architecture: str, seed: int, folder: Path, models: demo.Size) -> int:
    """Of a model, which is there afterwards."""
    return ready(architecture, seed, folder, models)[1]["parameters"]


def _silent(line: str) -> None:
    """Training reports nothing: its lines would mix with those of other processes."""
