"""One process that reads, to be killed: `python -m nestling.evals.stream.read MODEL TEXT CHECKPOINT LOG TOKENS EVERY`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from typing import Any

import torch

from nestling.evals.resident import peak, resident
from nestling.models import HopeForCausalLM
from nestling.models.saved import cache_tree
from nestling.models.stream import Stream
from nestling.ops.state import named_tensors
from nestling.train import byte_tokenizer, file_tokens
from nestling.train.data import up_to


def read(model: str, text: str, checkpoint: str, log: str, tokens: int, every: int) -> None:
    """Read the first `tokens` of a file; after every checkpoint a line about it is added to the log."""
    network = HopeForCausalLM.from_pretrained(model)
    stream = network.stream(up_to(file_tokens(text, byte_tokenizer()), tokens), checkpoint, every)
    begun, done = time.perf_counter(), stream.position // every
    with open(log, "a", encoding="utf-8") as lines:

        def note(**values: Any) -> None:
            used = {"seconds": time.perf_counter() - begun, "processor": time.process_time()}
            memory = {"resident": resident(), "peak": peak()}
            lines.write(json.dumps({"process": os.getpid(), **values, **used, **memory}) + "\n")
            lines.flush()

        note(position=stream.position, begins=True)
        for progress in stream:
            if progress.position // every > done:
                done = progress.position // every
                note(position=progress.position, loss=progress.loss, digest=digest(stream))
        note(position=stream.position, mean=stream.loss, digest=digest(stream), ends=True)


def digest(stream: Stream) -> str:
    """SHA-256 of everything that the stream carries on."""
    found, cache = hashlib.sha256(), stream.cache
    for name, tensor in named_tensors(cache_tree(cache) | {"next": stream.logits}).items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, file, kept, written, number, between = sys.argv[1:]
    read(folder, file, kept, written, int(number), int(between))
