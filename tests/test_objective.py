"""The negative ELBO, against the ELBO summed by hand over all codes."""

import itertools
from typing import NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.testing import assert_close

from vae.estimators import Estimator, Exact, GumbelSoftmax, StraightThrough, StraightThroughArgmax
from vae.model import CategoricalVAE
from vae.networks import MLP
from vae.objective import NegativeELBO
from vae.schedules import Linear

B, N, K, D = 5, 2, 3, 16
EXACT = Exact(limit=K**N)

every_prior = pytest.mark.parametrize("prior", ["uniform", "learned"])


def vae(prior: str = "uniform") -> CategoricalVAE:
    networks = MLP(encoder_sizes=[8], decoder_sizes=[8], activation="tanh")
    model = CategoricalVAE(networks, latents=N, categories=K, prior=prior, image_shape=(4, 4))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def images() -> Tensor:
    return (torch.rand(B, D) < 0.5).double()


class ByHand(NamedTuple):
    """Log-densities of every code and image, (K**N, B)."""

    likelihood: Tensor
    prior: Tensor
    posterior: Tensor  # q(z | x)

    @property
    def elbo(self) -> Tensor:
        terms = self.likelihood + self.prior - self.posterior
        return (self.posterior.exp() * terms).sum(0)

    @property
    def log_p(self) -> Tensor:
        return (self.likelihood + self.prior).logsumexp(0)


def enumerated(model: CategoricalVAE, x: Tensor) -> ByHand:
    q = model.encoder(x).reshape(B, N, K).softmax(-1)
    p = model.prior_logits.softmax(-1)
    rows = []
    for digits in itertools.product(range(K), repeat=N):
        pixels = Bernoulli(logits=model.decoder(torch.eye(K)[list(digits)].reshape(1, N * K)))
        likelihood = pixels.log_prob(x).sum(-1)
        prior = sum(p[n, k].log() for n, k in enumerate(digits)).expand(B)
        posterior = sum(q[:, n, k].log() for n, k in enumerate(digits))
        rows.append(torch.stack([likelihood, prior, posterior]))
    return ByHand(*torch.stack(rows, 1))


@every_prior
def test_the_loss_is_the_enumerated_negative_elbo(prior):
    model, x = vae(prior), images()
    loss = NegativeELBO(model, EXACT)(x, 0).loss
    assert_close(loss, -enumerated(model, x).elbo, rtol=0, atol=1e-10)


@every_prior
def test_the_gradient_is_that_of_the_enumerated_elbo(prior):
    model, x = vae(prior), images()
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert ("prior_logits" in names) == (prior == "learned")
    found = torch.autograd.grad(NegativeELBO(model, EXACT)(x, 0).loss.sum(), parameters)
    truth = torch.autograd.grad(-enumerated(model, x).elbo.sum(), parameters)
    for name, gradient, expected in zip(names, found, truth, strict=True):
        assert expected.abs().max() > 1e-3, name
        assert_close(gradient, expected, rtol=0, atol=1e-10)


@every_prior
def test_the_negative_elbo_is_no_less_than_the_negative_log_likelihood(prior):
    model, x = vae(prior), images()
    loss, by_hand = NegativeELBO(model, EXACT)(x, 0).loss, enumerated(model, x)
    assert (loss >= -by_hand.log_p).all()
    # What lies between is KL(q(z | x) || p(z | x)).
    true_posterior = by_hand.likelihood + by_hand.prior - by_hand.log_p
    gap = (by_hand.posterior.exp() * (by_hand.posterior - true_posterior)).sum(0)
    assert_close(loss + by_hand.log_p, gap, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "beta, step, weight",
    [
        (1.0, 0, 1.0),
        (0.0, 0, 0.0),
        (2.5, 10**6, 2.5),
        (Linear(start=0.0, end=4.0, steps=100), 0, 0.0),
        (Linear(start=0.0, end=4.0, steps=100), 25, 1.0),
        (Linear(start=0.0, end=4.0, steps=100), torch.tensor(25), 1.0),
        (Linear(start=0.0, end=4.0, steps=100), 200, 4.0),
    ],
)
def test_the_loss_is_distortion_and_weighted_rate(beta, step, weight):
    model, x = vae(), images()
    loss, distortion, rate = NegativeELBO(model, EXACT, beta=beta)(x, step)
    by_hand = enumerated(model, x)
    q = by_hand.posterior.exp()
    assert_close(distortion, -(q * by_hand.likelihood).sum(0), rtol=0, atol=1e-10)
    assert_close(rate, (q * (by_hand.posterior - by_hand.prior)).sum(0), rtol=0, atol=1e-10)
    assert_close(loss, distortion + weight * rate, rtol=0, atol=1e-10)


def test_beta_is_one_unless_said_otherwise():
    loss, distortion, rate = NegativeELBO(vae(), EXACT)(images(), 0)
    assert torch.equal(loss, distortion + rate)


@pytest.mark.parametrize("beta", [-1.0, Linear(start=1.0, end=-0.5, steps=10), "1", float("nan")])
def test_a_weight_that_is_no_weight_is_refused(beta):
    with pytest.raises(ValidationError):
        NegativeELBO(vae(), EXACT, beta=beta)


@pytest.mark.parametrize(
    "estimator",
    [GumbelSoftmax(temperature=0.5), StraightThrough(temperature=1.0), StraightThroughArgmax()],
)
def test_the_rate_is_that_of_the_categorical_whatever_the_estimator(estimator):
    model, x = vae("learned"), images()
    rates = [NegativeELBO(model, each)(x, 0).rate for each in (estimator, EXACT)]
    assert torch.equal(*rates)


def test_the_estimator_is_told_the_step():
    class Telling(Estimator):
        def forward(self, logits, f, step):
            return torch.full((B,), float(step))

    distortion = NegativeELBO(vae(), Telling())(images(), 7).distortion
    assert torch.equal(distortion, torch.full((B,), 7.0))
