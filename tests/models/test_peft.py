"""LoRA adapters of peft on a converted model: put in before or after converting, trained, saved, read with, and merged."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from nestling.levels import Level
from nestling.memory import RetainSeen
from nestling.models import HopeCache, convert
from tests.families import decoder, tokens
from tests.helpers import close, differ, gradients, same
from tests.tiny import read

peft = pytest.importorskip("peft", reason="adapters are peft's: pip install nestling[train]")

PERIOD, L = 6, 40
LEVELS = [Level(PERIOD, lr=0.3), Level(2 * PERIOD, lr=0.5, rule=RetainSeen(0.1))]
TARGETS = ["q_proj", "down_proj"]
either_way = pytest.mark.parametrize("late", [False, True], ids=["before", "after"])


def lora(model, seed=0):
    """The model with adapters that do something from the start."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def adapted(late, levels=LEVELS, adapt=lora, **choices):
    """A tiny Llama with adapters: the model of peft, and the converted one, which is in it or has its maps."""
    if late:
        wrapped = adapt(convert(decoder("llama"), levels, **choices))
        return SimpleNamespace(peft=wrapped, hope=wrapped.get_base_model())
    wrapped = adapt(decoder("llama"))
    return SimpleNamespace(peft=wrapped, hope=convert(wrapped.get_base_model(), levels, **choices))


def weights_of(model):
    return {name: weight.clone() for name, weight in model.named_parameters()}


@torch.no_grad()
def off(model, ids, memory=None):
    """Logits of a reading that learns nothing."""
    return read(model, ids, HopeCache("off", memory))[0]


# peft adapts single maps, and after converting a chain stands where `down_proj` was: there the adapter comes first
@pytest.mark.parametrize(
    ("form", "late"), [("superposed", False), ("superposed", True), ("chain", False), ("dealt", False), ("dealt", True)]
)
@pytest.mark.parametrize("rows", [1, 2])
def test_at_rate_zero_it_is_the_adapted_original(form, late, rows):
    """Bit for bit, with the machinery of learning running; and no level's map is an adapter's."""
    ids, plain = tokens(rows, PERIOD), lora(decoder("llama"))
    hope = adapted(late, [Level(PERIOD), Level(2 * PERIOD)], form=form).hope
    expected = plain(ids).logits
    same(hope(ids).logits, expected)
    same(read(hope, ids, HopeCache("context"))[0], expected.detach())
    assert not any("lora" in name for moved in hope.moves for name in moved)


@either_way
def test_the_maps_of_an_adapter_are_no_levels(late):
    """Where every linear map is assigned, too: its own two maps are none of the model's."""
    expected = {name.replace(".base_layer", "") for name in convert(decoder("llama"), LEVELS, assign="blocks").moves[0]}
    hope = adapted(late, assign="blocks").hope
    assert {name.replace(".base_layer", "") for name in hope.moves[0]} == expected


@either_way
def test_an_adapter_is_trained_while_the_levels_learn(late):
    """The loss of a text that is read and learnt falls, and nothing but the adapter has moved."""
    model, ids = adapted(late), tokens(2, 11).repeat(1, 3)
    before = weights_of(model.hope)
    own = [p for p in model.hope.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(own, lr=0.02), []
    for _ in range(6):
        loss = model.hope(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    moved = {name for name, weight in weights_of(model.hope).items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name}


@either_way
@pytest.mark.parametrize("outer", ["first-order", "second-order", "none"])
def test_its_gradient_is_that_of_a_model_whose_weights_are_free(late, outer):
    """That peft freezes what is under an adapter takes nothing away: neither the levels' inner gradient nor the adapter's."""
    ids, found = tokens(2, 20), []
    for frozen in (True, False):
        hope = adapted(late, outer_gradient=outer).hope.double()
        own = [p for p in hope.parameters() if p.requires_grad]
        hope.requires_grad_(not frozen)
        for parameter in own:
            parameter.requires_grad_()
        logits = hope(ids).logits
        found.append((logits.detach(), gradients(logits, own)))
        assert all(slope.any() for slope in found[-1][1])
    close(found[0], found[1], tolerance=1e-6)  # norms are in float32


@either_way
def test_a_file_holds_the_adapter(late, tmp_path):
    """Saved and loaded by peft, around a model that is converted anew: the same bits, read with and without learning."""
    model, ids = adapted(late), tokens(1, L)
    model.peft.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json", ".md"}
    loaded = adapted(late, adapt=lambda plain: peft.PeftModel.from_pretrained(plain, tmp_path)).hope
    same(off(loaded, ids), off(model.hope, ids))
    (logits, cache), (expected, other) = read(loaded, ids), read(model.hope, ids)
    same(logits, expected)
    same(cache.memory, other.memory)
    differ(logits, read(convert(decoder("llama"), LEVELS), ids)[0], least=1e-2)


@either_way
def test_it_learns_while_it_reads(late):
    """A level moves the map under an adapter by the gradient of what the model says with the adapter in place."""
    model, ids = adapted(late, [Level(PERIOD, lr=0.1), LEVELS[1]]), tokens(1, 11).repeat(1, 8)
    _, cache = read(model.hope, ids[:, : PERIOD + 1])
    model.hope.requires_grad_()
    moved = cache.memory[0].weights
    loss = F.cross_entropy(off_with_graph(model.hope, ids[:, :PERIOD])[0], ids[0, 1 : PERIOD + 1])
    slopes = torch.autograd.grad(loss, [model.hope.maps[name].weight for name in moved])
    for difference, slope in zip(moved.values(), slopes, strict=True):
        close(difference.value[0], -0.1 * slope, tolerance=1e-5)
    learning, frozen = read(model.hope, ids)[0], off(model.hope, ids)
    losses = [F.cross_entropy(x[0, -34:-1], ids[0, -33:]).item() for x in (learning, frozen)]
    assert losses[0] < 0.8 * losses[1]


def off_with_graph(model, ids):
    return model(ids, past_key_values=HopeCache("off")).logits


@either_way
def test_merging_folds_what_was_learnt_and_keeps_the_adapter(late):
    """The original's class with the adapter still in it; once peft has folded that, too, a model without a trace of either."""
    model, ids = adapted(late), tokens(1, L)
    _, cache = read(model.hope, ids)
    expected = off(model.hope, ids[:, :20], cache.memory)
    differ(expected, off(model.hope, ids[:, :20]), least=1e-2)
    plain = model.hope.merge(cache.memory)
    assert type(plain).__name__ == "LlamaForCausalLM" and any("lora" in name for name, _ in plain.named_modules())
    torch.testing.assert_close(plain(ids[:, :20]).logits, expected, rtol=1e-5, atol=1e-5)
    model.peft.merge_and_unload()
    plain = model.hope.merge(cache.memory)
    assert list(plain.state_dict()) == list(decoder("llama").state_dict())
    torch.testing.assert_close(plain(ids[:, :20]).logits, expected, rtol=1e-5, atol=1e-5)


@either_way
def test_levels_of_an_optimiser_move_what_is_under_an_adapter(late):
    """What peft has frozen is named with what to do; freed, the map under the adapter moves, and the adapter does not."""
    model, ids = adapted(late, [Level(2 * L, lr=0.1)], learning="parameter"), tokens(2, L)
    optimizer, before = model.hope.level_optimizer(), weights_of(model.hope)
    model.hope(ids, labels=ids).loss.backward()
    with pytest.raises(ValueError, match=r"proj.* is frozen, as adapters leave .*requires_grad_\(\)"):
        optimizer.step(ids.numel())
    model.hope.requires_grad_()
    model.hope(ids, labels=ids).loss.backward()
    optimizer.step(ids.numel())
    moved = {name for name, weight in weights_of(model.hope).items() if not torch.equal(weight, before[name])}
    assert len(moved) == len(optimizer.moved) == 9 and moved == {f"inner.{name}" for name in optimizer.moved}
    assert sum("down_proj.base_layer" in name for name in moved) == 3


@either_way
def test_what_would_lose_the_adapter_raises(late, tmp_path):
    """A model of peft is no model of transformers; and a converted one is not saved with names that loading would not find."""
    model = adapted(late)
    with pytest.raises(ValueError, match=r"PeftModelForCausalLM is no PreTrainedModel.*get_base_model\(\)"):
        convert(model.peft, LEVELS)
    with pytest.raises(ValueError, match=r"q_proj holds an adapter.*merge_and_unload"):
        model.hope.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    ids = tokens(1, 12)
    expected = off(model.hope, ids)
    model.peft.merge_and_unload()
    model.hope.save_pretrained(tmp_path)
    torch.testing.assert_close(off(type(model.hope).from_pretrained(tmp_path), ids), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_transformers_own_interface(tmp_path):
    """`add_adapter` of a converted model: saved alone, and loaded into another."""
    config = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)
    hope, ids = convert(decoder("llama"), LEVELS), tokens(1, L)
    hope.add_adapter(config)
    hope.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir() if p.suffix == ".safetensors"} == {"adapter_model.safetensors"}
    other = convert(decoder("llama"), LEVELS)
    other.load_adapter(tmp_path)
    same(read(other, ids)[0], read(hope, ids)[0])
