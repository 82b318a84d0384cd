"""The contract of every configuration of the model: one sequence is one stream, and rows are strangers."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nestling.models import HopeCache
from tests.helpers import close, cuts, differ, gradients, named, relative, row, same
from tests.tiny import LEARNERS, PERIOD, READERS, knowledge, model, read, text

L = 27
every_model = pytest.mark.parametrize("name", READERS)
models_that_learn = pytest.mark.parametrize("name", LEARNERS)


def stream(net, ids, sizes, cache=None):
    """Logits and cache of a text that arrives in pieces."""
    cache, outputs = cache or net.new_cache(), []
    for piece in ids.split(sizes, dim=1):
        outputs.append(read(net, piece, cache)[0])
    return torch.cat(outputs, dim=1), cache


@every_model
@given(sizes=cuts(L))
@example(sizes=[1] * L)
@example(sizes=[PERIOD, PERIOD, 2 * PERIOD, 3])
@settings(max_examples=3)
def test_streaming_is_the_whole(name, sizes):
    """Any split into calls: the same outputs, session, unfinished segment and memory."""
    net, ids = model(name), text(2, L)
    logits, cache = read(net, ids)
    found, streamed = stream(net, ids, sizes)
    close(found, logits)
    close(knowledge(streamed), knowledge(cache))
    assert streamed.get_seq_length() == L


@models_that_learn
def test_streaming_has_the_gradient_of_the_whole(name):
    """The outer gradient does not depend on how many calls delivered the text, either."""
    net, ids, cache, outputs = model(name), text(2, 20), None, []
    for piece in ids.split([3, 8, 9], dim=1):
        out = net(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        outputs.append(out.logits)
    parameters = list(net.parameters())
    whole = gradients(net(ids).logits, parameters)
    close(gradients(torch.cat(outputs, dim=1), parameters), whole)


@every_model
def test_rows_are_strangers(name):
    """Another row's tokens change no bit of this row's logits, session and memory."""
    net, ids = model(name), text(2, L)
    stranger = torch.cat([ids[:1], text(1, L, seed=1)])
    (logits, cache), (found, other) = read(net, ids), read(net, stranger)
    same(found[:1], logits[:1])
    same(row(knowledge(other), 0), row(knowledge(cache), 0))
    differ(found[1:], logits[1:])
    alone, own = read(net, ids[:1])
    close(alone, logits[:1])
    close(named(knowledge(own)), row(knowledge(cache), 0))


def padded(prompts, left):
    """Ragged prompts as a batch with its mask; what stands at the padding is no token of theirs."""
    width = max(map(len, prompts))
    ids, mask = text(len(prompts), width, seed=9), torch.zeros(len(prompts), width, dtype=torch.int64)
    for b, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if left else slice(len(prompt))
        ids[b, place], mask[b, place] = prompt, 1
    return ids, mask


def greedy(net, ids, mask, steps):
    """Greedy decoding of padded rows by hand, with one cache: logits of every step `[B, steps, V]`, and the tokens."""
    logits, cache = read(net, ids, attention_mask=mask)
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    found, tokens = [logits[torch.arange(len(ids)), last]], []
    for _ in range(steps):
        tokens.append(found[-1].argmax(-1, keepdim=True))
        mask = F.pad(mask, (0, 1), value=1)
        found.append(read(net, tokens[-1], cache, attention_mask=mask)[0][:, -1])
    return torch.stack(found[:-1], dim=1), torch.cat(tokens, dim=1)


@every_model
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("lengths", [(20, 15, 4), (3, 14)], ids=str)
def test_a_ragged_batch_is_each_prompt_alone(name, left, lengths):
    """Padded on either side, learning during the prompt and after it: the logits and tokens of each prompt alone."""
    net = model(name)
    prompts = [text(1, length, seed=length)[0] for length in lengths]
    logits, tokens = greedy(net, *padded(prompts, left), steps=8)
    for b, prompt in enumerate(prompts):
        expected, alone = greedy(net, prompt[None], torch.ones(1, len(prompt), dtype=torch.int64), steps=8)
        close(logits[b : b + 1], expected)
        assert torch.equal(tokens[b : b + 1], alone)


@every_model
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("rows", [1, 2])
def test_padding_that_all_rows_have_is_no_token(name, left, rows):
    """One row, or rows of equal length, padded alike (to a multiple of eight, say): the rows without the padding."""
    net, ids, more = model(name), text(rows, 13), text(rows, 9, seed=1)
    sides = (3, 0) if left else (0, 3)
    logits, cache = read(net, F.pad(ids, sides, value=5), attention_mask=F.pad(torch.ones_like(ids), sides))
    expected, other = read(net, ids)
    close(logits[:, sides[0] :][:, :13], expected)
    close(read(net, more, cache)[0], read(net, more, other)[0])


@every_model
@given(t=st.integers(1, L - 1))
@example(t=2 * PERIOD)
@settings(max_examples=2)
def test_the_future_changes_no_output(name, t):
    """Changing token t, which is also the label of an inner update, changes no bit of an output before t."""
    net, ids = model(name), text(2, L)
    changed = ids.clone()
    changed[:, t] = (ids[:, t] - 1) % 22 + 2
    logits, found = read(net, ids)[0], read(net, changed)[0]
    assert not torch.equal(ids, changed)
    same(found[:, :t], logits[:, :t])
    differ(found[:, t:], logits[:, t:])


@every_model
def test_training_and_evaluation_are_one(name):
    """No mode changes a bit; neither does recording a graph, an inference mode, or running again under the seed."""
    net, ids = model(name), text(2, L)
    expected = read(net, ids)[0]
    same(net.train()(ids).logits.detach(), expected)
    same(read(model(name), ids)[0], expected)
    with torch.inference_mode():
        found = net.eval()(ids, use_cache=True)
        same(found.logits, expected)
        more = net(text(2, 9, seed=1), past_key_values=found.past_key_values, use_cache=True).logits
    cache = read(net, ids)[1]
    same(more, read(net, text(2, 9, seed=1), cache)[0])


@every_model
def test_an_inference_mode_leaves_nothing_behind(name):
    """What was read in inference mode can be continued outside of it, and trained through."""
    net, ids = model(name), text(2, L)
    with torch.inference_mode():
        cache = net(ids[:, :16], use_cache=True).past_key_values
    out = net(ids[:, 16:], past_key_values=cache)
    close(out.logits.detach(), read(net, ids)[0][:, 16:])
    assert gradients(out.logits, [net.get_output_embeddings().weight])[0].any()


@every_model
def test_low_precision_is_near(name):
    """float32 stays within 1e-4 of float64, learning included."""
    net, ids = model(name, initializer_range=0.1), text(2, L)
    expected, cache = read(net, ids)
    single = model(name, initializer_range=0.1).float()
    logits, found = read(single, ids)
    assert logits.dtype == torch.float32 and relative(logits, expected) < 1e-4
    if name in LEARNERS:
        pairs = zip(named(found.memory).items(), named(cache.memory).values(), strict=True)
        values = [(mine, theirs) for (n, mine), theirs in pairs if n.endswith("value")]
        assert all(torch.equal(mine.any(), theirs.any()) for mine, theirs in values)  # zero after a reset
        assert max(relative(mine, theirs) for mine, theirs in values if theirs.any()) < 1e-3


@models_that_learn
def test_a_state_is_bounded_and_plain(name):
    """Plain tensors with rows in front, and none grows with what was read (attention has a window here)."""
    net, sizes, cache = model(name), [], None
    for seed in range(3):
        _, cache = stream(net, text(2, 36, seed), [16, 1, 19], cache)
        tensors = named(knowledge(cache))
        assert all(type(t) is torch.Tensor and t.shape[0] == 2 for t in tensors.values())
        sizes.append(sum(t.numel() for t in tensors.values()))
    assert sizes[0] == sizes[1] == sizes[2]


@models_that_learn
def test_no_learning_is_no_memory(name):
    """With "off" no level moves, and the logits are those of a model configured so."""
    net, ids = model(name), text(2, L)
    logits, cache = read(net, ids, HopeCache("off"))
    assert cache.memory is None
    same(logits, read(model(name, learning="off"), ids)[0])
    differ(logits, read(net, ids)[0])
