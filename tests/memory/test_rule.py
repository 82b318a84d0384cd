"""What the learning rules do, in theory: delta gradient descent, plain descent, and retention over what was seen."""

import pytest
import torch
from torch.nn import functional as F

from nestling.memory import (
    L2,
    AssociativeMemory,
    DeltaGradientDescent,
    DotProduct,
    GradientDescent,
    Matrix,
    RetainPredictions,
    RetainSeen,
)
from nestling.memory.rule import damped_inverse
from tests.helpers import close, directions, randn

D = 4
DGD, GD = DeltaGradientDescent(), GradientDescent()


def rate(beta: float) -> float:
    """The `eta` whose exact step on a unit key is `beta = eta / (1 + eta)`."""
    return beta / (1 - beta)


def after(rule, eta, k, v, start, chunk_size, objective=None) -> torch.Tensor:
    """The matrix `[D, D]` after `k, v [n, D]` at one rate, with alpha = 1."""
    memory = AssociativeMemory(Matrix(D, D, heads=1), objective or L2(), rule, chunk_size).double()
    memory.network.weight.data = start[None]
    rates = torch.full((1, 1, len(k)), eta, dtype=torch.float64)
    _, state = memory(None, k[None, None], v[None, None], rates)
    return state.weights[0][0, 0]


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.75, 0.99])
def test_one_exact_step_is_a_contraction(beta):
    """C = 1, L2, unit key: `k M_t = (1 - 2 beta) k M_{t-1} + beta v`, and other directions stay."""
    k, v, start = directions(1, D), randn(1, D), randn(D, D)
    moved = after(DGD, rate(beta), k, v, start, 1)
    close(k @ moved, (1 - 2 * beta) * k @ start + beta * v)
    across = torch.eye(D, dtype=torch.float64) - k.mT @ k
    close(across @ moved, across @ start)


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0, 1e6])
def test_the_fixed_point_is_half_the_value(eta):
    """However large the rate, repeating one pair converges to `v / 2`: the step contracts for every eta."""
    k, v = directions(1, D), randn(1, D)
    steps, shrink = 400, abs(1 - 2 * eta / (1 + eta))
    distance = k @ after(DGD, eta, k.repeat(steps, 1), v.repeat(steps, 1), randn(D, D), 1) - v / 2
    assert distance.norm() <= 10 * shrink**steps + 1e-9 if eta < 1e3 else distance.norm() < 10


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 8])
@pytest.mark.parametrize("beta", [0.2, 0.6, 0.9])
def test_a_key_repeated_through_a_chunk(beta, chunk_size):
    """`k M_C = (2 l^C - 1) k M_0 + (1 - l^C) v` with `l = 1 - beta`: stable at every chunk size."""
    k, v, start = directions(1, D), randn(1, D), randn(D, D)
    repeated = k.repeat(chunk_size, 1), v.repeat(chunk_size, 1)
    left = (1 - beta) ** chunk_size
    close(k @ after(DGD, rate(beta), *repeated, start, chunk_size), (2 * left - 1) * k @ start + (1 - left) * v)


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.9])
def test_momentum_only_delays_what_a_chunk_writes(theta):
    """A key repeated through a chunk: `k M_C = l^C k M_0 - w (k M_0 - v)`, `w = beta sum_t l^(C-t) (1-th^t) <= 1 - l^C`.

    So it is as stable as without. As a sum of writes, w would tend to `1 / (1 - theta)`, and chunk after chunk expand.
    """
    k, v, start, beta, chunk_size = directions(1, D), randn(1, D), randn(D, D), 0.5, 12
    memory = AssociativeMemory(Matrix(D, D, heads=1), L2(), DeltaGradientDescent(momentum=True), chunk_size).double()
    memory.network.weight.data = start[None]
    eta, thetas = (torch.full((1, 1, chunk_size), x, dtype=torch.float64) for x in (rate(beta), theta))
    _, state = memory(None, k.expand(1, 1, chunk_size, D), v.expand(1, 1, chunk_size, D), eta, theta=thetas)
    left = 1 - beta
    written = beta * sum(left ** (chunk_size - t) * (1 - theta**t) for t in range(1, chunk_size + 1))
    close(k @ state.weights[0][0, 0], left**chunk_size * k @ start - written * (k @ start - v))
    assert written <= 1 - left**chunk_size + 1e-12


def test_plain_descent_overshoots_where_delta_descent_does_not():
    """A key repeated C times: plain descent multiplies the error by `1 - C eta`, which expands as soon as C eta > 2."""
    k, v, start = directions(1, D), randn(1, D), randn(D, D)
    many = k.repeat(8, 1), v.repeat(8, 1)
    error = (k @ start - v).norm()
    plain = k @ after(GD, 0.4, *many, start, 8) - v
    close(plain, (1 - 8 * 0.4) * (k @ start - v))
    assert plain.norm() > error
    delta = k @ after(DGD, 0.4, *many, start, 8) - v / 2
    assert delta.norm() < (k @ start - v / 2).norm()


@pytest.mark.parametrize("eta", [0.05, 0.5, 1.0])
def test_plain_descent_moves_towards_its_value(eta):
    """One step on a unit key leaves `1 - eta` of the error; with eta = 1 the value is recalled exactly."""
    k, v, start = directions(1, D), randn(1, D), randn(D, D)
    close(k @ after(GD, eta, k, v, start, 1) - v, (1 - eta) * (k @ start - v))


def test_the_hebbian_memory_moves_towards_its_value():
    """The sign of the dot-product objective: what the key reads moves along +v (Eq. 92 is printed with the other)."""
    k, v = directions(1, D), randn(1, D)
    close(k @ after(GD, 0.3, k, v, torch.zeros(D, D, dtype=torch.float64), 1, DotProduct()), 0.3 * v)


def test_the_printed_form_is_the_first_order_of_the_exact_one():
    """`beta = eta` instead of `eta / (1 + eta |x|^2)`: they agree to second order; only one stays below `1 / |x|^2`."""
    x, printed = randn(3, D), DeltaGradientDescent(exact=False)
    square = x.square().sum(-1)
    for eta in (torch.full((3,), e).double() for e in (1e-3, 1e-2, 10.0, 1e6)):
        gap = printed.factors(eta, x)[0] - DGD.factors(eta, x)[0]
        assert (gap > 0).all() and (gap <= eta**2 * square).all()
        assert (DGD.factors(eta, x)[0] * square < 1).all()
    assert (printed.factors(eta, x)[0] * square > 1).all()


def seen(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`sum x x^T [D, D]` of `inputs [n, D]`, and their number."""
    return inputs.mT @ inputs, torch.tensor(float(len(inputs)), dtype=torch.float64)


def test_retention_protects_what_was_seen_and_nothing_else():
    """Inputs along the first axes only: the step is small there, `a / (a + c)`, and whole in directions never used."""
    inputs = torch.zeros(20, D, dtype=torch.float64)
    inputs[::2, 0], inputs[1::2, 1] = 3.0, 1.0
    gradient, damping = randn(3, D), 1e-2
    found = RetainSeen(damping).direction(gradient, *seen(inputs))
    curvature = torch.tensor([9.0, 1.0, 0.0, 0.0], dtype=torch.float64) * D / 10  # at unit mean over the axes
    close(found, gradient * damping / (damping + curvature))
    close(found[:, 2:], gradient[:, 2:])


def test_retention_knows_no_scale_of_its_inputs():
    """Inputs at unit mean square: one damping means the same in every layer, and any number of tokens."""
    gradient, inputs = randn(3, D), randn(30, D)
    expected = RetainSeen(0.1).direction(gradient, *seen(inputs))
    close(RetainSeen(0.1).direction(gradient, *seen(100 * inputs)), expected)
    close(RetainSeen(0.1).direction(gradient, *seen(inputs.repeat(7, 1))), expected)


def test_retention_before_anything_was_seen_is_plain_descent():
    """Nothing seen, nothing to protect."""
    gradient = randn(2, 3, D)
    close(RetainSeen(0.1).direction(gradient, torch.zeros(2, D, D).double(), torch.zeros(2).double()), gradient)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_a_damping_that_protects_without_limit_raises(damping):
    """The message repeats the value."""
    with pytest.raises(ValueError, match=f"damping={damping}"):
        RetainSeen(damping)


@pytest.mark.parametrize("forgetting", [0.0, 1.1, -0.5])
def test_a_forgetting_that_is_no_share_raises(forgetting):
    """The message repeats the value."""
    with pytest.raises(ValueError, match=f"forgetting={forgetting}"):
        RetainSeen(forgetting=forgetting)


@pytest.mark.parametrize("rule", [GD, DGD, DeltaGradientDescent(exact=False)], ids=str)
def test_a_rate_of_zero_moves_nothing(rule):
    """With eta = 0 a rule neither erases nor writes, whatever the surprise."""
    start = randn(D, D)
    close(after(rule, 0.0, directions(6, D), randn(6, D), start, 3), start)


class Past:
    """A softmax regression `[K, D]`, what it has seen and said, and the gradient of something new, `[1, K, D]`."""

    K, N = 6, 4000

    def __init__(self):
        self.weight = randn(self.K, D)
        self.weight[4:] -= 4.0 * self.weight[4:].sign()  # two classes that its past hardly knows
        self.x = randn(self.N, D).abs() * torch.tensor([3.0, 1.0, 0.3, 0.1], dtype=torch.float64)
        says = F.softmax(self.x @ self.weight.mT, -1)
        drawn = torch.multinomial(says, 1)[:, 0]
        errors = says - F.one_hot(drawn, self.K)
        self.seen, self.felt = (m.mT @ m for m in (self.x[None], errors[None]))
        self.count = torch.tensor([float(self.N)], dtype=torch.float64)
        self.slope = randn(1, self.K, D)

    def direction(self, rule):
        """What a rule makes of the new gradient, scaled to one gain: its product with the gradient is 1."""
        if isinstance(rule, RetainPredictions):
            memory = rule.renewed(rule.initial(self.slope), self.seen, self.felt, self.count)
            found = rule.direction(self.slope, memory)
        else:
            found = self.slope if rule is None else rule.direction(self.slope, self.seen, self.count)
        return (found / (found * self.slope).sum())[0]

    def divergence(self, change):
        """Mean KL divergence of what it said of its past from what it says after a change of the weight."""
        before, after = (F.log_softmax(self.x @ w.mT, -1) for w in (self.weight, self.weight - change))
        return F.kl_div(after, before, log_target=True, reduction="batchmean")


def test_what_was_said_changes_least_by_retaining_predictions():
    """For the same gain of something new: less than by retention of the outputs, and that less than by the gradient."""
    torch.manual_seed(0)
    for _ in range(10):
        past = Past()
        rules = RetainPredictions(1e-2, 1e-2), RetainSeen(1e-2), None
        ours, outputs, plain = (past.divergence(0.05 * past.direction(rule)) for rule in rules)
        assert ours < outputs < plain


def test_much_damping_is_plain_descent():
    past = Past()
    rule = RetainPredictions(damping=1e9, output_damping=1e9)
    memory = rule.renewed(rule.initial(past.slope), past.seen, past.felt, past.count)
    close(rule.direction(past.slope, memory), past.slope, 1e-6)


def test_inverses_are_made_anew_when_enough_was_read():
    """With refresh=0.5 when half of what is remembered is new, whether it taught or not; rows by themselves."""
    rule = RetainPredictions(refresh=0.5)
    memory, made = rule.initial(randn(2, 3, D)), []
    for count in ([10.0, 20.0], [18.0, 39.0], [20.0, 40.0], [39.0, 41.0], [42.0, 100.0]):
        before, memory = memory, rule.renewed(memory, moments(D), moments(3), torch.tensor(count, dtype=torch.float64))
        made.append([bool((memory[name] != before[name]).flatten(1).any(1)[b]) for b in (0, 1) for name in ("inputs",)])
        assert [bool(new) for new in (memory["outputs"] != before["outputs"]).flatten(1).any(1)] == made[-1]
    assert made == [[True, True], [False, False], [True, True], [False, False], [True, True]]


def test_forgetting_is_not_taken_for_reading():
    """The count shrinks at an update and grows by what is read: a period of 10 tokens is 10, however much was forgotten."""
    rule, count, made = RetainPredictions(forgetting=0.5, refresh=1.0), torch.tensor([0.0], dtype=torch.float64), []
    memory = rule.initial(randn(1, 3, D))
    for _ in range(6):
        count = count + 10.0
        memory = rule.renewed(memory, moments(D)[:1], moments(3)[:1], count)
        made.append(memory["since"].item() == 0.0)
        count = rule.forgetting * count
    assert made == [True, False, True, False, True, False]


def test_a_prior_makes_the_precision_a_sum():
    """`A (x) B` is, to a factor, a constant and the sum of what was seen: `(1 + n / prior) (A (x) B)` has the constant dampings."""
    rule = RetainPredictions(0.5, 0.2, prior=30.0)
    counts = torch.tensor([0.0, 90.0], dtype=torch.float64)
    seen, felt = moments(4), moments(3)
    memory = rule.initial(torch.zeros(2, 3, 4, dtype=torch.float64))
    found = rule.renewed(memory, seen, felt, counts)
    for row, share in enumerate((1.0, 0.5)):  # sqrt(1 + 90 / 30) = 2
        close(found["inputs"][row], damped_inverse(seen, 0.5 * share)[row])
        close(found["outputs"][row], damped_inverse(felt, 0.2 * share)[row])
    assert rule.dampings(counts)[0].tolist() == [0.5, 0.25]
    plain = RetainPredictions(0.5, 0.2).renewed(memory, seen, felt, counts)
    close(found["inputs"][0], plain["inputs"][0])
    with pytest.raises(ValueError, match="prior=0 must be above 0 tokens"):
        RetainPredictions(prior=0)


def moments(width):
    x = randn(2, 3 * width, width)
    return x.mT @ x


def test_settings_out_of_range_raise():
    for wrong in ({"damping": 0.0}, {"output_damping": -1.0}, {"forgetting": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            RetainPredictions(**wrong)
    with pytest.raises(ValueError, match=r"refresh=-1.0 must be 0 \(at every update\) or above"):
        RetainPredictions(refresh=-1.0)
    with pytest.raises(ValueError, match="block=0 must be at least 1, or None for whole matrices"):
        RetainPredictions(block=0)
