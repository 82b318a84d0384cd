"""Optimisers as memories of gradients (arXiv 2512.24695, sections 4 and 7.2): pure updates in thin torch shells."""

from nestling.optim.carry import Carried, carry
from nestling.optim.dgd import DGD, layer_groups
from nestling.optim.edit import edit
from nestling.optim.m3 import M3, matrix_groups
from nestling.optim.retain import Retained
from nestling.optim.shell import Shell

__all__ = ["DGD", "M3", "Carried", "Retained", "Shell", "carry", "edit", "layer_groups", "matrix_groups"]
