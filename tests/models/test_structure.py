"""Blocks and MLPs are found by their structure, whatever they are called; and what has none is told what was looked for."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from nestling import Level, convert
from nestling.models.pretrained.structure import LINEAR, find_blocks, matrix
from tests.families import DECODERS, GROUPED, decoder, encoder

HIDDEN, WIDTH = 24, 16  # no other map of the tiny models has this pair of widths
FAMILIES = {**{name: lambda name=name: decoder(name) for name in DECODERS}, "bert": encoder}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mlp_is_what_goes_to_the_hidden_width_and_back(family):
    """In each of three blocks: all maps between the two widths and no other, by an independent count."""
    model = FAMILIES[family]()
    blocks = find_blocks(model)
    expected = {
        n for n, m in model.named_modules() if isinstance(m, LINEAR) and set(matrix(m).shape) == {HIDDEN, WIDTH}
    }
    assert len(blocks) == 3 and {name for block in blocks for name in block.mlp} == expected
    assert all(matrix(model.get_submodule(block.down)).shape == (WIDTH, HIDDEN) for block in blocks)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_names_do_not_matter(family):
    """The same model with every map under a name that says nothing: the same maps are found."""
    model = FAMILIES[family]()
    renamed = copy.deepcopy(model)
    for module in renamed.modules():
        module._modules = {f"m{i}" if n.isidentifier() else n: m for i, (n, m) in enumerate(module._modules.items())}
    places = {id(m): i for i, m in enumerate(renamed.modules())}
    original = {n: i for i, (n, _) in enumerate(model.named_modules())}
    renamed.get_input_embeddings = lambda: next(m for m in renamed.modules() if isinstance(m, nn.Embedding))
    found = [[places[id(renamed.get_submodule(n))] for n in block.mlp] for block in find_blocks(renamed)]
    assert found == [[original[n] for n in block.mlp] for block in find_blocks(model)]


def mamba():
    settings = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "eos_token_id": 1, "bos_token_id": 1}
    return hf.MambaForCausalLM(hf.MambaConfig(**settings))


def t5():
    return hf.T5Model(hf.T5Config(vocab_size=40, d_model=16, d_ff=24, num_layers=2, num_heads=4))


def quantised():
    """As packages for quantisation leave a map: whole numbers that take no gradient."""
    model = decoder("llama")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.mul(100).to(torch.int8), requires_grad=False)
    return model


def quantised_by_torch():
    return torch.ao.quantization.quantize_dynamic(decoder("llama"), {nn.Linear}, dtype=torch.qint8)


REFUSED = {
    mamba: r"MambaForCausalLM has no recognisable MLPs.*ModuleList.*outside of attention.*in_proj",
    lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**GROUPED)
    ): "MixtralForCausalLM has no recognisable MLPs.*MixtralExperts",
    t5: "T5Model is an encoder and a decoder",
    quantised: r"q_proj is quantised \(Linear, torch.int8\).*dequantize",
    quantised_by_torch: "q_proj is quantised .*qint8.*dequantize",
}


@pytest.mark.parametrize("make", list(REFUSED), ids=["mamba", "experts", "t5", "int8", "qint8"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_cannot_be_converted_raises(make):
    """One sentence says what was looked for and what there is; the model is as it was."""
    model = make()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=REFUSED[make]) as caught:
        convert(model, [Level(8)], form="chain")
    assert "\n" not in str(caught.value)
    assert [name for name, _ in model.named_modules()] == names
