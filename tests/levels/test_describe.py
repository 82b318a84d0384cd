"""The level table of a model: what is in it, that nothing is missing, and that the frequencies are the ones that happen."""

import json
import math
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from nestling import AssociativeMemory, layers, memory
from nestling.levels import Description, Level, LevelOptimizer, describe, initial
from nestling.memory.part import Context, Described, Part
from nestling.memory.zoo import ZOO
from nestling.ops.state import named_tensors
from tests import tiny
from tests.families import DECODERS, decoder, encoder

STEP = 4096


def numbers(tree) -> int:
    return sum(tensor.numel() for tensor in named_tensors(tree).values())


def names(description: Description) -> list[list[str]]:
    return [[component.name for component in level] for level in description.levels]


def adds_up(description: Description, model: nn.Module) -> None:
    """Every parameter is in one row, and all rows speak of rows that exist."""
    parameters = list(model.parameters())
    assert description.parameters.numbers == sum(p.numel() for p in parameters)
    assert description.parameters.bytes == sum(p.numel() * p.element_size() for p in parameters)
    known = {component.name for component in description}
    assert len(known) == len(list(description))
    for component in description:
        assert {t.source for t in component.knowledge} <= known | {"the loss"}
        assert set(component.needs) <= known


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)


@pytest.mark.parametrize("family", DECODERS)
def test_a_transformer_is_attention_moments_and_weights(family):
    """Of every family: attention is fitted to nothing; Adam's moments share a level, faster than the weights, which need them."""
    model = decoder(family)
    found = describe(model, adamw(model), STEP)
    adds_up(found, model)
    fast, moments, weights = found.levels
    assert [(c.name, c.layers, c.frequency, c.compression) for c in fast] == [("attention", 3, math.inf, 1.0)]
    assert [c.name for c in moments] == ["first moment", "second moment"]
    assert {"projections", "MLPs"} <= {c.name for c in weights}
    assert {c.frequency for c in (*moments, *weights)} == {1 / STEP}
    assert all(set(c.needs) == {"first moment", "second moment"} for c in weights)
    assert {c.layers for c in weights if c.name in ("projections", "MLPs")} == {3}


def test_sizes_by_role_are_those_of_the_modules():
    """Attention's own maps are projections, the other maps of a block its MLP."""
    model = decoder("llama")
    found, block = describe(model), model.model.layers
    assert found["projections"].parameters.numbers == 3 * sum(p.numel() for p in block[0].self_attn.parameters())
    assert found["MLPs"].parameters.numbers == 3 * sum(p.numel() for p in block[0].mlp.parameters())
    assert found["embeddings"].parameters.numbers == model.model.embed_tokens.weight.numel()
    assert found["output head"].parameters.numbers == model.lm_head.weight.numel()


def test_without_an_optimizer_only_what_reads_moves():
    """The model as it is used: a Transformer has two frequencies, infinite and none."""
    model = encoder()
    found = describe(model)
    adds_up(found, model)
    assert [level[0].frequency for level in found.levels] == [math.inf, 0.0]
    assert found.tokens_per_step is None and "nothing trains it" in str(found)


@pytest.mark.parametrize("name", tiny.READERS)
def test_every_model_of_ours_adds_up(name):
    """Whatever its mixer, variant, rules and form: parameters once, and in the optimiser's state nothing is missing."""
    model = tiny.model(name)
    found = describe(model, adamw(model), STEP)
    adds_up(found, model)
    moments = found["first moment"].state + found["second moment"].state
    assert moments.numbers == 2 * found.parameters.numbers + len(list(model.parameters()))  # and a count of steps each
    if model.levels:
        fast = initial(model.levels, model.moves, model.learnable_weights(), 1)
        levels = sum(c.state.numbers for c in found if "CMS level" in c.name)
        assert levels == numbers(fast)


@pytest.mark.parametrize("name", ["hope", "hope-sequential"])
def test_the_memories_of_hope_are_its_state(name):
    """Per token, and as many numbers as a sequence carries; their initial weights are learnt in the slowest level."""
    model = tiny.model(name)
    found = describe(model, adamw(model), STEP)
    mixing = [c for c in found if c.frequency in (1.0, math.inf)]
    assert sum(c.state.numbers for c in mixing) == numbers(model.model.stack.init_state(1))
    starts, reached = found["initial states"], found["self-modifying memory"].knowledge
    assert ("initialisation", "initial states") in [(t.kind, t.source) for t in reached]
    assert ("generation", "self-modifying projections") in [(t.kind, t.source) for t in reached]
    assert starts in found.levels[-1] and ("backpropagation", "the loss") in [
        (t.kind, t.source) for t in starts.knowledge
    ]
    makers = next(i for i, level in enumerate(names(found)) if "self-modifying projections" in level)
    assert "self-modifying memory" in names(found)[makers]  # neither needs the other's state of the same token
    momentum = [i for i, level in enumerate(names(found)) if "momentum of the memories" in level]
    assert momentum == ([makers - 1] if name == "hope-sequential" else [])


@pytest.mark.parametrize("name", ["hope", "hope-nested", "hope-optimised", "hope-predictions", "llama"])
def test_levels_move_as_often_as_the_table_says(name):
    """Read so many tokens and count."""
    model, tokens = tiny.model(name), 5 * tiny.PERIOD + 1
    found = describe(model)
    _, cache = tiny.read(model, tiny.text(1, tokens))
    for i, state in enumerate(cache.memory):
        assert int(state.updates) == math.floor(tokens * found[f"CMS level {i}"].frequency)


def test_a_level_that_resets_with_a_slower_one_starts_from_it():
    """The nested variant: knowledge goes from slow to fast by initialisation."""
    found = describe(tiny.model("hope-nested"))
    assert ("initialisation", "CMS level 1") in [(t.kind, t.source) for t in found["CMS level 0"].knowledge]


def test_what_a_level_compresses_is_what_its_reset_leaves():
    """Nothing fades: all tokens. A decay of 0.9 an update: ten periods. A context's end: as many as it has."""
    levels = [
        Level(4, lr=0.1, reset="context"),
        Level(8, lr=0.1, reset=0.9),
        Level(16, lr=0.1),
        Level(16),
    ]
    found = describe(layers.ContinuumMemory(8, levels, hidden=32))
    contexts = [found[f"CMS level {i}"].context.effective for i in range(4)]
    assert contexts == [None, 80.0, math.inf, 0.0]
    assert [found[f"CMS level {i}"].frequency for i in range(4)] == [
        1 / 4,
        1 / 8,
        1 / 16,
        0.0,
    ]  # a rate of 0 never moves


def test_a_model_that_does_not_learn_while_it_reads_has_no_levels_of_its_own():
    """Neither `learning="off"`, nor the model without a head, nor a converted one whose rates are 0."""
    for model in (
        tiny.model("hope", learning="off"),
        tiny.model("hope").model,
        tiny.model("llama", levels=[Level(6)]),
    ):
        assert not [c for c in describe(model) if "CMS" in c.name]


@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_a_level_optimizer_moves_levels_after_whole_steps(tokens):
    """The period, rounded up to steps: counted. Its weights are the level's own, each once."""
    model = tiny.model("gpt-neox", learning="parameter")
    levels = model.level_optimizer()
    rest = [p for p in model.parameters() if all(p is not levels.weights[name] for name in levels.moved)]
    found = describe(model, [levels, torch.optim.SGD(rest)], tokens)
    adds_up(found, model)
    assert sum(c.state.numbers for c in found if "CMS" in c.name) == numbers(levels.state)
    fastest = sum(levels.weights[name].numel() for name in levels.state[0].weights)
    assert found["CMS level 0"].parameters.numbers == fastest
    steps = 24
    for _ in range(steps):
        for name in levels.moved:
            levels.weights[name].grad = torch.zeros_like(levels.weights[name])
        with levels.watch():
            model(tiny.text(1, 4))
        levels.step(tokens)
    for i, state in enumerate(levels.state):
        assert int(state.updates) == math.floor(steps * tokens * found[f"CMS level {i}"].frequency + 1e-9)


def test_superposed_levels_share_their_weights():
    """In the parameter regime they are counted with the fastest."""
    module = layers.ContinuumMemory(8, [Level(4, lr=0.1), Level(8, lr=0.1)], "superposed")
    found = describe(module, LevelOptimizer(module, module.levels, module.moves()), 2)
    adds_up(found, module)
    assert found["CMS level 1"].parameters.numbers == 0 < found["CMS level 0"].parameters.numbers
    assert found["CMS level 1"].state == found["CMS level 0"].state


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    )


def test_a_cnn_has_no_attention_and_keeps_running_statistics():
    """Batch norm is a memory of the batches: it moves at every step, and holds `1 / momentum` of them."""
    model = cnn()
    found = describe(model, torch.optim.SGD(model.parameters(), momentum=0.9), 32)
    adds_up(found, model)
    assert names(found) == [["momentum"], ["running statistics", "convolutions", "norms", "linear maps"]]
    averages = found["running statistics"]
    assert (averages.frequency, averages.context.effective, averages.state.numbers) == (1 / 32, 5.0, 17)
    assert describe(model)["running statistics"].frequency == 0


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), 2),
        (nn.Transformer(8, 2, 2, 3, 16, batch_first=True), 8),  # the decoder attends twice
        (nn.MultiheadAttention(8, 2), 1),
    ],
)
def test_torch_s_own_attention_is_recognised(model, layers):
    """By the mask that it takes."""
    found = describe(model)
    adds_up(found, model)
    assert found["attention"].layers == layers


class Fused(nn.Module):
    """Attention whose queries, keys and values come of one map, without a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.out = nn.Linear(8, 24), nn.Linear(8, 8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.up, self.down = nn.LayerNorm(8), Fused(), nn.Linear(8, 32), nn.Linear(32, 8)


def test_attention_of_one_map_is_recognised():
    """Queries, keys and values in one matrix, as in many small implementations."""
    model = nn.Sequential(Block(), Block())
    found = describe(model)
    adds_up(found, model)
    assert names(found) == [["attention"], ["norms", "projections", "MLPs"]]
    assert found["MLPs"].parameters.numbers == 2 * (8 * 32 + 32 + 32 * 8 + 8)


class Mixer(nn.Module):
    """Takes a mask, and convolves: whatever it keeps, it is not attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(8, 8, 3), nn.Linear(8, 8)

    def forward(self, x, attention_mask=None):
        return x


@pytest.mark.parametrize("model", [nn.ModuleList([nn.Sequential(Mixer(), nn.LayerNorm(8))]), nn.LSTM(8, 8)])
def test_what_is_not_recognised_is_weights_and_a_note(model):
    """Nothing is left out silently."""
    found = describe(model)
    adds_up(found, model)
    assert "attention" not in str(found["weights"].name) and len(found.notes) == 1
    assert found.notes[0] in " ".join(str(found).split()) and found.notes[0] in json.loads(found.to_json())["notes"]


class Counter(nn.Module, Described):
    """A user's own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(3))
        self.gate = nn.Linear(3, 3)

    def parts(self) -> tuple[Part, ...]:
        knowledge = (("initialisation", "initial states"), ("direct parametric", "projections"))
        return (
            Part(
                "counter",
                "none",
                "n <- n + x",
                2,
                Context(),
                (),
                knowledge,
                (torch.zeros(3),),
                item=3,
                parameters=(self.start,),
            ),
        )


def test_a_module_can_say_what_it_is():
    """By inheriting from `Described`: its memory, what it starts from, and the rest."""
    model = nn.Sequential(Counter(), Counter(), nn.Linear(3, 3))
    found = describe(model)
    adds_up(found, model)
    counter = found["counter"]
    assert (counter.frequency, counter.layers, counter.state.numbers) == (0.5, 2, 6)
    assert ("initialisation", "initial states") in [(t.kind, t.source) for t in counter.knowledge]
    assert found["initial states"].parameters.numbers == 6 and found["projections"].parameters.numbers == 24


@pytest.mark.parametrize("momentum", [False, True])
def test_an_associative_memory_alone(momentum):
    """A momentum of its writes is a level faster than it: it needs it at every token."""
    rule = memory.DeltaGradientDescent(momentum=momentum)
    module = AssociativeMemory(memory.MLP(4, 8, heads=2), memory.L2(), rule)
    found = describe(module)
    adds_up(found, module)
    assert found.state.numbers == numbers(module.init_state(1))
    assert names(found) == [*([["momentum of the memory"]] if momentum else []), ["memory"], ["initial states"]]


@pytest.mark.parametrize("name", ZOO)
def test_a_memory_of_the_zoo_moves_at_every_token(name):
    """Its state is what the layer carries; attention has no weights that would move, and answers at every token anew."""
    module = layers.MemoryLayer(8, 2, ZOO[name])
    found = describe(module)
    adds_up(found, module)
    if name in ("softmax_attention", "sliding_window"):
        assert found["attention"].frequency == math.inf
    else:
        assert found["memory"].frequency == 1 and found.state.numbers == numbers(module.init_state(1))


def test_a_chunk_says_where_gradients_are_taken_and_not_how_often_a_memory_moves():
    """Half a chunk in, the memory of self-modifying Titans is another one after every token."""
    layer = layers.SelfModifyingTitans(8, 1, chunk_size=8)
    state, x = layer.init_state(1), torch.randn(1, 5, 8)
    with torch.no_grad():
        for t in range(5):
            _, after = layer(x[:, t : t + 1], state)
            assert all((a != b).any() for a, b in zip(after.memories.weights, state.memories.weights, strict=True))
            state = after
    assert describe(layer)["self-modifying memory"].frequency == 1


def test_frozen_weights_have_frequency_zero():
    """Those that take no gradient, and those that no optimiser was given; each in a row of its own."""
    model = decoder("llama")
    model.model.embed_tokens.requires_grad_(False)
    found = describe(model, torch.optim.SGD([p for p in model.parameters() if p is not model.lm_head.weight]), STEP)
    adds_up(found, model)
    assert found["embeddings"].frequency == found["output head"].frequency == 0
    model.model.layers[0].mlp.requires_grad_(False)
    found = describe(model, torch.optim.SGD(model.parameters()), STEP)
    adds_up(found, model)
    assert found["MLPs (frozen)"].layers == 1 and found["MLPs (SGD)"].layers == 2
    assert found["MLPs (SGD)"].frequency == 1 / STEP and found["MLPs (frozen)"] in found.levels[-1]


def test_tied_weights_are_counted_once():
    """And named by both of their roles."""
    model = decoder("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    found = describe(model)
    adds_up(found, model)
    assert found["embeddings and output head"].parameters.numbers == model.lm_head.weight.numel()


def test_without_memory_the_table_is_the_same():
    """A model on the meta device, its optimiser before the first step."""
    model = decoder("llama")
    with torch.device("meta"):
        outline = type(model)(model.config)
    expected = describe(model, adamw(model), STEP)
    assert describe(outline, adamw(outline), STEP) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((object(),), "model is a object; give a torch.nn.Module"),
        ((nn.Linear(2, 2), "AdamW"), "optimizer is a str"),
        ((nn.Linear(2, 2), None, 4096), "tokens_per_step=4096 without an optimizer"),
        ((nn.Linear(2, 2), torch.optim.SGD(nn.Linear(3, 3).parameters())), "2 parameters that the model does not have"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    """With what was given, and what to do."""
    with pytest.raises(ValueError, match=words):
        describe(*arguments)


def test_two_optimizers_for_one_parameter_are_refused():
    """Of torch, or one that moves levels."""
    model = nn.Linear(4, 4)
    sgd = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match=r"\[4, 4\] is moved by SGD and by SGD 2"):
        describe(model, [sgd, torch.optim.SGD([model.weight])])
    levels = LevelOptimizer(model, [Level(4, lr=0.1)], [["weight"]])
    with pytest.raises(ValueError, match="1 weights are moved by a LevelOptimizer and by SGD"):
        describe(model, [levels, sgd])
    for tokens in (0, True, 1.5, "4"):
        with pytest.raises(
            ValueError, match=f"tokens_per_step={tokens!r} must be a whole number of tokens, at least 1"
        ):
            describe(model, sgd, tokens)
    with pytest.raises(KeyError, match="'nose' is no component; there are linear maps"):
        describe(model)["nose"]


def strict(text: str):
    """JSON without the constants that it does not have."""
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


@pytest.mark.parametrize("name", ["hope", "hope-predictions", "transformer++"])
def test_the_result_is_data_a_table_and_a_picture(name):
    """JSON that any reader takes, a table with every component, and one self-contained SVG with a box for each."""
    model = tiny.model(name)
    found = describe(model, adamw(model), STEP)
    data = strict(found.to_json())
    assert [[c["name"] for c in level] for level in data["levels"]] == names(found)
    table = "".join(str(found).split())
    assert all(component.name.replace(" ", "") in table for component in found)
    root = ElementTree.fromstring(found.to_svg())
    titles = [t.text.split("\n")[0] for t in root.findall(".//{*}g/{*}title")]
    assert [title.split(",")[0] for title in titles] == [c.name for c in found]
    texts = [t.text for t in root.findall(".//{*}text")]
    assert all(f"level {i + 1}" in texts for i in range(len(found.levels))) and "1 / 4,096" in texts
    links = [value for e in root.iter() for value in e.attrib.values() if "url(" in value or "http" in value]
    assert links == [] and not root.findall(".//{*}script")


def test_a_picture_escapes_what_it_is_given():
    """Names come from classes, which may be anything."""
    model = type("A<b>&c", (nn.Linear,), {})(2, 2)
    root = ElementTree.fromstring(describe(model).to_svg())
    assert root.find("{*}title").text.startswith("A<b>&c as it is used")
