"""What is minimised, against the same bounds summed by hand over all codes."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.testing import assert_close

from vae.categorical import codes, exp_concrete_log_prob, log_prob
from vae.estimators import (
    Estimator,
    Exact,
    GumbelSoftmax,
    Pathwise,
    ReinMax,
    StraightThrough,
    StraightThroughArgmax,
)
from vae.model import CategoricalVAE
from vae.networks import MLP
from vae.objective import VIMCO, ConcreteELBO, ImportanceWeighted, NegativeELBO
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
    q = model.encoder(x).reshape(-1, N, K).softmax(-1)
    p = model.prior_logits.softmax(-1)
    rows = []
    for digits in itertools.product(range(K), repeat=N):
        pixels = Bernoulli(logits=model.decoder(torch.eye(K)[list(digits)].reshape(1, N * K)))
        likelihood = pixels.log_prob(x).sum(-1)
        prior = sum(p[n, k].log() for n, k in enumerate(digits)).expand(len(x))
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


# The importance-weighted bound


def every_tuple(samples: int) -> Tensor:
    """All (K**N)**S tuples of codes, (S, T, N, K): each column one draw of S samples."""
    chosen = torch.cartesian_prod(*[torch.arange(K**N)] * samples).reshape(-1, samples)
    return codes(N, K)[chosen.T]


def tuple_probability(logits: Tensor, z: Tensor) -> Tensor:
    """q of each tuple, given one image's logits: (1, N, K), (S, T, N, K) -> (T,)."""
    return log_prob(logits, z.flatten(0, 1).unsqueeze(1)).reshape(z.shape[:2]).sum(0).exp()


def exact_bound(model: CategoricalVAE, x: Tensor, samples: int, beta: float = 1.0) -> Tensor:
    """E[log 1/S sum w_i] by enumeration of all tuples of codes, for images (B, D): (B,)."""
    by_hand = enumerated(model, x)
    weight = by_hand.likelihood + beta * (by_hand.prior - by_hand.posterior)  # (K**N, B)
    chosen = torch.cartesian_prod(*[torch.arange(K**N)] * samples).reshape(-1, samples)
    probability = by_hand.posterior[chosen].sum(1).exp()  # (T, B)
    return (probability * (weight[chosen].logsumexp(1) - math.log(samples))).sum(0)


class Given(Pathwise):
    """Pathwise in name: gives the codes that it was given, without a gradient."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def sample(self, logits: Tensor, step: int) -> Tensor:
        return self.z


@every_prior
@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_the_importance_weighted_loss_is_the_bound_in_expectation(samples, beta, prior):
    model, x = vae(prior), images()[:1]
    z = every_tuple(samples)  # (S, T, N, K)
    everywhere = x.expand(z.shape[1], D)
    loss = ImportanceWeighted(model, Given(z), beta=beta)(everywhere, 0).loss  # (T,)
    expectation = (tuple_probability(model.encode(x), z) * loss).sum()
    assert_close(expectation, -exact_bound(model, x, samples, beta).squeeze())


def test_the_importance_weighted_bound_rises_with_the_samples_from_elbo_to_log_p():
    model, x = vae(), images()
    bounds = [enumerated(model, x).elbo] + [exact_bound(model, x, s) for s in (1, 2, 3)]
    assert_close(bounds[0], bounds[1])
    for lower, upper in itertools.pairwise([*bounds[1:], enumerated(model, x).log_p]):
        assert (lower < upper).all()


@pytest.mark.parametrize("objective", ["vimco", "importance_weighted"])
def test_the_sampled_bound_has_the_mean_of_the_exact_one(objective):
    model, x, draws = vae(), images()[:1], 20_000
    chosen = {
        "vimco": VIMCO(model, samples=2),
        "importance_weighted": ImportanceWeighted(model, ReinMax(temperature=1.0, samples=2)),
    }
    loss = chosen[objective](x.expand(draws, D), 0).loss.detach()
    error = loss.std() / draws**0.5
    assert abs(loss.mean() + exact_bound(model, x, 2)) < 5 * error


class Table(nn.Module):
    """An encoder that has the same logits for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(N * K))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), N * K)


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("samples", [2, 3])
def test_vimco_has_no_bias(samples, beta, monkeypatch):
    """Deterministic: its mean over every tuple of codes is the gradient of the exact bound."""
    model, x = vae(), images()[:1]
    model.encoder = Table()
    (truth,) = torch.autograd.grad(
        -exact_bound(model, x, samples, beta).sum(), model.encoder.logits
    )
    z = every_tuple(samples)
    monkeypatch.setattr("vae.categorical.sample", lambda *_: z)
    loss = VIMCO(model, samples=samples, beta=beta)(x.expand(z.shape[1], D), 0).loss  # (T,)
    probability = tuple_probability(model.encode(x), z).detach()
    (found,) = torch.autograd.grad((probability * loss).sum(), model.encoder.logits)
    assert truth.abs().max() > 1e-2
    assert_close(found, truth)


def test_vimco_trains_decoder_and_prior_on_the_bound():
    """At the same codes, all that is no score function is the gradient of the loss itself."""
    model, x = vae("learned"), images()
    z = every_tuple(2)[:, :B]
    parameters = [*model.decoder.parameters(), model.prior_logits]
    plain = ImportanceWeighted(model, Given(z))(x, 0).loss.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae.categorical.sample", lambda *_: z)
        scored = VIMCO(model, samples=2)(x, 0).loss.sum()
    assert_close(scored, plain)
    for a, b in zip(*(torch.autograd.grad(y, parameters) for y in (scored, plain)), strict=True):
        assert_close(a, b)


def test_vimco_survives_one_weight_that_is_everything():
    model, x = vae(), images()
    with torch.no_grad():
        model.decoder[-1].bias.mul_(1e4)
    for parameter in torch.autograd.grad(
        VIMCO(model, samples=4)(x, 0).loss.sum(), list(model.parameters())
    ):
        assert parameter.isfinite().all()


def test_the_terms_of_a_multi_sample_bound_are_for_the_eye():
    model, x = vae(), images()
    loss, distortion, rate = ImportanceWeighted(model, ReinMax(temperature=1.0, samples=3))(x, 0)
    assert torch.equal(rate, model.kl(model.encode(x)))
    assert loss.requires_grad and not distortion.requires_grad and not rate.requires_grad


@pytest.mark.parametrize("samples", [0, 1, 2.0, "2"])
def test_vimco_needs_two_samples(samples):
    with pytest.raises(ValidationError):
        VIMCO(vae(), samples=samples)


@pytest.mark.parametrize("estimator", [EXACT, None])
def test_the_importance_weighted_bound_needs_a_pathwise_estimator(estimator):
    with pytest.raises(ValidationError):
        ImportanceWeighted(vae(), estimator)


# The bound of the relaxed model


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0, torch.tensor(0.4)])
def test_the_concrete_density_is_the_known_one(temperature):
    logits = torch.randn(B, N, K)
    reference = ExpRelaxedCategorical(torch.as_tensor(temperature), logits=logits)
    log_y = reference.sample((4,))
    expected = reference.log_prob(log_y).sum(-1)
    assert_close(exp_concrete_log_prob(logits, temperature, log_y), expected)


def test_the_concrete_density_integrates_to_one():
    """K = 2, by quadrature over log y_0 - log y_1; a simplex of two has this one coordinate."""
    difference = torch.linspace(-200, 200, 400_001)
    log_y = torch.stack([difference, torch.zeros_like(difference)], -1).log_softmax(-1)
    density = exp_concrete_log_prob(torch.tensor([[0.7, -1.1]]), 0.4, log_y.unsqueeze(1)).exp()
    # d(log y_0) / d(difference) = y_1, and the density is that of log y_0 divided by y_1.
    assert_close(torch.trapezoid(density, difference), torch.tensor(1.0), rtol=0, atol=1e-6)


def test_the_concrete_loss_is_minus_log_p_over_q_at_the_sample():
    model, x = vae("learned"), images()
    estimator = GumbelSoftmax(temperature=0.6, samples=3)
    objective = ConcreteELBO(model, estimator, prior_temperature=0.3, beta=0.5)
    torch.manual_seed(1)
    loss, distortion, rate = objective(x, 0)
    torch.manual_seed(1)
    logits = model.encode(x)
    y = estimator.sample(logits, 0)
    assert_close(distortion, -model.log_likelihood(x, y).mean(0))
    q = ExpRelaxedCategorical(torch.tensor(0.6), logits=logits)
    p = ExpRelaxedCategorical(torch.tensor(0.3), logits=model.prior_logits)
    assert_close(rate, (q.log_prob(y.log()) - p.log_prob(y.log())).sum(-1).mean(0))
    assert_close(loss, distortion + 0.5 * rate)


def test_the_concrete_rate_is_finite_where_the_sample_underflows():
    torch.set_default_dtype(torch.float32)
    model, x = vae(), images().float()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(300)
    objective = ConcreteELBO(model, GumbelSoftmax(temperature=0.1), prior_temperature=0.1)
    loss = objective(x, 0).loss
    assert loss.isfinite().all()
    for slope in torch.autograd.grad(loss.sum(), list(model.parameters())):
        assert slope.isfinite().all()


def test_equal_densities_cost_nothing():
    model, x = vae(), images()
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
        model.encoder[-1].bias.zero_()
    objective = ConcreteELBO(model, GumbelSoftmax(temperature=0.5), prior_temperature=0.5)
    assert_close(objective(x, 0).rate, torch.zeros(B))


def test_only_the_relaxation_has_a_concrete_density():
    with pytest.raises(ValidationError, match="GumbelSoftmax"):
        ConcreteELBO(vae(), StraightThrough(temperature=1.0), prior_temperature=0.5)


def test_an_objective_names_every_schedule():
    ramp = Linear(start=1.0, end=0.5, steps=10)
    objective = ConcreteELBO(vae(), GumbelSoftmax(temperature=ramp), prior_temperature=0.5)
    assert set(objective.schedules()) == {"beta", "temperature", "prior_temperature"}
    assert objective.schedules()["temperature"] is ramp
