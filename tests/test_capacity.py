"""What memories hold is what closed forms say, the measuring is what it claims, and the page is what the data give."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks.capacity import Size, _chosen, run
from benchmarks.memories import Choice, choices
from benchmarks.pairs import TASKS, Task, delta, hebbian, least_squares
from benchmarks.recall import recall
from nestling.report import capacity as pages
from nestling.report.verdicts import CLAIMS, Claim, Contest, answer

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "capacity.json"
DIM, DRAWS = 12, range(40)
ALL = {str(choice): choice for choice in choices()}
UNRELATED = TASKS["unrelated"]
PAIRS = UNRELATED.numbers(DIM)


def measured(name: str, rate: float) -> torch.Tensor:
    """Errors at one rate, `[numbers of pairs, draws]`."""
    choice = replace(ALL[f"{name}, size 1"], powers=(math.log(rate, 10 if ALL[f"{name}, size 1"].decades else 2),))
    return recall(choice, [UNRELATED], DRAWS, DIM).stored[:, 0, 0]


@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize(("name", "form"), [("Matrix, dot product, plain", hebbian), ("Matrix, L2, delta rule", delta)])
def test_a_matrix_recalls_as_its_closed_form_says(name, form, rate) -> None:
    """Within three standard errors of the mean over the draws, from far below capacity to far beyond."""
    found = measured(name, rate)
    for n, draws in zip(PAIRS, found, strict=True):
        assert abs(draws.mean() - form(n, DIM, rate)) < 3 * draws.std() / len(draws) ** 0.5


def test_least_squares_holds_as_many_pairs_as_keys_are_wide() -> None:
    """All of them without a ridge to speak of, and of more the share that theory says."""
    found = measured("Matrix, L2, least squares", 1e9)
    for n, draws in zip(PAIRS, found, strict=True):
        expected = least_squares(n, DIM)
        assert abs(draws.mean() - expected) < (3 * draws.std() / len(draws) ** 0.5 if expected else 1e-3)


def test_the_delta_rule_holds_more_than_hebbian_writes_up_to_capacity() -> None:
    """In closed form at the best rates, and as measured at the same rate; far beyond it, it does not."""
    rates = [i / 50 for i in range(1, 51)]
    best = {form: [min(form(n, DIM, rate) for rate in rates) for n in PAIRS] for form in (hebbian, delta)}
    below = [d < h for n, h, d in zip(PAIRS, best[hebbian], best[delta], strict=True) if n <= DIM]
    assert all(below) and best[delta][-1] > best[hebbian][-1]
    near = [i for i, n in enumerate(PAIRS) if DIM / 2 <= n <= DIM]
    one, other = (
        measured(name, 0.7)[near].mean(1) for name in ("Matrix, L2, delta rule", "Matrix, dot product, plain")
    )
    assert (one < other).all()


@pytest.mark.parametrize(
    "name", ["random features, Matrix, L2, plain", "polynomial, MLP, L2, Omega(16)", "MLP, gated, L2, momentum"]
)
def test_rows_of_one_call_are_memories_by_themselves(name) -> None:
    """Rates, tasks and draws do not mix, and features made beforehand are the network's own."""
    choice, draws, dim = replace(ALL[f"{name}, size 1"], powers=(-3, -1)), [3, 7], 6
    tasks = [replace(TASKS[task], counts=(1, 3)) for task in ("network", "quadratic")]
    found = recall(choice, tasks, draws, dim)
    for t, task in enumerate(tasks):
        for i, draw in enumerate(draws):
            torch.manual_seed(draw)
            network, pairs = choice.make(dim).double(), task.pairs(dim, draw)
            k, v = (x[None, None] for x in pairs[:2])
            eta = torch.full(k.shape[:-1], found.rates[1], dtype=k.dtype)
            theta = torch.full_like(eta, 0.9) if choice.momentum else None
            _, state = choice.memory(network)(None, k, v, eta, theta=theta)
            for (keys, values), errors in zip((pairs[:2], pairs[2:]), (found.stored, found.unseen), strict=True):
                off = network.read(keys, state.weights) - values
                torch.testing.assert_close(
                    errors[-1, 1, t, i], off.square().sum() / values.square().sum(), rtol=1e-9, atol=0
                )


def test_memories_are_of_equal_size() -> None:
    """Weights as many as a matrix's, or three times as many; least squares also at as many in all, as nearly as it can."""
    for choice in ALL.values():
        weights, carried = choice.numbers(DIM)
        total = weights + carried if choice.network == "projected, Matrix" else weights
        assert 0.92 * choice.size * DIM**2 <= total <= 1.01 * choice.size * DIM**2


def test_rates_are_chosen_on_draws_of_their_own() -> None:
    """The best there, not beyond half the rate at which one of them ran off, whatever the others say."""
    size = Size(seeds=2, validation=2)
    errors = torch.tensor(
        [[[0.5, 0.5, 0.0, 0.0], [0.3, 0.3, 0.9, 0.7], [0.2, 0.2, 0.0, 0.0], [0.2, math.inf, 0.0, 0.0]]]
    )
    met = _chosen([0.5, 1.0, 2.0, 3.0], errors.double(), size)
    assert met == {"rates": [1.0], "edge": [False], "validation": [0.3], "errors": [[0.9, 0.7]]}


def test_unseen_keys_have_the_same_map() -> None:
    """And are other keys; values have a mean square norm of 1."""
    pairs = Task("sum", lambda keys, _: keys.cumsum(-1), (2.0,)).pairs(DIM, draw=0)
    scale = pairs.values / pairs.keys.cumsum(-1)
    torch.testing.assert_close(scale, scale[0, 0].expand_as(scale))
    torch.testing.assert_close(pairs.unseen_values, scale[0, 0] * pairs.unseen_keys.cumsum(-1))
    every = torch.cat([pairs.values, pairs.unseen_values])
    assert every.square().sum(-1).mean() == pytest.approx(1)
    assert (pairs.keys @ pairs.unseen_keys.mT).max() < 1 - 1e-6


def test_an_answer_is_a_difference_above_its_spread() -> None:
    assert [answer(d) for d in ([0.2, 0.3], [-0.2, -0.3], [0.1, -0.2], [0.0, 0.0])] == ["yes", "no", "even", "even"]


def test_a_contest_is_between_what_other_draws_chose() -> None:
    """The best by validation, even where another turned out better; a memory that ran off loses."""

    def memory(validation: float | None, *errors: float | None) -> dict:
        return {"stored": {"task": {"validation": [validation], "errors": [list(errors)]}}}

    one = [memory(0.1, 0.5, 0.6), memory(0.2, 0.0, 0.0), memory(None, 0.0, 0.0)]
    assert Contest("", "task", "stored", [4], one, [memory(0.3, 0.8, 0.8)], 4).answers == {4: "yes"}
    assert Contest("", "task", "stored", [4], one, [memory(0.3, 0.3, 0.2)], 4).at("no") == [4]
    assert Contest("", "task", "stored", [4], [memory(0.1, None, None)], one, 4).at("no") == [4]


@pytest.mark.parametrize(("errors", "word"), [((0.8, 0.9), "Yes"), ((0.8, 0.1), "In part"), ((0.1, 0.1), "No")])
def test_a_claim_is_judged_by_its_core(errors, word) -> None:
    """All of it, some of it or none; contests beside it are counted apart."""
    claim = Claim("", "", lambda results: [], "Up to 4 pairs", lambda contest, n, dim: n <= 4)

    def memory(*errors: float) -> dict:
        return {"stored": {"task": {"validation": list(errors), "errors": [[e, e] for e in errors]}}}

    contest = Contest("", "task", "stored", [2, 4, 8], [memory(0.5, 0.5, 0.5)], [memory(*errors, 0.5)], 4)
    verdict = claim.verdict([contest], DIM)
    assert verdict.startswith(f"{word}. Up to 4 pairs: ") and verdict.endswith("Elsewhere: 0 yes, 1 even, 0 no.")


def test_a_small_run_goes_all_the_way(tmp_path) -> None:
    """Data that survive JSON, whose tables have all that was measured."""
    names = ("Matrix, L2, delta rule", "Matrix, dot product, plain", "Matrix, L2, least squares", "MLP, L2, plain")
    wanted: list[Choice] = [ALL[f"{name}, size 1"] for name in names]
    results = run(wanted, Size(seeds=2, validation=1, longest=1.0, dim=6))
    results = json.loads(json.dumps(results))
    assert results["parity"]["memories"] == 4 and results["parity"]["largest"] < 1e-9
    page = pages.markdown(results)
    assert all(f"## {claim.title}" in page for claim in CLAIMS)
    assert "<svg" in pages.html(results)


def test_the_page_is_what_the_data_give() -> None:
    """The tables of the committed pages, verdicts among them."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == pages.markdown(results)
    drawn = RESULTS.with_suffix(".html").read_text(encoding="utf-8")
    for part in pages.parts(results)[1:]:
        assert pages.section(*part) in drawn
    assert len(results["memories"]) == len(ALL) and results["seeds"] == 5
