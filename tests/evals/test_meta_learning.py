"""Meta-learning: compute is counted as it is run, arms differ in what they should, the report says what the numbers say."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nestling.errors import UserError
from nestling.evals.meta_learning import learn, main, texts
from nestling.evals.meta_learning.setup import ARMS, PASSES, SEGMENTS, SIZES, Arm, Setting, Size, cost, models
from nestling.levels import Level
from nestling.models import HopeConfig, HopeForCausalLM
from nestling.report import meta_learning as pages
from tests.helpers import differ

TINY = Size(models((0, 1), 2048), 3e3, 1, period=16, document=256, valid=1, test=2, ends=(64, 256), rates=(0.4, 0.8))
PERIOD = 16


def small(width: int = 32, layers: int = 1) -> HopeForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "mixer": "attention"}
    levels = [Level(PERIOD, lr=0.5)]
    config = HopeConfig(**shape, sliding_window=PERIOD, levels=levels, level_variant="superposed", learning="off")
    return HopeForCausalLM(config).eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 259, shape, generator=torch.Generator().manual_seed(0))


def operations(model: HopeForCausalLM, window: torch.Tensor, backward: bool = True) -> int:
    """Floating-point operations of products of matrices, as they are run; a vector's norm is none, however it is computed."""

    def product(a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
        rows, inner, columns = a[-2], a[-1], b[-1]
        return 0 if rows == columns == 1 else 2 * a[0] * rows * inner * columns

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.bmm: product})
    with sdpa_kernel(SDPBackend.MATH), counter, torch.set_grad_enabled(backward):
        loss = model(window, labels=window).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("outer", PASSES)
def test_passes_are_the_operations_that_are_run(outer: str | None) -> None:
    """Forward, backward and all that happens inside, of one window, over its way forward as the arm reads it: at once, or by
    segments. What is left over are the pairs of attention, and single gradients at the edge that nobody asks for.
    """
    base, window = small(width=128, layers=2), ids(2, SEGMENTS * PERIOD)
    still = learn.under(base, TINY.level(0.0), None, "off")
    once = sum(operations(still, part, backward=False) for part in window.split(PERIOD if outer else 999, dim=1))
    model = learn.under(base, TINY.level(0.1), outer, "context" if outer else "off")
    assert operations(model, window) / once == pytest.approx(cost(outer), rel=0.02)


def test_every_arm_gets_the_same_compute() -> None:
    """To less than one step of the dearest stage; but for the two that say otherwise, of which one reads as many bytes."""
    size = SIZES["default"]
    step = size.batch * size.length
    spent = {name: size.tokens(arm) * cost(arm.outer) for name, arm in ARMS.items()}
    assert spent.pop("as it was") == 0
    assert spent.pop("plain, as many bytes as second-order") < 0.4 * size.passes
    assert all(abs(passes - size.passes) <= step * cost("second-order") for passes in spent.values())
    assert size.tokens(ARMS["plain, as many bytes as second-order"]) == size.tokens(ARMS["second-order"])


def test_every_arm_is_tuned() -> None:
    """Over the same four outer rates, and over three inner ones where training has one."""
    for name, arm in ARMS.items():
        rates = {setting.lr for setting in arm.settings}
        assert rates == {5e-4, 1e-3, 2e-3, 4e-3} or name == "as it was"
        assert len({setting.inner for setting in arm.settings} - {None}) == (3 if arm.outer else 0)
        assert len(main.settings(name, SIZES["quick"])) == 1


def test_arms_differ_in_the_level_alone() -> None:
    """With a level that never moves every arm of as many bytes is plain training; with one that does none is. Without compute
    nothing happens.
    """
    base, train = small(), ids(4096)
    same, spent = learn.trained(base, ARMS["as it was"], Setting(0.0), TINY, train, seed=0)
    assert same is base and not any(spent.values())

    def after(outer: str | None, inner: float) -> dict[str, torch.Tensor]:
        arm = Arm(outer, (), share=cost(outer) / cost(None))
        model, spent = learn.trained(base, arm, Setting(1e-3, inner), TINY, train, seed=0)
        assert spent["bytes"] == TINY.tokens(Arm(None, ())) and spent["steps"] == spent["bytes"] // TINY.length
        return model.state_dict()

    plain = after(None, 0.8)
    differ(plain, base.state_dict(), least=1e-4)
    for outer in ("first-order", "second-order"):
        for name, value in after(outer, 0.0).items():
            torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5)
    differ(after("first-order", 0.8), plain, least=1e-4)
    differ(after("second-order", 0.8), after("first-order", 0.8), least=1e-4)


def test_every_document_has_a_user_of_its_own() -> None:
    """What is read of one does not depend on the others; a level that stands still, and the first period, is no learning."""
    model, documents, level = small(), ids(3, 5 * PERIOD + 3), TINY.level(0.8)
    found = learn.read(model, documents, level)
    torch.testing.assert_close(found[1:2], learn.read(model, documents[1:2], level))
    still = learn.read(model, documents, None)
    torch.testing.assert_close(learn.read(model, documents, TINY.level(0.0)), still)
    torch.testing.assert_close(found[:, :PERIOD], still[:, :PERIOD])
    assert (found[:, PERIOD:] - still[:, PERIOD:]).abs().max() > 1e-3


def test_parts_make_up_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte but the first is in one of them, however many calls read it."""
    model, documents = small(), ids(2, 80)
    met = learn.judged(model, documents, None, (16, 80))
    assert met["bits"] == pytest.approx((15 * met["parts"][0] + 64 * met["parts"][1]) / 79)
    monkeypatch.setattr(learn, "PIECE", 7)
    assert learn.judged(model, documents, None, (16, 80))["bits"] == pytest.approx(met["bits"])


@pytest.fixture
def corpora(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the place of what is public: articles and plays of distinct words, each a document."""
    articles = "".join(f" = A{n} = \n " + " ".join(f"a{n}b{word}" for word in range(150)) + "\n" for n in range(20))
    monkeypatch.setattr(texts, "wikitext2", lambda part: articles)
    monkeypatch.setattr(texts, "tiny_shakespeare", lambda: " ".join(f"p{word}" for word in range(2000)))
    texts.sorts.cache_clear()
    yield
    texts.sorts.cache_clear()


def test_no_document_that_is_read_was_trained_on(corpora: None) -> None:
    """Nor tunes what judges; two sorts are not trained on at all."""
    sorts = texts.sorts(512, 2, 3)
    trained = [bytes((sort.train - 3).tolist()) for sort in sorts.values() if sort.train is not None]
    assert [name for name, sort in sorts.items() if sort.train is None] == ["C++", "plays"]
    for name, sort in sorts.items():
        assert sort.test.shape == (3, 512)
        held = [*sort.test, *(() if sort.valid is None else sort.valid)]
        pieces = [bytes((row - 3).tolist()) for row in held]
        assert len({piece[:256] for piece in pieces}) == len(pieces)
        assert not any(piece[128:256] in text for piece in pieces for text in trained), name


def test_the_fewest_bits_of_validation_text_choose() -> None:
    """Over settings and rates; one whose training failed never is."""
    swept = [
        {"setting": {"lr": 1}, "valid": {"0.4": 2.0, "0.8": 1.5}},
        {"setting": {"lr": 2}, "valid": {"0.4": 1.4, "0.8": 1.9}},
        {"setting": {"lr": 3}, "valid": {"0.4": float("inf"), "0.8": float("inf")}},
    ]
    assert main.best(swept) == ({"lr": 2}, 0.4)


def arm(on: tuple[float, ...], off: float, lr: float, passes: int = 300) -> dict:
    """Seeds that read the sort trained on at `on` bits and the other one a bit worse, two parts alike."""

    def reading(bits: float) -> dict:
        return {"bits": bits, "parts": [bits + 0.25, bits - 0.25]}

    runs = [
        {
            "read": {sort: {"on": reading(x + more), "off": reading(off + more)} for sort, more in (("old", 0), ("new", 1))},
            "bytes": passes // 3, "steps": 1, "passes": passes, "seconds": 2.0,
        }
        for x in on
    ]  # fmt: skip
    tried = [{"setting": {"lr": other, "inner": None}, "valid": {"0.4": 1.0, "0.8": 2.0}} for other in (1.0, 2.0, 3.0)]
    return {"setting": {"lr": lr, "inner": None}, "rate": 0.4, "swept": tried, "runs": runs}


RESULTS = {
    "title": "T", "about": "A", "ends": [64, 256],
    "size": {"passes": 300, "length": 128, "period": 16, "document": 256},
    "sorts": {"old": {"trained": True, "documents": 2}, "new": {"trained": False, "documents": 3}},
    "arms": {
        "as it was": arm((3.0, 3.5), 4.0, 1.0, passes=0),
        "plain": arm((2.0, 2.5), 3.0, 2.0),
        "second-order": arm((1.5, 2.5), 3.0, 3.0),
    },
}  # fmt: skip


def test_the_report_says_what_was_measured() -> None:
    """Costs, rates that are at the edge, bits, and differences that are taken seed by seed."""
    (_, note, _, cost_rows), (_, _, _, on), (_, _, _, off), trained, unseen = pages.parts(RESULTS)
    assert "3 a byte that is read plainly, 4.25 to first order, 9 to second" in note and "over 2 seeds" in note
    assert PASSES == {None: 3, "first-order": 4.25, "second-order": 9}
    was, plain, second = cost_rows
    assert was[1:] == ["–", "–", "0.4*"] + ["–"] * 4
    assert plain[1:4] == ["2", "–", "0.4*"] and plain[4:] == ["100", "1", "300", "2 ± 0"] and second[1] == "3*"
    assert on[1] == ["plain", *["2.250 ± 0.354", "3.250 ± 0.354"] * 2, "–", "–"]
    assert on[2][5:] == ["−0.250 ± 0.354"] * 2 and on[0][5] == "+1.000 ± 0.000"
    assert off[2][1:3] == ["3.000 ± 0.000", "4.000 ± 0.000"] and off[2][5] == "0.000 ± 0.000"
    assert trained[2] == ("arm", "", "0 to 64", "64 to 256")
    assert trained[3][2] == ["plain", "learning", "2.500 ± 0.354", "2.000 ± 0.354"]
    assert unseen[3][3] == ["plain", "no learning", "4.250 ± 0.000", "3.750 ± 0.000"]
    page = pages.html(RESULTS)
    assert page.count("<svg") == 2 and all(page.count(f">{name}<") >= 7 for name in RESULTS["arms"])


def test_what_is_wrong_is_told(corpora: None) -> None:
    """With what there is to choose from."""
    with pytest.raises(UserError, match=r"unknown arm Sloth.*second-order"):
        main.meta_learning(["Sloth"], "quick", "nowhere", 1, print)
    with pytest.raises(UserError, match="jobs=0 must be at least 1"):
        main.meta_learning(None, "quick", "nowhere", 0, print)


@pytest.mark.slow
def test_a_tiny_run_goes_all_the_way_and_nothing_runs_twice(
    tmp_path, corpora: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From training to the page; after an interruption the command goes on, and a second one takes every number from disk."""
    monkeypatch.setitem(SIZES, "quick", TINY)
    monkeypatch.setattr(main, "side_by_side", lambda function, tasks, jobs: ((task, function(*task)) for task in tasks))
    arms, said = ["as it was", "plain", "second-order"], []

    def interrupt(line: str) -> None:
        if line.startswith("second-order"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main.meta_learning(arms, "quick", str(tmp_path), 1, interrupt)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    results = main.meta_learning(arms, "quick", str(tmp_path), 1, said.append)
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(said) == 2 + (1 + 4 + 6) + 2 * 3
    assert list(results["arms"]) == arms and "<svg" in pages.html(results)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.json")}
    again = main.meta_learning(arms, "quick", str(tmp_path), 1, said.append)
    assert json.dumps(again) == json.dumps(results)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.json")} == files
