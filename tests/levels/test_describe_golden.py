"""Golden tables: what the paper's decomposition is of three models. `python -m tests.levels.test_describe_golden` writes them anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nestling import HopeConfig, HopeForCausalLM, Level
from nestling.levels import Description, StepOf, describe
from nestling.memory import RetainSeen
from nestling.optim import M3, matrix_groups
from tests.families import decoder

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent.parent / "docs" / "levels-hope.svg"


def llama() -> Description:
    model = decoder("llama", num_hidden_layers=2)
    return describe(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), 4096)


def gpt2() -> Description:
    model = decoder("gpt2", n_layer=2)
    return describe(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 4096)


def hope() -> Description:
    """Hope whose levels move by M3 and by retention, trained by M3: the one of docs/levels.md."""
    levels = [
        Level(period=64, lr=1e-3, reset="context", rule=StepOf("M3", momentum=0.9, periods=(8,), weights=(1.0,))),
        Level(period=1024, lr=0.5, rule=RetainSeen()),
    ]
    config = HopeConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, levels=levels)
    model = HopeForCausalLM(config)
    return describe(model, M3(matrix_groups(model), lr=1e-3), tokens_per_step=8192)


GOLDEN: dict[str, Callable[[], Description]] = {"llama-adamw": llama, "gpt2-sgd": gpt2, "hope-m3": hope}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_table_is_the_golden_one(name):
    """Every component, size, equation and transfer."""
    assert GOLDEN[name]().to_json() == (HERE / "golden" / f"{name}.json").read_text(encoding="utf-8")


def test_the_picture_of_the_documentation_is_the_one_that_is_drawn():
    """Byte for byte."""
    assert hope().to_svg() == PICTURE.read_text(encoding="utf-8")


if __name__ == "__main__":
    for golden, make in GOLDEN.items():
        (HERE / "golden" / f"{golden}.json").write_text(make().to_json(), encoding="utf-8")
    PICTURE.write_text(hope().to_svg(), encoding="utf-8")
