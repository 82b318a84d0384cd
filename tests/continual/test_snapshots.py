"""A user's past and others' futures: snapshots, rolling back, forks; levels that stand still or go back; restarts."""

import json
import os
import subprocess
import sys

import pytest
import torch

from nestling.continual import Learner
from nestling.errors import UserError
from nestling.train import byte_tokenizer
from tests.continual.test_learner import CODE, PROSE, a_learner, ids_of, mind
from tests.helpers import differ, same
from tests.tiny import PERIOD, model

every_learner = pytest.mark.parametrize("name", ["hope", "hope-attention", "hope-optimised", "llama"])


def converted_or_not(name):
    return Learner(model(name, vocab_size=384, **({"window": 6 * PERIOD} if name == "llama" else {})), byte_tokenizer())


def values(learner, level, user="default"):
    """What a level holds."""
    return {n: d.value for n, d in learner._user(user).cache.memory[level].weights.items()}


@every_learner
def test_rolling_back_is_not_having_read(name):
    """In the middle of a segment, too: memory, session and what is read next are those of one who stopped there."""
    learner, other = converted_or_not(name), converted_or_not(name)
    for one in (learner, other):
        one.observe(PROSE[:27])
    before = learner.snapshot()
    learner.observe(CODE)
    learner.end_context()
    assert before == "1" and learner.snapshot() == "2" and learner.snapshot(name="later") == "later"
    learner.rollback("default", before)
    same(mind(learner), mind(other))
    assert learner.snapshots() == ["1", "2", "later"] and learner.snapshot() == "3"
    same(learner.observe(PROSE[27:]).losses, other.observe(PROSE[27:]).losses)
    learner.rollback("default", "2")
    learner.rollback("default", before)  # a snapshot can be taken up any number of times
    assert learner.observe(PROSE[27:]).tokens == len(PROSE) - 27


def test_a_user_who_read_nothing_can_go_back_to_it():
    """A snapshot before the first token is the state of a new user."""
    learner, new = a_learner(), a_learner()
    learner.snapshot(name="empty")
    learner.observe(PROSE)
    learner.rollback("default", "empty")
    same(learner.observe(CODE).losses, new.observe(CODE).losses)


@every_learner
def test_a_fork_knows_the_same_and_learns_alone(name):
    """The new user is the old one bit for bit; then neither notices what the other reads."""
    learner, other = converted_or_not(name), converted_or_not(name)
    learner.observe(PROSE, user="alice")
    other.observe(PROSE, user="alice")
    mark = learner.snapshot("alice")
    learner.fork("alice", "bob")
    same(mind(learner, "bob"), mind(learner, "alice"))
    assert learner.users() == ["alice", "bob"] and learner.snapshots("bob") == [mark]
    learner.observe(CODE, user="bob")
    learner.snapshot("bob", "own")
    assert learner.snapshots("alice") == [mark]
    same(mind(learner, "alice"), mind(other, "alice"))
    same(learner.observe(CODE, user="alice").losses, other.observe(CODE, user="alice").losses)


@every_learner
@pytest.mark.parametrize("level", [0, 1])
def test_a_frozen_level_stands_still_and_goes_on(name, level):
    """No bit of it changes while it is frozen, the other level learns, and its clock goes on where it stopped."""
    learner = converted_or_not(name)
    learner.observe(ids_of[PROSE][:27])
    before = learner._user("default").cache.memory
    learner.freeze(level)
    seen = learner.observe(CODE)
    after = learner._user("default").cache.memory
    frozen = before[level]
    same({**after[level].weights, "clock": after[level].gathered}, {**frozen.weights, "clock": frozen.gathered})
    differ(after[1 - level], before[1 - level])
    assert seen.updates[level] == int(frozen.updates) and seen.updates[1 - level] > int(before[1 - level].updates)
    learner.unfreeze(level)
    learner.observe(ids_of[PROSE][: 2 * PERIOD])
    differ(learner._user("default").cache.memory[level], frozen)
    learner.observe(PROSE, user="another")
    assert not learner._user("another").cache.memory[level].frozen.any()


def test_a_frozen_level_outlives_its_context():
    """With reset="context" it would go back to its start; frozen it does not, and unfrozen it does again."""
    learner = a_learner("hope-attention")
    learner.observe(PROSE)
    learner.freeze(0)
    before = values(learner, 0)
    learner.end_context()
    same(values(learner, 0), before)
    learner.unfreeze(0)
    learner.end_context()
    assert not any(value.any() for value in values(learner, 0).values())


def test_a_level_frozen_from_the_start_is_a_level_of_rate_zero():
    """The other one learns as if it were alone."""
    learner = a_learner()
    learner.freeze(0)
    rates = [{"period": PERIOD, "lr": 0.0}, learner.model.levels[1]]
    same(learner.observe(PROSE).losses, a_learner(levels=rates).observe(PROSE).losses)


def test_a_level_that_is_reset_is_where_it_began():
    """It holds nothing and has gathered nothing; the other level and the stream are as they were."""
    learner = a_learner()
    learner.observe(PROSE)
    before = learner._user("default").cache
    memory, session = before.memory, before.session
    learner.reset(1)
    after = learner._user("default").cache
    assert not any(value.any() for value in values(learner, 1).values()) and not after.memory[1].gathered.any()
    assert memory[1].weights.keys() == after.memory[1].weights.keys()
    same((after.memory[0], after.session), (memory[0], session))
    assert learner.observe(CODE).updates[1] > int(memory[1].updates)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.rollback("default", "9"), "'default' has no snapshot '9'; there are: '1'"),
        (lambda one: one.rollback("nobody", "1"), "'nobody' has no snapshot '1'; there are: none"),
        (lambda one: one.snapshot(name="1"), "'1' exists already"),
        (lambda one: one.snapshot(name="a/b"), "no name of a snapshot"),
        (lambda one: one.snapshot(name=""), "no name of a snapshot"),
        (lambda one: one.fork("nobody", "bob"), "no user 'nobody'; there are: 'default'"),
        (lambda one: one.fork("default", "default"), "'default' has a memory already"),
        (lambda one: one.freeze(2), "no level 2; levels are 0, the fastest, to 1"),
        (lambda one: one.reset(-1), "no level -1"),
    ],
)
def test_what_does_not_exist_raises(call, message):
    """One clear sentence that says what there is; nothing has changed."""
    learner, other = a_learner(), a_learner()
    for one in (learner, other):
        one.observe(PROSE)
        one.snapshot()
    with pytest.raises(UserError, match=message) as caught:
        call(learner)
    assert "\n" not in str(caught.value) and learner.users() == ["default"] and learner.snapshots() == ["1"]
    same(mind(learner), mind(other))


OTHER_PROCESS = """
import json, sys, torch
from nestling.continual import Learner
from nestling.models import HopeForCausalLM
from nestling.train import byte_tokenizer
torch.set_num_threads(1)
learner = Learner(HopeForCausalLM.from_pretrained(sys.argv[1] + "/model"), byte_tokenizer())
learner.load(sys.argv[1] + "/memory")
assert learner.snapshots() == ["before", "start"], learner.snapshots()
frozen = learner.observe(sys.argv[2])
learner.rollback("default", "before")
back = learner.observe(sys.argv[2])
learner.rollback("default", "start")
new = learner.observe(sys.argv[2])
print(json.dumps([[one.losses.tolist(), one.updates] for one in (frozen, back, new)]))
"""


def test_a_restart_forgets_no_snapshot_and_no_freeze(tmp_path):
    """Saved, and loaded by another process: what stands still does, and every snapshot is what it was, bit for bit."""
    learner = Learner(model("hope-attention", vocab_size=384).float(), byte_tokenizer())
    learner.snapshot(name="start")
    learner.observe(PROSE[:27])
    learner.snapshot(name="before")
    learner.observe(PROSE[27:])
    learner.freeze(1)
    learner.model.save_pretrained(tmp_path / "model")
    learner.save(tmp_path / "memory")
    arguments = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path), CODE]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment, timeout=300)
    expected = []
    for start in (None, "before", "start"):
        if start:
            learner.rollback("default", start)
        seen = learner.observe(CODE)
        expected.append([seen.losses.tolist(), seen.updates])
    assert json.loads(done.stdout) == expected and expected[0][1][1] == 4


def test_what_was_frozen_and_reset_is_merged_as_it_stands():
    """A plain model says what the user's stream would say: frozen levels count, reset ones do not."""
    learner = converted_or_not("llama")
    learner.observe(CODE)
    learner.freeze(1)
    learner.reset(0)
    plain = learner.merge()
    with torch.no_grad():
        logits = plain(ids_of[PROSE][None]).logits
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], ids_of[PROSE][1:], reduction="none")
    torch.testing.assert_close(
        losses[: PERIOD * 6 - 1], learner.evaluate(PROSE)[: PERIOD * 6 - 1], rtol=1e-9, atol=1e-9
    )
