"""A model as nested levels: the table, without loading its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nestling.cli import levels_response
from nestling.cli.folders import outline
from nestling.cli.optimizers import make_optimizers
from nestling.errors import UserError
from nestling.quiet import quiet
from nestling.settings import LevelSettings

EXAMPLES = {"levels": "nestling levels model --optimizer AdamW --tokens_per_step 4096 --svg levels.svg"}
MODEL = (
    "folder of a saved model, Hope or another of transformers, of which config.json is enough; or its name on the hub, if it is in "
    "the local cache (HF_HUB_OFFLINE=0 asks the hub)"
)


def levels(
    model: str | None = None,
    optimizer: str | dict[str, Any] | None = None,
    tokens_per_step: int | None = None,
    json: str | None = None,
    svg: str | None = None,
    levels: list[LevelSettings] | None = None,
    response: bool = False,
) -> None:
    """Show a model as nested levels: what moves how often, how large it is, what it compresses and by which rule.

    Args:
        optimizer: what trains it: an optimiser of torch.optim or nestling.optim by name, or with its settings:
            {"name": "SGD", "momentum": 0.9}. Muon and M3 leave what is no hidden matrix to AdamW. None is the model as it is used.
        tokens_per_step: tokens that a step of the optimiser sees; none is half a million.
        json: a file for the table as data.
        svg: a file for the picture.
        levels: with --response, of which levels, from fast to slow.
    """
    quiet()
    for name, file in (("json", json), ("svg", svg)):
        if file is not None and Path(file).is_dir():
            raise UserError(f"{name}={file!r} is no name of a file; give one, such as levels.{name}")
    if response:
        unused = {"optimizer": optimizer, "tokens_per_step": tokens_per_step, "json": json}
        if given := [f"--{name}" for name, value in unused.items() if value is not None]:
            raise UserError(f"{given[0]} belongs to the table of a model; leave it out with --response")
        return levels_response.response(model, levels, svg)
    if model is None:
        raise UserError(
            "which model? Give its folder: nestling levels MODEL; or --response for the response of levels alone"
        )
    if levels is not None:
        raise UserError("--levels belongs to --response; the table shows the levels that the model has")
    from nestling.levels import describe

    network = outline(model)
    optimizers = [] if optimizer is None else make_optimizers(network, optimizer)
    described = describe(network, optimizers, tokens_per_step)
    for file, text in ((json, described.to_json), (svg, described.to_svg)):
        if file is not None:
            Path(file).write_text(text(), encoding="utf-8")
    print(described)
