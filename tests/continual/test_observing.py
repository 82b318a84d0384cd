"""What can be read, that it is read whole or not at all, and what is said about it."""

import json
import logging

import pytest
import torch

from nestling.errors import UserError
from tests.continual.test_learner import CODE, PROSE, a_learner, ids_of, mind
from tests.helpers import close, same
from tests.tiny import PERIOD, read

PIECES = [PROSE[:7], "", PROSE[7:8], PROSE[8:]]


def sources(folder):
    """The same text, as everything that can be observed."""
    (folder / "prose.txt").write_text(PROSE)
    (folder / "end.txt").write_text(PROSE[20:])
    return {
        "a list": PIECES,
        "a generator": (piece for piece in PIECES),
        "a file": folder / "prose.txt",
        "a text and a file": [PROSE[:20], folder / "end.txt"],
        "ids": ids_of[PROSE],
        "a list of ids": ids_of[PROSE].tolist(),
        "parts of ids": ids_of[PROSE].split(9),
    }


def test_a_text_is_the_same_however_it_comes(tmp_path):
    """From a string, a file, an iterable of them or ids: one stream."""
    whole = a_learner()
    expected = whole.observe(PROSE)
    for name, text in sources(tmp_path).items():
        learner = a_learner()
        found = learner.observe(text)
        close(found.losses, expected.losses)
        close(mind(learner), mind(whole))
        assert (found.updates, found.tokens) == (expected.updates, expected.tokens), name


def test_a_long_text_is_read_in_parts(monkeypatch):
    """The logits of a long text are never there at once, and what was learnt does not depend on it."""
    whole, parts = a_learner(), a_learner()
    expected = whole.observe(PROSE)
    widths = []
    forward = parts.model.forward

    def watched(ids, **options):
        widths.append(ids.shape[1])
        return forward(ids, **options)

    monkeypatch.setattr("nestling.continual.learner.TOKENS", 3 * PERIOD)
    monkeypatch.setattr(parts.model, "forward", watched)
    found = parts.observe(PROSE)
    assert max(widths) == 3 * PERIOD and sum(widths) == len(PROSE)
    close(found.losses, expected.losses)
    close(mind(parts), mind(whole))


def breaking():
    """A stream that fails in the middle."""
    yield CODE
    raise OSError("the line is dead")


def bad_streams(folder):
    """Streams that cannot be read to their end, and what the error says."""
    (folder / "good.txt").write_text(CODE)
    (folder / "bytes.txt").write_bytes(b"It was \xff\xfe the best")
    return [
        ([folder / "good.txt", folder / "bytes.txt"], UserError, "bytes.txt is not UTF-8 text"),
        (folder / "bytes.txt", UserError, "bytes.txt is not UTF-8 text"),
        ([CODE, folder / "missing.txt"], UserError, "missing.txt does not exist"),
        ([CODE, torch.zeros(2, 2)], UserError, "token ids are"),
        (["", ""], UserError, "no text to read"),
        ([CODE, 5], UserError, "token ids are"),
        (breaking(), OSError, "the line is dead"),
    ]


@pytest.mark.parametrize("read_before", [True, False])
def test_what_cannot_be_read_to_its_end_was_not_read(read_before, tmp_path):
    """One clear sentence; of the parts before it nothing has been learnt, and no user has been made."""
    learner, other = a_learner(), a_learner()
    for one in (learner, other):
        if read_before:
            one.observe(PROSE)
    users = learner.users()
    for text, error, message in bad_streams(tmp_path):
        with pytest.raises(error, match=message) as caught:
            learner.observe(text)
        assert "\n" not in str(caught.value) and learner.users() == users
    same(learner.observe(CODE).losses, other.observe(CODE).losses)


def test_an_observation_says_what_moved_and_is_logged(caplog):
    """Surprise is the norm of the mean gradient that a level moved by last, norms the size of that move."""
    learner = a_learner(levels=[{"period": PERIOD, "lr": 0.25}, {"period": 2 * PERIOD, "lr": 0.5, "clip": 1e-3}])
    with caplog.at_level(logging.INFO, logger="nestling"):
        seen = learner.observe(ids_of[PROSE][: 2 * PERIOD + 1])
    memory = read(learner.model, ids_of[PROSE][None, : PERIOD + 1])[1].memory
    before = torch.stack([d.value.square().sum() for d in memory[0].weights.values()]).sum().sqrt()
    close(memory[0].norm, before[None])
    assert seen.norms[0] == pytest.approx(0.25 * seen.surprise[0])
    assert seen.norms[1] == pytest.approx(0.5e-3) and seen.surprise[1] > 1e-2  # before the clip
    (line,) = caplog.records
    assert "'default'" in line.getMessage() and str(seen.record()) in line.getMessage()
    assert json.loads(json.dumps(seen.record()))["updates"] == [2, 1]
