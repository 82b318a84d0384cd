"""One run: a byte-level language model of one row, trained on WikiText-2."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from nestling.errors import UserError
from nestling.evals.ablation.rows import ROWS
from nestling.evals.optimizers.language import bits
from nestling.layers import SelfModifyingTitans
from nestling.levels import Level, StepOf
from nestling.models import HopeConfig, HopeForCausalLM
from nestling.train import TrainConfig, byte_tokenizer, encode, train, wikitext2


@dataclass(frozen=True)
class Size:
    """width, layers: of the model. tokens: bytes of training text, in `batch` windows of `length` a step. judged: bytes of
    validation text. without: rows that would take too long.
    """

    width: int = 160
    layers: int = 3
    tokens: int = 120_000
    batch: int = 4
    length: int = 256
    judged: int = 40_960
    seeds: tuple[int, ...] = (0, 1, 2)
    without: tuple[str, ...] = ("chunk 1",)


SIZES = {
    "quick": Size(width=32, layers=1, tokens=8_192, length=64, judged=4_096, seeds=(0,)),
    "default": Size(),
    "full": Size(width=256, layers=4, tokens=10_000_000, batch=16, length=512, judged=409_600, without=()),
}
RATE = 4e-3  # the best of a sweep for a smaller Hope (docs/LOG.md), for every row
SLOWER = 4  # the slow level moves every so many steps


def run(name: str, seed: int, size: Size) -> dict[str, Any]:
    """Train, then read validation text: bits a byte (nan where the loss became infinite), seconds of the processor."""
    tokenizer = byte_tokenizer()
    ids = encode(tokenizer, wikitext2("train")[: 4 * size.tokens])
    judged = encode(tokenizer, wikitext2("valid")[: size.judged])
    torch.manual_seed(seed)
    net = model(name, size)
    settings = TrainConfig(size.tokens, size.batch, size.length, lr=RATE, seed=seed)
    begun, score = time.process_time(), math.nan
    try:
        train(net, ids, settings)
        seconds = time.process_time() - begun
        score = bits(net, judged)
    except UserError:  # the loss is not finite
        seconds = time.process_time() - begun
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return {"bits": score, "seconds": seconds, "tokens": size.tokens, "parameters": parameters}


def model(name: str, size: Size) -> HopeForCausalLM:
    """Hope less one part: one head (docs/LOG.md), MLPs that the optimiser of their level moves at its period."""
    row = ROWS[name]
    step = size.batch * size.length
    levels = [
        Level(period, lr=RATE / 4, rule=StepOf("GeneralisedMomentum"), clip=1.0) for period in (step, SLOWER * step)
    ]
    settings: dict[str, Any] = {
        "chunk_size": 64,
        "memory_momentum": True,
        "levels": levels[: row.levels],
        **row.settings,
    }
    shape = {"hidden_size": size.width, "num_hidden_layers": size.layers, "intermediate_size": 5 * size.width // 2}
    net = HopeForCausalLM(
        HopeConfig(
            **shape,
            num_attention_heads=1,
            memory_hidden=size.width // 4,
            learning="parameter",
            level_variant="sequential",
            **settings,
        )
    )
    for layer in net.modules():
        if isinstance(layer, SelfModifyingTitans):
            row.edit(layer)
    return net
