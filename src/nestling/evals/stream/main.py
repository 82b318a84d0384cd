"""The stream as one command: a reading that is killed and taken up again, and one of its beginning that is not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nestling.errors import UserError
from nestling.evals.runs import where, write
from nestling.evals.stream import read as reader
from nestling.evals.stream.needles import answers, hidden, lessons
from nestling.evals.stream.setup import SIZES, Size, config, training
from nestling.models import HopeForCausalLM
from nestling.train import byte_tokenizer, encode, train, wikitext2
from nestling.train.corpora import war_and_peace

Say = Callable[[str], None]
LATEST = 10.0  # seconds from the checkpoint after which a process is killed to the kill, at most


def stream(size_name: str, out: str, say: Say) -> dict[str, Any]:
    """Results, also in `out`/results.json. What was read is not read again, and what was interrupted goes on.

    Raises:
        UserError: a text that is not here, or a process that ended with an error.
    """
    size, folder = SIZES[size_name], Path(out) / size_name
    folder.mkdir(parents=True, exist_ok=True)
    text = text_of(size, folder)
    if not (folder / "model" / "config.json").exists():
        say(f"training on {size.lessons:,} bytes, in which numbers return")
        trained(size).save_pretrained(folder / "model")
    read(size, folder, text, size.tokens, "stream", size.kills, say)
    read(size, folder, text, size.prefix, "prefix", 0, say)
    results = results_of(size, folder)
    write(Path(out) / "results.json", results)
    return results


def trained(size: Size) -> HopeForCausalLM:
    """The model that reads; its levels stand still while it is trained."""
    torch.manual_seed(0)
    model = HopeForCausalLM(config())
    model.config.learning = "off"
    train(model, encode(byte_tokenizer(), lessons(size.lessons)), training(size))
    model.config.learning = "context"
    return model


def results_of(size: Size, folder: Path) -> dict[str, Any]:
    """What the logs of a folder say, of a reading that has not ended, too."""
    model = HopeForCausalLM.from_pretrained(folder / "model")
    ended = any(line.get("ends") for line in lines(folder / "stream.log"))
    return {
        "title": "A stream: constant memory, and a kill that changes nothing",
        "about": f"{where()}, one thread",
        "parameters": sum(p.numel() for p in model.parameters()),
        "periods": [level.period for level in model.levels],
        "tokens": size.tokens,
        "every": size.every,
        "window": model.recall.window if model.recall else 0,
        "stream": lines(folder / "stream.log"),
        "prefix": lines(folder / "prefix.log"),
        "needles": answers(model, model.stream([], folder / "stream.safetensors").cache) if ended else [],
    }


def text_of(size: Size, folder: Path) -> Path:
    """A file to read: War and Peace and after it WikiText-2, from the beginning, with needles near the end."""
    path = folder / "text.txt"
    if not path.exists():
        book = "\n".join(war_and_peace(size.tokens).splitlines())  # a file that is read has no other ends of lines
        wiki = wikitext2("train").replace("<unk>", "unknown")  # which the tokenizer has a token for that is no byte
        whole = (book + wiki).encode()[: size.tokens]
        if len(whole) < size.tokens:
            raise UserError(f"the texts have {len(whole)} bytes, and {size.tokens} are read; give both whole")
        path.write_text(hidden(whole.decode(errors="ignore")), encoding="utf-8")
    return path


def read(size: Size, folder: Path, text: Path, tokens: int, name: str, kills: int, say: Say) -> None:
    """Read by a process of its own, killed `kills` times at random moments, the first one early, and begun again each time."""
    log, draw = folder / f"{name}.log", random.Random()
    command = [sys.executable, "-m", reader.__name__, folder / "model", text, folder / f"{name}.safetensors", log]
    while not any(line.get("ends") for line in lines(log)):
        done = len({line["process"] for line in lines(log)})
        low, high = (0, size.prefix // 2) if done == 0 else (position(log) + size.every, size.tokens - size.every)
        until = draw.uniform(low, high) if done < kills and low < high else size.tokens + 1
        process = subprocess.Popen([*map(str, command), str(tokens), str(size.every)])
        try:
            while process.poll() is None and position(log) < until:
                time.sleep(0.2)
            if process.poll() is None:
                time.sleep(draw.uniform(0, LATEST))
                process.kill()
                say(f"{name}: killed after {position(log):,} tokens or more")
            if process.wait() > 0:
                raise UserError(f"the process that reads ended with status {process.returncode}; it has said why")
        finally:
            process.kill()
    say(f"{name}: {position(log):,} tokens read")


def position(log: Path) -> int:
    """Where the last line of a log is."""
    found = lines(log)
    return found[-1]["position"] if found else 0


def lines(log: Path) -> list[dict[str, Any]]:
    """Those of a log that are whole."""
    written = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
    return [json.loads(line) for line in written]
