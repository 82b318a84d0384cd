"""Reading without an end."""

from __future__ import annotations

import sys
import time

from nestling.cli.folders import load_learning
from nestling.errors import UserError
from nestling.quiet import quiet


def read(
    model: str,
    text: list[str],
    checkpoint: str,
    every: int = 100_000,
    tokens: int | None = None,
    block: int | None = None,
) -> None:
    """Read text files of any length as one stream, in memory that does not grow; what was interrupted goes on.

    Args:
        model: folder of a language model.
        text: UTF-8 text files, read in this order, piece by piece; given from the first one on, also to go on.
        checkpoint: a file, written on the way; where it exists the reading goes on from there. It is also a memory file.
        every: tokens between two checkpoints, about, and between two lines of what reading is like.
        tokens: how many to read, in all; none is all there are.
        block: tokens of a call; none is chosen by the model.
    """
    quiet()
    from itertools import chain

    from nestling.evals.resident import resident
    from nestling.train.data import file_tokens, up_to

    if tokens is not None and tokens < 1:
        raise UserError(f"tokens={tokens} must be at least 1")
    network, tokenizer = load_learning(model)
    pieces = [file_tokens(path, tokenizer) for path in text]  # a file that is missing is told before anything is read
    stream = network.stream(up_to(chain.from_iterable(pieces), tokens), checkpoint, every, block)
    if begun := stream.position:
        print(f"goes on after {begun:,} tokens")
    start, told = time.perf_counter(), begun // every
    try:
        for progress in stream:
            if progress.position // every > told:
                told, rate = progress.position // every, (progress.position - begun) / (time.perf_counter() - start)
                used = f"{rate:,.0f} tokens/s, {resident() / 2**20:,.0f} MiB"
                print(f"{progress.position:,} tokens, the last at {progress.loss:.3f} nats each, {used}", flush=True)
    except KeyboardInterrupt:
        stream.save(checkpoint)
        print(f"stopped after {stream.position:,} tokens; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    print(f"read {stream.position:,} tokens at {stream.loss:.3f} nats each; saved in {checkpoint}")
