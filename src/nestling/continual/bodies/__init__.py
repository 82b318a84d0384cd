"""Classifiers that learn in their body: a network all of whose weights follow a stream of examples.

perceptron.py   the network
body.py         what all of them share
descent.py      gradient descent with momentum, and nothing against forgetting
curvature.py    the Fisher information of a network on some examples, its diagonal or Kronecker-factored
ewc.py          online elastic weight consolidation (Kirkpatrick et al. 2017, Schwarz et al. 2018)
laplace.py      online structured Laplace (Ritter et al. 2018)
replay.py       experience replay and DER++ (Chaudhry et al. 2019, Buzzega et al. 2020)
joint.py        everything at once, an upper bound
levelled.py     levels of this library
"""

from nestling.continual.bodies.body import Body
from nestling.continual.bodies.curvature import diagonals, factors
from nestling.continual.bodies.descent import Descent
from nestling.continual.bodies.ewc import ElasticWeights
from nestling.continual.bodies.joint import Joint
from nestling.continual.bodies.laplace import OnlineLaplace
from nestling.continual.bodies.levelled import Levelled
from nestling.continual.bodies.perceptron import Perceptron
from nestling.continual.bodies.replay import Replay

__all__ = [
    "Body",
    "Descent",
    "ElasticWeights",
    "Joint",
    "Levelled",
    "OnlineLaplace",
    "Perceptron",
    "Replay",
    "diagonals",
    "factors",
]
