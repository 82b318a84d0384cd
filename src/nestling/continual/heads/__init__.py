"""Class-incremental learning: what observes examples of ever more classes, and heads on features that stand still.

classifier.py   what a method is: observe, predict, stored; a head, and a head behind a backbone
met.py          the classes met so far
memory.py       a head that is an associative memory, and what can be read out of it
random_relu.py  random features of the rectifier
moments.py      the sums that the classic heads keep
means.py        the nearest class mean
slda.py         streaming linear discriminant analysis (Hayes and Kanan 2020)
ranpac.py       random projections and a ridge regression (McDonnell et al. 2023)
descent.py      a linear probe or an MLP, on the stream as it comes
replay.py       the same, with a buffer (Chaudhry et al. 2019)
joint.py        the same, on everything at once
"""

from nestling.continual.heads.classifier import Classifier, Head, Inputs, OnFeatures
from nestling.continual.heads.descent import Descent, adam, sgd
from nestling.continual.heads.joint import Joint
from nestling.continual.heads.means import NearestClassMean
from nestling.continual.heads.memory import Discriminant, Largest, MemoryHead, plain
from nestling.continual.heads.random_relu import RandomReLU, gaussian, orthogonal
from nestling.continual.heads.ranpac import RanPAC
from nestling.continual.heads.replay import Replay
from nestling.continual.heads.slda import StreamingLDA

__all__ = [
    "Classifier",
    "Descent",
    "Discriminant",
    "Head",
    "Inputs",
    "Joint",
    "Largest",
    "MemoryHead",
    "NearestClassMean",
    "OnFeatures",
    "RandomReLU",
    "RanPAC",
    "Replay",
    "StreamingLDA",
    "adam",
    "gaussian",
    "orthogonal",
    "plain",
    "sgd",
]
