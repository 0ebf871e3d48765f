"""Variance normalisation: the length of the encoder's gradient changes, and nothing else does."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from tests.helpers import noise_model
from vae.estimators import MuProp, Reinforce, ReinforceLearnedBaseline, ReinforceMovingAverage
from vae.objective import NegativeELBO

B, N, K = 5, 2, 3
DECAY = 0.8

ESTIMATORS = {
    "reinforce": lambda decay: Reinforce(samples=3, variance_normalization=decay),
    "moving average": lambda decay: ReinforceMovingAverage(0.8, variance_normalization=decay),
    "learned baseline": lambda decay: ReinforceLearnedBaseline(
        latents=N, categories=K, hidden=8, decay=0.8, variance_normalization=decay
    ),
    "muprop": lambda decay: MuProp(
        samples=2, coefficient="adaptive", variance_normalization=decay
    ),
}


def deviation_of(estimator: torch.nn.Module) -> torch.Tensor:
    return (estimator.square / estimator.square_weight).sqrt()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_of_encoder_and_kl_are_divided_alike(name):
    """The deviation is far above 1 here, and beta is not 1."""
    x, gradients = torch.rand(B, 16), []
    for decay in (None, DECAY):
        torch.manual_seed(1)
        estimator = ESTIMATORS[name](decay)
        objective = NegativeELBO(noise_model(0), estimator, beta=0.7).double()
        f = lambda z: 9 * (z[..., 0] - z[..., 1]).sum(-1)
        for step in range(3):  # the noise and the baselines do not depend on the decay
            estimator(objective.model.encode(x), f, step)
        if decay is not None:
            deviation = deviation_of(estimator)
            assert deviation > 2
        terms = objective(x, 3)
        names, parameters = zip(*objective.named_parameters(), strict=True)
        slopes = torch.autograd.grad(terms.loss.mean(), parameters)
        gradients.append((terms, dict(zip(names, slopes, strict=True))))
    (terms, plain), (normalized_terms, normalized) = gradients
    assert_close(normalized_terms, terms)
    for parameter, slope in plain.items():
        factor = deviation if parameter.startswith("model.encoder") else 1
        assert_close(normalized[parameter] * factor, slope)
    assert any(parameter.startswith("model.encoder") for parameter in plain)


def test_deviation_is_the_root_of_the_moving_mean_of_squared_signals():
    estimator, losses = Reinforce(samples=2, variance_normalization=DECAY), []

    def f(z: torch.Tensor) -> torch.Tensor:
        losses.append(9 * z[..., 0].sum(-1))
        return losses[-1]

    for step in range(3):
        estimator(torch.randn(B, N, K), f, step)
    squares = [(loss[0] - loss[1]).square().mean() for loss in losses]
    weights = [DECAY**2, DECAY, 1.0]
    mean = sum(w * square for w, square in zip(weights, squares, strict=True)) / sum(weights)
    assert_close(deviation_of(estimator), mean.sqrt())


def test_muprop_leaves_the_control_variate_out_of_the_signal():
    estimator, logits = ESTIMATORS["muprop"](DECAY), torch.randn(B, N, K)
    estimator.coefficient = 1.0
    estimator(logits, lambda z: 9 * z[..., 0].sum(-1), 0)  # f equals its linear part
    assert_close(deviation_of(estimator), torch.tensor(0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.01])
def test_a_deviation_below_one_changes_nothing(scale):
    estimator, logits = Reinforce(samples=2, variance_normalization=DECAY), torch.randn(B, N, K)
    estimator(logits, lambda z: scale * z[..., 0].sum(-1), 0)
    assert deviation_of(estimator) < 1
    leaf = logits.clone().requires_grad_()
    scaled = estimator.scale_gradient(leaf)
    assert torch.equal(scaled, logits)
    assert torch.equal(torch.autograd.grad(scaled.sum(), leaf)[0], torch.ones(B, N, K))


def test_deviation_ignores_evaluation_and_signals_that_are_not_finite():
    estimator, logits = Reinforce(samples=2, variance_normalization=DECAY), torch.randn(B, N, K)
    f = lambda z: 9 * z[..., 0].sum(-1)
    estimator(logits, f, 0)
    state = {name: value.clone() for name, value in estimator.state_dict().items()}
    estimator(logits, lambda z: f(z) * math.nan, 1)
    estimator.eval()(logits, f, 2)
    assert len(state) == 2
    assert estimator.state_dict() == state


@pytest.mark.parametrize("decay", [-0.1, 1.0, True])
def test_invalid_decays_are_refused(decay):
    with pytest.raises(ValidationError, match="variance_normalization"):
        Reinforce(samples=2, variance_normalization=decay)
