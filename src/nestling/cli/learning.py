"""Models of one's own: training, reading and answering."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nestling.cli.folders import load, load_learning
from nestling.cli.terminal import progress
from nestling.errors import UserError
from nestling.quiet import quiet
from nestling.settings import ModelSettings, TrainConfig


def train(
    text: list[str],
    out: str,
    model: ModelSettings = ModelSettings(),  # noqa: B008 - frozen
    training: TrainConfig = TrainConfig(),  # noqa: B008
) -> None:
    """Train a byte-level model on text files and save it.

    Args:
        text: UTF-8 text files, read in this order.
        out: folder for the model and its tokenizer.
        model: the model.
        training: how to train.
    """
    quiet()
    import torch

    from nestling.models import HopeConfig, HopeForCausalLM
    from nestling.train import byte_tokenizer, encode, read_text
    from nestling.train import train as run

    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"{out} is a file; give a folder for the model")
    tokenizer = byte_tokenizer()
    ids = encode(tokenizer, "\n\n".join(read_text(path) for path in text))
    torch.manual_seed(training.seed)
    config = HopeConfig(**model.to_dict())
    network = HopeForCausalLM(config)
    # what the levels learn while reading is not part of pre-training: the weights under them are
    network.config.learning = "off"
    with progress("training", training.steps) as bar:
        history = run(
            network, ids, training, lambda p: bar(1, f"loss {p.loss:.3f} nats, {p.tokens_per_s:,.0f} tokens/s")
        )
    network.config.learning = "context" if network.levels else "off"
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"trained on {history[-1].tokens:,} tokens, last loss {history[-1].loss:.3f} nats a byte; saved in {out}")


def learn(
    model: str,
    text: list[str],
    memory: str,
    calibrate: str | None = None,
    snapshot: str | None = None,
    log: str | None = None,
    end_context: bool = False,
) -> None:
    """Read text files, learn from them, and save the memory. An existing memory is taken up and goes on.

    Args:
        model: folder of a model with levels.
        text: UTF-8 text files, read in this order as one stream.
        memory: the memory file; replaced only when everything was read.
        calibrate: a text of the kind that the model was trained on, to be protected from what is learnt.
        snapshot: a name under which to keep what the memory holds before reading; `nestling memory rollback` goes back to it.
        log: a file to which each level's surprise and update norm and the loss are added, a JSON line a period.
        end_context: end the context after reading, so that levels which reset do.
    """
    quiet()
    from nestling.continual import Learner
    from nestling.train import encode, read_text

    texts = [read_text(path) for path in text]
    network, tokenizer = load_learning(model)
    learner = Learner(network, tokenizer)
    if Path(memory).exists():
        learner.load(memory)
    elif calibrate:
        learner.calibrate(read_text(calibrate))
    if snapshot is not None:
        learner.snapshot(name=snapshot)
    period = network.levels[0].period
    pieces = encode(tokenizer, "\n\n".join(texts)).split(period)
    seen, total = 0, 0.0
    with progress("learning", len(pieces)) as bar, open(log or os.devnull, "a", encoding="utf-8") as lines:
        for piece in pieces:
            observation = learner.observe(piece)
            seen, total = seen + observation.tokens, total + observation.losses.sum().item()
            sizes = ", ".join(f"{size:.3g}" for size in observation.norms)
            lines.write(json.dumps(observation.record()) + "\n")
            bar(1, f"{total / max(seen, 1) / 0.6931:.3f} bits a byte; last updates {sizes}")
    if end_context:
        learner.end_context()
    learner.save(memory)
    print(f"read {seen:,} tokens at {total / max(seen, 1):.3f} nats each; memory saved in {memory}")


def generate(
    model: str,
    prompt: str,
    memory: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
    go_on: bool = False,
) -> None:
    """Continue a prompt, with what a memory holds.

    Args:
        model: folder of a model.
        prompt: the text to continue.
        memory: a memory file; without one the model answers as it was trained.
        max_new_tokens: how much to write.
        temperature: 0 always takes the likeliest token.
        seed: for temperatures above 0.
        go_on: go on from where the memory's text stands, with what is recalled there; without it the prompt is a context of its own.
    """
    quiet()
    import torch

    from nestling.continual import Learner
    from nestling.models import LearningModel
    from nestling.train import encode

    network, tokenizer = load(model)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    )
    torch.manual_seed(seed)
    if isinstance(network, LearningModel) and network.levels:
        learner = Learner(network, tokenizer)
        if memory:
            learner.load(memory)
        print(prompt + learner.generate(prompt, apart=not go_on, max_new_tokens=max_new_tokens, **sampling))
        return
    if memory:
        raise UserError(f"{model} has no levels and keeps no memory; leave --memory out")
    if not network.can_generate():
        raise UserError(
            f"{model} holds a {type(network).__name__}, which predicts no next token; give a language model"
        )
    ids = encode(tokenizer, prompt)[None]
    speaking: Any = network  # whether it generates was asked above
    out = speaking.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **sampling)
    print(prompt + tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
