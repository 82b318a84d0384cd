"""A user chooses what is learnt: answers and no prompts, or a class in the next token's place."""

import pytest
import torch

from nestling.errors import UserError
from nestling.levels import Level
from tests.continual.test_learner import CODE, PROSE, a_learner, every_learner, ids_of, mind
from tests.helpers import close, differ, same
from tests.tiny import PERIOD, text

NOTHING = -100


def half_taught(ids):
    """Labels that leave out every other stretch of five tokens."""
    return ids.where(torch.arange(len(ids)) % 10 < 5, NOTHING)


@every_learner
def test_labels_come_in_pieces_with_their_text(name, tmp_path):
    """However the text is cut, and saved and loaded in the middle of a segment: one stream."""
    whole, parts = a_learner(name), a_learner(name)
    ids = ids_of[PROSE]
    labels, found = half_taught(ids), []
    expected = whole.observe(ids, labels=labels)
    for a, b in ((0, 1), (1, 3), (3, PERIOD), (PERIOD, 40), (40, len(ids))):
        found.append(parts.observe(ids[a:b], labels=labels[a:b].tolist()))
        parts.save(tmp_path / "memory")
        parts = a_learner(name)
        parts.load(tmp_path / "memory")
    close(torch.cat([part.losses for part in found]), expected.losses)
    close(mind(parts), mind(whole))
    untaught = a_learner(name)
    untaught.observe(ids)
    differ(mind(untaught)[0], mind(whole)[0])


@every_learner
def test_the_text_is_its_own_label(name):
    """`labels` that are the tokens are none; and the losses are those of the tokens, whatever is learnt."""
    one, other, masked = a_learner(name), a_learner(name), a_learner(name)
    expected = one.observe(PROSE)
    same(other.observe(PROSE, labels=ids_of[PROSE]).losses, expected.losses)
    same(mind(other), mind(one))
    found = masked.observe([PROSE[:20], PROSE[20:]], labels=NOTHING)
    same(found.losses[:PERIOD], expected.losses[:PERIOD])
    assert found.tokens == expected.tokens and found.updates == [0, 0] and found.refused == 0


def test_labels_with_nothing_to_learn_are_read():
    """A converted model whose rates are all 0 reads as without them."""
    levels = [Level(PERIOD)]
    one, other = a_learner("llama", levels=levels, window=60), a_learner("llama", levels=levels, window=60)
    same(one.observe(PROSE, labels=half_taught(ids_of[PROSE])).losses, other.observe(PROSE).losses)


def test_labels_that_do_not_fit_raise():
    """One clear sentence, and nothing of the text has been read."""
    learner, other = a_learner(), a_learner()
    for one in (learner, other):
        one.observe(PROSE)
    ids = ids_of[CODE]
    for given, labels, error, message in (
        (
            CODE,
            ids[1:],
            UserError,
            rf"labels are \({len(ids) - 1},\) torch.int64; expected one number, or \({len(ids)},\)",
        ),
        (CODE, ids.float(), UserError, r"torch.float32; expected one number"),
        (CODE, 0.5, UserError, r"labels are \(\) torch.float32"),
        ([CODE, CODE], ids, UserError, "labels of several texts are one number for all"),
        (CODE, 5000, ValueError, "lessons must be tokens, 0 to 383, or -100"),
    ):
        with pytest.raises(error, match=message) as caught:
            learner.observe(given, labels=labels)
        assert "\n" not in str(caught.value)
    same(mind(learner), mind(other))


def conversation(turns):
    """A prompt and an answer, again and again: tokens, and where the answers are."""
    return text(1, 14)[0].repeat(turns), (torch.arange(14) >= 8).repeat(turns)


@pytest.mark.parametrize("name", ["hope", "hope-attention"])
def test_who_learns_the_answers_does_not_learn_the_prompts(name):
    """The answers as well as one who learns everything, of what that one learns of the prompts hardly anything."""
    ids, answers = conversation(40)
    shown, where = ids[:28], answers[1:28]
    gains = {}
    for user, labels in {"all": ids, "answers": ids.where(answers, NOTHING)}.items():
        learner = a_learner(name, levels=[Level(PERIOD, lr=0.3)])
        before = learner.evaluate(shown, user)
        learner.observe(ids, user, labels=labels)
        gain = before - learner.evaluate(shown, user)
        gains[user] = {"answers": gain[where].mean(), "prompts": gain[~where].mean()}
    assert gains["answers"]["answers"] > 0.8 * gains["all"]["answers"] > 1.0
    assert gains["answers"]["prompts"] < 0.2 * gains["all"]["prompts"]


def test_a_class_in_the_place_of_the_next_token():
    """Two phrases, and after each of them a mark: not the mark is learnt there but the class, and told apart."""
    mark, classes = 23, (2, 3)
    phrases = [text(1, 5, seed=seed)[0] for seed in (1, 2)]
    order = torch.randint(2, (80,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.cat([torch.cat([phrases[c], torch.tensor([mark])]) for c in order])
    labels = torch.full_like(ids, NOTHING)
    labels[PERIOD - 1 :: PERIOD] = torch.tensor([classes[c] for c in order])
    learner = a_learner("hope-attention", levels=[Level(2 * PERIOD, lr=0.3)])
    learner.observe(ids, labels=labels)
    for c, phrase in enumerate(phrases):
        answers = [
            learner.evaluate(torch.cat([phrase, torch.tensor([k])]))[-1] for k in (classes[c], classes[1 - c], mark)
        ]
        assert answers[0] < 0.5 and answers[1] > 2.0 and answers[2] > 2.0
