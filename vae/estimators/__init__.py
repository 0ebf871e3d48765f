"""Gradient estimators for E[f(z)] with z categorical: one method, or one family, per file."""

from vae.estimators.base import CodeFunction, Estimator, Pathwise, Surrogate
from vae.estimators.decoupled_straight_through_gumbel import DecoupledStraightThroughGumbel
from vae.estimators.disarm import Disarm
from vae.estimators.exact import Exact
from vae.estimators.gapped_straight_through import GappedStraightThrough
from vae.estimators.gumbel_rao import GumbelRao, ReinMaxCV, ReinMaxRao
from vae.estimators.gumbel_softmax import GumbelSoftmax, StraightThroughGumbel
from vae.estimators.local_expectation import LocalExpectation
from vae.estimators.minimum_variance import MinimumVariance
from vae.estimators.muprop import MuProp
from vae.estimators.redge import Redge, Reindge
from vae.estimators.reinforce import Reinforce, ReinforceLearnedBaseline, ReinforceMovingAverage
from vae.estimators.reinmax import ReinMax
from vae.estimators.relax import Rebar, Relax
from vae.estimators.score_function import ScoreFunction
from vae.estimators.softmax import Softmax
from vae.estimators.straight_through import StraightThrough
from vae.estimators.straight_through_argmax import StraightThroughArgmax

__all__ = [
    "CodeFunction",
    "DecoupledStraightThroughGumbel",
    "Disarm",
    "Estimator",
    "Exact",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "LocalExpectation",
    "MinimumVariance",
    "MuProp",
    "Pathwise",
    "Rebar",
    "Redge",
    "ReinMax",
    "ReinMaxCV",
    "ReinMaxRao",
    "Reindge",
    "Reinforce",
    "ReinforceLearnedBaseline",
    "ReinforceMovingAverage",
    "Relax",
    "ScoreFunction",
    "Softmax",
    "StraightThrough",
    "StraightThroughArgmax",
    "StraightThroughGumbel",
    "Surrogate",
]
