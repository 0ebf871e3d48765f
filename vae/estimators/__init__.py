"""How to differentiate E[f(z)] through a categorical sample. One method, or one family, a file."""

from .base import Estimator, Objective, Pathwise, Surrogate, Tempered
from .decoupled_straight_through_gumbel import DecoupledStraightThroughGumbel
from .disarm import Disarm
from .exact import Exact
from .gapped_straight_through import GappedStraightThrough
from .gumbel_rao import GumbelRao, ReinMaxRao
from .gumbel_softmax import GumbelSoftmax, StraightThroughGumbel
from .minimum_variance import MinimumVariance
from .reinforce import Reinforce, ReinforceLearnedBaseline, ReinforceMovingAverage
from .reinmax import ReinMax
from .relax import Rebar, Relax
from .softmax import Softmax
from .straight_through import StraightThrough
from .straight_through_argmax import StraightThroughArgmax

__all__ = [
    "DecoupledStraightThroughGumbel",
    "Disarm",
    "Estimator",
    "Exact",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "MinimumVariance",
    "Objective",
    "Pathwise",
    "ReinMax",
    "ReinMaxRao",
    "Rebar",
    "Reinforce",
    "ReinforceLearnedBaseline",
    "ReinforceMovingAverage",
    "Relax",
    "Softmax",
    "StraightThrough",
    "StraightThroughArgmax",
    "StraightThroughGumbel",
    "Surrogate",
    "Tempered",
]
