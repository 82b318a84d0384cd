"""A context that ends, and what stays of it."""

from __future__ import annotations

from nestling.cli.folders import load_learning
from nestling.quiet import quiet


def sleep(
    model: str,
    memory: str,
    new: list[str] | None = None,
    old: list[str] | None = None,
    passes: int = 1,
    begin: str | None = None,
    tokens: int = 8192,
    seed: int = 0,
) -> None:
    """Teach the levels of a memory that stay what those that reset have learnt, then end the context.

    Args:
        model: folder of a model with levels, some that reset when a context ends and some that stay.
        memory: a memory file; replaced when everything is done.
        new: UTF-8 text files like those that were read; without any the model writes such texts itself.
        old: UTF-8 text files like those that were known before; without any the model writes such texts itself.
        passes: over all texts.
        begin: what the texts that the model writes begin with; none is its token for the beginning of a text.
        tokens: of each kind that the model writes.
        seed: of what it writes.
    """
    quiet()
    from nestling.continual import Learner
    from nestling.train import read_text

    fresh, known = (None if paths is None else [read_text(path) for path in paths] for paths in (new, old))
    learner = Learner(*load_learning(model))
    learner.load(memory)
    night = learner.sleep(new=fresh, old=known, passes=passes, begin=begin, tokens=tokens, seed=seed)
    learner.save(memory)
    for name, distances in (("what all levels say of new texts", night.new), ("what it said of old ones", night.old)):
        print(f"from {name}: {', '.join(f'{distance:.4f}' for distance in distances)} nats a token, pass by pass")
    print(f"the context has ended; memory saved in {memory}")
