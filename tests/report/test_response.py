"""The gains of levels as tables and as a drawing; the page in the documentation says what they are."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from nestling.cli.levels_response import response, three_levels
from nestling.errors import UserError
from nestling.levels import Level, as_levels
from nestling.levels.response import Gain, closed_form, measure
from nestling.report.response import cutoffs, difference, name, tables
from nestling.settings import LevelSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frequency-response.md"


def test_what_was_measured_is_printed_and_drawn(tmp_path, capsys, monkeypatch):
    """A row a level and a column a level; the drawing is a file that stands alone."""
    monkeypatch.setenv("COLUMNS", "200")
    momentum = {"name": "StepOf", "optimizer": "PreconditionedMomentum", "momentum": 0.5}
    levels = [LevelSettings(4, 0.1, reset=0.5), LevelSettings(8, 0.3, rule=momentum)]
    response(levels=levels, svg=str(tmp_path / "gains.svg"))
    said = capsys.readouterr().out
    for words in ("period 4, lr 0.1, decay 0.5", "period 8, lr 0.3, momentum 0.5"):
        assert said.count(words) == 3
    differences = [float(row.split()[-1]) for row in said.splitlines() if row.strip().startswith("period ")]
    assert len(differences) == 2 and max(differences) < 1e-7  # %
    gains = [cell.split(" / ") for cell in re.findall(r"[\d.e-]+ / [\d.e-]+", said)]
    assert len(gains) == 2 * 2 * 10 and all(measured == expected for measured, expected in gains)
    drawing = (tmp_path / "gains.svg").read_text()
    assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg" and "var(" not in drawing


def test_a_difference_is_one_over_the_largest_gain():
    """A zero of the mean is rounding in both; an error that is there is found, at whatever frequency."""
    level, f = Level(16, lr=1.0), torch.tensor([1e-3, 1 / 16, 0.21], dtype=torch.float64)
    (gain,) = measure([level], f)
    assert gain.value.isnan().tolist() == [False, True, False] and difference(level, f, gain) < 1e-9
    step, value = closed_form(level, f)
    off = 0.01 * value.abs().max() * torch.tensor([0, 0, 1])
    assert difference(level, f, Gain(step, value + off)) == pytest.approx(0.01)
    still = Level(16)
    assert difference(still, f, *measure([still], f)) == 0.0


def test_of_nothing_measured_there_is_no_difference(capsys):
    """The sign for nothing, and not 0."""
    from rich.console import Console

    level, f = Level(16, lr=1.0), torch.tensor([0.01], dtype=torch.float64)
    nothing = torch.full((1,), torch.nan, dtype=torch.complex128)
    Console(width=200).print(tables([level], f, [Gain(nothing, nothing)]))
    (row,) = [row.split() for row in capsys.readouterr().out.splitlines() if row.strip().startswith("period 16, lr 1 ")]
    assert row[-1] == "–"


def test_the_page_shows_the_cutoffs_of_its_levels():
    """In the table of docs/frequency-response.md, whose picture is drawn of the command's own levels."""
    page = PAGE.read_text(encoding="utf-8")
    for level in as_levels([one.to_dict() for one in three_levels()]):
        assert f"| {name(level)} | {' | '.join(cutoffs(level))} |" in page


def test_no_levels_raise():
    with pytest.raises(UserError, match=r"levels=\[\]"):
        response(levels=[])
