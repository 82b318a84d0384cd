"""A converted model learns while it reads, as Hope does: by the gradient of its own loss, and in a learner."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from nestling.continual import Learner
from nestling.errors import UserError
from nestling.levels import Level, effective
from nestling.memory import RetainSeen
from nestling.models import HopeCache, convert
from nestling.models.reading import calibrate
from nestling.train import TrainConfig, byte_tokenizer, encode, train
from tests.families import decoder, encoder
from tests.helpers import close, differ, gradients, same
from tests.tiny import CONVERTED, PERIOD, knowledge, model, read, text

PROSE = "It was the best of times, it was the worst of times. "
every_kind = pytest.mark.parametrize("name", CONVERTED)
LEVELS = [Level(8, lr=0.3, clip=1.0, reset="context"), Level(16, lr=0.5, rule=RetainSeen(0.1), clip=1.0)]


@every_kind
@pytest.mark.parametrize("rows", [1, 2])
def test_an_update_is_the_gradient_of_the_models_own_loss(name, rows):
    """By row: one step of plain descent on the first segment's mean loss, through the original's own forward pass."""
    levels = [Level(PERIOD, lr=0.1), Level(2 * PERIOD, lr=0.2)]
    net, ids = model(name, levels=levels, tie_word_embeddings=False), text(rows, PERIOD + 1)
    _, cache = read(net, ids)
    for b in range(rows):
        logits = net.inner(ids[b : b + 1, :PERIOD]).logits
        names = cache.memory[0].weights
        weights = [net.maps[n].weight for n in names]
        slopes = torch.autograd.grad(F.cross_entropy(logits[0], ids[b, 1:]), weights)
        for n, slope in zip(names, slopes, strict=True):
            turned = slope.T if isinstance(net.maps[n], Conv1D) else slope
            close(cache.memory[0].weights[n].value[b], -0.1 * turned, tolerance=1e-7)  # some norms are in float32


@every_kind
def test_outer_gradients_are_of_first_order(name):
    """To the outer gradient what was learnt is a constant added to the weights, segment by segment."""
    net, ids = model(name, window=30, recall=None), text(2, 20)
    parameters = list(net.parameters())
    found = gradients(net(ids).logits, parameters)
    weights, mixers, outputs = net.learnable_weights(), net.begin(2), []
    for start in range(0, 20, PERIOD):
        memory = read(net, ids[:, : start + 1])[1].memory  # as it stands when the segment begins
        logits, _, mixers = net.run(effective(memory, weights), ids[:, start : start + PERIOD], mixers, None)
        outputs.append(logits)
    close(found, gradients(torch.cat(outputs, 1), parameters), tolerance=1e-5)  # some norms are in float32
    assert sum(bool(slope.any()) for slope in found) > 0.9 * len(found)


@every_kind
def test_after_a_window_attention_begins_anew(name):
    """What comes after it is read as a new text is, with what the levels have learnt; in every row at its own place."""
    net, ids = model(name, window=2 * PERIOD, recall=None), text(2, 4 * PERIOD)
    logits, _ = read(net, ids)
    _, cache = read(net, ids[:, : 2 * PERIOD + 1])
    fresh, _ = read(net, ids[:, 2 * PERIOD : 3 * PERIOD], HopeCache("off", cache.memory))
    close(logits[:, 2 * PERIOD : 3 * PERIOD], fresh)
    frozen, _ = read(net, ids, HopeCache("off"))
    close(frozen[:, 2 * PERIOD :], read(net, ids[:, 2 * PERIOD :], HopeCache("off"))[0])


@every_kind
def test_what_is_repeated_is_learnt(name):
    """On a phrase that comes again and again the loss falls well below that of a model that does not learn."""
    net, ids = model(name), text(1, 11).repeat(1, 14)
    learning, frozen = (read(net, ids, HopeCache(mode))[0] for mode in ("context", "off"))
    losses = [F.cross_entropy(x[0, -45:-1], ids[0, -44:]).item() for x in (learning, frozen)]
    assert losses[0] < 0.75 * losses[1]


def test_generating_is_reading():
    """With a cache the logits of every step, past a window, are those of one full forward over the result."""
    for name in ("llama", "gpt2"):
        net, ids = model(name, eos_token_id=None), text(2, 15)
        options = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        out = net.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        full, _ = read(net, out.sequences)
        close(torch.stack(out.logits, dim=1), full[:, 14:-1].float(), tolerance=1e-5)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True}], ids=str)
def test_beams_and_samples_need_no_cache(options):
    """The cache follows the beams: with and without it the same sequences."""
    net, ids, found = model("llama", eos_token_id=None), text(2, 8), []
    for cached in (True, False):
        torch.manual_seed(0)
        found.append(
            net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, use_cache=cached, **options)
        )
    assert torch.equal(*found)


def test_calibration_moves_nothing_and_protects():
    """Inputs are entered as seen; no logit changes, and learning something new then costs less of what was known."""
    net, known, new = model("gpt2"), text(2, 27), text(2, 27, seed=1)
    memory, before = calibrate(net, known, None), read(net, known, HopeCache("off"))[0]
    close(read(net, known, HopeCache("off", memory))[0], before)
    drift = []
    for start in (None, memory):
        learnt = read(net, new, HopeCache("context", start))[1].memory
        drift.append((read(net, known, HopeCache("off", (memory[0], learnt[1])))[0] - before).norm())
    assert 1e-3 < drift[1] < drift[0]


def a_llama(**choices):
    """A byte-level Llama with two levels, one of which resets."""
    original = decoder("llama", vocab_size=384, initializer_range=0.1, max_position_embeddings=256)
    return convert(original, **{"levels": LEVELS, "assign": "blocks", **choices})


def a_learner(**choices):
    return Learner(a_llama(**choices), byte_tokenizer())


@pytest.mark.parametrize("form", ["superposed", "chain", "dealt"])
def test_a_learner_learns_a_text_that_is_repeated(form):
    """The loss falls from reading to reading, in every form; the pretrained weights stay, and other users do."""
    learner = a_learner(form=form, assign="mlp")
    weights = {n: w.clone() for n, w in learner.model.state_dict().items()}
    losses = [learner.observe(PROSE * 4, user="alice").loss for _ in range(4)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.95 * losses[0]
    assert learner.evaluate(PROSE, user="alice").mean() < 0.9 * learner.evaluate(PROSE, user="bob").mean()
    same(dict(learner.model.state_dict()), weights)
    answer = learner.generate("It was ", user="alice", max_new_tokens=12)
    assert isinstance(answer, str) and answer != learner.generate("It was ", user="bob", max_new_tokens=12)
    assert learner.generate("It was ", user="alice", max_new_tokens=12) == answer


def test_with_its_head_a_learner_learns_much_more():
    """Random blocks under a random head cannot say much: with every map assigned the loss falls below half."""
    learner = a_learner(assign="all")
    losses = [learner.observe(PROSE * 4).loss for _ in range(3)]
    assert losses[-1] < 0.5 * losses[0]


OTHER_PROCESS = """
import sys, torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D
import nestling
from nestling.train import byte_tokenizer
torch.set_num_threads(1)
folder, text = sys.argv[1:]
learner = nestling.Learner(nestling.ConvertedForCausalLM.from_pretrained(f"{folder}/model"), byte_tokenizer())
learner.load(f"{folder}/memory", user="alice")
losses = learner.observe(text, user="alice").losses
logits = learner._user("alice").logits.contiguous()
save_file({"losses": losses, "logits": logits}, f"{folder}/found")
"""


def test_a_new_process_goes_on_as_if_nothing_had_happened(tmp_path):
    """Saved in the middle of a segment, loaded by another process: the same losses and logits, bit for bit."""
    learner = a_learner()
    learner.observe(PROSE * 3, user="alice")
    learner.model.save_pretrained(tmp_path / "model")
    learner.save(tmp_path / "memory", user="alice")
    arguments = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path), PROSE]
    subprocess.run(arguments, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    found, expected = load_file(tmp_path / "found"), learner.observe(PROSE, user="alice").losses
    assert torch.equal(found["losses"], expected) and torch.equal(found["logits"], learner._user("alice").logits)


@pytest.mark.parametrize("length", [0, 1, 8, 9, 27])
def test_a_stream_may_be_saved_anywhere(length, tmp_path):
    """Before the first token, at a boundary and between: the loaded stream is the one that was saved."""
    learner, loaded = a_learner(), a_learner()
    if length:
        learner.observe(PROSE[:length])
    learner.save(tmp_path / "memory")
    loaded.load(tmp_path / "memory")
    same(loaded.observe(PROSE).losses, learner.observe(PROSE).losses)
    same(knowledge(loaded._user("default").cache), knowledge(learner._user("default").cache))


def test_a_memory_belongs_to_its_conversion(tmp_path):
    """Other weights, another form or other levels: refused in one sentence, and the stream is as it was."""
    learner = a_learner()
    learner.observe(PROSE)
    learner.save(tmp_path / "memory")
    for other in (a_learner(form="dealt", assign="mlp"), a_learner(levels=[LEVELS[0]]), a_learner(window=64)):
        with pytest.raises(UserError, match="another model or configuration"):
            other.load(tmp_path / "memory")
        assert other.users() == []


def test_a_learner_merges_what_a_user_taught():
    """A plain Llama that predicts as the user's memory does; after the end of the context, what the slow level holds."""
    learner = a_learner()
    learner.observe(PROSE * 4, user="alice")
    for end in (False, True):
        if end:
            learner.end_context("alice")
        plain = learner.merge("alice")
        assert type(plain).__name__ == "LlamaForCausalLM"
        ids = encode(learner.tokenizer, PROSE)[None]
        with torch.no_grad():
            losses = F.cross_entropy(plain(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        torch.testing.assert_close(losses, learner.evaluate(PROSE, user="alice"), rtol=1e-5, atol=1e-5)
        differ(losses, learner.evaluate(PROSE, user="bob"), least=1e-3)
    with pytest.raises(ValueError, match="HopeForCausalLM is no converted model"):
        Learner(model("hope", vocab_size=384), byte_tokenizer()).merge()


def test_a_stream_longer_than_the_positions_goes_on():
    """256 positions, 1000 tokens: the state of the session is bounded, and the loss goes on falling."""
    learner, sizes, losses = a_learner(), [], []
    for _ in range(4):
        losses.append(learner.observe(encode(learner.tokenizer, PROSE * 5)[:256]).loss)
        past = learner._user("default").cache.session.mixers[0]
        sizes.append(past.width)
    assert sizes == [256] * 4 and losses[-1] < losses[0]
    assert learner.evaluate(PROSE * 20, piece=100).isfinite().all()


def test_at_rate_zero_a_learner_reads_as_the_original():
    """Nothing moves, and the levels are reported as being at rest."""
    learner = a_learner(levels=[replace(level, lr=0.0) for level in LEVELS])
    seen = learner.observe(PROSE)
    ids = encode(learner.tokenizer, PROSE)[None]
    with torch.no_grad():
        logits = learner.model.inner(ids).logits
    same(seen.losses, F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"))
    assert seen.updates == [0, 0] and seen.surprise == [0.0, 0.0]


def test_a_model_that_cannot_learn_while_reading_raises():
    """An encoder, and a model whose levels are an optimiser's."""
    for refused in (convert(encoder(), LEVELS), a_llama(levels=[Level(8)], learning="parameter")):
        with pytest.raises(ValueError, match="needs a HopeConfig with levels and learning='context'"):
            Learner(refused, byte_tokenizer())


@pytest.mark.parametrize("form", ["superposed", "chain"])
def test_the_parameter_regime_trains(form):
    """`train` leaves what levels move to them and everything else to its optimiser; the loss falls."""
    levels = [Level(64, lr=0.5), Level(128, lr=0.5, rule=RetainSeen(0.1))]
    net = a_llama(levels=levels, learning="parameter", form=form, assign="mlp")
    ids = encode(byte_tokenizer(), PROSE * 10)
    history = train(net, ids, TrainConfig(tokens=64 * 40, batch_size=2, length=32))
    assert history[-1].loss < 0.7 * history[0].loss
