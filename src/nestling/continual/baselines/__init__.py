"""What a learner is compared with: the same model, its own weights following the same stream.

method.py    what a method is: prepare, step, what is one user's own
follower.py  the stream past a model that a method moves
tuning.py    all weights, by an optimiser
lora.py      pairs of low rank beside the linear maps (Hu et al. 2021)
dynamic.py   dynamic evaluation (Krause et al. 2018, 2019)
ewc.py       elastic weight consolidation (Kirkpatrick et al. 2017)
replay.py    experience replay (Chaudhry et al. 2019)
squares.py   mean squared gradients on the old domain, which two of them need
"""

from nestling.continual.baselines.dynamic import DynamicEvaluation, alike, root_mean_squares
from nestling.continual.baselines.ewc import ElasticWeights
from nestling.continual.baselines.follower import Follower
from nestling.continual.baselines.frozen import Frozen
from nestling.continual.baselines.lora import LoRA, merge
from nestling.continual.baselines.method import Method
from nestling.continual.baselines.replay import Replay
from nestling.continual.baselines.tuning import FineTuning

__all__ = [
    "DynamicEvaluation",
    "ElasticWeights",
    "FineTuning",
    "Follower",
    "Frozen",
    "LoRA",
    "Method",
    "Replay",
    "alike",
    "merge",
    "root_mean_squares",
]
