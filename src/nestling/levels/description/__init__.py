"""Any model and optimiser, described as nested levels of associative memories."""

from nestling.levels.description.component import Component, Size, Transfer
from nestling.levels.description.continuum import HasLevels, Moving
from nestling.levels.description.describe import describe
from nestling.levels.description.description import Description

__all__ = ["Component", "Description", "HasLevels", "Moving", "Size", "Transfer", "describe"]
