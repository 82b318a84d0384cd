"""Every configuration as a Hugging Face model: generation, files, Auto classes; and what is not supported raises."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from nestling.levels import Level
from nestling.memory import RetainSeen
from nestling.models import HopeCache, HopeConfig, HopeForCausalLM, HopeModel
from tests.helpers import close, same
from tests.tiny import LEARNING, SETTINGS, config, knowledge, model, read, text

every_model = pytest.mark.parametrize("name", SETTINGS)
models_that_learn = pytest.mark.parametrize("name", LEARNING)


def generate(net, ids, seed=0, **options):
    """Tokens and the logits of every step, under a seed."""
    torch.manual_seed(seed)
    options = {
        "max_new_tokens": 9,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        **options,
    }
    out = net.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return out.sequences, torch.stack(out.logits, dim=1)


@every_model
def test_generating_is_reading(name):
    """With a cache the logits of every step, past two periods, are those of one full forward over the result."""
    net, ids = model(name), text(2, 15)
    tokens, logits = generate(net, ids)
    full, _ = read(net, tokens)
    close(logits, full[:, ids.shape[1] - 1 : -1].float(), tolerance=1e-6)  # `generate` gives logits in float32
    assert torch.equal(tokens[:, 15:], logits.argmax(-1)) and tokens.shape == (2, 24)


@every_model
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True}], ids=str)
def test_beams_and_samples_need_no_cache(name, options):
    """The cache follows the beams: with and without it the same sequences, and another seed samples others."""
    net, ids = model(name), text(2, 8)
    cached, uncached = (generate(net, ids, use_cache=flag, **options)[0] for flag in (True, False))
    assert torch.equal(cached, uncached)
    if options.get("do_sample"):
        assert not torch.equal(cached, generate(net, ids, seed=1, **options)[0])
    else:
        greedy = generate(net, ids)[0]
        score = {flag: sum_of_scores(net, tokens) for flag, tokens in (("beam", cached), ("greedy", greedy))}
        assert (score["beam"] >= score["greedy"] - 1e-9).all()


def sum_of_scores(net, tokens, prompt=8):
    """Log-probability of what follows the prompt, by row."""
    scores = read(net, tokens)[0][:, prompt - 1 : -1].log_softmax(-1)
    return scores.gather(-1, tokens[:, prompt:, None]).sum((1, 2))


@models_that_learn
@pytest.mark.parametrize("mode", ["off", "context"])
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_one_memory_serves_every_beam_and_sample(name, mode, options):
    """The memory of one row, repeated for the sequences of one prompt: as many as were asked for, each on its own."""
    net, ids = model(name), text(1, 8)
    cache = HopeCache(mode, read(net, text(1, 25, seed=1))[1].memory)
    cache.batch_repeat_interleave(2)
    tokens, _ = generate(net, ids, past_key_values=cache, **options)
    assert tokens.shape == (options.get("num_return_sequences", 1), 17)


@every_model
def test_a_file_holds_the_model(name, tmp_path):
    """Saved and loaded, by its class or by the Auto classes, the logits are the same bits; nothing is pickled."""
    net, ids = model(name).float(), text(2, 20)
    net.save_pretrained(tmp_path)
    expected, _ = read(net, ids)
    for kind in (HopeForCausalLM, AutoModelForCausalLM):
        loaded = kind.from_pretrained(tmp_path).eval()
        assert isinstance(loaded, HopeForCausalLM)
        same(read(loaded, ids)[0], expected)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert type(AutoModel.from_pretrained(tmp_path)) is HopeModel


@every_model
def test_a_configuration_survives_a_file(name, tmp_path):
    """Sizes, levels, rules and choices come back as they were, as plain JSON."""
    given = config(name)
    given.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, HopeConfig) and loaded.level_objects() == given.level_objects()
    plain = {key: value for key, value in given.to_dict().items() if key != "_name_or_path"}
    assert {key: loaded.to_dict()[key] for key in plain} == plain and plain["hidden_size"] == 16
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "nestling_hope"


@every_model
def test_losses_and_logits_are_the_usual_ones(name):
    """Labels are shifted inside, -100 is ignored, `logits_to_keep` is a slice; the head is the embedding."""
    net, ids = model(name), text(2, 20)
    labels = ids.clone()
    labels[0, :7] = -100
    out = net(ids, labels=labels)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    close(out.loss, expected.float(), tolerance=1e-6)  # the loss of transformers is in float32
    close(net(ids, logits_to_keep=3).logits, out.logits[:, -3:])
    close(net(ids, logits_to_keep=torch.tensor([4, 9])).logits, out.logits[:, [4, 9]])
    assert net.lm_head.weight is net.model.embed_tokens.weight


@every_model
def test_embeddings_may_be_given(name):
    """Without learning, `inputs_embeds` are tokens; positions that count up are accepted."""
    net, ids = model(name, recall=None), text(2, 20)
    expected, _ = read(net, ids, HopeCache("off"))
    places = torch.arange(20).expand(2, -1)
    for given in ({"inputs_embeds": net.embed(ids)}, {"input_ids": ids, "position_ids": places}):
        out = net(**given, past_key_values=HopeCache("off"))
        same(out.logits.detach(), expected)


@every_model
def test_a_batch_is_reordered_with_its_cache(name):
    """Rows chosen in another order, repeated and dropped, go on as those rows."""
    net, ids, more = model(name), text(2, 15), text(3, 9, seed=1)
    order = torch.tensor([1, 0, 1])
    _, cache = read(net, ids)
    cache.batch_select_indices(order)
    expected, other = read(net, torch.cat([ids[order], more], dim=1))
    close(read(net, more, cache)[0], expected[:, 15:])
    close(knowledge(cache), knowledge(other))


def test_a_context_that_is_reset_keeps_its_memory():
    """`reset` ends the session only."""
    net = model("hope")
    _, cache = read(net, text(1, 25))
    memory = cache.memory
    cache.reset()
    assert cache.session is None and cache.memory is memory and cache.get_seq_length() == 0


BAD_CONFIGURATIONS = {
    "mixer": ({"mixer": "mamba"}, "mixer='mamba'.*'attention'"),
    "learning": ({"learning": "always"}, "learning='always'.*'context'"),
    "learnt": ({"learnt": "everything"}, "learnt='everything'.*'all'"),
    "learnt outside the chain": ({"learnt": "all", "level_variant": "sequential"}, "learnt='all'.*superposed"),
    "variant": ({"level_variant": "circular"}, "variant='circular'.*'superposed'"),
    "periods that do not nest": (
        {"level_variant": "nested", "levels": [{"period": 4}, {"period": 8}, {"period": 12}]},
        "periods 8 and 12 do not nest",
    ),
    "reading": ({"memory_read": "both"}, "read='both'.*'token'"),
    "heads": ({"num_attention_heads": 3}, "hidden_size=16, num_attention_heads=3"),
    "head width": ({"mixer": "attention", "num_attention_heads": 16}, "heads=16.*even"),
    "window": ({"mixer": "attention", "sliding_window": 0}, "window=0"),
    "window of a memory": ({"sliding_window": 8}, "sliding_window=8.*'self_modifying_titans'.*leave it out"),
    "memory of attention": ({"mixer": "attention", "memory_hidden": 8}, "memory_hidden=8.*'attention'.*leave it out"),
    "chunks": ({"projection_chunk_size": 6}, "projection_chunk_size=6"),
    "width of a chain": ({"level_variant": "sequential", "intermediate_size": 41}, "hidden=41.*2"),
    "order of levels": ({"levels": [Level(12), Level(6)]}, "period 6 stands after 12"),
    "unknown key": ({"hidden": 16}, r"\['hidden'\].*hidden_size"),
}


@pytest.mark.parametrize("case", BAD_CONFIGURATIONS)
def test_a_configuration_that_cannot_be_raises(case):
    """No choice is ignored or downgraded: the message names it and what is allowed."""
    given, message = BAD_CONFIGURATIONS[case]
    with pytest.raises(ValueError, match=message):
        HopeForCausalLM(config("hope", **given))


def stale(mode):
    """A cache that was begun in the other mode."""
    cache = read(model("hope"), text(1, 5), HopeCache("off" if mode == "context" else "context"))[1]
    cache.learning = mode
    return cache


BAD_CALLS = {
    "another cache": (lambda net, ids: net(ids, past_key_values=DynamicCache()), "DynamicCache.*HopeCache"),
    "embeddings while learning": (lambda net, ids: net(inputs_embeds=net.embed(ids)), "learning='off'"),
    "both inputs": (lambda net, ids: net.model(input_ids=ids, inputs_embeds=net.embed(ids)), "exactly one"),
    "nothing": (lambda net, ids: net(ids[:, :0]), "empty"),
    "mask": (lambda net, ids: net(ids, attention_mask=torch.ones(1, 3)), r"\(1, 3\)"),
    "packed positions": (lambda net, ids: net(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1]])), "position_ids jump"),
    "mode of a cache": (lambda net, ids: HopeCache("parameter"), "learning='parameter'.*'off'"),
    "a cache that began to learn": (lambda net, ids: net(ids, past_key_values=stale("off")), "learn"),
    "a cache that began without": (lambda net, ids: net(ids, past_key_values=stale("context")), "learning='off'"),
    "the model without a head": (lambda net, ids: net.model(ids, past_key_values=stale("off")), "HopeForCausalLM"),
    "memory of other rows": (
        lambda net, ids: net(ids, past_key_values=HopeCache("context", read(net, text(2, 20))[1].memory)),
        "2 rows and the input 1",
    ),
    "a static cache": (lambda net, ids: net.generate(ids, cache_implementation="static"), "='static' does not fit"),
    "unreading": (lambda net, ids: net.new_cache().crop(-1), "unread"),
    "no levels": (lambda net, ids: model("transformer++")(ids, past_key_values=HopeCache("context")), "no levels"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_call_that_cannot_be_raises(case):
    """What is not supported is not switched off by itself: the message says what to change."""
    call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        call(model("hope"), text(1, 5))


def test_rules_are_plain_data_in_a_configuration():
    """A level may be given as an object or as data; the configuration holds data."""
    given = config("hope", levels=[Level(6, 0.1, RetainSeen(0.3, 0.9), "context")])
    assert config("hope", levels=given.levels).levels == given.levels
    assert json.loads(json.dumps(given.levels)) == given.levels
