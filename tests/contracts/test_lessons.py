"""What levels learn from: lessons in place of the next token, for every model that learns, and their mean by hand."""

from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from torch.nn import functional as F

from nestling.levels import Level, StepOf
from nestling.memory import RetainSeen
from nestling.models import HopeCache
from nestling.models.reading import flush
from nestling.ops.state import tree_map
from tests.helpers import close, cuts, differ, row, same
from tests.tiny import LEARNERS, PERIOD, SLOW, VOCAB, knowledge, model, read, text

L = 27
NOTHING = -100
models_that_learn = pytest.mark.parametrize("name", LEARNERS)
PLAIN = [Level(PERIOD, lr=0.3), Level(2 * PERIOD, lr=0.5)]


def lessons_for(ids, seed=5):
    """Random lessons, about half of them missing; the second of four periods teaches the first row nothing."""
    generator = torch.Generator().manual_seed(seed)
    taught = torch.rand(ids.shape, generator=generator) < 0.5
    taught[0, PERIOD + 1 : 2 * PERIOD + 1] = False
    return torch.randint(2, VOCAB, ids.shape, generator=generator).where(taught, NOTHING)


@models_that_learn
def test_the_tokens_are_the_lessons(name):
    """Without lessons it is the text itself that is learnt, bit for bit; other lessons make other weights."""
    net, ids = model(name), text(2, L)
    logits, cache = read(net, ids)
    found, taught = read(net, ids, lessons=ids.clone())
    same(found, logits)
    same(knowledge(taught), knowledge(cache))
    differ(read(net, ids, lessons=lessons_for(ids))[0][:, PERIOD:], logits[:, PERIOD:])


@models_that_learn
@given(sizes=cuts(L))
@example(sizes=[1] * L)
@example(sizes=[PERIOD, PERIOD, 2 * PERIOD, 3])
@settings(max_examples=3)
def test_streaming_with_lessons_is_the_whole(name, sizes):
    """Any split into calls: the same outputs and memory, and the same of the unfinished segment once it is learnt."""
    net, ids = model(name), text(2, L)
    lessons, streamed, outputs = lessons_for(ids), net.new_cache(), []
    logits, cache = read(net, ids, lessons=lessons)
    for piece, taught in zip(ids.split(sizes, dim=1), lessons.split(sizes, dim=1), strict=True):
        outputs.append(read(net, piece, streamed, lessons=taught)[0])
    close(torch.cat(outputs, dim=1), logits)
    close(knowledge(streamed), knowledge(cache))
    for one in (cache, streamed):
        flush(net, one)
    close(streamed.memory, cache.memory)


@models_that_learn
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_lessons_of_a_ragged_batch_are_each_rows_own(name, left):
    """Padded on either side, in two calls; at padding a lesson is none."""
    net, lengths, split = model(name), (L, 14), 10
    ids, mask = text(2, L), torch.ones(2, L, dtype=torch.int64)
    place = slice(0, L - lengths[1]) if left else slice(lengths[1], L)
    mask[1, place] = 0
    lessons, cache, outputs = lessons_for(ids), None, []
    for part in (slice(0, split), slice(split, L)):
        given = {"attention_mask": mask[:, part], "lessons": lessons[:, part]}
        logits, cache = read(net, ids[:, part], cache, **given)
        outputs.append(logits)
    outputs = torch.cat(outputs, dim=1)
    for b in range(2):
        real = mask[b].bool()
        expected, alone = read(net, ids[b : b + 1, real], lessons=lessons[b : b + 1, real])
        close(outputs[b : b + 1, real], expected)
        for level in range(len(net.levels)):
            close(row(cache.memory[level], b), row(alone.memory[level], 0))


@models_that_learn
@pytest.mark.parametrize("t", [1, PERIOD, PERIOD + 2, 2 * PERIOD])
def test_a_lesson_changes_no_output_before_it(name, t):
    """It is in force from the token on in whose place it stands, or later: no earlier bit changes."""
    net, ids = model(name), text(2, L)
    changed = ids.clone()
    changed[:, t] = (ids[:, t] - 1) % 22 + 2
    logits, found = read(net, ids)[0], read(net, ids, lessons=changed)[0]
    moved = PERIOD * -(-t // PERIOD)  # the end of its period
    same(found[:, :moved], logits[:, :moved])
    differ(found[:, moved:], logits[:, moved:])


def slopes_of(net, ids, lessons, names):
    """Gradients of the mean loss of one row's lessons, by ordinary training, which stops where a segment starts."""
    mixers, losses = net.begin(1), []
    for start in range(0, ids.shape[1] - 1, PERIOD):
        logits, _, mixers = net.run({}, ids[:, start : start + PERIOD], tree_map(torch.Tensor.detach, mixers), None)
        labels = lessons[0, start + 1 : start + PERIOD + 1]
        losses += [
            -row[label] for row, label in zip(logits[0].log_softmax(-1), labels, strict=True) if label != NOTHING
        ]
    return torch.autograd.grad(torch.stack(losses).mean(), [net.learnable_weights()[n] for n in names])


@pytest.mark.parametrize("name", ["hope", "hope-attention", "hope-independent", "llama"])
def test_an_update_is_the_mean_gradient_of_the_periods_lessons(name):
    """Of all lessons alike, in whichever segment of the period they were; each row has its own number of them."""
    net, ids = model(name, levels=[Level(PERIOD, lr=0.0), Level(2 * PERIOD, lr=0.1)]), text(2, 2 * PERIOD + 1)
    if name != "llama":  # a tied weight has two gradients
        net.lm_head.weight = torch.nn.Parameter(net.lm_head.weight.detach().clone())
    lessons = lessons_for(ids)
    level = read(net, ids, lessons=lessons)[1].memory[1]
    assert level.updates.tolist() == [1, 1]
    for b in range(2):
        slopes = slopes_of(net, ids[b : b + 1], lessons[b : b + 1], level.weights)
        for d, slope in zip(level.weights.values(), slopes, strict=True):
            close(d.value[b], -0.1 * slope, tolerance=1e-9 if name != "llama" else 1e-7)  # its norms are in float32


@pytest.mark.parametrize("name", ["hope", "hope-attention", "hope-sequential", "phi"])
def test_what_is_not_taught_has_no_influence(name):
    """Other tokens after a period's last lesson change no bit of its update: neither as inputs nor as labels."""
    net, ids = model(name, levels=PLAIN), text(2, PERIOD + 1)
    lessons, other = ids.clone(), ids.clone()
    lessons[:, 4:] = NOTHING
    other[:, 4:] = text(2, PERIOD - 3, seed=3)
    differ(read(net, other)[1].memory[0].weights, read(net, ids)[1].memory[0].weights)
    found, expected = (read(net, given, lessons=lessons)[1].memory for given in (other, ids))
    assert found[0].weights and all(d.value.any() for d in found[0].weights.values())
    same(found, expected)


RULES = {
    "decay": Level(PERIOD, lr=0.3, reset=0.5),
    "forgetting": Level(PERIOD, lr=0.3, rule=RetainSeen(0.1, forgetting=0.5)),
    "momentum": Level(PERIOD, lr=0.1, rule=StepOf("DeltaMomentum", momentum=0.9)),
    "low rank, clipped": Level(PERIOD, lr=0.3, rank=4, clip=0.1),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_period_without_a_lesson_makes_no_update(rule):
    """The row stands where it stood, and nothing counts as refused; its clock goes on, and so does the other row."""
    net, ids = model("hope-attention", levels=[RULES[rule], SLOW]), text(2, 3 * PERIOD + 1)
    lessons = ids.clone()
    lessons[0, PERIOD + 1 : 2 * PERIOD + 1] = NOTHING
    cache, memories = None, []
    for part in (slice(0, PERIOD + 1), slice(PERIOD + 1, 2 * PERIOD + 1), slice(2 * PERIOD + 1, None)):
        _, cache = read(net, ids[:, part], cache, lessons=lessons[:, part])
        memories.append(cache.memory)
    first, second, third = (memory[0] for memory in memories)
    assert [level.updates.tolist() for level in (first, second, third)] == [[1, 1], [1, 2], [2, 3]]
    assert not any(level.refused.any() for level in cache.memory) and third.gathered.tolist() == [0.0, 0.0]
    kept = ("/value", "/memory/")
    before, after = (
        {n: t for n, t in row(level, 0).items() if any(key in n for key in kept) or n in ("surprise", "norm")}
        for level in (first, second)
    )
    same(after, before)
    differ(row(second.weights, 1), row(first.weights, 1))
    seen = [next(iter(level.weights.values())).seen for level in (first, second)]
    assert seen[0] is None or seen[1][0].trace() > seen[0][0].trace()  # it was read, and nothing was forgotten
    close(row(third, 1), row(read(net, ids[1:], lessons=lessons[1:])[1].memory[0], 0))


def test_nothing_to_learn_takes_no_pass_backward():
    """A long prompt costs what reading costs."""
    net, ids = model("hope-attention"), text(2, L)
    with mock.patch.object(torch.autograd, "grad", side_effect=AssertionError):
        _, cache = read(net, ids, lessons=torch.full_like(ids, NOTHING))
        with pytest.raises(AssertionError):
            read(net, ids)
    assert not any(d.value.any() for level in cache.memory for d in level.weights.values())


@models_that_learn
def test_labels_are_for_the_outer_loss(name):
    """They give the loss that is returned, and move nothing."""
    net, ids = model(name), text(2, L)
    labels = lessons_for(ids)
    with torch.no_grad():
        out = net(ids, labels=labels, use_cache=True)
    logits, cache = read(net, ids)
    same(out.logits, logits)
    same(knowledge(out.past_key_values), knowledge(cache))
    expected = F.cross_entropy(logits[:, :-1].mT, labels[:, 1:]).item()
    assert out.loss.item() == pytest.approx(expected, rel=1e-6)  # transformers takes it in float32


@pytest.mark.parametrize("name", ["hope", "llama"])
def test_lessons_that_do_not_fit_raise(name):
    """The message says what was given and what would fit; nothing has been read."""
    net, ids = model(name), text(2, L)
    cache = read(net, ids)[1]
    before = knowledge(cache)
    for lessons, message in (
        (ids[:, 1:], r"lessons are \(2, 26\) torch.int64; expected \(2, 27\)"),
        (ids.float(), r"lessons are \(2, 27\) torch.float32"),
        (ids.clone().fill_(VOCAB), f"lessons must be tokens, 0 to {VOCAB - 1}, or -100"),
        (ids.clone().fill_(-1), f"lessons must be tokens, 0 to {VOCAB - 1}, or -100"),
    ):
        with pytest.raises(ValueError, match=message):
            read(net, ids, cache, lessons=lessons)
    same(knowledge(cache), before)
    with pytest.raises(ValueError, match="lessons"):  # what is generated has none
        net.generate(ids, attention_mask=torch.ones_like(ids), lessons=ids, max_new_tokens=3, eos_token_id=None)
    for other in (net, model(name, learning="parameter"), model(name, learning="off")):
        cache = HopeCache("off") if other is net else None
        with pytest.raises(ValueError, match="this reading learns nothing"):
            read(other, ids, cache, lessons=ids)
    with pytest.raises(ValueError, match="this reading learns nothing"):
        model(name, learning="off")(ids, lessons=ids, use_cache=False)
