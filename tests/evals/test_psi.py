"""The winding valley psi: its minimum, what arrival is, and who arrives first."""

import json
import math

import pytest
import torch

from nestling.evals.optimizers import main, psi
from nestling.evals.optimizers.psi import CONTENDERS, MIDDLE, START, Psi, arrivals, best, descend, lasting
from nestling.report import optimizers as pages


def surface(point, curve=MIDDLE):
    return psi.psi(point, curve.k, curve.a, curve.w)


@pytest.mark.parametrize("curve", psi.GRID)
def test_the_only_minimum_is_at_zero(curve):
    """psi is zero there, above zero elsewhere, and its gradient vanishes nowhere else: th solves one equation for each r."""
    r, theta = torch.meshgrid(*2 * [torch.linspace(-4, 4, 81, dtype=torch.float64)], indexing="ij")
    points = torch.stack((r, theta), -1).requires_grad_()
    values = surface(points, curve)
    (slope,) = torch.autograd.grad(values.sum(), points)
    away = points.detach().norm(dim=-1) > 1e-6
    assert values[~away].abs().max() < 1e-12 and (values[away] > 0).all()
    assert (slope.norm(dim=-1)[away] > 1e-6).all()


def test_paths_are_those_of_the_optimiser_alone():
    """Many paths at once: each as `torch.optim.SGD` walks it alone."""
    curves, rates = (MIDDLE, Psi(2.0, 0.25, 1.0)), (0.001, 0.01)
    paths = descend(lambda groups: torch.optim.SGD(groups, momentum=0.9), curves, rates, 20)
    for i, curve in enumerate(curves):
        for j, rate in enumerate(rates):
            point = torch.tensor(START, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.SGD([point], rate, momentum=0.9)
            for step in range(21):
                torch.testing.assert_close(paths[i, j, step], point.detach())
                optimizer.zero_grad()
                surface(point, curve).backward()
                optimizer.step()


def test_to_arrive_is_to_stay():
    """A path that passes by arrives when it has come back; one that leaves, or is no number, never does."""
    near, far, nothing = (0.0, 0.001), (1.0, 0.0), (math.nan, 0.0)
    paths = torch.tensor([[far, near, near], [far, near, far], [near, far, near], [far, nothing, nothing]])
    assert arrivals(paths).tolist() == [1.0, math.inf, 2.0, math.inf]
    assert lasting(torch.tensor([9.0, 2.0, math.inf, 3.0, 4.0])).tolist() == [math.inf, math.inf, math.inf]
    assert lasting(torch.tensor([9.0, 2.0, 5.0])).tolist() == [9.0]


@pytest.fixture
def few(monkeypatch):
    """Rates about the best ones, every other one left out."""
    monkeypatch.setattr(psi, "RATES", [rate for rate in psi.RATES[1::2] if 0.004 < rate < 0.04])


@pytest.mark.usefixtures("few")
def test_delta_momentum_arrives_before_momentum():
    """Each at its own best rate, on the middle curve: the paper's figure 4."""
    found = {name: best(*CONTENDERS[name], (MIDDLE,), 200)[0][1] for name in CONTENDERS}
    assert found["delta momentum"] < found["SGD, momentum"] < math.inf
    assert found["delta momentum, damped"] < found["SGD, momentum"]


@pytest.mark.usefixtures("few")
def test_a_study_is_kept_and_drawn(tmp_path, monkeypatch):
    """One file holds it; a second call reads it; the page has the table and the paths."""
    monkeypatch.setattr(psi, "CONTENDERS", {name: CONTENDERS[name] for name in ("SGD, momentum", "delta momentum")})
    monkeypatch.setitem(main.STUDIES, "psi", lambda say: psi.study(say, (MIDDLE,), 200))
    results = main.run(["psi"], None, False, str(tmp_path), 1, lambda line: None)
    monkeypatch.setitem(main.STUDIES, "psi", None)
    assert main.run(["psi"], None, False, str(tmp_path), 1, lambda line: None)["studies"] == results["studies"]
    first, second = json.loads((tmp_path / "psi.json").read_text())["lines"]
    assert first["earlier"] == first["later"] == 0 and second["earlier"] == 1
    page = pages.html(results)
    assert "<svg" in page and "delta momentum" in page and "figure 4" not in page
    assert "| delta momentum | " in pages.markdown(results)
