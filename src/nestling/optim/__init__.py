"""Optimisers as memories of gradients (arXiv 2512.24695, sections 4 and 7.2): pure updates in thin torch shells."""

from nestling.optim.ademamix import AdEMAMix
from nestling.optim.carry import Carried, carry
from nestling.optim.deep_momentum import DeepMomentum
from nestling.optim.delta_momentum import DeltaMomentum
from nestling.optim.dgd import DGD, layer_groups
from nestling.optim.edit import edit
from nestling.optim.generalised_momentum import GeneralisedMomentum
from nestling.optim.m3 import M3, matrix_groups
from nestling.optim.preconditioned_momentum import PreconditionedMomentum
from nestling.optim.retain import Retained
from nestling.optim.shell import Shell

__all__ = [
    "DGD",
    "M3",
    "AdEMAMix",
    "Carried",
    "DeepMomentum",
    "DeltaMomentum",
    "GeneralisedMomentum",
    "PreconditionedMomentum",
    "Retained",
    "Shell",
    "carry",
    "edit",
    "layer_groups",
    "matrix_groups",
]
