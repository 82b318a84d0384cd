"""The ablation: each row changes the one thing that it names, and nothing is run twice."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from nestling.errors import UserError
from nestling.evals.ablation import main
from nestling.evals.ablation.learn import Size, model, run
from nestling.evals.ablation.rows import FULL, ROWS
from nestling.layers import SelfModifyingTitans
from nestling.report import ablation as pages

TINY = Size(width=16, layers=1, tokens=256, batch=2, length=64, judged=600, seeds=(0,))
LENGTH = 72  # longer than a chunk of 64


def made(name):
    """A row's model with weights that are the same for every row of the same parts."""
    torch.manual_seed(0)
    return model(name, TINY)


def layer_of(net):
    return next(module for module in net.modules() if isinstance(module, SelfModifyingTitans))


def read(name):
    """The logits of a text, and the mixer's state after it."""
    net, ids = made(name), torch.randint(3, 259, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state = layer_of(net)(net.model.embed_tokens(ids))[1]
        return net(ids).logits, state, layer_of(net).init_state(1)


def test_every_row_is_another_model():
    """No change is without effect."""
    whole = read(FULL)[0]
    for name in ROWS:
        if name not in (FULL, "chunk 256"):  # which begins to differ where a second chunk of 256 begins
            assert (read(name)[0] - whole).abs().max() > 1e-6, name


@pytest.mark.parametrize(("name", "still"), [("static k", 0), ("static v", 1)])
def test_a_static_projection_stays_and_the_others_move(name, still):
    """Its weights after a text are bit for bit those before; momentum has nothing of it."""
    _, state, start = read(name)
    for weight, initial in zip(state.memories.weights, start.memories.weights, strict=True):
        moved = (weight - initial).abs().flatten(2).amax(2)[0]
        assert moved[still] == 0 and moved[[i for i in range(5) if i != still]].min() > 0


def test_without_decay_all_is_retained():
    """alpha is 1, and the learning rate is what it was."""
    layer = layer_of(made("w/o weight decay"))
    rate, decay = torch.randn(2, 1, 1, 3, 16).unbind()
    eta, alpha = layer.gates(rate, decay)
    assert (alpha == 1).all()
    assert torch.equal(eta, layer_of(made(FULL)).gates(rate, decay)[0])


def test_rows_that_are_settings_are_set():
    """Descent without erasure, a shared target, one level of the same parameters, chunks and reads as named."""
    layers = {name: layer_of(made(name)) for name in ROWS}
    x = torch.randn(3, 4)
    rule = layers["w/o DGD"].memories.rule
    assert rule.factors(torch.ones(3), x)[0] is None and rule.momentum
    assert layers[FULL].memories.rule.factors(torch.ones(3), x)[0] is not None
    value = torch.randn(1, 1, 3, 16)
    tied = layers["tied targets"].memories
    assert tied.target(tied.network, tied.network.weights(), value) is value
    assert layers["w/o momentum"].momentum is None and layers[FULL].momentum is not None
    assert [layers[f"chunk {size}"].memories.sizes[-1] for size in (1, 16, 256)] == [1, 16, 256]
    assert (layers["read chunk"].memories.read, layers[FULL].memories.read) == ("chunk", "token")
    one, two = made("w/o CMS"), made(FULL)
    assert (len(one.levels), len(two.levels)) == (1, 2)
    sizes = [sum(p.numel() for p in net.parameters() if p.dim() > 1) for net in (one, two)]
    assert sizes[0] == sizes[1]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A little text where WikiText-2 is looked for."""
    (tmp_path / "wikitext2").mkdir()
    for part in ("train", "valid"):
        (tmp_path / "wikitext2" / f"{part}.txt.gz").write_bytes(
            gzip.compress(b"all that is gold does not glitter " * 40)
        )
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path))
    return tmp_path


def test_a_run_learns(data):
    """More text is fewer bits a byte, for the whole and with every level in its place."""
    short = run(FULL, 0, Size(width=16, layers=1, tokens=128, batch=2, length=64, judged=600))
    longer = run(FULL, 0, Size(width=16, layers=1, tokens=2560, batch=2, length=64, judged=600))
    assert longer["bits"] < short["bits"] - 0.5 and longer["seconds"] > 0


def test_nothing_runs_twice_and_the_page_says_what_was_found(data, monkeypatch):
    """A second call takes the runs from their files; differences are seed by seed, a run that diverged is told."""
    bits = {FULL: [2.0, 2.2], "w/o DGD": [2.3, 2.5], "static k": [2.1, math.nan]}
    calls = []

    def invented(name, seed, size):
        calls.append((name, seed))
        return {"bits": bits[name][seed], "seconds": 2.0, "tokens": 4000, "parameters": 1000}

    monkeypatch.setattr(main, "run", invented)
    monkeypatch.setattr(main, "side_by_side", lambda function, tasks, jobs: ((task, function(*task)) for task in tasks))
    monkeypatch.setitem(main.SIZES, "quick", Size(seeds=(0, 1)))
    results = [main.ablation(list(bits), "quick", str(data / "runs"), 1, lambda line: None) for _ in range(2)][1]
    assert len(calls) == 6
    found = {row[0]: row[1:4] for row in pages.rows(results)}
    assert found["w/o DGD"] == ["2.400 ± 0.141", "+0.300 ± 0.000", "+1.17"]
    assert found["static k"][:2] == ["not finite", "not finite"]
    assert "4,000 bytes" in pages.html(results)


def test_what_takes_too_long_is_left_to_the_full_size():
    """Chunk 1 runs where it is asked for by name; an unknown row is told."""
    assert "chunk 1" in main.SIZES["default"].without and not main.SIZES["full"].without
    with pytest.raises(UserError, match=r"unknown row w/o luck.*w/o DGD"):
        main.ablation(["w/o luck"], "quick", "nowhere", 1, print)


def test_the_page_is_what_was_measured():
    """The table in the documentation is the one that the data beside it give."""
    folder = Path(__file__).parents[2] / "docs" / "results"
    results = json.loads((folder / "ablation.json").read_text())
    assert pages.markdown(results) == (folder / "ablation.md").read_text()
