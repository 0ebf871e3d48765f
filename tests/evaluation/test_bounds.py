"""The reported bounds and code usage, compared with sums over all codes of a small model."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

from vae.evaluation import bounds
from vae.evaluation.bounds import (
    active_latents,
    evaluate,
    evaluate_bounds,
    importance_weighted,
    log_likelihood,
)
from vae.model import CategoricalVAE
from vae.networks import MLP, Linear

IMAGES, N, K, D = 1000, 2, 3, 16


@pytest.fixture(autouse=True)
def _float32():
    """Use float32 models: images are converted to float32. Enumeration is in float64."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (IMAGES, D), dtype=torch.uint8)


@pytest.fixture
def model() -> CategoricalVAE:
    """A model whose posteriors differ between images and are far from the true posteriors."""
    networks = MLP(encoder_sizes=[8], decoder_sizes=[8], activation="tanh")
    model = CategoricalVAE(networks, N, K, prior="learned", image_shape=(4, 4))
    for part, std in ((model.encoder, 0.4), (model.decoder, 0.7)):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=std)
    nn.init.normal_(model.prior_logits)
    return model


class Enumeration:
    """Log-densities of every code and image, (K**N, n), and quantities computed from them."""

    @torch.no_grad()
    def __init__(self, model: CategoricalVAE, images: Tensor) -> None:
        model, x = copy.deepcopy(model).double(), images.double() / 255
        q = model.encoder(x).reshape(-1, N, K).softmax(-1)
        p = model.prior_logits.softmax(-1)
        rows = []
        for digits in itertools.product(range(K), repeat=N):
            z = torch.eye(K, dtype=torch.float64)[list(digits)].reshape(1, N * K)
            pixels = Bernoulli(logits=model.decoder(z), validate_args=False)  # for grey pixels
            prior = sum(p[n, k].log() for n, k in enumerate(digits)).expand(len(x))
            posterior = sum(q[:, n, k].log() for n, k in enumerate(digits))
            rows.append(torch.stack([pixels.log_prob(x).sum(-1), prior, posterior]))
        self.marginals = q
        self.likelihood, self.prior, log_q = torch.stack(rows, 1)
        self.joint = self.likelihood + self.prior
        self.log_p = self.joint.logsumexp(0)
        self.q = log_q.exp()
        self.log_weight = self.joint - log_q
        self.rate = (self.q * (log_q - self.prior)).sum(0)
        self.entropy = -(self.q * log_q).sum(0)

    def expectation(self, g: Tensor) -> float:
        """Return the mean of E_q[g] over the images, for g (K**N, n)."""
        return (self.q * g).sum(0).mean().item()

    def error(self, g: Tensor) -> float:
        """Return the standard error of that mean if one code is drawn for each image."""
        variance = (self.q * g.square()).sum(0) - (self.q * g).sum(0).square()
        return variance.mean().div(g.shape[1]).sqrt().item()

    def bound_error(self, samples: int) -> float:
        """Return the standard error of the importance-weighted bound, to first order."""
        relative = (self.q * (2 * (self.log_weight - self.log_p)).exp()).sum(0) - 1
        return relative.mean().div(samples * relative.shape[0]).sqrt().item()


@pytest.fixture
def enumeration(model, images) -> Enumeration:
    return Enumeration(model, images)


# Bounds


def test_model_of_these_tests_has_different_posteriors_and_a_loose_bound(enumeration):
    assert enumeration.marginals.std(0).max() > 0.05
    assert enumeration.log_p.mean() - enumeration.expectation(enumeration.log_weight) > 0.5


def test_elbo_is_the_enumerated_elbo_within_its_error(model, images, enumeration):
    measured = evaluate(model, images)
    likelihood = enumeration.expectation(enumeration.likelihood)
    error = enumeration.error(enumeration.likelihood)
    assert abs(measured.distortion + likelihood) < 5 * error
    assert abs(measured.elbo - enumeration.expectation(enumeration.log_weight)) < 5 * error
    assert measured.elbo == -measured.distortion - measured.rate


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_draws_other_codes_for_the_elbo(model, images, enumeration, seed):
    measured = evaluate(model, images, seed)
    error = enumeration.error(enumeration.likelihood)
    assert measured.elbo != evaluate(model, images).elbo
    assert abs(measured.elbo - enumeration.expectation(enumeration.log_weight)) < 5 * error


def test_terms_without_noise_are_the_enumerated_ones(model, images, enumeration):
    measured = evaluate(model, images)
    at_mode = enumeration.joint.gather(0, enumeration.q.argmax(0, keepdim=True))
    assert measured.rate == pytest.approx(enumeration.rate.mean().item(), abs=1e-5)
    assert measured.entropy == pytest.approx(enumeration.entropy.mean().item(), abs=1e-5)
    assert measured.elbo_map == pytest.approx(at_mode.mean().item(), abs=1e-5)
    torch.testing.assert_close(measured.usage, enumeration.marginals.mean(0).float())


def test_log_likelihood_is_the_enumerated_sum_over_all_codes(model, images, enumeration):
    truth = enumeration.log_p.mean().item()
    assert log_likelihood(model, images) == pytest.approx(truth, abs=1e-5)


def test_bounds_are_below_the_log_likelihood(model, images):
    measured, truth = evaluate(model, images), log_likelihood(model, images)
    assert measured.elbo < truth
    assert measured.elbo_map < truth


def test_importance_weighted_bound_of_one_sample_is_the_elbo_within_its_error(
    model, images, enumeration
):
    error = enumeration.error(enumeration.log_weight)
    elbo = enumeration.expectation(enumeration.log_weight)
    assert abs(importance_weighted(model, images, 1) - elbo) < 5 * error


def test_importance_weighted_bound_rises_with_its_samples(model, images):
    few = images[:300]
    enumeration = Enumeration(model, few)
    one, ten = (importance_weighted(model, few, samples) for samples in (1, 10))
    assert ten - one > 5 * enumeration.error(enumeration.log_weight)
    thousand = importance_weighted(model, few, 1000)
    assert thousand - ten > 5 * enumeration.bound_error(10)


def test_importance_weighted_bound_tends_to_the_log_likelihood(model, images):
    few = images[:100]
    enumeration = Enumeration(model, few)
    bound, truth = importance_weighted(model, few, 2000), enumeration.log_p.mean().item()
    assert truth - 0.05 < bound < truth + 5 * enumeration.bound_error(2000)


@pytest.mark.parametrize("samples", [1, 7, 25])
def test_every_importance_sample_is_counted_once_in_chunks(monkeypatch, images, samples):
    """The bound is exact, because the posterior is the prior and all codes decode to one image."""
    flat = CategoricalVAE(Linear(), N, K, image_shape=(4, 4))
    for weight in (flat.encoder.weight, flat.encoder.bias, flat.decoder.weight):
        nn.init.zeros_(weight)
    monkeypatch.setattr(bounds, "_ENCODE_BATCH", 300)
    monkeypatch.setattr(bounds, "_DECODE_BATCH", 1000)
    bound = importance_weighted(flat, images, samples)
    assert bound == pytest.approx(log_likelihood(flat, images), abs=1e-5)


@pytest.mark.parametrize("samples", [1, 50])
def test_decoding_each_code_once_gives_the_same_bound_as_decoding_each_sample(
    monkeypatch, model, images, samples
):
    each_code_once = importance_weighted(model, images, samples)
    monkeypatch.setattr(bounds, "EXACT_LIMIT", 0)
    assert importance_weighted(model, images, samples) == pytest.approx(each_code_once, abs=1e-4)


def test_each_code_is_decoded_once_if_there_are_fewer_codes_than_samples(model, images):
    decoded = []
    hook = lambda module, inputs, output: decoded.append(len(output))
    model.decoder.register_forward_hook(hook)
    importance_weighted(model, images, 50)
    assert sum(decoded) == K**N


# Determinism and chunks

MEASURES = {
    "evaluate": evaluate,
    "importance_weighted": partial(importance_weighted, samples=10),
    "log_likelihood": log_likelihood,
    "evaluate_bounds": partial(evaluate_bounds, importance_samples=10),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_repeated_calls_give_equal_numbers_and_leave_the_global_generator_alone(
    model, images, measure
):
    state = torch.get_rng_state()
    first = measure(model, images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    torch.testing.assert_close(measure(model, images), first, rtol=0, atol=0)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_no_gradient_graph_is_built(model, images, measure):
    outputs = []
    model.decoder.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    measure(model, images)
    assert outputs
    assert not any(output.requires_grad for output in outputs)


def test_results_do_not_depend_on_the_size_of_the_chunks(monkeypatch, model, images):
    def exact() -> tuple:
        measured = evaluate(model, images)
        numbers = (measured.rate, measured.elbo_map, measured.perplexity, measured.entropy)
        return *numbers, measured.active, measured.usage, log_likelihood(model, images)

    whole = exact()
    monkeypatch.setattr(bounds, "_ENCODE_BATCH", 7)  # does not divide 1000
    monkeypatch.setattr(bounds, "_DECODE_BATCH", 4)  # nor 4 the nine codes
    torch.testing.assert_close(exact(), whole, rtol=1e-5, atol=1e-5)


# Too many codes for enumeration


def test_log_likelihood_is_refused_if_there_are_too_many_codes(images):
    model = CategoricalVAE(Linear(), latents=15, categories=2, image_shape=(4, 4))
    assert bounds.EXACT_LIMIT < 2**15
    with pytest.raises(ValueError, match=rf"2\*\*15 codes .* {bounds.EXACT_LIMIT}$"):
        log_likelihood(model, images)


@pytest.mark.parametrize("limit, is_exact", [(K**N, True), (K**N - 1, False)])
def test_evaluate_bounds_has_a_log_likelihood_up_to_the_limit(
    monkeypatch, model, images, limit, is_exact
):
    monkeypatch.setattr(bounds, "EXACT_LIMIT", limit)
    assert (evaluate_bounds(model, images, 1)["log_likelihood"] is not None) == is_exact


def test_evaluate_bounds_returns_what_the_single_functions_return(model, images):
    measured, results = evaluate(model, images), evaluate_bounds(model, images, 10)
    from_other_functions = {"importance_weighted", "log_likelihood"}
    for name in results.keys() - from_other_functions:
        assert results[name] == getattr(measured, name)
    assert results["importance_weighted"] == importance_weighted(model, images, 10)
    assert results["log_likelihood"] == log_likelihood(model, images)
    assert {"elbo", "elbo_map", "rate", "distortion", "perplexity", "active"} <= set(results)


# Use of the codes


def model_with_logits(logits: Tensor) -> CategoricalVAE:
    """Return a model whose posterior is Cat(logits) for every image."""
    model = CategoricalVAE(Linear(), *logits.shape, image_shape=(4, 4))
    nn.init.zeros_(model.encoder.weight)
    model.encoder.bias.data = logits.flatten()
    return model


ONE = torch.tensor([100.0, 0.0, 0.0, 0.0])  # logits that put all mass on one category
TWO = torch.tensor([100.0, 0.0, 100.0, 0.0])  # and on two


@pytest.mark.parametrize(
    "logits, perplexity, entropy",
    [
        (torch.zeros(3, 4), 4.0, 3 * math.log(4)),
        (ONE.repeat(3, 1), 1.0, 0.0),
        (torch.stack([ONE, TWO, torch.zeros(4)]), (1 + 2 + 4) / 3, math.log(2) + math.log(4)),
    ],
    ids=["uniform", "one category", "one, two and four categories"],
)
def test_perplexity_is_the_mean_number_of_categories_in_use(images, logits, perplexity, entropy):
    measured = evaluate(model_with_logits(logits), images)
    assert measured.perplexity == pytest.approx(perplexity, abs=1e-5)
    assert measured.entropy == pytest.approx(entropy, abs=1e-5)
    assert measured.active == 0


def test_perplexity_is_that_of_the_aggregate_and_a_latent_that_depends_on_x_is_active():
    model = model_with_logits(torch.zeros(2, 2))
    model.encoder.weight.data[0, 0] = 200.0  # latent 0 reads the first pixel, latent 1 nothing
    model.encoder.bias.data = torch.tensor([-100.0, 0.0, 100.0, 0.0])
    images = torch.zeros(10, D, dtype=torch.uint8)
    images[:5, 0] = 255
    measured = evaluate(model, images)
    assert measured.perplexity == pytest.approx((2 + 1) / 2)
    assert measured.entropy == pytest.approx(0, abs=1e-5)
    assert measured.active == 1
    torch.testing.assert_close(measured.usage, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))


def test_active_latents_are_those_whose_posterior_variance_is_above_one_percent():
    middle = torch.tensor([0.2, 0.5, 0.5, 0.5], dtype=torch.float64)
    spread = torch.tensor([0.0, 0.07, 0.0708, 0.5])  # variances 0, 0.0098, 0.01003 and 0.5
    first = torch.stack([middle - spread, middle + spread])  # (images, N), of two categories
    q = torch.stack([first, 1 - first], -1)
    assert active_latents(q.mean(0), q.square().mean(0)) == 2
