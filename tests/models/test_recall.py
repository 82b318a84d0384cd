"""Recall: against a loop over tokens written from its equation, and what it is for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.models import HopeCache, HopeConfig, HopeForCausalLM, Recall, recall
from nestling.models.recall import given_to, nothing_yet, recalled
from tests.helpers import close, gradients, same
from tests.tiny import model, read, text

V, D = 7, 5
SETTINGS = Recall(window=6, sharpness=3.0, share=0.7, prior=0.2)


def by_hand(settings, logits, hidden, ids):
    """Of one row `[L, ..]`: every token's sum over the window before it, in Python."""
    rows = []
    for t in range(len(ids)):
        own, votes, total = logits[t].softmax(-1), [0.0] * V, 0.0
        for s in range(max(0, t - settings.window), t):
            cosine = torch.dot(hidden[t], hidden[s]) / hidden[t].norm() / hidden[s].norm()
            weight = (settings.sharpness * (cosine - 1)).exp()
            votes[ids[s + 1]] = votes[ids[s + 1]] + weight
            total = total + weight
        share = settings.share * total / (total + settings.prior)
        kept = [(1 - share) * p + (share * v / total if t else 0.0) for p, v in zip(own, votes, strict=True)]
        rows.append(torch.stack(kept).log())
    return torch.stack(rows)


def drawn(rows, length, grad=False):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, V, (rows, length), generator=generator)
    shapes = (rows, length, V), (rows, length, D)
    logits, hidden = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return logits.requires_grad_(grad), hidden.requires_grad_(grad), ids


@pytest.mark.parametrize("queries", [1, 4, 256])
def test_the_equation(queries, monkeypatch):
    """Outputs and gradients of a loop over tokens, however many queries are answered at once."""
    monkeypatch.setattr(recall, "QUERIES", queries)
    logits, hidden, ids = drawn(2, 23, grad=True)
    found, _ = recalled(SETTINGS, logits, hidden, ids, None, nothing_yet(SETTINGS, 2, hidden))
    expected = torch.stack([by_hand(SETTINGS, *row) for row in zip(logits, hidden, ids, strict=True)])
    close(found, expected)
    close(gradients(found, (logits, hidden)), gradients(expected, (logits, hidden)))


@given(st.lists(st.integers(0, 9), min_size=3, max_size=6), st.lists(st.integers(0, 9), min_size=3, max_size=6))
@settings(max_examples=30, deadline=None)
def test_ragged_calls_are_each_row_alone(first, second):
    """Two rows whose calls bring any numbers of tokens, none too: each is what it is in one call by itself."""
    calls = list(zip(first, second, strict=False))
    totals = [sum(row) for row in zip(*calls, strict=True)]
    whole = [drawn(1, max(total, 1)) for total in totals]
    recent, places = nothing_yet(SETTINGS, 2, whole[0][1]), [0, 0]
    for counts in calls:
        width = max(1, *counts)
        logits, hidden, ids = (torch.zeros(2, width, *x.shape[2:], dtype=x.dtype) for x in whole[0])
        for b, (count, place) in enumerate(zip(counts, places, strict=True)):
            for padded, x in zip((logits, hidden, ids), whole[b], strict=True):
                padded[b, :count] = x[0, place : place + count]
                padded[b, count:] = 1
        found, recent = recalled(SETTINGS, logits, hidden, ids, torch.tensor(counts), recent)
        for b, (count, place) in enumerate(zip(counts, places, strict=True)):
            expected = by_hand(SETTINGS, *(x[0] for x in whole[b]))
            close(found[b, :count], expected[place : place + count])
        places = [place + count for place, count in zip(places, counts, strict=True)]


def test_nothing_alike_changes_nothing():
    """Where no key is near the share goes to nothing, and the first token has none: what is said is the model's own."""
    sharp = Recall(window=6, sharpness=1e4)
    logits, _, ids = drawn(1, 5)
    hidden = torch.eye(5, dtype=torch.float64)[None]
    found, _ = recalled(sharp, logits, hidden, ids, None, nothing_yet(sharp, 1, hidden))
    close(found, logits.log_softmax(-1))


def test_what_is_said_is_a_distribution_and_survives_extremes():
    """Probabilities sum to one and no logarithm is infinite, also where the model is certain and wrong."""
    logits, hidden, ids = drawn(2, 40)
    for scale in (1.0, 1e6):
        found, _ = recalled(SETTINGS, scale * logits, hidden, ids, None, nothing_yet(SETTINGS, 2, hidden))
        assert found.isfinite().all()
        close(found.exp().sum(-1), torch.ones(2, 40, dtype=torch.float64), tolerance=1e-12)


def test_it_says_what_came_after_before():
    """An untrained model that meets a sequence of distinct tokens again predicts it, from the second token of the return on."""
    torch.manual_seed(0)
    config = HopeConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, mixer="attention", levels=[], eos_token_id=None
    )
    config.recall = Recall(sharpness=20.0, share=0.9).to_dict()
    net = HopeForCausalLM(config).eval()
    ids = torch.randperm(60)[:24].repeat(2)[None]
    logits, _ = read(net, ids)
    assert (logits[0, 24:-1].argmax(-1) == ids[0, 25:]).all()
    config.recall = None
    assert (read(HopeForCausalLM(config).eval(), ids)[0][0, 24:-1].argmax(-1) == ids[0, 25:]).float().mean() < 0.2


def test_what_levels_learn_does_not_depend_on_it():
    """The memory after a text is, bit for bit, that of the model without a recall."""
    ids = text(2, 40)
    same(read(model("hope-recall"), ids)[1].memory, read(model("hope-recall", recall=None), ids)[1].memory)


def test_a_new_context_recalls_nothing():
    net, ids = model("hope-recall"), text(1, 20)
    _, cache = read(net, ids)
    cache.learning = "off"
    cache.reset()
    assert cache.recent is None
    same(read(net, ids, cache)[0], read(net, ids, HopeCache("off", cache.memory))[0])


def test_the_head_is_heard_once():
    """No hook stays behind."""
    head = torch.nn.Linear(2, 3)
    with given_to(head) as found:
        head(torch.ones(1, 2))
    head(torch.zeros(1, 2))
    assert len(found) == 1 and found[0].sum() == 2


@pytest.mark.parametrize(
    "given, says",
    [
        ({"window": 0}, "window=0 of a recall must be a whole number, at least 1"),
        ({"share": 1.0}, "share=1.0 of a recall must be between 0 and 1"),
        ({"sharpness": math.inf}, "sharpness=inf of a recall must be above 0, and finite"),
        ({"prior": 0.0}, "prior=0.0 of a recall must be above 0, and finite"),
        ({"width": 3}, r"unknown key \['width'\] of a recall"),
    ],
)
def test_bad_settings(given, says):
    with pytest.raises(ValueError, match=says):
        HopeConfig(recall=given)


def test_embeddings_are_no_tokens():
    net = model("recall")
    with pytest.raises(ValueError, match="a recall needs input_ids"):
        net(inputs_embeds=net.embed(text(1, 4)))
