"""A level as data: it survives a configuration file, and bad values raise a message that repeats them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.levels import Level, as_levels
from nestling.memory import L2, DeltaGradientDescent, GradientDescent, RetainPredictions, RetainSeen

positive = st.floats(1e-6, 1e6)
rules = st.one_of(
    st.just(GradientDescent()),
    st.builds(DeltaGradientDescent, st.booleans()),
    st.builds(RetainSeen, positive, st.floats(0, 1, exclude_min=True, allow_subnormal=False)),
)
resets = st.one_of(st.none(), st.just("context"), st.floats(0, 1, exclude_min=True, exclude_max=True))


clips = st.one_of(st.none(), positive)


@given(level=st.builds(Level, st.integers(1, 10**6), st.floats(0, 1e6), rules, resets, clips))
def test_a_level_survives_a_file(level):
    """`from_dict` undoes `to_dict`, by way of JSON."""
    assert Level.from_dict(json.loads(json.dumps(level.to_dict()))) == level


def test_levels_may_be_objects_or_data():
    """Both mean the same, and come out as objects."""
    levels = [Level(4, 0.1), Level(8, 0.5, RetainSeen(0.1), "context")]
    assert as_levels(levels) == as_levels([level.to_dict() for level in levels]) == levels
    assert as_levels([{"period": 4}]) == [Level(4)] and as_levels([]) == []


BAD = {
    "period": ({"period": 0}, "period=0"),
    "rate": ({"lr": -0.1}, "lr=-0.1"),
    "no rate": ({"lr": float("nan")}, "lr=nan"),
    "rank": ({"rule": RetainPredictions(), "rank": 8}, r"rank=8 would save little.*RetainSeen\(\)"),
    "rule": ({"rule": L2()}, "L2.*GradientDescent or DeltaGradientDescent or RetainSeen"),
    "rule as a word": ({"rule": "sgd"}, "rule='sgd'"),
    "momentum": ({"rule": GradientDescent(momentum=True)}, "momentum"),
    "momentum of an erasing rule": ({"rule": DeltaGradientDescent(momentum=True)}, "leave out the momentum"),
    "reset": ({"reset": "always"}, "reset='always'.*'context'"),
    "decay of one": ({"reset": 1.0}, r"reset=1\.0"),
    "clip": ({"clip": 0.0}, r"clip=0\.0"),
    "decay of nothing": ({"reset": 0.0}, r"reset=0\.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_raises(name):
    """The message repeats what was given."""
    given, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Level(**{"period": 4, **given})


BAD_DATA = {
    "unknown key": ([{"period": 4, "step": 0.1}], r"\['step'\].*'lr'"),
    "unknown rule": ([{"period": 4, "rule": {"name": "Adam"}}], "'Adam'.*RetainSeen"),
    "rule without a name": ([{"period": 4, "rule": {"damping": 0.1}}], "None.*RetainSeen"),
    "unknown setting": ([{"period": 4, "rule": {"name": "RetainSeen", "decay": 1}}], "RetainSeen.*decay"),
    "no period": ([{"lr": 0.1}], "period"),
    "slow before fast": ([Level(8), Level(4)], "period 4 stands after 8"),
    "nothing slower": ([Level(4), Level(8, reset="slower")], "slowest level cannot have reset='slower'"),
    "not nested": ([Level(4), Level(8, reset="slower"), Level(20)], "periods 8 and 20 do not nest"),
    "out of step": ([Level(4), Level(10)], "period 10 is not a multiple of .* 4"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_raises(name):
    """Unknown keys and rules, and levels out of order, are named together with what is allowed."""
    given, message = BAD_DATA[name]
    with pytest.raises(ValueError, match=message):
        as_levels(given)
