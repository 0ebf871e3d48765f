"""The measured quality of gradient estimates, compared with enumeration."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vae.categorical import codes, log_prob
from vae.estimators import (
    Disarm,
    Exact,
    Reinforce,
    ReinforceLearnedBaseline,
    ReinforceMovingAverage,
    Relax,
    StraightThrough,
    StraightThroughGumbel,
)
from vae.evaluation import gradients
from vae.evaluation.gradients import fit, gradient_quality, true_gradients
from vae.model import CategoricalVAE
from vae.networks import MLP

B, N, K, D = 3, 2, 3, 16


def build_model(latents: int = N, categories: int = K) -> CategoricalVAE:
    networks = MLP(encoder_sizes=[8], decoder_sizes=[8], activation="tanh")
    model = CategoricalVAE(networks, latents=latents, categories=categories, image_shape=(4, 4))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def random_images() -> Tensor:
    return torch.rand(B, D)


def flatten(slopes: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([slope.flatten() for slope in slopes])


def straight_through_moments(model: CategoricalVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (P,) and the total variance of the straight-through gradient.

    Both are sums over all codes of each image.
    """
    z = codes(N, K).unsqueeze(1)  # (K**N, 1, N, K)
    mean, variance = 0.0, torch.zeros(())
    for image in x.unsqueeze(1):  # the codes of different images are independent
        logits = model.encode(image)
        q = log_prob(logits, z).squeeze(1).exp().detach()
        draws = []
        for code in z:
            hard = code.unsqueeze(0) + (logits.softmax(-1) - logits.softmax(-1).detach())
            loss = -model.log_likelihood(image, hard).sum() / len(x)
            slopes = torch.autograd.grad(loss, list(model.encoder.parameters()), retain_graph=True)
            draws.append(flatten(slopes))
        draws = torch.stack(draws)  # (K**N, P)
        expected = (q[:, None] * draws).sum(0)
        mean = mean + expected
        variance = variance + (q * (draws - expected).square().sum(1)).sum()
    return mean, variance


def test_true_gradient_is_that_of_the_enumerated_distortion():
    model, x = build_model(), random_images()
    loss = Exact(limit=K**N)(model.encode(x), lambda z: -model.log_likelihood(x, z), 0).mean()
    expected = flatten(torch.autograd.grad(loss, list(model.encoder.parameters())))
    assert_close(true_gradients(model, x), expected.unsqueeze(0))


def test_bias_deviation_and_signal_to_noise_are_the_enumerated_ones():
    model, x = build_model(), random_images()
    truth = true_gradients(model, x)
    mean, variance = straight_through_moments(model, x)
    norm = truth.norm()
    measured = gradient_quality(model, StraightThrough(temperature=1.0), x, truth, draws=20_000)
    bias = (mean - truth.squeeze(0)).norm() / norm
    assert bias > 10 * measured.bias_error > 0
    assert abs(measured.bias - bias) < 5 * measured.bias_error
    assert measured.deviation == pytest.approx(float(variance.sqrt() / norm), rel=0.02)
    assert measured.snr == pytest.approx(float(mean.norm() / variance.sqrt()), rel=0.02)
    assert measured.variance == measured.deviation**2


def test_cosine_is_the_mean_over_single_draws():
    model, x = build_model(), random_images()
    truth = true_gradients(model, x)
    rows = gradients._draws(model, StraightThroughGumbel(0.5), x, 0, 20_000)
    cosine = torch.nn.functional.cosine_similarity(rows, truth).mean()
    measured = gradient_quality(model, StraightThroughGumbel(0.5), x, truth, draws=20_000)
    assert measured.cosine == pytest.approx(float(cosine), abs=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("estimator", [Reinforce(samples=3), Disarm()])
def test_measured_bias_of_an_unbiased_estimator_is_within_its_error(estimator, seed):
    torch.manual_seed(seed)
    model, x = build_model(), random_images()
    measured = gradient_quality(
        model, estimator, x, true_gradients(model, x), draws=2_000, seed=seed
    )
    assert measured.bias <= 5 * measured.bias_error
    assert measured.bias < 0.5 * measured.deviation / 2_000**0.5 + 5 * measured.bias_error


def test_exact_gradient_has_no_bias_no_deviation_and_cosine_one():
    model, x = build_model(), random_images()
    measured = gradient_quality(model, Exact(limit=K**N), x, true_gradients(model, x), draws=20)
    assert measured.bias < 1e-7 and measured.deviation < 1e-6
    assert measured.cosine == pytest.approx(1.0)


def test_noise_of_a_sampled_reference_is_not_measured_as_bias(monkeypatch):
    model, x = build_model(), random_images()
    exact = true_gradients(model, x)
    monkeypatch.setattr(gradients, "can_enumerate", lambda _: False)
    sampled = true_gradients(model, x)
    assert sampled.shape == (20, exact.shape[1])
    error = sampled.std(0) / 20**0.5
    assert ((sampled.mean(0) - exact.squeeze(0)).abs() < 5 * error + 1e-12).all()
    unbiased = gradient_quality(model, Disarm(), x, sampled, draws=2_000)
    assert unbiased.bias <= 5 * unbiased.bias_error
    biased = StraightThrough(temperature=1.0)
    by_samples = gradient_quality(model, biased, x, sampled, draws=2_000)
    by_enumeration = gradient_quality(model, biased, x, exact, draws=2_000)
    assert by_samples.bias == pytest.approx(by_enumeration.bias, abs=5 * by_samples.bias_error)


def test_draw_is_the_gradient_of_one_training_step():
    model, x, estimator = build_model(), random_images(), StraightThrough(temperature=0.7)
    torch.manual_seed(5)
    row = gradients._draws(model, estimator, x, 0, 1)
    torch.manual_seed(5)
    loss = estimator(model.encode(x), lambda z: -model.log_likelihood(x, z), 0).mean()
    by_step = flatten(torch.autograd.grad(loss, list(model.encoder.parameters())))
    assert_close(row.squeeze(0), by_step)


@pytest.mark.parametrize("name", ["straight through", "relax"])
def test_measuring_changes_neither_parameters_nor_the_global_generator(name):
    model, x = build_model(), random_images()
    estimator = {
        "straight through": StraightThrough(temperature=1.0),
        "relax": Relax(latents=N, categories=K, hidden=4, temperature=0.5, scale=1.0),
    }[name]
    rng_state = torch.random.get_rng_state()
    before = [p.detach().clone() for p in (*model.parameters(), *estimator.parameters())]
    gradient_quality(model, estimator, x, true_gradients(model, x), draws=40)
    assert torch.equal(rng_state, torch.random.get_rng_state())
    assert estimator.training
    for old, new in zip(before, (*model.parameters(), *estimator.parameters()), strict=True):
        assert torch.equal(old, new) and new.grad is None


def test_quality_depends_on_the_seed_alone():
    model, x = build_model(), random_images()
    truth, estimator = true_gradients(model, x), StraightThrough(temperature=1.0)
    first, second = (gradient_quality(model, estimator, x, truth, draws=40) for _ in range(2))
    assert first == second
    assert first != gradient_quality(model, estimator, x, truth, draws=40, seed=1)


def test_measured_bias_is_within_its_error_if_a_chunk_takes_many_passes(monkeypatch):
    """Every chunk of draws is compared with another sampled reference."""
    monkeypatch.setattr(gradients, "can_enumerate", lambda model: False)
    monkeypatch.setattr(gradients, "_REFERENCE_SAMPLES", 8)
    monkeypatch.setattr(gradients, "_NUMBERS", 1)  # one draw per pass
    model, x = build_model(), random_images()
    measured = gradient_quality(model, Reinforce(50), x, true_gradients(model, x), draws=1_000)
    assert measured.bias <= 5 * measured.bias_error
    assert measured.bias_error < 0.5


@pytest.mark.parametrize("draws", [1, 2, 7])
def test_few_draws_give_finite_numbers(draws):
    model, x = build_model(), random_images()
    truth = true_gradients(model, x)
    measured = gradient_quality(model, StraightThrough(1.0), x, truth, draws=draws)
    assert math.isfinite(measured.bias) and math.isfinite(measured.cosine)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ReinforceMovingAverage(decay=0.9),
        lambda: ReinforceLearnedBaseline(latents=N, categories=K, hidden=8, decay=0.8),
        lambda: Relax(latents=N, categories=K, hidden=8, temperature=0.5, scale=0.0),
    ],
    ids=["moving average", "learned baseline", "relax"],
)
def test_fit_lowers_the_variance_and_does_not_change_the_model(build):
    model, x, estimator = build_model(), random_images(), build()
    truth = true_gradients(model, x)
    before = gradient_quality(model, estimator, x, truth, draws=2_000)
    parameters = [p.detach().clone() for p in model.parameters()]
    fit(model, estimator, [x] * 400, lr=1e-2)
    after = gradient_quality(model, estimator, x, truth, draws=2_000)
    assert after.deviation < 0.9 * before.deviation
    assert after.bias <= 5 * after.bias_error
    for old, new in zip(parameters, model.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None
