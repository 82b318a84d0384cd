"""The contract of every memory of the zoo: a new one is a member of `ZOO`, and nothing here.

B rows, H heads, D width, L length.
"""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

import nestling
from nestling.memory import AssociativeMemory
from nestling.memory.zoo import ZOO
from nestling.ops.state import with_tensors
from tests.helpers import close, cuts, differ, directions, gradients, named, randomise, row, same, uniform

B, H, D, C, L = 2, 2, 4, 8, 21
every_member = pytest.mark.parametrize("name", ZOO)


def make(name):
    """In float64, with weights of order 1/2, chunks of 8 and windows of 5."""
    wanted = {"chunk_size": C, "window": 5, "hidden": 6}
    shape = {argument: value for argument, value in wanted.items() if ZOO[name].takes(argument)}
    return randomise(ZOO[name].make(D, H, **shape).double())


def tokens(name, length=L, grad=False):
    """What drives a member, as its paper has it."""
    classic, shape = ZOO[name], (B, H, length)
    made = {"q": directions(*shape, D), "k": directions(*shape, D), "v": directions(*shape, D)}
    memory = make(name)
    if isinstance(memory, AssociativeMemory):
        rates = {"one": (1.0, 1.0), "token": (0.1, 1.0), "channel": (0.1, 1.0), "chunk": (0.1 / C, 1 / C)}
        made["eta"] = uniform(*rates[classic.rate], *shape, *([D] if classic.rate == "channel" else []))
        if classic.retention is not None:
            made["alpha"] = uniform(0.8, 1.0, *shape, *([D] if classic.retention == "channel" else []))
        if memory.rule.momentum:
            made["theta"] = uniform(0.0, 0.7, *shape)
    return {name: x.requires_grad_(grad) for name, x in made.items()}


def oracle(memory, given, lengths=None):
    """The token loop; attention is its weighted mean, written out."""
    if isinstance(memory, AssociativeMemory):
        slow = AssociativeMemory(
            memory.network, memory.objective, memory.rule, memory.chunk_size, memory.read,
            retention=memory.retention, backend="reference",
        )  # fmt: skip
        return slow(**given, lengths=lengths)
    outputs = []
    for t in range(given["k"].shape[2]):
        first = 0 if memory.window is None else max(0, t + 1 - memory.window)
        k, v = given["k"][:, :, first : t + 1], given["v"][:, :, first : t + 1]
        weights = torch.exp((given["q"][:, :, t, None] * k).sum(-1) / D**0.5)[..., None]
        outputs.append((weights * v).sum(2) / weights.sum(2))
    return torch.stack(outputs, 2), ()


@every_member
@pytest.mark.parametrize("length", [1, C, 37])
def test_the_fast_form_is_the_slow_one(name, length):
    """Outputs, final state and every gradient; and no member is left to the oracle."""
    memory, given = make(name), tokens(name, length, grad=True)
    assert "token-loop oracle" not in repr(memory)
    found, expected = memory(**given), oracle(memory, given)
    if not isinstance(memory, AssociativeMemory):
        found = found[0], ()
    close(found, expected)
    leaves = [*given.values(), *memory.parameters()]
    close(gradients(found, leaves), gradients(expected, leaves))


@every_member
@settings(max_examples=5)
@given(sizes=cuts(L))
def test_streaming_is_the_whole(name, sizes):
    """Any split into calls, and one token at a time by `step`."""
    torch.manual_seed(0)
    memory, given = make(name), tokens(name)
    with torch.no_grad():
        whole, end = memory(**given)
        outputs, state = [], None
        for first, last in pairwise([0, *torch.tensor(sizes).cumsum(0).tolist()]):
            y, state = memory(**{n: x[:, :, first:last] for n, x in given.items()}, state=state)
            outputs.append(y)
        close(torch.cat(outputs, 2), whole)
        if isinstance(memory, AssociativeMemory):
            close(state, end)
        outputs, state = [], None
        for t in range(L):
            y, state = memory.step(**{n: x[:, :, t] for n, x in given.items()}, state=state)
            outputs.append(y)
        close(torch.stack(outputs, 2), whole)


@every_member
def test_the_future_changes_no_output(name):
    """Outputs before a token are the same bits whatever comes from it on."""
    memory, given, other = make(name), tokens(name), tokens(name)
    for t in (1, 11, L - 1):
        changed = {n: torch.cat([x[:, :, :t], other[n][:, :, t:]], 2) for n, x in given.items()}
        y, found = memory(**given)[0], memory(**changed)[0]
        same(found[:, :, :t], y[:, :, :t])
        differ(found[:, :, t:], y[:, :, t:])


@every_member
def test_rows_are_strangers_to_each_other_and_to_padding(name):
    """A row's outputs and state are the same bits whatever another row reads; padding is as if it were not there."""
    memory, given, other = make(name), tokens(name), tokens(name)
    lengths = torch.tensor([L, 13])
    y, state = memory(**given, lengths=lengths)
    stranger = {n: torch.cat([x[:1], other[n][1:]]) for n, x in given.items()}
    same(row(memory(**stranger, lengths=lengths), 0), row((y, state), 0))
    alone, _ = memory(**{n: x[1:, :, :13] for n, x in given.items()})
    close(y[1:, :, :13], alone)


def model(name):
    """A small language model of that mixer."""
    torch.manual_seed(0)
    size = {"vocab_size": 31, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "chunk_size": 8}
    return nestling.HopeForCausalLM(nestling.HopeConfig(mixer=name, **size))


@every_member
def test_it_trains(name):
    """One step lowers the loss of a text, every parameter has a finite gradient, and no memory refuses an update."""
    net = model(name)
    ids = torch.randint(31, (2, 40), generator=torch.Generator().manual_seed(1))
    out = net(ids, labels=ids)
    out.loss.backward()
    slopes = {n: p.grad for n, p in net.named_parameters()}
    assert all(slope is not None and slope.isfinite().all() for slope in slopes.values())
    torch.optim.AdamW(net.parameters(), lr=1e-3).step()
    after = net(ids, labels=ids, use_cache=True)
    assert after.loss < out.loss
    refused = [t for n, t in named(after.past_key_values.session).items() if n.endswith("refused")]
    assert all(not t.any() for t in refused)


@every_member
def test_it_survives_a_file(name, tmp_path):
    """Saved as safetensors and loaded, it says the same, bit for bit; and so does what a memory had read."""
    net = model(name).eval()
    ids = torch.randint(31, (1, 20), generator=torch.Generator().manual_seed(1))
    net.save_pretrained(tmp_path)
    loaded = nestling.HopeForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        same(loaded(ids).logits, net(ids).logits)
    assert loaded.config.mixer == name
    memory, given = make(name), tokens(name)
    _, state = memory(**given)
    save_file({n: t.contiguous() for n, t in named(state).items()}, tmp_path / "state.safetensors")
    same(
        memory(**given, state=with_tensors(state, load_file(tmp_path / "state.safetensors"))),
        memory(**given, state=state),
    )


@every_member
def test_it_names_its_paper(name):
    """Every member has a title and a source, and says in a sentence what it is."""
    classic = ZOO[name]
    assert classic.title and any(sign in classic.source for sign in ("arXiv", "19")) and classic.make.__doc__


def line(name):
    """What the page says of a member."""
    classic, memory = ZOO[name], ZOO[name].make(4)
    start = f"| `{name}` | {classic.title} ({classic.source}) | "
    if not isinstance(memory, AssociativeMemory):
        return start + "all pairs | | | | | |"
    network = type(memory.network).__name__
    inner = getattr(memory.network, "network", None)
    parts = f"{network} of {type(inner).__name__}" if inner is not None else network
    rule = " of ".join(kinds(memory.rule))
    chosen = (parts, type(memory.objective).__name__, rule, type(memory.retention).__name__)
    return start + " | ".join([*chosen, classic.rate, classic.retention or "1"]) + " |"


def kinds(rule):
    """Names of a rule and of those within it."""
    inner = getattr(rule, "rule", None)
    return [type(rule).__name__, *(kinds(inner) if inner is not None else [])]


def test_the_page_lists_the_zoo():
    """docs/memory.md has a line for every member, and it is what the member is."""
    text = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")
    assert [found for found in text.splitlines() if found.startswith("| `") and "arXiv" in found] == list(
        map(line, ZOO)
    )
