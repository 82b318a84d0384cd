"""Which weights learn: those of some blocks, or a member of each MLP beside one that stands still, as TTT-E2E has it."""

import pytest
import torch

from nestling.levels import Level
from nestling.models import HopeCache, HopeConfig, HopeForCausalLM, convert
from tests.families import decoder, tokens
from tests.helpers import close, differ, gradients, same
from tests.tiny import PERIOD, model, read, text

L = 4 * PERIOD + 1
# an MLP that learns beside a static one, in the last quarter of the blocks: arXiv 2512.23675
BESIDE = [Level(PERIOD, lr=0.3, reset="context"), Level(PERIOD, lr=0.0)]
TTT = {"levels": BESIDE, "level_variant": "independent", "learnt": "last_quarter", "outer_gradient": "second-order"}


def test_the_static_member_never_moves_and_the_other_does():
    """Side by side in Hope-Attention: after reading, one has learnt; both are trained through what was read."""
    net, ids = model("hope-independent", **TTT), text(2, L)
    logits, cache = read(net, ids)
    learning, static = (level.weights for level in cache.memory)
    assert set(learning) == {f"layers.0.mlp.chain.0.{n}.weight" for n in ("gate", "up", "down")}
    assert set(static) == {f"layers.0.mlp.chain.1.{n}.weight" for n in ("gate", "up", "down")}
    assert all(d.value.any() for d in learning.values()) and not any(d.value.any() for d in static.values())
    differ(logits, read(net, ids, HopeCache("off"))[0], least=1e-3)
    members = [net.get_parameter(f"model.stack.{name}") for name in (*learning, *static)]
    assert all(slope.any() for slope in gradients(net(ids, labels=ids).loss, members))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_a_pretrained_mlp_stays_static_beside_members_that_learn(family):
    """A chain whose slowest level has no rate: at rate 0 the original, bit for bit; learning moves the members alone."""
    ids, original = tokens(1, L), decoder(family)
    with torch.no_grad():
        expected = original(ids).logits
    still = [Level(PERIOD), Level(PERIOD, lr=0.0)]
    same(read(convert(decoder(family), still, form="chain", assign="last_quarter"), ids)[0], expected)
    hope = convert(original, [Level(PERIOD, lr=0.5), still[1]], form="chain", assign="last_quarter")
    logits, cache = read(hope, ids)
    learning, static = (level.weights for level in cache.memory)
    assert all(".members.0." in name and d.value.any() for name, d in learning.items())
    assert any(name.endswith(".pretrained.weight") for name in static)
    assert not any(".members." in name or d.value.any() for name, d in static.items())
    same(logits[:, :PERIOD], read(hope, ids[:, :PERIOD], HopeCache("off"))[0])
    differ(logits, expected, least=1e-3)


@pytest.mark.parametrize("variant", ["superposed", "sequential", "nested", "independent"])
@pytest.mark.parametrize(
    ("learnt", "blocks"),
    [("mlp", [0, 1, 2, 3, 4]), ("last_quarter", [4]), ([0, -2], [0, 3]), ((1,), [1])],
    ids=["mlp", "last quarter", "some", "one"],
)
def test_blocks_that_learn(variant, learnt, blocks, tmp_path):
    """Their MLPs have the levels and the others are plain ones of as many parameters; a file remembers which."""
    net, ids = (
        model("hope-attention", num_hidden_layers=5, learnt=learnt, level_variant=variant, levels=LEVELS),
        text(1, L),
    )
    _, cache = read(net, ids)
    moved = {name for level in cache.memory for name, d in level.weights.items() if d.value.any()}
    assert sorted({int(name.split(".")[1]) for name in moved}) == blocks == sorted(net.config.learning_blocks())
    assert moved == {name for names in net.moves for name in names} and all(".mlp." in name for name in moved)
    net.save_pretrained(tmp_path)
    loaded = HopeForCausalLM.from_pretrained(tmp_path).double().eval()
    assert loaded.moves == net.moves
    same(loaded.state_dict(), net.state_dict())
    close(read(loaded, ids)[0], read(net, ids)[0], tolerance=1e-12)  # products round by where in memory weights begin


LEVELS = [Level(PERIOD, lr=0.3), Level(2 * PERIOD, lr=0.3)]


def test_superposed_weights_are_one_model_whichever_learn():
    """The same checkpoint, read without learning, is the same; with it another block has learnt."""
    nets = [model("hope-attention", learnt=learnt, levels=LEVELS) for learnt in ("mlp", [0], [1])]
    ids, found = text(1, L), []
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
        close(read(net, ids, HopeCache("off"))[0], read(nets[0], ids, HopeCache("off"))[0])
        found.append(read(net, ids)[0])
    differ(found[1], found[0])
    differ(found[1], found[2])


def test_the_parameter_regime_moves_the_blocks_that_learn():
    """An optimiser's level has the same weights, and the others are left to the rest of training."""
    net, ids = model("hope-attention", learnt=[1], levels=LEVELS, learning="parameter"), text(2, PERIOD)
    optimizer, before = net.level_optimizer(), {n: p.clone() for n, p in net.named_parameters()}
    net(ids, labels=ids).loss.backward()
    optimizer.step(ids.numel())
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"model.stack.layers.1.mlp.chain.0.{n}.weight" for n in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("learnt", "message"),
    [
        ("heads", r"learnt='heads'.*'last_quarter'.*block numbers"),
        ([5], "block 5 was chosen; the model has blocks 0 to 1"),
        ([0, "mlp"], "block mlp was chosen"),
        ([], "no block was chosen"),
    ],
)
def test_a_choice_that_does_not_exist_raises(learnt, message):
    """The message says what there is."""
    with pytest.raises(ValueError, match=message):
        HopeConfig(num_hidden_layers=2, levels=LEVELS, learnt=learnt)
