"""The six tasks of MAD (Poli et al. 2024, arXiv 2403.17844), with mad-lab's baseline parameters as defaults."""

from nestling.evals.exams.mad.compression import Compression
from nestling.evals.exams.mad.copying import SelectiveCopying
from nestling.evals.exams.mad.fuzzy import FuzzyRecall
from nestling.evals.exams.mad.memorisation import Memorisation
from nestling.evals.exams.mad.recall import Recall

__all__ = ["Compression", "FuzzyRecall", "Memorisation", "Recall", "SelectiveCopying"]
