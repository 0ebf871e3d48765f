"""How to differentiate E[f(z)] through a categorical sample. One method a file."""

from .base import Estimator, Objective, Pathwise, Surrogate, Tempered
from .exact import Exact
from .gumbel_softmax import GumbelSoftmax, StraightThroughGumbel
from .softmax import Softmax
from .straight_through import StraightThrough
from .straight_through_argmax import StraightThroughArgmax

__all__ = [
    "Estimator",
    "Exact",
    "GumbelSoftmax",
    "Objective",
    "Pathwise",
    "Softmax",
    "StraightThrough",
    "StraightThroughArgmax",
    "StraightThroughGumbel",
    "Surrogate",
    "Tempered",
]
