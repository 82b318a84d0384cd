"""What does it cost to learn while reading?

A Llama of about 10M parameters, converted, reads random tokens in calls of `--call` tokens, as a learner does: without learning,
and with levels of several kinds, in turn, in one run; the figure is the ratio to reading without. First a parity gate: at
learning rate 0 the converted model says what the original says, bit for bit, and what was learnt does not depend on the calls.

    python -m benchmarks.reading [--assign mlp] [--tokens 4096] [--call 2048] [--period 256] [--repeats 3] [--device cpu]

Learning must cost at most 4.5 times: it is the forward pass, one backward pass, the last segment of every call once more (its label
comes with the next call), and the steps. Bytes a user are those of what the levels hold, and of the session (keys and values
of attention, the unfinished segment, what a recall keeps).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nestling.levels import Level
from nestling.memory import RetainPredictions, RetainSeen
from nestling.models import ConvertedForCausalLM, HopeCache, Recall, convert
from nestling.ops.state import nbytes

MOST = 4.5
SHAPE = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 12}
SHAPE |= {"num_attention_heads": 4, "max_position_embeddings": 2048}


def main() -> None:
    arguments = _arguments()
    torch.manual_seed(0)
    _parity(arguments)
    models = {name: _model(*kind, arguments) for name, kind in _kinds(arguments.period).items()}
    ids = torch.randint(SHAPE["vocab_size"], (1, arguments.tokens), device=arguments.device)
    size = sum(p.numel() for p in next(iter(models.values())).parameters())
    print(
        f"{size / 1e6:.1f}M parameters, assign={arguments.assign}, {arguments.tokens} tokens in calls of {arguments.call}, ",
        end="",
    )
    print(
        f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; medians of {arguments.repeats}"
    )
    seconds, caches = _measure(models, ids, arguments)
    still = seconds["not learning"]
    for name, taken in seconds.items():
        memory, session = (nbytes(part) for part in (caches[name].memory, (caches[name].session, caches[name].recent)))
        cost = f"{taken / still:6.2f}x {'' if taken / still <= MOST else f'above {MOST}'}"
        print(f"{name:34} {ids.numel() / taken:10,.0f} tokens/s {cost:9} {memory:12,} + {session:,} bytes a user")


def _kinds(period: int) -> dict[str, tuple[list[Level], Recall | None]]:
    """Levels, and a recall or none, by the name of their row; the first row does not learn."""
    fast, slow = (
        Level(period, lr=0.1, clip=0.5, reset="context"),
        Level(8 * period, lr=1.0, clip=0.5, rule=RetainSeen()),
    )
    low = [replace(level, rank=8) for level in (fast, slow)]

    def predicting(block: int | None) -> list[Level]:
        return [replace(level, rule=RetainPredictions(block=block)) for level in (fast, slow)]

    kinds = {
        "not learning": [fast],
        "one level": [fast],
        "one level, rank 8": low[:1],
        "two levels, the slow one retains": [fast, slow],
        "the same, rank 8": low,
        "two levels that retain predictions": predicting(None),
        "the same, in blocks of 128": predicting(128),
        "the same, in blocks of 64": predicting(64),
    }
    recalling = {
        f"{name}, and a recall": (kinds[name], Recall()) for name in ("one level", "two levels, the slow one retains")
    }
    return {name: (levels, None) for name, levels in kinds.items()} | recalling


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 4096), ("call", 2048), ("period", 256), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--assign", default="mlp")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _model(levels: list[Level], recall: Recall | None, arguments: argparse.Namespace) -> ConvertedForCausalLM:
    """The same weights, whatever the levels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    found = convert(llama.to(arguments.device).eval(), levels, arguments.assign, recall=recall)
    assert isinstance(found, ConvertedForCausalLM)
    return found


@torch.no_grad()
def _read(model: ConvertedForCausalLM, ids: Tensor, call: int, cache: HopeCache) -> Tensor:
    """The last logits, after a stream in calls of `call` tokens."""
    logits = ids
    for part in ids.split(call, dim=1):
        logits = model(part, past_key_values=cache, use_cache=True).logits
    return logits[:, -1]


def _parity(arguments: argparse.Namespace) -> None:
    """Raise unless rate 0 is the original bit for bit, and calls of any size learn the same."""
    ids = torch.randint(SHAPE["vocab_size"], (1, 3 * 16 + 5), device=arguments.device)
    still = _model([Level(16)], None, arguments)
    with torch.no_grad():
        assert torch.equal(still(ids).logits, still.inner(ids).logits)
    model = _model([Level(16, lr=0.1)], None, arguments)
    whole, parts = (_read(model, ids, call, model.new_cache()) for call in (len(ids[0]), 11))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert not torch.equal(whole, still(ids).logits[:, -1])
    print("parity: at rate 0 the original's logits bit for bit; calls of 11 tokens learn what one call learns")


def _measure(
    models: dict[str, Any], ids: Tensor, arguments: argparse.Namespace
) -> tuple[dict[str, float], dict[str, HopeCache]]:
    """Seconds of a reading of each, the first not counted, one after another; and the caches they end with."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    caches = {}
    for _ in range(arguments.repeats + 1):
        for name, model in models.items():
            caches[name] = HopeCache("off") if name == "not learning" else model.new_cache()
            _wait(arguments.device)
            begun = time.perf_counter()
            _read(model, ids, arguments.call, caches[name])
            _wait(arguments.device)
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}, caches


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
