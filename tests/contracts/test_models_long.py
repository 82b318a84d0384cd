"""What a model that never stops reading must do: stay finite, stay bounded, and keep getting better."""

import functools

import pytest
import torch
from torch.nn import functional as F

from nestling.levels import Level
from nestling.memory import RetainSeen
from nestling.models import HopeCache
from nestling.train import TrainConfig, byte_tokenizer, encode, english_prose, python_source, train
from tests.helpers import named
from tests.tiny import model, read, text

LEVELS = [Level(64, lr=0.3), Level(256, lr=0.5, rule=RetainSeen(0.1))]
SETTINGS = {
    "hope": {"projection_chunk_size": 16},
    "hope-sequential": {"memory_momentum": False, "projection_chunk_size": 32},
    "hope-attention": {},
}


def long_reader(name, **changes):
    return model(name, levels=LEVELS, **{"chunk_size": 16, **changes}).float()


def sizes(net, cache):
    """Over all memories of the session, how much larger a weight's norm is than at the start; and of the levels."""
    start, now = (named(mixers) for mixers in (net.model.stack.init_state(1), cache.session.mixers))
    grown = [(now[n].norm() / t.norm()).item() for n, t in start.items() if "/weights/" in n]
    weights = net.learnable_weights()
    moved = [
        (d.value.norm() / weights[n].norm()).item() for level in cache.memory or () for n, d in level.weights.items()
    ]
    return max(grown, default=1.0), max(moved, default=0.0)


def noise(tokens):
    """Random tokens in pieces of random size."""
    generator = torch.Generator().manual_seed(0)
    while tokens:
        size = min(tokens, int(torch.randint(1, 600, (1,), generator=generator)))
        tokens -= size
        yield text(1, size, seed=tokens)


def stay_bounded(net, pieces):
    """Read a stream in pieces: every output is finite, nothing is refused, and no norm goes out of bounds."""
    cache, finite, grown, moved = None, True, [], []
    for piece in pieces:
        logits, cache = read(net, piece, cache)
        finite = finite and bool(logits.isfinite().all())
        sizes_now = sizes(net, cache)
        grown.append(sizes_now[0])
        moved.append(sizes_now[1])
    refused = sum(int(t.sum()) for n, t in named((cache.session, cache.memory)).items() if n.endswith("refused"))
    worst = f"memories grew by up to {max(grown):.3g}, levels by {max(moved):.3g}, {refused} updates refused"
    assert finite and refused == 0 and max(grown) < 10 and max(moved) < 10, worst


@pytest.mark.parametrize("tokens", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_random_model_stays_finite_and_bounded(name, tokens):
    """Untrained, on noise, learning all the way: the state is as large at the end as early on."""
    stay_bounded(long_reader(name, **SETTINGS[name]), noise(tokens))


@pytest.mark.parametrize("tokens", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_momentum_stays_finite_and_bounded(tokens):
    """The memories of self-modifying Titans with momentum are as stable as those without."""
    stay_bounded(long_reader("hope", memory_momentum=True), noise(tokens))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("phrase", [[5], [5, 6, 7, 8, 9]], ids=str)
def test_a_text_that_repeats_itself_stays_finite_and_bounded(phrase, seed):
    """The hardest case for a memory that takes its surprises at the chunk's start: one key through a whole chunk."""
    size = {"hidden_size": 64, "num_attention_heads": 4, "initializer_range": 0.02}
    net = long_reader("hope", seed=seed, chunk_size=64, projection_chunk_size=64, **size)
    stay_bounded(net, torch.tensor(phrase).repeat(1_000 // len(phrase))[None].split(100, dim=1))


@functools.cache
def trained(name):
    """Briefly trained on prose."""
    size = {"vocab_size": 384, "hidden_size": 64, "num_attention_heads": 4, "initializer_range": 0.02}
    net = long_reader(name, **size, **SETTINGS[name])
    net.config.learning = "off"
    prose = encode(byte_tokenizer(), english_prose())
    train(net, prose, TrainConfig(tokens=120_000, batch_size=8, length=256))
    net.config.learning = "context"
    return net


def code():
    """20,000 tokens of another kind."""
    return encode(byte_tokenizer(), python_source(20_000))[None]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_trained_model_keeps_learning_over_a_long_stream(name):
    """After 15,000 tokens of code it is better at the next 5,000 than the same model standing still."""
    net, ids, losses = trained(name), code(), {}
    for mode in ("context", "off"):
        cache = HopeCache(mode)
        logits = torch.cat([read(net, piece, cache)[0] for piece in ids.split(1_000, dim=1)], dim=1)
        losses[mode] = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")[-5_000:].mean().item()
    assert losses["context"] < losses["off"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hope", "hope-sequential", "hope-attention"])
def test_a_trained_model_stays_finite_and_bounded(name):
    """On real text of another kind than it was trained on, learning all the way."""
    stay_bounded(trained(name), code().split(500, dim=1))
