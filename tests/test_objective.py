"""Training objectives, compared with bounds that are summed over all codes."""

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

from vae import categorical
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
from vae.objective import (
    VIMCO,
    ConcreteELBO,
    ImportanceWeighted,
    NegativeELBO,
    ReweightedWakeSleep,
)
from vae.schedules import Linear

B, N, K, D = 5, 2, 3, 16
EXACT = Exact(limit=K**N)

every_prior = pytest.mark.parametrize("prior", ["uniform", "learned"])
every_baseline = pytest.mark.parametrize("baseline", ["geometric", "leave_out"])


MULTI_SAMPLE = {
    "geometric": lambda model, **settings: VIMCO(model, **settings, baseline="geometric"),
    "leave_out": lambda model, **settings: VIMCO(model, **settings, baseline="leave_out"),
    "reweighted_wake_sleep": ReweightedWakeSleep,
}
every_multi_sample_objective = pytest.mark.parametrize(
    "objective", MULTI_SAMPLE.values(), ids=MULTI_SAMPLE
)


def build_model(prior: str = "uniform") -> CategoricalVAE:
    networks = MLP(encoder_sizes=[8], decoder_sizes=[8], activation="tanh")
    model = CategoricalVAE(networks, latents=N, categories=K, prior=prior, image_shape=(4, 4))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def random_images() -> Tensor:
    return (torch.rand(B, D) < 0.5).double()


class Enumeration(NamedTuple):
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


def enumerate_codes(model: CategoricalVAE, x: Tensor) -> Enumeration:
    """Compute all densities by a loop over the codes, without the functions under test."""
    q = model.encoder(x).reshape(-1, N, K).softmax(-1)
    p = model.prior_logits.softmax(-1)
    rows = []
    for digits in itertools.product(range(K), repeat=N):
        pixels = Bernoulli(logits=model.decoder(torch.eye(K)[list(digits)].reshape(1, N * K)))
        likelihood = pixels.log_prob(x).sum(-1)
        prior = sum(p[n, k].log() for n, k in enumerate(digits)).expand(len(x))
        posterior = sum(q[:, n, k].log() for n, k in enumerate(digits))
        rows.append(torch.stack([likelihood, prior, posterior]))
    return Enumeration(*torch.stack(rows, 1))


@every_prior
def test_loss_with_exact_is_the_enumerated_negative_elbo(prior):
    model, x = build_model(prior), random_images()
    loss = NegativeELBO(model, EXACT)(x, 0).loss
    assert_close(loss, -enumerate_codes(model, x).elbo, rtol=0, atol=1e-10)


@every_prior
def test_gradient_with_exact_is_that_of_the_enumerated_negative_elbo(prior):
    model, x = build_model(prior), random_images()
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert ("prior_logits" in names) == (prior == "learned")
    gradients = torch.autograd.grad(NegativeELBO(model, EXACT)(x, 0).loss.sum(), parameters)
    truth = torch.autograd.grad(-enumerate_codes(model, x).elbo.sum(), parameters)
    for name, gradient, expected in zip(names, gradients, truth, strict=True):
        assert expected.abs().max() > 1e-3, name
        assert_close(gradient, expected, rtol=0, atol=1e-10)


@every_prior
def test_negative_elbo_exceeds_the_negative_log_likelihood_by_the_posterior_kl(prior):
    """The gap is KL(q(z | x) || p(z | x)), which is never negative."""
    model, x = build_model(prior), random_images()
    loss, truth = NegativeELBO(model, EXACT)(x, 0).loss, enumerate_codes(model, x)
    assert (loss >= -truth.log_p).all()
    true_posterior = truth.likelihood + truth.prior - truth.log_p
    kl = (truth.posterior.exp() * (truth.posterior - true_posterior)).sum(0)
    assert_close(loss + truth.log_p, kl, rtol=0, atol=1e-10)


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
def test_loss_is_distortion_plus_weighted_rate(beta, step, weight):
    model, x = build_model(), random_images()
    loss, distortion, rate = NegativeELBO(model, EXACT, beta=beta)(x, step)
    truth = enumerate_codes(model, x)
    q = truth.posterior.exp()
    assert_close(distortion, -(q * truth.likelihood).sum(0), rtol=0, atol=1e-10)
    assert_close(rate, (q * (truth.posterior - truth.prior)).sum(0), rtol=0, atol=1e-10)
    assert_close(loss, distortion + weight * rate, rtol=0, atol=1e-10)


def test_beta_is_one_by_default():
    loss, distortion, rate = NegativeELBO(build_model(), EXACT)(random_images(), 0)
    assert torch.equal(loss, distortion + rate)


@pytest.mark.parametrize("beta", [-1.0, Linear(start=1.0, end=-0.5, steps=10), "1", float("nan")])
def test_invalid_beta_is_refused(beta):
    with pytest.raises(ValidationError):
        NegativeELBO(build_model(), EXACT, beta=beta)


@pytest.mark.parametrize(
    "estimator",
    [GumbelSoftmax(temperature=0.5), StraightThrough(temperature=1.0), StraightThroughArgmax()],
)
def test_rate_does_not_depend_on_the_estimator(estimator):
    model, x = build_model("learned"), random_images()
    rate, exact_rate = (NegativeELBO(model, chosen)(x, 0).rate for chosen in (estimator, EXACT))
    assert torch.equal(rate, exact_rate)


def test_estimator_receives_the_step():
    class ReturnStep(Estimator):
        def forward(self, logits, f, step):
            return torch.full((B,), float(step))

    distortion = NegativeELBO(build_model(), ReturnStep())(random_images(), 7).distortion
    assert torch.equal(distortion, torch.full((B,), 7.0))


# The importance-weighted bound


def all_tuples(samples: int) -> Tensor:
    """Return all T = (K**N)**S tuples of S codes, (S, T, N, K)."""
    chosen = torch.cartesian_prod(*[torch.arange(K**N)] * samples).reshape(-1, samples)
    return codes(N, K)[chosen.T]


def tuple_probability(logits: Tensor, z: Tensor) -> Tensor:
    """Return q of each tuple under the logits of one image: (1, N, K), (S, T, N, K) -> (T,)."""
    return log_prob(logits, z.flatten(0, 1).unsqueeze(1)).reshape(z.shape[:2]).sum(0).exp()


def exact_bound(model: CategoricalVAE, x: Tensor, samples: int, beta: float = 1.0) -> Tensor:
    """Return E[log 1/S sum_i w_i] of each image, (B,), by enumeration of all tuples of codes."""
    truth = enumerate_codes(model, x)
    log_weight = truth.likelihood + beta * (truth.prior - truth.posterior)  # (K**N, B)
    chosen = torch.cartesian_prod(*[torch.arange(K**N)] * samples).reshape(-1, samples)
    probability = truth.posterior[chosen].sum(1).exp()  # (T, B)
    return (probability * (log_weight[chosen].logsumexp(1) - math.log(samples))).sum(0)


class FixedCodes(Pathwise):
    """Return the same codes at every call, without a gradient."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def sample(self, logits: Tensor, step: int) -> Tensor:
        return self.z


@every_prior
@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_expectation_of_the_importance_weighted_loss_is_the_enumerated_bound(samples, beta, prior):
    model, x = build_model(prior), random_images()[:1]
    z = all_tuples(samples)  # (S, T, N, K)
    copies = x.expand(z.shape[1], D)
    loss = ImportanceWeighted(model, FixedCodes(z), beta=beta)(copies, 0).loss  # (T,)
    expectation = (tuple_probability(model.encode(x), z) * loss).sum()
    assert_close(expectation, -exact_bound(model, x, samples, beta).squeeze())


def test_importance_weighted_bound_rises_with_the_samples_from_the_elbo_towards_log_p():
    model, x = build_model(), random_images()
    bounds = [enumerate_codes(model, x).elbo] + [exact_bound(model, x, s) for s in (1, 2, 3)]
    assert_close(bounds[0], bounds[1])
    for lower, upper in itertools.pairwise([*bounds[1:], enumerate_codes(model, x).log_p]):
        assert (lower < upper).all()


@pytest.mark.parametrize("objective", ["vimco", "wake_wake", "importance_weighted"])
def test_mean_of_sampled_losses_is_the_enumerated_bound(objective):
    model, x, draws = build_model(), random_images()[:1], 20_000
    objectives = {
        "vimco": VIMCO(model, samples=2),
        "wake_wake": ReweightedWakeSleep(model, samples=2),
        "importance_weighted": ImportanceWeighted(model, ReinMax(temperature=1.0, samples=2)),
    }
    loss = objectives[objective](x.expand(draws, D), 0).loss.detach()
    error = loss.std() / draws**0.5
    assert abs(loss.mean() + exact_bound(model, x, 2)) < 5 * error


class ConstantEncoder(nn.Module):
    """An encoder that returns the same logits for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(N * K))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), N * K)


@every_baseline
@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("samples", [2, 3])
def test_vimco_has_no_bias(samples, beta, baseline, monkeypatch):
    """Its expected gradient over all tuples of codes is the gradient of the enumerated bound."""
    model, x = build_model(), random_images()[:1]
    model.encoder = ConstantEncoder()
    (truth,) = torch.autograd.grad(
        -exact_bound(model, x, samples, beta).sum(), model.encoder.logits
    )
    z = all_tuples(samples)
    monkeypatch.setattr("vae.categorical.sample", lambda *_: z)
    objective = VIMCO(model, samples=samples, beta=beta, baseline=baseline)
    loss = objective(x.expand(z.shape[1], D), 0).loss  # (T,)
    probability = tuple_probability(model.encode(x), z).detach()
    (gradient,) = torch.autograd.grad((probability * loss).sum(), model.encoder.logits)
    assert truth.abs().max() > 1e-2
    assert_close(gradient, truth, rtol=0, atol=1e-12)


def test_vimco_weights_the_score_by_the_bound_minus_the_baseline(monkeypatch):
    """The gradient in the logits is that of the formula, in which z - q is the score of a code."""
    model, x, samples = build_model(), random_images()[:1], 3
    model.encoder = ConstantEncoder()
    z = categorical.sample(model.encode(x), samples)
    monkeypatch.setattr("vae.categorical.sample", lambda *_: z)
    weights = (model.joint_log_prob(x, z) - log_prob(model.encode(x), z)).exp().squeeze(1)  # (S,)
    scores = (z - model.encode(x).softmax(-1)).flatten(1)  # (S, N * K)
    for baseline, replacement in {
        "geometric": lambda others: others.prod() ** (1 / len(others)),
        "leave_out": lambda others: 0.0,
    }.items():
        expected = torch.zeros(N * K)
        for i in range(samples):
            others = torch.cat([weights[:i], weights[i + 1 :]])
            signal = (weights.sum() / (others.sum() + replacement(others))).log()
            expected -= (signal - weights[i] / weights.sum()) * scores[i]
        loss = VIMCO(model, samples=samples, baseline=baseline)(x, 0).loss.sum()
        (gradient,) = torch.autograd.grad(loss, model.encoder.logits)
        assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_vimco_has_the_geometric_baseline_by_default():
    assert VIMCO(build_model(), samples=2).baseline == "geometric"


@every_multi_sample_objective
def test_gradient_in_decoder_and_prior_is_that_of_the_bound(objective):
    """These gradients contain no score function, so at equal codes they equal the loss's."""
    model, x = build_model("learned"), random_images()
    z = all_tuples(2)[:, :B]
    parameters = [*model.decoder.parameters(), model.prior_logits]
    plain = ImportanceWeighted(model, FixedCodes(z))(x, 0).loss.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae.categorical.sample", lambda *_: z)
        loss = objective(model, samples=2)(x, 0).loss.sum()
    assert_close(loss, plain)
    for gradient, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        assert_close(gradient, expected)


@every_multi_sample_objective
def test_gradients_are_finite_if_one_weight_dominates(objective):
    model, x = build_model(), random_images()
    with torch.no_grad():
        model.decoder[-1].bias.mul_(1e4)
    loss = objective(model, samples=4)(x, 0).loss.sum()
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        assert gradient.isfinite().all()


def test_terms_of_a_multi_sample_bound_carry_no_gradient():
    model, x = build_model(), random_images()
    loss, distortion, rate = ImportanceWeighted(model, ReinMax(temperature=1.0, samples=3))(x, 0)
    assert torch.equal(rate, model.kl(model.encode(x)))
    assert loss.requires_grad and not distortion.requires_grad and not rate.requires_grad


@every_multi_sample_objective
@pytest.mark.parametrize("samples", [0, 1, 2.0, "2"])
def test_an_objective_without_an_estimator_needs_at_least_two_samples(objective, samples):
    with pytest.raises(ValidationError):
        objective(build_model(), samples=samples)


@pytest.mark.parametrize("baseline", ["arithmetic", None, 0.0])
def test_vimco_refuses_an_unknown_baseline(baseline):
    with pytest.raises(ValidationError):
        VIMCO(build_model(), samples=2, baseline=baseline)


@pytest.mark.parametrize("estimator", [EXACT, None])
def test_importance_weighted_bound_needs_a_pathwise_estimator(estimator):
    with pytest.raises(ValidationError):
        ImportanceWeighted(build_model(), estimator)


# Reweighted wake-sleep


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("samples", [2, 3])
def test_wake_wake_trains_the_encoder_on_the_normalised_weights(samples, beta, monkeypatch):
    """The expected gradient over all tuples is that of -sum_i v_i log q, with v held constant."""
    model, x = build_model("learned"), random_images()[:1]
    model.encoder = ConstantEncoder()
    truth = enumerate_codes(model, x)
    log_weight = truth.likelihood + beta * (truth.prior - truth.posterior)  # (K**N, 1)
    chosen = torch.cartesian_prod(*[torch.arange(K**N)] * samples)  # (T, S)
    shares = log_weight[chosen].softmax(1).detach()  # (T, S, 1)
    probability = truth.posterior[chosen].sum(1).exp().detach()  # (T, 1)
    cross_entropy = -(probability * (shares * truth.posterior[chosen]).sum(1)).sum()
    (expected,) = torch.autograd.grad(cross_entropy, model.encoder.logits)
    z = all_tuples(samples)
    monkeypatch.setattr("vae.categorical.sample", lambda *_: z)
    objective = ReweightedWakeSleep(model, samples=samples, beta=beta)
    loss = objective(x.expand(z.shape[1], D), 0).loss  # (T,)
    (gradient,) = torch.autograd.grad((probability.squeeze(1) * loss).sum(), model.encoder.logits)
    assert expected.abs().max() > 1e-2
    assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_wake_wake_tends_to_the_divergence_from_the_posterior(beta, monkeypatch):
    """The frequencies of the codes equal q exactly, as those of infinitely many samples do."""
    model, x = build_model("learned"), random_images()[:1]
    model.encoder = ConstantEncoder()
    model.encoder.logits.data = torch.tensor([1.0, 2.0, 3.0]).log().repeat(N)
    repeats = [
        math.prod(d + 1 for d in digits) for digits in itertools.product(range(K), repeat=N)
    ]
    z = codes(N, K).repeat_interleave(torch.tensor(repeats), 0).unsqueeze(1)  # (36, 1, N, K)
    monkeypatch.setattr("vae.categorical.sample", lambda *_: z)
    loss = ReweightedWakeSleep(model, samples=len(z), beta=beta)(x, 0).loss.sum()
    (gradient,) = torch.autograd.grad(loss, model.encoder.logits)
    likelihood, prior, log_q = enumerate_codes(model, x)
    target = (likelihood + beta * prior + (1 - beta) * log_q).softmax(0).detach()
    divergence = (target * (target.log() - log_q)).sum()
    (expected,) = torch.autograd.grad(divergence, model.encoder.logits)
    assert expected.abs().max() > 1e-2
    assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_wake_wake_rests_at_the_best_posterior_of_the_elbo(beta, monkeypatch):
    """With one latent q can be this posterior; then neither objective has a gradient in it."""
    networks = MLP(encoder_sizes=[8], decoder_sizes=[8], activation="tanh")
    model = CategoricalVAE(networks, latents=1, categories=K, image_shape=(4, 4))
    x, z = random_images()[:1], codes(1, K)
    with torch.no_grad():
        likelihood = model.log_likelihood(x, z.unsqueeze(1)).squeeze(1)  # (K,)
    model.encoder = ConstantEncoder()
    model.encoder.logits = nn.Parameter(likelihood / beta)
    model.encoder.forward = lambda x: model.encoder.logits.expand(len(x), K)
    elbo_loss = NegativeELBO(model, Exact(limit=K), beta=beta)(x, 0).loss.sum()
    pairs = torch.cartesian_prod(torch.arange(K), torch.arange(K))
    monkeypatch.setattr("vae.categorical.sample", lambda *_: z[pairs.T])  # (2, K**2, 1, K)
    loss = ReweightedWakeSleep(model, samples=2, beta=beta)(x.expand(K**2, D), 0).loss
    q = model.encoder.logits.detach().softmax(0)
    for objective in (elbo_loss, (q[pairs].prod(1) * loss).sum()):
        (gradient,) = torch.autograd.grad(objective, model.encoder.logits)
        assert_close(gradient, torch.zeros(K), rtol=0, atol=1e-12)


# The bound of the relaxed model


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0, torch.tensor(0.4)])
def test_concrete_density_is_that_of_torch(temperature):
    logits = torch.randn(B, N, K)
    reference = ExpRelaxedCategorical(torch.as_tensor(temperature), logits=logits)
    log_y = reference.sample((4,))
    expected = reference.log_prob(log_y).sum(-1)
    assert_close(exp_concrete_log_prob(logits, temperature, log_y), expected)


def test_concrete_density_integrates_to_one():
    """For K = 2 the simplex has one coordinate, log y_0 - log y_1, which is integrated over."""
    difference = torch.linspace(-200, 200, 400_001)
    log_y = torch.stack([difference, torch.zeros_like(difference)], -1).log_softmax(-1)
    density = exp_concrete_log_prob(torch.tensor([[0.7, -1.1]]), 0.4, log_y.unsqueeze(1)).exp()
    # d(log y_0) / d(difference) = y_1, and the density is that of log y_0 divided by y_1.
    assert_close(torch.trapezoid(density, difference), torch.tensor(1.0), rtol=0, atol=1e-6)


def test_concrete_rate_is_the_log_ratio_of_the_densities_at_the_sample():
    model, x = build_model("learned"), random_images()
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


def test_concrete_loss_and_its_gradient_are_finite_if_the_sample_underflows():
    torch.set_default_dtype(torch.float32)
    model, x = build_model(), random_images().float()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(300)
    objective = ConcreteELBO(model, GumbelSoftmax(temperature=0.1), prior_temperature=0.1)
    loss = objective(x, 0).loss
    assert loss.isfinite().all()
    for gradient in torch.autograd.grad(loss.sum(), list(model.parameters())):
        assert gradient.isfinite().all()


def test_concrete_rate_is_zero_if_posterior_and_prior_are_equal():
    model, x = build_model(), random_images()
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
        model.encoder[-1].bias.zero_()
    objective = ConcreteELBO(model, GumbelSoftmax(temperature=0.5), prior_temperature=0.5)
    assert_close(objective(x, 0).rate, torch.zeros(B))


def test_concrete_objective_takes_only_gumbel_softmax():
    with pytest.raises(ValidationError, match="GumbelSoftmax"):
        ConcreteELBO(build_model(), StraightThrough(temperature=1.0), prior_temperature=0.5)


def test_schedules_of_an_objective_include_those_of_its_estimator():
    ramp = Linear(start=1.0, end=0.5, steps=10)
    objective = ConcreteELBO(build_model(), GumbelSoftmax(temperature=ramp), prior_temperature=0.5)
    assert set(objective.schedules()) == {"beta", "temperature", "prior_temperature"}
    assert objective.schedules()["temperature"] is ramp
