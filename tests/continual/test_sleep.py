"""Sleep: slow levels learn what fast ones hold, keep what they knew, and nothing else changes."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from nestling.cli import EXAMPLES
from nestling.continual import Learner
from nestling.continual.sleep import consolidate, dream, resetting, rested
from nestling.errors import UserError
from nestling.levels import Level, effective
from nestling.models import HopeCache
from nestling.train import byte_tokenizer
from tests.continual.test_learner import CODE, PROSE, a_learner, ids_of, mind
from tests.helpers import close, same
from tests.test_cli import nestling
from tests.tiny import PERIOD, SLOW

FAST, PLAIN = Level(PERIOD, lr=0.3, reset="context"), Level(PERIOD, lr=0.2)


def awake(**changes):
    """A learner that has read prose."""
    learner = a_learner(**changes)
    learner.observe(PROSE)
    return learner


def said(learner, ids, memory):
    """Log-probabilities of what follows each of `ids [L]`."""
    with torch.no_grad():
        return learner.model(ids[None], past_key_values=HopeCache("off", memory)).logits.log_softmax(-1)


def divergence(learner, ids, memory, from_memory):
    """In nats a token."""
    wanted, found = (said(learner, ids, which) for which in (from_memory, memory))
    return (wanted.exp() * (wanted - found)).sum(-1).mean()


def test_a_segment_is_a_step_of_the_slow_level_towards_all():
    """By hand: a plain step on the mean divergence of the model's own weights from what all levels say, and from what it said."""
    learner = awake(levels=[FAST, PLAIN])
    model, memory = learner.model, learner._user("default").cache.memory
    fast = resetting(model.levels, memory)
    resting = rested(model.levels, memory, fast)
    by_hand = {name: w.detach().clone() for name, w in effective(resting, model.learnable_weights()).items()}
    for ids, teacher in ((ids_of[CODE][:PERIOD], memory), (ids_of[PROSE][:PERIOD], resting)):
        weights = {name: w.requires_grad_() for name, w in by_hand.items()}
        logits, *_ = model.run(weights, ids[None], model.begin(1), None)
        loss = F.kl_div(logits.log_softmax(-1), said(learner, ids, teacher), log_target=True, reduction="sum") / PERIOD
        slopes = torch.autograd.grad(loss, list(weights.values()))
        by_hand = {n: w.detach() - PLAIN.lr * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
    found, night = consolidate(model, memory, fast, [ids_of[CODE][:PERIOD]], [ids_of[PROSE][:PERIOD]])
    close(effective(rested(model.levels, found, fast), model.learnable_weights()), by_hand)
    same(found[0], memory[0])
    assert night.new[0] == pytest.approx(divergence(learner, ids_of[CODE][:PERIOD], resting, memory).item())


def test_the_slow_level_comes_to_say_what_all_said():
    """Pass after pass it is nearer on the new text, and nearer on the old one than without old texts to sleep over."""
    learner = awake(levels=[FAST, SLOW])
    before = learner._user("default").cache.memory
    resting = rested(learner.model.levels, before, [True, False])
    learner.fork("default", "careless")
    night = learner.sleep(new=PROSE, old=CODE, passes=8)
    assert all(a > b for a, b in zip(night.new, night.new[1:], strict=False))
    learner.sleep("careless", new=PROSE, old=PROSE, passes=8)
    memories = {user: learner._user(user).cache.memory for user in ("default", "careless")}
    near = divergence(learner, ids_of[PROSE], memories["default"], before)
    assert near < divergence(learner, ids_of[PROSE], resting, before) / 2
    kept, lost = (divergence(learner, ids_of[CODE], memory, resting) for memory in memories.values())
    assert kept < lost or kept < 1e-3


def test_a_fast_level_with_nothing_to_tell_changes_nothing():
    """At rest it says what the slow one does: no divergence, and no step (but for what is gathered already, here nothing)."""
    learner = a_learner(levels=[FAST, PLAIN])
    learner.observe(ids_of[PROSE][: 4 * PERIOD + 1])
    learner.end_context()
    before = learner._user("default").cache.memory
    night = learner.sleep(new=[PROSE, CODE], old=CODE)
    assert max(night.new + night.old) < 1e-12
    after = learner._user("default").cache.memory
    close(after[1].weights, before[1].weights)


def test_the_context_has_ended_and_nobody_else_slept():
    """The fast level is at rest, the stream begins anew, the model's weights and other users are as they were."""
    learner = awake(levels=[FAST, SLOW])
    learner.observe(CODE, user="bob")
    weights = {n: w.clone() for n, w in learner.model.state_dict().items()}
    bob = mind(learner, "bob")
    learner.sleep(new=PROSE, old=CODE)
    same(mind(learner, "bob"), bob)
    same(dict(learner.model.state_dict()), weights)
    state = learner._user("default")
    assert state.logits is None and state.cache.get_seq_length() == 0
    assert not any(bool(d.value.any()) for d in state.cache.memory[0].weights.values())
    assert not bool(state.cache.memory[0].frozen.any())


def test_dreams_are_what_the_model_writes(tmp_path):
    """The same with the same seed, others with another, and what is global about chance is left alone; a sleep over them can be saved."""
    learner = awake(levels=[FAST, SLOW])
    memory = learner._user("default").cache.memory
    state = torch.get_rng_state()
    dreams = [torch.cat(dream(learner.model, memory, ids_of[CODE][:1], 40, seed)) for seed in (0, 0, 1)]
    assert torch.equal(dreams[0], dreams[1]) and not torch.equal(dreams[0], dreams[2]) and len(dreams[0]) >= 40
    assert torch.equal(torch.get_rng_state(), state)
    learner.fork("default", "bob")
    nights = [learner.sleep(user, begin="\n", tokens=40, passes=2) for user in ("default", "bob")]
    assert nights[0] == nights[1] and nights[0].new[1] < nights[0].new[0]
    learner.save(tmp_path / "slept.safetensors")
    learner.load(tmp_path / "slept.safetensors", user="again")
    same(learner._user("again").cache.memory, learner._user("default").cache.memory)


def test_dreams_are_as_surprising_as_the_model_expects():
    """The mean surprise of what was written is the entropy of what was predicted, within four standard errors: nothing was cut off."""
    learner = awake(levels=[FAST, SLOW])
    memory = learner._user("default").cache.memory
    (text,) = dream(learner.model, memory, ids_of[CODE][:1], 600, seed=0)
    expected = said(learner, text, memory)[0, :-1]
    surprise = -expected.gather(1, text[1:, None])[:, 0]
    entropy = -(expected.exp() * expected).sum(-1)
    excess = surprise - entropy
    assert abs(excess.mean()) < 4 * excess.std() / len(excess) ** 0.5


def bad(learner, **given):
    with pytest.raises((UserError, ValueError)) as raised:
        learner.sleep(**given)
    return str(raised.value)


def test_bad_input_is_said_and_leaves_the_user_as_before():
    learner = awake(levels=[FAST, SLOW])
    before = mind(learner)
    assert "passes=0" in bad(learner, new=PROSE, old=CODE, passes=0)
    assert "tokens=0" in bad(learner, tokens=0)
    assert "no text" in bad(learner, new=PROSE, old=iter([]))
    assert "'carol' has read nothing" in bad(learner, user="carol", new=PROSE, old=CODE)
    same(mind(learner), before)
    assert learner.users() == ["default"]
    learner.freeze(0)
    assert "is not frozen" in bad(learner, new=PROSE, old=CODE)
    for levels in ([FAST, replace(SLOW, reset="context")], [replace(FAST, reset=None), SLOW]):
        assert "one that stays" in bad(awake(levels=levels), new=PROSE, old=CODE)
    assert "no bos_token_id" in bad(awake(levels=[FAST, SLOW]))


def test_the_command_does_it_and_bad_input_harms_nothing(tmp_path, monkeypatch):
    """What the library gives from the same memory; a memory without levels to learn from stays as it is."""
    monkeypatch.chdir(tmp_path)
    learner = Learner(a_learner(levels=[FAST, SLOW]).model.float(), byte_tokenizer())
    learner.model.save_pretrained("model")
    learner.tokenizer.save_pretrained("model")
    learner.observe(PROSE)
    learner.save("me.safetensors")
    Path("notes.txt").write_text(PROSE)
    Path("known.txt").write_text(CODE)
    done = nestling(*shlex.split(EXAMPLES["sleep"])[1:])
    assert done.returncode == 0, done.stderr
    night = learner.sleep(new=PROSE, old=CODE, passes=4)
    assert f"{night.new[0]:.4f}, {night.new[1]:.4f}" in done.stdout
    learner.load("me.safetensors", user="woken")
    close(learner._user("woken").cache.memory[1].weights, learner._user("default").cache.memory[1].weights, 1e-5)
    written = Path("me.safetensors").read_bytes()
    done = nestling("sleep", "--model", "model", "--memory", "me.safetensors")
    assert done.returncode == 2 and "no bos_token_id" in done.stderr and "Traceback" not in done.stderr
    assert Path("me.safetensors").read_bytes() == written
