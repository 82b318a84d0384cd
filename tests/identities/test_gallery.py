"""The page says what the tests test."""

import inspect

import pytest
import torch

from tests.identities.gallery import HERE, PAGE, SECTIONS, identities, page, section
from tests.identities.identity import Identity, argmin

ALL = [pair for name in SECTIONS for pair in identities(section(name))]


def test_the_page_is_what_the_tests_say():
    """Run `python -m tests.identities.gallery` after an identity has changed."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_identity_is_on_the_page_once():
    """Every file of this folder is a section, every test in it an identity with a docstring, under a title of its own."""
    assert {f"test_{name}.py" for name in (*SECTIONS, "gallery")} == {path.name for path in HERE.glob("test_*.py")}
    tests = [f for name in SECTIONS for key, f in vars(section(name)).items() if key.startswith("test_")]
    assert tests == [test for _, test in ALL] and all(inspect.getdoc(test) for test in tests)
    assert len({identity.title for identity, _ in ALL}) == len(ALL)


def test_sides_that_differ_fail():
    """The decorator that all of them stand on."""
    one = torch.ones(2, dtype=torch.float64)
    exact = Identity("t", "e", "s", ("a", "b"))
    rough = Identity("t", "e", "s", ("a", "b"), tolerance=0.1, approximation="because")
    exact.compare((one, one + 1e-10))
    rough.compare((one, 1.09 * one))
    for identity, sides in [
        (exact, (one, one + 1e-8)),
        (exact, (one, one.float())),
        (exact, (0 * one, 0 * one)),
        (exact, (one * torch.nan, one * torch.nan)),
        (exact, (one,)),
        (rough, (one, 1.11 * one)),
        (rough, (one, torch.nan * one)),
    ]:
        with pytest.raises(AssertionError):
            identity.compare(sides)


def test_an_argmin_is_the_minimum():
    """Of a quadratic whose minimum is known; where there is none it raises."""
    best = torch.arange(6, dtype=torch.float64).view(2, 3)
    torch.testing.assert_close(argmin(lambda x: (3 * (x - best).square()).sum() + 7, 2, 3), best)
    with pytest.raises(torch.linalg.LinAlgError):
        argmin(lambda x: -x.square().sum(), 2)
