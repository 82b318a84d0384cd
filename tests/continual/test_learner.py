"""A model that keeps learning: one user is one stream, users are strangers, and what was learnt is data."""

import pytest
import torch
from torch.nn import functional as F

from nestling.continual import Learner
from nestling.errors import UserError
from nestling.levels import Level
from nestling.models import HopeCache, HopeConfig, HopeForCausalLM, Recall
from nestling.train import byte_tokenizer, encode
from tests.helpers import close, differ, named, same
from tests.tiny import PERIOD, knowledge, model

PROSE = "It was the best of times, it was the worst of times."
CODE = "def read(path):\n    with open(path) as file:\n        return file\n"
ids_of = {text: encode(byte_tokenizer(), text) for text in (PROSE, CODE)}
every_learner = pytest.mark.parametrize("name", ["hope", "hope-attention", "hope-optimised"])


def a_learner(name="hope-attention", **changes):
    return Learner(model(name, vocab_size=384, **changes), byte_tokenizer())


def mind(learner, user="default"):
    """What a learner keeps for a user."""
    state = learner._user(user)
    return knowledge(state.cache), state.logits


@every_learner
def test_observing_in_pieces_is_observing_at_once(name):
    """Losses, memory and session do not depend on how many calls delivered the text."""
    whole, parts = a_learner(name), a_learner(name)
    expected = whole.observe(PROSE)
    found = [parts.observe(PROSE[a:b]) for a, b in ((0, 1), (1, 3), (3, 40), (40, 41), (41, None))]
    close(torch.cat([part.losses for part in found]), expected.losses)
    close(mind(parts), mind(whole))
    assert found[-1].updates == expected.updates and sum(part.tokens for part in found) == expected.tokens


@every_learner
def test_losses_are_of_predictions_made_before_learning(name):
    """The first period's are those of the frozen model, later ones are not; the mean is their mean."""
    learner, ids = a_learner(name), ids_of[PROSE][None]
    seen = learner.observe(PROSE)
    with torch.no_grad():
        logits = learner.model(ids, past_key_values=HopeCache("off")).logits
    frozen = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    close(seen.losses[:PERIOD], frozen[:PERIOD])
    differ(seen.losses[PERIOD:], frozen[PERIOD:])
    assert seen.tokens == ids.shape[1] - 1 and seen.loss == pytest.approx(seen.losses.mean().item())


def test_an_observation_says_what_moved():
    """Updates of each level so far, the size of the last one, and how many were refused."""
    learner = a_learner()
    first = learner.observe(ids_of[PROSE][:PERIOD])
    assert first.updates == [0, 0] and first.surprise == [0.0, 0.0] and first.refused == 0
    last = learner.observe(ids_of[PROSE][PERIOD : 4 * PERIOD + 1])
    assert last.updates == [4, 2] and min(last.surprise) > 0
    fresh = learner.observe(ids_of[PROSE][:1], user="new")
    assert fresh.tokens == 0 and fresh.loss != fresh.loss  # nothing was predicted


@every_learner
def test_users_are_strangers(name):
    """Two users whose texts come in turns each have the stream they would have alone, bit for bit."""
    both, alice, bob = a_learner(name), a_learner(name), a_learner(name)
    for a, b in ((0, 20), (20, 33), (33, 60)):
        for text, user, alone in ((PROSE, "alice", alice), (CODE, "bob", bob)):
            same(both.observe(text[a:b], user=user).losses, alone.observe(text[a:b], user=user).losses)
    for user, alone in (("alice", alice), ("bob", bob)):
        same(mind(both, user), mind(alone, user))
    assert both.users() == ["alice", "bob"]


def test_reading_makes_it_better_at_what_was_read():
    """The loss on a text that was read is lower than before; the model's own weights never move."""
    learner = a_learner()
    weights = {n: w.clone() for n, w in learner.model.state_dict().items()}
    before = learner.evaluate(CODE)
    learner.observe(CODE * 3)
    assert learner.evaluate(CODE).mean() < 0.8 * before.mean()
    same(dict(learner.model.state_dict()), weights)
    close(learner.evaluate(CODE, user="another"), before)


@every_learner
def test_answering_and_evaluating_learn_nothing(name):
    """Neither changes a bit of what is kept, and the stream goes on as if they had not been."""
    learner, other = a_learner(name), a_learner(name)
    for one in (learner, other):
        one.observe(PROSE)
    answer = learner.generate(CODE, max_new_tokens=12)
    learner.evaluate(CODE, piece=7)
    same(mind(learner), mind(other))
    assert learner.generate(CODE, max_new_tokens=12) == answer
    same(learner.observe(CODE).losses, other.observe(CODE).losses)


def test_a_memory_changes_the_answer_of_its_user_only():
    """What was learnt is used to answer, with beams and samples too, for that user and no other."""
    learner = a_learner()
    ignorant = learner.generate("def ", user="bob", max_new_tokens=20)
    learner.observe(CODE * 5, user="alice")
    assert learner.generate("def ", user="alice", max_new_tokens=20) != ignorant
    assert learner.generate("def ", user="bob", max_new_tokens=20) == ignorant
    for options in ({"num_beams": 2}, {"do_sample": True}):
        assert isinstance(learner.generate("def ", user="alice", max_new_tokens=5, **options), str)


def test_looking_makes_no_user():
    """Only who was read for has a memory: evaluating or answering for a name does not enter it."""
    learner = a_learner()
    learner.evaluate(CODE, user="carol")
    learner.generate("def ", user="dave", max_new_tokens=2)
    assert learner.users() == []


def test_evaluation_is_of_the_text_alone():
    """However it is cut, and whatever was read before: the losses are those of the text from its start."""
    learner = a_learner()
    expected = learner.evaluate(CODE)
    close(learner.evaluate(CODE, piece=5), expected)
    with torch.no_grad():
        logits = learner.model(ids_of[CODE][None], past_key_values=HopeCache("off")).logits
    close(expected, F.cross_entropy(logits[0, :-1], ids_of[CODE][1:], reduction="none"))


def test_the_end_of_a_context_resets_the_fast_level_and_keeps_the_slow():
    """The session ends; the level with reset="context" is at its start again, the other is where it was."""
    learner = a_learner("hope-attention")
    learner.observe(PROSE)
    fast, slow = learner._user("default").cache.memory
    learner.end_context()
    cache = learner._user("default").cache
    assert any(d.value.any() for d in fast.weights.values())
    assert not any(d.value.any() for d in cache.memory[0].weights.values())
    same({n: d.value for n, d in cache.memory[1].weights.items()}, {n: d.value for n, d in slow.weights.items()})
    assert cache.session is None and cache.get_seq_length() == 0
    assert learner.observe(CODE).tokens == len(CODE) - 1  # a new text begins: its first byte had no token before it


def test_the_end_of_a_context_loses_no_token():
    """The unfinished segment is learnt as far as it has labels: the slow level's clock has counted them."""
    learner = a_learner("hope-attention")
    learner.observe(ids_of[PROSE][: PERIOD + 4])
    learner.end_context()
    assert learner._user("default").cache.memory[1].gathered.item() == PERIOD + 3


def test_a_context_may_end_before_it_began_and_twice():
    """Ending what holds no token changes nothing: not the memory, and not what is read next."""
    learner, other = a_learner(), a_learner()
    learner.end_context()
    close(learner.observe(PROSE).losses, other.observe(PROSE).losses)
    learner.end_context()
    kept = learner._user("default").cache.memory
    learner.end_context()
    same(learner._user("default").cache.memory, kept)


def test_calibration_moves_nothing_and_protects():
    """A calibrated learner says what it said before; learning something new then costs less of what it knew."""
    plain, shown = a_learner(), a_learner()
    before = plain.evaluate(PROSE)
    assert shown.calibrate(PROSE) == len(PROSE)
    close(shown.evaluate(PROSE), before)
    drift = []
    for learner in (plain, shown):
        learner.observe(CODE * 2)
        learner.end_context()  # what the slow level keeps
        drift.append((learner.evaluate(PROSE) - before).norm().item())
    assert 1e-3 < drift[1] < drift[0]


def test_the_bytes_of_a_memory_are_those_of_its_tensors():
    """Of a user who has read, whatever the length; a user who has not has none, and zeros take no room."""
    learner = a_learner()
    assert learner.memory_bytes() == 0
    learner.observe(PROSE)
    held = learner.memory_bytes()
    moved = sum(weight.nbytes for weight in learner.model.learnable_weights().values())
    most = sum(tensor.nbytes for tensor in named(learner.memory("default")).values())
    assert 2 * moved < held <= most
    learner.observe(CODE)
    assert 2 * moved < learner.memory_bytes() <= most


def test_forgetting_leaves_nothing():
    """A forgotten user is a new one; others stay."""
    learner, new = a_learner(), a_learner()
    learner.observe(PROSE, user="alice")
    learner.observe(PROSE, user="bob")
    kept = mind(learner, "bob")
    learner.forget("alice")
    learner.forget("nobody")
    assert learner.users() == ["bob"]
    same(mind(learner, "bob"), kept)
    same(learner.observe(CODE, user="alice").losses, new.observe(CODE).losses)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (torch.zeros(0, dtype=torch.int64), r"\(0,\)"),
        (torch.zeros(2, 3), "float32"),
        ([[1, 2]], r"\(1, 2\)"),
    ],
)
def test_a_text_that_is_none_raises(text, message):
    """One clear sentence, and what was learnt is as it was."""
    learner = a_learner()
    learner.observe(PROSE)
    kept = mind(learner)
    for call in (learner.observe, learner.evaluate, learner.calibrate, learner.generate):
        with pytest.raises(UserError, match=message) as caught:
            call(text)
        assert "\n" not in str(caught.value)
    same(mind(learner), kept)


@pytest.mark.parametrize(
    ("name", "changes"), [("transformer++", {}), ("hope", {"learning": "off"}), ("hope", {"learning": "parameter"})]
)
def test_a_model_that_cannot_learn_while_reading_raises(name, changes):
    """The message says which setting to change."""
    with pytest.raises(ValueError, match="needs a HopeConfig with levels and learning='context'"):
        a_learner(name, **changes)


def test_what_was_read_can_be_asked_for_where_the_stream_stands():
    """With a recall a number that was read once is said when its sentence comes again; asking changes nothing."""
    torch.manual_seed(0)
    settings = {"mixer": "attention", "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 64}
    recall = Recall(share=0.9, sharpness=1e4)  # nearly the one that is nearest
    config = HopeConfig(**settings, levels=[Level(64, lr=0.01)], sliding_window=16, recall=recall)
    learner = Learner(HopeForCausalLM(config), byte_tokenizer())
    learner.observe("Nothing much has happened. The key of room 7 is 4F-19. After that nobody came by.")
    before = learner.evaluate("After that")
    assert learner.generate(" The key of room 7 is ", apart=False, max_new_tokens=5) == "4F-19"
    assert learner.generate(" The key of room 7 is ", max_new_tokens=5) != "4F-19"
    assert torch.equal(learner.evaluate("After that"), before)
    answer = learner.generate("After", apart=False, max_new_tokens=3, user="nobody")
    assert answer == learner.generate("After", max_new_tokens=3, user="nobody") and "nobody" not in learner.users()
