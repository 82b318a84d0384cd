"""AdEMAMix: the paper's step, its schedules, AdamW as its limit, and how long its slow memory lasts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestling.optim import AdEMAMix
from nestling.optim.ademamix import ramp, slow_decay
from tests.helpers import close, differ, randn
from tests.optimizers import path, trained

decays = st.floats(0.01, 0.99999)


def paper(
    w: Tensor, g: list[Tensor], lr: float, betas: tuple[float, float, float], alpha: float, warmup: int
) -> Tensor:
    """Algorithm 1 of Pagliardini et al. 2024, both schedules over `warmup` steps, decoupled decay of 0.1."""
    (b1, b2, b3), m1, m2, v = betas, 0.0, 0.0, 0.0
    for t, x in enumerate(g, 1):
        share = min(t / warmup, 1.0)
        slow = math.exp(math.log(b1) * math.log(b3) / ((1 - share) * math.log(b3) + share * math.log(b1)))
        m1, m2 = b1 * m1 + (1 - b1) * x, slow * m2 + (1 - slow) * x
        v = b2 * v + (1 - b2) * x**2
        mixed = m1 / (1 - b1**t) + alpha * share * m2
        w = w - lr * (mixed / ((v / (1 - b2**t)).sqrt() + 1e-8) + 0.1 * w)
    return w


@pytest.mark.parametrize("warmup", [1, 5, 20])
def test_it_is_the_papers_algorithm(warmup):
    """Before, at and after the end of the schedules."""
    start, *g = randn(13, 3, 4)
    warm = {"alpha_warmup": warmup, "beta3_warmup": warmup, "weight_decay": 0.1}
    found = path(lambda p: AdEMAMix(p, 0.1, (0.8, 0.95, 0.99), 3.0, **warm), start, g)
    close(found, paper(start, g, 0.1, (0.8, 0.95, 0.99), 3.0, warmup), 1e-12)


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1}, {"weight_decay": 0.0, "eps": 1e-3}])
def test_without_its_slow_memory_it_is_adamw(settings):
    """`alpha = 0`: torch's, decay included; with the slow memory another path."""
    expected = trained(lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.95), **settings))
    betas = (0.8, 0.95, 0.999)
    close(trained(lambda p: AdEMAMix(p, 0.01, betas, alpha=0.0, **settings)), expected, 1e-12)
    differ(trained(lambda p: AdEMAMix(p, 0.01, betas, alpha=5.0, **settings)), expected, 1e-4)


@given(start=decays, end=decays, warmup=st.integers(1, 1000))
def test_the_half_life_warms_up_in_equal_steps(start, end, warmup):
    """From that of `beta1` to that of `beta3`, where it stays; and without a warm-up it is there at once."""
    steps = torch.tensor([0.0, warmup / 2, warmup, 3 * warmup], dtype=torch.float64)
    first, last = -math.log(2) / math.log(start), -math.log(2) / math.log(end)
    found = -math.log(2) / slow_decay(steps, start, end, warmup).log()
    close(found, torch.tensor([first, (first + last) / 2, last, last], dtype=torch.float64), 1e-9)
    close(slow_decay(steps, start, end, 0), torch.full((4,), end, dtype=torch.float64), 1e-12)


@given(start=decays, warmup=st.integers(0, 1000), step=st.integers(0, 2000))
def test_a_longer_training_has_a_longer_memory(start, warmup, step):
    """Both schedules rise or stay from step to step, between their ends, a `beta1` of 0 included."""
    now, later = (torch.tensor(float(step + i), dtype=torch.float64) for i in (0, 1))
    assert 0 <= ramp(now, warmup) <= ramp(later, warmup) <= 1
    for low in (0.0, start):
        end = 0.99999
        decays = [slow_decay(t, low, end, warmup).item() for t in (now, later)]
        assert low - 1e-12 <= decays[0] <= decays[1] + 1e-12 <= end + 2e-12


def test_the_slow_memory_is_of_thousands_of_gradients():
    """After one gradient and a thousand of zero the fast mean is gone, and 90% of the slow one is there."""
    optimizer = AdEMAMix([p := torch.ones(1, dtype=torch.float64, requires_grad=True)])
    for gradient in [1.0] + [0.0] * 1000:
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    state = optimizer.state[p]
    close(state["exp_avg_slow"], torch.tensor([1e-4 * 0.9999**1000]).double(), 1e-9)
    assert state["exp_avg"] < 1e-40 and 0.9999**1000 > 0.9


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"betas": (0.9, 0.999)}, "must be three: of the fast mean"),
        ({"betas": (1.0, 0.999, 0.9999)}, r"betas\[0\]=1.0"),
        ({"betas": (0.9, 0.999, -0.1)}, r"betas\[2\]=-0.1"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"alpha_warmup": -1}, "alpha_warmup=-1"),
        ({"beta3_warmup": float("nan")}, "beta3_warmup=nan"),
        ({"eps": -1e-8}, "eps="),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    """By name, with what is allowed."""
    with pytest.raises(ValueError, match=says):
        AdEMAMix([torch.ones(2, requires_grad=True)], **settings)
