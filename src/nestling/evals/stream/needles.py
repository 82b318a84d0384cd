"""Needles at the end of the stream: what was read once is asked for, and texts to learn that from, of other needles."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import torch

from nestling.models import HopeCache, HopeForCausalLM
from nestling.train import byte_tokenizer, encode, english_prose

# names that training knows; others are asked for
LEARNT = ("castle", "river", "garden", "station", "market", "tower", "chapel", "school", "forest", "island", "valley")
LEARNT += ("temple", "palace", "museum", "library", "theatre", "factory", "hospital", "prison", "farm", "cottage")
LEARNT += ("stable", "cellar", "kitchen", "tunnel", "canal", "meadow", "orchard", "quarry", "windmill")
ASKED = {"lighthouse": 100, "harbour": 400, "mill": 700, "bridge": 1000, "brewery": 1900, "lantern": 4000}
# of what is said that the recall has, at most, when a needle is asked for; read is with the middle one
SHARES = (0.9, 0.6, 0.0)
GAP = 120  # bytes between two needles of a lesson, at most


def question(name: str) -> str:
    """What comes before a number, when it is told and when it is asked for."""
    return f"\nThe number of the {name} is "


def number(random: Random) -> str:
    """Five digits."""
    return "".join(random.choices("0123456789", k=5))


def lessons(size: int, seed: int = 0) -> str:
    """English prose, between which numbers are told: of three, one is new, and the others are those of the last few names again."""
    random, prose = Random(seed), english_prose()
    parts, told, place = [], dict[str, str](), random.randrange(len(prose) // 2)
    while size > 0:
        after = place + random.randrange(10, GAP)
        name = random.choice([*told] if told and random.random() < 2 / 3 else LEARNT)
        value = told.pop(name, None) or number(random)
        told = dict([*told.items(), (name, value)][-4:])
        parts.append(f"{prose[place:after]}{question(name)}{value}.\n")
        size, place = size - len(parts[-1]), after % (len(prose) - GAP)
    return "".join(parts)


def hidden(text: str, seed: int = 0) -> str:
    """The text with the needles of `ASKED` written over it, each so many characters before the end."""
    for name, value in values(seed).items():
        needle, place = f"{question(name)}{value}.\n", len(text) - ASKED[name]
        text = text[:place] + needle + text[place + len(needle) :]
    return text


def values(seed: int = 0) -> dict[str, str]:
    """The number of each name that is asked for."""
    random = Random(seed)
    return {name: number(random) for name in ASKED}


def answers(model: HopeForCausalLM, cache: HopeCache) -> list[dict[str, Any]]:
    """Of each needle its distance and number, and what is said when it is asked for, by the recall's share of what is said."""
    return [
        {"name": name, "distance": ASKED[name], "number": value}
        | {"said": {f"{share:g}": said(model, cache, question(name), share) for share in SHARES}}
        for name, value in values().items()
    ]


@torch.no_grad()
def said(model: HopeForCausalLM, cache: HopeCache, asked: str, share: float) -> str:
    """Five characters, greedily."""
    tokenizer, now, own = byte_tokenizer(), cache.copy(columns=0), model.recall
    now.recalls = share > 0
    model.recall = replace(own, share=share) if own and share else own
    ids = encode(tokenizer, asked)[None]
    mask, options = torch.ones_like(ids), {"min_new_tokens": 5, "max_new_tokens": 5, "do_sample": False}
    out = model.generate(ids, attention_mask=mask, past_key_values=now, **options)
    model.recall = own
    assert isinstance(out, torch.Tensor)
    text = tokenizer.decode(out[0, ids.shape[1] :])
    assert isinstance(text, str)  # a list of them only for a batch
    return text
