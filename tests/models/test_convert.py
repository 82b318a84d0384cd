"""A converted model at rate 0 is the original, bit for bit, for every family; and what was learnt can be folded back."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from nestling.levels import Level
from nestling.memory import RetainSeen
from nestling.models import ConvertedForCausalLM, ConvertedModel, HopeCache, HopeForCausalLM, convert
from nestling.models.pretrained.forms import Chain
from tests.families import DECODERS, decoder, encoder, tokens
from tests.helpers import differ, same
from tests.tiny import config, read

L, PERIOD = 21, 6
REST = [Level(PERIOD), Level(2 * PERIOD, rule=RetainSeen())]
LIVE = [Level(PERIOD, lr=0.3), Level(2 * PERIOD, lr=0.5, rule=RetainSeen(0.1))]
every_family = pytest.mark.parametrize("family", DECODERS)
every_form = pytest.mark.parametrize("form", ["superposed", "chain", "dealt"])


@torch.no_grad()
def logits_of(model, ids, sizes, cache=None):
    """Logits of a text read in pieces with one cache, or without a cache when it is one piece."""
    if cache is None:
        return model(ids, use_cache=False).logits
    return torch.cat([model(piece, past_key_values=cache, use_cache=True).logits for piece in ids.split(sizes, 1)], 1)


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@every_form
@every_family
def test_at_rate_zero_it_is_the_original(family, form):
    """Bit for bit: without a cache, with one, in generation, and with the machinery of learning running."""
    ids, model = tokens(2, L), decoder(family)
    expected, pieces = logits_of(model, ids, L), logits_of(model, ids, PERIOD, DynamicCache())
    options = {"max_new_tokens": 7, "do_sample": False, "attention_mask": torch.ones(2, 9), "pad_token_id": 0}
    answer = model.generate(ids[:, :9], **options)
    weights, kind = weights_of(model), type(model)
    hope = convert(model, REST, form=form)
    same(logits_of(hope, ids, L), expected)
    same(logits_of(hope, ids, L, hope.new_cache()), expected)
    same(logits_of(hope, ids, PERIOD, HopeCache("off")), pieces)
    cache = HopeCache("context")
    same(logits_of(hope, ids, L, cache), pieces)
    assert [level.updates.tolist() for level in cache.memory] == [[3, 3], [1, 1]]
    assert torch.equal(hope.generate(ids[:, :9], **options), answer)
    plain = hope.merge()
    assert type(plain) is kind
    same(weights_of(plain), weights)


@every_form
def test_an_encoder_at_rate_zero_gives_the_same_embeddings(form):
    """Hidden states and the pooled output of a BERT in MiniLM's shape, with a mask and token types; weights too."""
    ids, model = tokens(2, L), encoder()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids).index_fill(1, torch.arange(15, L), 0)}
    with torch.no_grad():
        expected, weights = model(**given), weights_of(model)
        hope = convert(model, REST, form=form)
        found = hope(**given)
    assert type(hope) is ConvertedModel and hope.config.learning == "parameter"
    same(found.last_hidden_state, expected.last_hidden_state)
    same(found.pooler_output, expected.pooler_output)
    same(weights_of(hope.merge()), weights)


@every_form
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_a_file_holds_a_converted_model(family, form, tmp_path):
    """Saved and loaded by the Auto class: the same levels, the same bits, the same bits after learning."""
    hope, ids = convert(decoder(family), LIVE, form=form, assign=[0, -1], window=12), tokens(2, L)
    hope.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is ConvertedForCausalLM and loaded.levels == LIVE and loaded.moves == hope.moves
    assert loaded.config.window == 12 and {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    same(weights_of(loaded), weights_of(hope))
    (logits, cache), (expected, other) = read(loaded, ids), read(hope, ids)
    same(logits, expected)
    same(cache.memory, other.memory)


def test_a_file_holds_a_converted_encoder(tmp_path):
    """AutoModel gives back the class, the levels and the bits."""
    hope, ids = convert(encoder(), LIVE), tokens(2, L)
    hope.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is ConvertedModel and loaded.moves == hope.moves
    same(loaded(ids).last_hidden_state, hope(ids).last_hidden_state)


@pytest.mark.parametrize("assign", ["mlp", "blocks", "all"])
@every_family
def test_what_was_learnt_is_folded_back(family, assign, tmp_path):
    """Merged, a plain model says what the converted one says with its memory; saved, it is loaded without nestling."""
    hope, ids = convert(decoder(family), LIVE, assign=assign), tokens(1, 40)
    before = logits_of(hope, ids, L, HopeCache("off"))
    _, cache = read(hope, ids)
    weights = weights_of(hope)
    expected = logits_of(hope, ids, L, HopeCache("off", cache.memory))
    differ(expected, before, least=1e-2)
    plain = hope.merge(cache.memory)
    same(weights_of(hope), weights)
    torch.testing.assert_close(logits_of(plain, ids, L), expected, rtol=1e-5, atol=1e-5)
    plain.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(plain) and type(loaded).__module__.startswith("transformers.")
    same(logits_of(loaded, ids, L), logits_of(plain, ids, L))


def test_levels_that_were_dealt_are_folded_back_too():
    """Blocks 0 and 2 are the fast level's, block 1 the slow one's; each moves its own, and all of them are merged."""
    hope, ids = convert(decoder("llama"), LIVE, form="dealt"), tokens(1, 40)
    assert [{name.split(".")[2] for name in moved} for moved in hope.moves] == [{"0", "2"}, {"1"}]
    _, cache = read(hope, ids)
    expected = logits_of(hope, ids, L, HopeCache("off", cache.memory))
    torch.testing.assert_close(logits_of(hope.merge(cache.memory), ids, L), expected, rtol=1e-5, atol=1e-5)


def test_a_chain_that_learnt_cannot_be_folded():
    """Its members begin as the identity; one that has moved is no MLP of the original's shape, and that is said."""
    hope, ids = convert(decoder("llama"), LIVE, form="chain"), tokens(1, 40)
    chains = [module for module in hope.modules() if isinstance(module, Chain)]
    assert len(chains) == 3 and all(chain.is_identity() for chain in chains)
    _, cache = read(hope, ids)
    with pytest.raises(ValueError, match=r"chain whose members have learnt.*form='superposed'"):
        hope.merge(cache.memory)
    frozen = convert(decoder("llama"), [Level(PERIOD), LIVE[1]], form="chain")  # only the pretrained member learns
    _, cache = read(frozen, ids)
    expected = logits_of(frozen, ids, L, HopeCache("off", cache.memory))
    merged = frozen.merge(cache.memory)
    torch.testing.assert_close(logits_of(merged, ids, L), expected, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, Chain) for module in merged.modules())


def test_every_member_of_a_chain_learns():
    """The pretrained MLP is the slowest level's, the members are the faster ones', and reading moves all of them."""
    levels = [Level(PERIOD, lr=0.5), Level(2 * PERIOD, lr=0.5), Level(4 * PERIOD, lr=0.5)]
    hope = convert(decoder("gpt2"), levels, form="chain")
    _, cache = read(hope, tokens(1, 80))
    for level, part in zip(cache.memory, ["members.1", "members.0", "pretrained"], strict=True):
        assert all(d.value.any() for d in level.weights.values())
        assert all(part in name or (part == "pretrained" and "c_fc" in name) for name in level.weights)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("form", ["superposed", "dealt"])
def test_levels_of_an_optimiser_move_the_model_itself(family, form):
    """The parameter regime: one step of every level is descent on the weights; merging gives them, bit for bit."""
    levels = [Level(20, lr=0.1), Level(40, lr=0.2)]
    hope, ids = convert(decoder(family), levels, form=form, learning="parameter"), tokens(2, 10)
    before, optimizer = copy.deepcopy(hope.inner), hope.level_optimizer()
    for _ in range(2):
        hope(ids, labels=ids).loss.backward()
        slopes = {n: p.grad.clone() for n, p in hope.inner.named_parameters()}
        optimizer.step(tokens=20)
        if optimizer.state[1].updates.any():
            break
        for name in hope.moves[0]:
            steps = slopes[name] * levels[0].lr
            torch.testing.assert_close(hope.inner.get_parameter(name), before.get_parameter(name) - steps)
    assert optimizer.state[0].updates.tolist() == [2] and optimizer.state[1].updates.tolist() == [1]
    same(weights_of(hope.merge()), weights_of(hope.inner))
    differ(dict(hope.inner.named_parameters()), dict(before.named_parameters()))


def test_a_period_of_an_optimiser_may_be_longer_than_a_text():
    """It gathers over many batches: a model's positions bound what is read at once, and no period of the parameter regime."""
    hope = convert(decoder("llama"), [Level(1000, lr=0.1)], learning="parameter")
    ids, optimizer = tokens(4, 50), hope.level_optimizer()
    for _ in range(5):
        hope(ids, labels=ids).loss.backward()
        optimizer.step(ids.numel())
    assert optimizer.state[0].updates.tolist() == [1]


def test_an_encoder_learns_with_an_optimiser():
    """Labels of any kind: a few steps of its levels lower a loss on its embeddings."""
    hope, ids = convert(encoder(), [Level(42, lr=0.2)]), tokens(2, L)
    optimizer, target, losses = hope.level_optimizer(), torch.randn(2, 16), []
    for _ in range(8):
        loss = (hope(ids).last_hidden_state.mean(1) - target).square().mean()
        loss.backward()
        optimizer.step(tokens=ids.numel())
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


class Adapter(nn.Module):
    """As packages of adapters wrap a map: the map itself, and a low-rank path beside it."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = nn.Linear(base_layer.in_features, 2, bias=False), nn.Linear(2, base_layer.out_features)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_adapters_keep_working(late):
    """Put in before or after converting: rate 0 changes no bit, the map under an adapter learns, and merging keeps both."""
    model, ids = decoder("llama"), tokens(1, 40)
    plain = copy.deepcopy(model)
    if late:
        model = convert(model, LIVE)
    for one in (plain, model.inner if late else model):
        torch.manual_seed(0)
        for i in range(3):
            mlp = one.get_submodule(f"model.layers.{i}.mlp")
            mlp.down_proj = Adapter(mlp.down_proj)
    hope = model if late else convert(model, LIVE)
    same(logits_of(hope, ids, L, HopeCache("off")), logits_of(plain, ids, L, DynamicCache()))
    _, cache = read(hope, ids)
    moved = {name: d.value for name, d in cache.memory[0].weights.items() if "down_proj" in name}
    assert len(moved) == 3 and all(value.any() for value in moved.values())
    expected = logits_of(hope, ids, L, HopeCache("off", cache.memory))
    torch.testing.assert_close(logits_of(hope.merge(cache.memory), ids, L), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["superposed", "chain"])
def test_a_copy_is_a_model_of_its_own(form):
    """A deep copy moves its own maps and not the original's."""
    hope, ids = convert(decoder("llama"), LIVE, form=form), tokens(1, L)
    copied = copy.deepcopy(hope)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.mul_(1.5)
    expected = read(hope, ids)[0]
    differ(read(copied, ids)[0], expected)
    same(read(hope, ids)[0], expected)


BAD = {
    "no levels": ({"levels": []}, "levels=\\[\\] converts nothing"),
    "order of levels": ({"levels": [Level(12), Level(6)]}, "period 6 stands after 12"),
    "nesting of levels": ({"levels": [Level(6), Level(9)]}, "period 9 is not a multiple"),
    "form": ({"form": "stacked"}, "form='stacked'.*'superposed'"),
    "learning": ({"learning": "always"}, "learning='always'.*'context'"),
    "assign": ({"assign": "heads"}, "assign='heads'.*'last_quarter'"),
    "a block": ({"assign": [7]}, "block 7.*0 to 2"),
    "a name": ({"assign": ["model.norm"]}, "names \\['model.norm'\\].*self_attn.q_proj"),
    "nothing assigned": ({"assign": []}, "assign is empty"),
    "a form of parts": ({"assign": "blocks", "form": "chain"}, "form='chain'.*assign='blocks'"),
    "more levels than blocks": ({"levels": [Level(6)] * 4, "form": "dealt"}, "3 blocks.*4 levels"),
    "window of half a period": ({"window": 15}, "window=15.*fastest level's period, 6.*60"),
    "window beyond positions": ({"window": 600}, "window=600.*at most 60"),
    "period beyond positions": ({"levels": [Level(100)]}, "period, 100, is longer than the model's 64 positions"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_choice_that_does_not_fit_raises(case):
    """The message names what was given and what is allowed; the model is as it was."""
    given, message = BAD[case]
    model = decoder("llama")
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        convert(model, **{"levels": LIVE, **given})
    assert list(model.state_dict()) == names


def test_what_has_levels_is_not_converted_again():
    """Neither Hope nor a converted model; and an encoder has no next token to learn from."""
    for model in (HopeForCausalLM(config("hope")), convert(decoder("llama"), LIVE), convert(encoder(), LIVE)):
        with pytest.raises(ValueError, match="has levels already"):
            convert(model, LIVE)
    with pytest.raises(ValueError, match=r"predicts no next token.*learning='parameter'"):
        convert(encoder(), LIVE, learning="context")
    with pytest.raises(ValueError, match=r"the output head, and BertModel has none"):
        convert(encoder(), LIVE, assign="all")


def test_a_memory_of_several_sequences_is_not_folded():
    """Each has weights of its own, and one model has not room for two."""
    hope = convert(decoder("llama"), LIVE)
    with pytest.raises(ValueError, match="of 2 sequences"):
        hope.merge(read(hope, tokens(2, L))[1].memory)


def test_unsupported_regimes_raise():
    """A layout that an optimiser's rule cannot read, and recomputed activations under weights that are gone."""
    with pytest.raises(ValueError, match=r"c_fc.weight is stored as \[in, out\].*learning='context'"):
        convert(decoder("gpt2"), LIVE, learning="parameter").level_optimizer()
    hope = convert(decoder("llama"), LIVE).train()
    hope.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        hope(tokens(1, L))
