"""What levels and weights have gathered alike is kept once: a matter of cost, which changes no bit of what is learnt."""

import itertools
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from nestling.continual import Learner
from nestling.levels import Level, at_rest, initial, second_moments
from nestling.memory import RetainPredictions, RetainSeen
from nestling.ops.state import laid_out, nbytes, tree_map
from nestling.train import byte_tokenizer
from tests.helpers import named, randn, same
from tests.tiny import PERIOD, converted, knowledge, model, read, text

RULE = RetainPredictions(0.3, 0.3, refresh=0.3)
FAST, SLOW = Level(PERIOD, lr=0.3, rule=RULE, reset="context", clip=0.5), Level(PERIOD, lr=0.6, rule=RULE)
KINDS = {
    "alike": [FAST, SLOW],
    "of two periods": [FAST, replace(SLOW, period=2 * PERIOD)],
    "one forgets": [FAST, replace(SLOW, rule=replace(RULE, forgetting=0.8))],
    "of two rules": [replace(FAST, rule=RetainSeen()), SLOW],
    "in blocks": [replace(level, rule=replace(RULE, block=5)) for level in (FAST, SLOW)],
}


def learnt(net, apart):
    """A cache after pieces of a text, a level that stands still for some of them, and one that went back to its start.

    apart: every tensor of the levels is copied between calls, so that no two of them are one.
    """
    ids, cache = text(2, 8 * PERIOD + 3), net.new_cache()
    cuts = [0, 3, PERIOD, PERIOD + 2, 3 * PERIOD + 1, 5 * PERIOD, 6 * PERIOD + 1, 8 * PERIOD + 3]
    for i, (start, end) in enumerate(itertools.pairwise(cuts)):
        read(net, ids[:, start:end], cache)
        first, second = cache.memory
        if i == 2:
            first = replace(first, frozen=torch.tensor([True, False]))
        if i == 3:
            second = replace(second, frozen=torch.tensor([True, True]))
        if i == 4:
            first, second = (replace(level, frozen=torch.tensor([False, False])) for level in (first, second))
            second = at_rest(net.levels[1], second)
        cache.memory = tree_map(lambda t: laid_out(t, t.stride()), (first, second)) if apart else (first, second)
    return cache


@pytest.mark.parametrize("kind", KINDS)
def test_sharing_changes_no_bit(kind):
    """Read in pieces, with a row or a level frozen in between, and one put back to rest."""
    net = converted("llama", levels=KINDS[kind])
    together, apart = (learnt(net, apart) for apart in (False, True))
    same(knowledge(together), knowledge(apart))
    assert nbytes(together.memory) <= nbytes(apart.memory)


def moments(cache):
    """Of every weight, by level: what was seen and felt."""
    return [[(d.seen, d.felt) for d in level.weights.values()] for level in cache.memory]


def test_levels_share_until_they_differ():
    """Two that read the same hold one sum of it; one that stood still while the other read does not."""
    net = converted("llama", levels=KINDS["alike"])
    cache = read(net, text(1, 3 * PERIOD))[1]
    for first, second in zip(*moments(cache), strict=True):
        assert first[0] is second[0] and first[1] is second[1]
    assert all(
        d.gradient is e.gradient for d, e in zip(*(level.weights.values() for level in cache.memory), strict=True)
    )
    before = moments(cache)[1]
    cache.memory = cache.memory[0], replace(cache.memory[1], frozen=torch.tensor([True]))
    read(net, text(1, 3 * PERIOD, seed=1), cache)
    for (seen, felt), old, (other, more) in zip(moments(cache)[1], before, moments(cache)[0], strict=True):
        assert seen is old[0] and felt is old[1]
        assert not seen.equal(other) and not felt.equal(more)


def test_weights_with_one_input_share_what_was_seen_and_its_inverse():
    """The maps that a block's MLP or its attention feeds with one tensor."""
    cache = read(converted("llama", levels=[SLOW], assign="all"), text(1, 3 * PERIOD))[1]
    seen, inverses = {}, {}
    for name, d in cache.memory[0].weights.items():
        seen.setdefault(id(d.seen), set()).add(name)
        inverses.setdefault(id(d.memory["inputs"]), set()).add(name)
    together = [*seen.values()]
    assert together == [*inverses.values()]
    for one, others in (
        ("gate_proj", ["up_proj"]),
        ("q_proj", ["k_proj", "v_proj"]),
        ("down_proj", []),
        ("o_proj", []),
    ):
        names = [name for name in cache.memory[0].weights if one in name]
        assert names and all({n, *(n.replace(one, other) for other in others)} in together for n in names)


def test_an_input_that_was_changed_is_another():
    """The same tensor, written to between two maps: the sums are of what each of them was fed."""
    maps, x = {name: nn.Linear(4, 3).double() for name in "abc"}, randn(1, 6, 4)
    with torch.no_grad(), second_moments(maps, None) as seen:
        first = x.clone()
        maps["a"](x), maps["b"](x)
        maps["c"](x.mul_(2.0))
    assert seen["a"] is seen["b"] and seen["a"].equal(first.mT @ first) and seen["c"].equal(4 * seen["a"])


def test_a_file_keeps_once_what_is_shared(tmp_path):
    """And what was one tensor is one again after loading, so that going on costs no more than before."""
    learner, again = (Learner(a_model(), byte_tokenizer()) for _ in range(2))
    learner.observe("It was the best of times, it was the worst of times.")
    learner.save(tmp_path / "memory")
    again.load(tmp_path / "memory")
    with safe_open(tmp_path / "memory", framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    assert len(kept) < len(named(learner._user("default").tree()))
    memories = [each._user("default").cache.memory for each in (learner, again)]
    same(*memories)
    ids = [[id(tensor) for tensor in named(memory).values()] for memory in memories]
    assert [own.index(i) for own in ids[:1] for i in own] == [own.index(i) for own in ids[1:] for i in own]
    text = "It was the age of wisdom, it was the age of foolishness."
    assert learner.observe(text).losses.equal(again.observe(text).losses)
    same(*(each._user("default").cache.memory for each in (learner, again)))


def a_model():
    return model("hope-predictions", vocab_size=384, levels=KINDS["alike"]).float()


def test_rules_that_gather_differently_raise():
    """Nobody wants the blocks of one level to depend on another level's."""
    levels = [FAST, replace(SLOW, rule=replace(RULE, block=4))]
    with pytest.raises(ValueError, match="of w with block=None and block=4; give both the same"):
        initial(levels, [["w"], ["w"]], {"w": randn(3, 4)}, 1)
    initial(levels, [["w"], ["v"]], {"w": randn(3, 4), "v": randn(3, 4)}, 1)
