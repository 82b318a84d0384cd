"""Definition 2: the order of components, by frequency and then by dependence."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.levels.description import Component, Size, Transfer
from nestling.levels.description.order import ordered
from nestling.memory.part import Context


def component(name: str, frequency: float, needs: tuple[str, ...] = ()) -> Component:
    return Component(name, 0, frequency, Size(), Size(), "", Context(), None, "", needs, ())


@st.composite
def systems(draw) -> list[Component]:
    """Components whose needs make no circle: each may need those before it."""
    found = []
    for i in range(draw(st.integers(1, 8))):
        needs = draw(st.sets(st.sampled_from([c.name for c in found]))) if found else set()
        found.append(component(str(i), draw(st.sampled_from([math.inf, 1.0, 0.25, 0.0])), tuple(sorted(needs))))
    return draw(st.permutations(found))


@given(systems())
def test_faster_comes_first(system):
    """A is in a faster level than B if its frequency is higher, or if they are equal and B needs A; a level has one frequency."""
    levels = ordered(system)
    at = {c.name: i for i, level in enumerate(levels) for c in level}
    assert sorted(at) == sorted(c.name for c in system)
    assert all(len({c.frequency for c in level}) == 1 for level in levels)
    frequency = {c.name: c.frequency for c in system}
    for b in system:
        for a in system:
            if a.frequency > b.frequency or (a.frequency == b.frequency and a.name in b.needs):
                assert at[a.name] < at[b.name]
    chains = {value: _longest(system, frequency, value) for value in frequency.values()}
    assert len(levels) == sum(chains.values())  # no more levels than dependence asks for


def _longest(system: list[Component], frequency: dict[str, float], value: float) -> int:
    """How many components of one frequency need each other in a row, at most."""
    needs = {c.name: [n for n in c.needs if frequency[n] == value] for c in system if c.frequency == value}

    def length(name: str) -> int:
        return 1 + max((length(n) for n in needs[name]), default=0)

    return max(length(name) for name in needs)


def test_a_circle_is_refused():
    """None of them would be the faster one."""
    with pytest.raises(ValueError, match=r"a needs b needs a|b needs a needs b"):
        ordered([component("a", 1.0, ("b",)), component("b", 1.0, ("a",))])


def test_kinds_of_transfer_are_those_of_the_paper():
    """A sixth one is a mistake."""
    with pytest.raises(ValueError, match="kind='osmosis' of a transfer is unknown; choose 'direct parametric' or"):
        Transfer("osmosis", "a")
