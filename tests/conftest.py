"""What every test shares: one thread, no network, a fixed seed, property tests that try the same cases every time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "nestling",
    deadline=None,  # a loaded machine is no failure
    max_examples=25,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the seed below is all that such a fixture sets
)
settings.load_profile("nestling")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
