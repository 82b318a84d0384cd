"""The comparison of optimisers: equal trials for all, nothing run twice, and a page that says what was found."""

import gzip
import math

import numpy as np
import pytest
import torch
from torch import nn

from nestling.errors import UserError
from nestling.evals.optimizers import compare, main
from nestling.evals.optimizers.problem import Recorder, state_bytes
from nestling.evals.optimizers.quadratic import RotatingQuadratic
from nestling.evals.optimizers.vision import VisionTransformer
from nestling.report import optimizers as pages
from nestling.train import mnist, wikitext2

TINY = RotatingQuadratic(n=6, condition=10.0, noise=1e-3, steps=60)


def descend(lr):
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr)


def test_the_quadratic_is_descended_and_turns():
    """Gradient descent follows the turning valley; standing still pays the whole distance."""
    moved, still = TINY.run(descend(0.3), 0, True), TINY.run(descend(0.0), 0, True)
    assert moved.score < still.score - 0.5
    turn = TINY._turn()
    torch.testing.assert_close(turn @ turn.mT, torch.eye(6))
    assert 0.01 < (turn - torch.eye(6)).norm() < 0.1


def test_final_runs_draw_other_problems_than_tuning():
    """What is judged was not tuned on."""
    assert TINY.run(descend(0.3), 0, True).losses != TINY.run(descend(0.3), 0, False).losses


def test_a_run_that_diverges_ends_and_has_no_score():
    """It is not a number, and its curve stops where it left."""
    outcome = TINY.run(descend(1e30), 0, True)
    assert math.isnan(outcome.score) and len(outcome.steps) < 30


def test_the_recorder_averages_over_its_stretches():
    """Every point is the mean of the losses since the one before."""
    record = Recorder(steps=4, points=2)
    assert [record(loss) for loss in (1.0, 3.0, 5.0, float("nan"))] == [True, True, True, False]
    assert record.outcome.steps == [2, 4] and record.outcome.losses[0] == 2.0


def test_the_state_of_an_optimiser_is_counted_in_bytes():
    """Adam: two tensors of the parameter's size, and its count of steps."""
    model = nn.Linear(3, 5, bias=False)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 15 * 4 + 4


def test_the_vision_transformer_sees_places():
    """Patches are cut row by row, and where one stands matters."""
    torch.manual_seed(0)
    model = VisionTransformer(8, 4)
    image = torch.randn(1, 8, 8)
    assert (model(image) - model(image.flip(2))).abs().max() > 1e-3
    patches = torch.arange(64.0).view(1, 8, 8).unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)
    assert patches[0, 1, :4].tolist() == [4.0, 5.0, 6.0, 7.0]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A comparison of two optimisers on the tiny problem."""
    monkeypatch.setattr(main, "PROBLEMS", [TINY])
    monkeypatch.setattr(main, "STUDIES", {})
    return lambda: main.run(None, ["SGD, momentum", "AdamW"], False, str(tmp_path), 1, lambda line: None)


@pytest.mark.slow
def test_everybody_has_as_many_trials_and_nothing_runs_twice(quick, monkeypatch, tmp_path):
    """Five rates, two more values of the other setting, three seeds; a second call takes all of it from its files."""
    results = quick()
    entries = results["problems"]["quadratic"]["optimizers"]
    assert [len(met["trials"]) for met in entries.values()] == [7, 7]
    assert [len(met["scores"]) for met in entries.values()] == [3, 3]
    files = sorted(tmp_path.rglob("*.json"))
    stamps = [file.stat().st_mtime_ns for file in files if file.name != "results.json"]
    assert quick()["problems"] == results["problems"]
    assert [file.stat().st_mtime_ns for file in files if file.name != "results.json"] == stamps
    page = pages.html(results)
    assert "<svg" in page and "AdamW" in page and "7 trials" in page


def test_the_best_setting_is_the_one_with_the_least_score(monkeypatch, tmp_path):
    """The rate first, then the other setting at that rate; a run that diverged never wins."""
    scores = {(0.1, 1.0): float("nan"), (0.2, 1.0): 3.0, (0.3, 1.0): 4.0, (0.2, 2.0): 2.5}
    contender = compare.Contender(lambda *a: None, (0.1, 0.2, 0.3), "k", (1.0, 2.0))
    monkeypatch.setitem(compare.CONTENDERS, "one", contender)

    def run(problem, name, contender, lr, knob, seed, final, folder):
        return {"score": seed if final else scores[lr, knob], "steps": [1], "losses": [1.0], "seconds": [1.0]}

    monkeypatch.setattr(compare, "_run", run)
    met = compare._pair(TINY, "one", tmp_path)
    assert (met["lr"], met["knob"], met["scores"], met["edge"]) == (0.2, "k 2", [0, 1, 2], False)


def test_unknown_names_are_told():
    """With what there is to choose from."""
    with pytest.raises(UserError, match=r"unknown problem chess.*psi.*quadratic"):
        main.run(["chess", "psi"], None, False, "nowhere", 1, print)
    with pytest.raises(UserError, match=r"unknown optimiser Sloth.*AdamW"):
        main.run(None, ["Sloth"], True, "nowhere", 1, print)


def test_data_sets_come_from_the_folder_that_is_named(tmp_path, monkeypatch):
    """Text as it stands in its file, images and labels after the headers of theirs."""
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "valid.txt.gz").write_bytes(gzip.compress("= Ä =\n".encode()))
    (tmp_path / "mnist").mkdir()
    pixels = np.arange(2 * 784, dtype=np.uint8)
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes([7, 9])))
    monkeypatch.setenv("NESTLING_DATA", str(tmp_path))
    assert wikitext2("valid") == "= Ä =\n"
    images, labels = mnist("test")
    assert (images.reshape(2, 784) == pixels.reshape(2, 784)).all() and labels.tolist() == [7, 9]


def test_data_that_is_nowhere_is_told(monkeypatch):
    """What to set, and what to install."""
    monkeypatch.delenv("NESTLING_DATA", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"NESTLING_DATA.*nestling\[data\]"):
        wikitext2("valid")
