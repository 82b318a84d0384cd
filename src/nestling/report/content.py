"""What the report says, as plain text in plain tables; `page.py` and `terminal.py` only give it a form.

Both forms draw from here, so a number cannot differ between the page and the terminal.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nestling.report.schema import Results
from nestling.report.values import NOTHING, mean, number, percent, size, summary


class Cell(NamedTuple):
    """A table cell: its text, and a quieter second line (the spread of a number, the origin of a name)."""

    text: str
    note: str = ""


class Table(NamedTuple):
    """The first column of `rows` names the row; the others are numbers."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: list[list[Cell]]


def spread_note(results: Results) -> str:
    """How to read every number with a ±."""
    seeds = len(results["seeds"])
    if seeds == 1:
        return "Lower bits per byte are better. One seed, so no spread can be given."
    return f"Lower bits per byte are better. Mean ± sample standard deviation over {seeds} seeds."


def models(results: Results) -> Table:
    """The models after training on the old domain, before the stream."""
    headings = ("Model", "Parameters", "Training tokens", "Learning rate", "Held-out bits/byte", "Tokens/s", "Peak MB")
    rows = [_model(model) for model in results["models"]]
    return Table("The models, before the stream", spread_note(results), headings, rows)


def _model(model: Results) -> list[Cell]:
    return [
        Cell(model["name"]),
        Cell(f"{model['parameters']:,}"),
        Cell(f"{model['tokens']:,}"),
        Cell(f"{model['lr']:g}"),
        _cell(model["heldout_bpb"]),
        _cell(model["tokens_per_s"], ",.0f"),
        _cell(model["peak_memory_mb"], ",.0f"),
    ]


def learners(results: Results) -> Table:
    """Every way of meeting the stream: what it gained on the new domain, what it cost on the old, how dear it was."""
    headings = (
        "Learner",
        "Stream’s last quarter",
        "Against frozen, %",
        "Later new text",
        "Old text before",
        "Old text after",
        "Old text change, %",
        "Tokens/s",
        "Peak MB",
    )
    note = (
        "Bits per byte; lower is better, and a negative % is an improvement. “Against frozen” compares with the same "
        "model left as it was. “Later new text” is read after the stream, with the context reset; “old text” is the "
        "held-out text of the old domain."
    )
    return Table("The learners, on the stream", note, headings, [_learner(results, one) for one in results["learners"]])


def _learner(results: Results, learner: Results) -> list[Cell]:
    return [
        Cell(learner["name"], _origin(learner)),
        _cell(learner["last_quarter_bpb"]),
        _cell(against_frozen(results, learner), "+.1f"),
        _cell(learner["later_bpb"]),
        _cell(learner["old_before_bpb"]),
        _cell(learner["old_after_bpb"]),
        _cell(forgetting(learner), "+.1f"),
        _cell(learner["tokens_per_s"], ",.0f"),
        _cell(learner["peak_memory_mb"], ",.0f"),
    ]


def _origin(learner: Results) -> str:
    """The model behind a learner, where its name does not say so, and the step of a fine-tuning."""
    model = [] if learner["model"] in learner["name"] else [learner["model"]]
    step = [] if learner.get("step") is None else [f"step {learner['step']:g}"]
    return ", ".join(model + step)


def _cell(values: list[float], spec: str = ".3f") -> Cell:
    text, plus_minus, spread = summary(values, spec).partition(" ± ")
    return Cell(text, f"± {spread}" if plus_minus else "")


def against_frozen(results: Results, learner: Results) -> list[float]:
    """Change in % of the stream's last quarter against the same model frozen; empty when there is none to compare."""
    frozen = frozen_twin(results, learner)
    return percent(learner["last_quarter_bpb"], frozen["last_quarter_bpb"]) if frozen else []


def frozen_twin(results: Results, learner: Results) -> Results | None:
    """The frozen learner with the same model; None for a frozen learner itself."""
    for other in results["learners"]:
        if other["kind"] == "frozen" and other["model"] == learner["model"] and learner["kind"] != "frozen":
            return other
    return None


def forgetting(learner: Results) -> list[float]:
    """Change in % of the bits per byte of the old domain: positive is worse."""
    return percent(learner["old_after_bpb"], learner["old_before_bpb"])


HEADLINE = "Against the same model left frozen (last quarter of the stream; old domain after the stream):"


def headlines(results: Results) -> list[tuple[str, str]]:
    """For every learner that learns, its name and what it gained and cost, to be read after `HEADLINE`."""
    learning = [learner for learner in results["learners"] if learner["kind"] != "frozen"]
    return [(learner["name"], _headline(results, learner)) for learner in learning]


def _headline(results: Results, learner: Results) -> str:
    old = f"{_in_words(forgetting(learner))} on the old."
    gained = against_frozen(results, learner)
    return f"{_in_words(gained)} on the new domain, {old}" if gained else old


def _in_words(change: list[float]) -> str:
    """A change in % as words, so that no reader has to remember which sign is good."""
    if math.isnan(mean(change)):
        return "a number of bits per byte that is not finite"
    if number(mean(change), ".1f") == "0.0":
        return "as many bits per byte"
    sign, word = (-1.0, "fewer") if mean(change) < 0 else (1.0, "more")
    return f"{summary([sign * value for value in change], '.1f')} % {word} bits per byte"


def targets(results: Results) -> Table | None:
    """What the run was meant to reach, and whether it did."""
    wanted = results.get("targets")
    if not wanted:
        return None
    met = sum(bool(target["met"]) for target in wanted)
    rows = [[Cell(one["name"]), Cell(one["value"]), Cell(one["target"]), _verdict(one["met"])] for one in wanted]
    return Table("Targets", f"{met} of {len(wanted)} met.", ("Target", "Measured", "Wanted", "Verdict"), rows)


def _verdict(met: bool) -> Cell:
    return Cell("✓ met" if met else "✗ not met")


def restart(results: Results) -> str:
    """Whether the learnt state survived a restart; empty when that was not tried."""
    found = results.get("restart")
    if not found:
        return ""
    file = size(found["file_bytes"])
    saved = f"What was learnt from {found['tokens']:,} tokens was saved ({file}) and loaded again: "
    if found["identical"]:
        return saved + "the restarted learner gave identical outputs."
    return saved + f"the outputs are NOT identical, the largest difference is {found['max_difference']:.3g}."


def facts(results: Results) -> list[tuple[str, str]]:
    """What is needed to run it again."""
    old, new = results["data"]["old"], results["data"]["new"]
    return [
        ("Command", results["command"]),
        ("Date", results["date"]),
        ("Seeds", ", ".join(str(seed) for seed in results["seeds"])),
        ("Old domain", f"{old['name']}: {old['train_bytes']:,} bytes to train on, {old['heldout_bytes']:,} held out"),
        ("New domain", f"{new['name']}: a stream of {new['stream_bytes']:,} bytes, {new['later_bytes']:,} later ones"),
        ("Environment", ", ".join(f"{key} {value}" for key, value in results["environment"].items()) or NOTHING),
    ]
