"""The reported numbers, against a model small enough to sum by hand over all codes."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

from vae import evaluation
from vae.evaluation import active_latents, bounds, evaluate, importance_weighted, log_likelihood
from vae.model import CategoricalVAE
from vae.networks import MLP, Linear

IMAGES, N, K, D = 1000, 2, 3, 16


@pytest.fixture(autouse=True)
def _float32():
    """Images are made float32 in here, so the model is too; what is done by hand is float64."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (IMAGES, D), dtype=torch.uint8)


@pytest.fixture
def model() -> CategoricalVAE:
    """Its posteriors differ between images, and are far from the true ones."""
    networks = MLP(encoder_sizes=[8], decoder_sizes=[8], activation="tanh")
    model = CategoricalVAE(networks, N, K, prior="learned", image_shape=(4, 4))
    for part, std in ((model.encoder, 0.4), (model.decoder, 0.7)):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=std)
    nn.init.normal_(model.prior_logits)
    return model


class ByHand:
    """Log-densities of every code and image, (K**N, n), and what follows from them."""

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
        """The mean over the images of E_q[g]."""
        return (self.q * g).sum(0).mean().item()

    def error(self, g: Tensor) -> float:
        """The standard error of that, with one code drawn for each image."""
        variance = (self.q * g.square()).sum(0) - (self.q * g).sum(0).square()
        return variance.mean().div(g.shape[1]).sqrt().item()

    def bound_error(self, samples: int) -> float:
        """That of the importance-weighted bound, to first order in 1 / samples."""
        relative = (self.q * (2 * (self.log_weight - self.log_p)).exp()).sum(0) - 1
        return relative.mean().div(samples * relative.shape[0]).sqrt().item()


@pytest.fixture
def by_hand(model, images) -> ByHand:
    return ByHand(model, images)


# Bounds


def test_the_model_here_has_different_posteriors_and_loose_bounds(by_hand):
    assert by_hand.marginals.std(0).max() > 0.05
    assert by_hand.log_p.mean() - by_hand.expectation(by_hand.log_weight) > 0.5


def test_the_elbo_is_the_enumerated_one(model, images, by_hand):
    measured = evaluate(model, images)
    likelihood, error = by_hand.expectation(by_hand.likelihood), by_hand.error(by_hand.likelihood)
    assert abs(measured.distortion + likelihood) < 5 * error
    assert abs(measured.elbo - by_hand.expectation(by_hand.log_weight)) < 5 * error
    assert measured.elbo == -measured.distortion - measured.rate


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_draws_other_codes(model, images, by_hand, seed):
    measured = evaluate(model, images, seed)
    error = by_hand.error(by_hand.likelihood)
    assert measured.elbo != evaluate(model, images).elbo
    assert abs(measured.elbo - by_hand.expectation(by_hand.log_weight)) < 5 * error


def test_the_exact_terms_are_those_by_hand(model, images, by_hand):
    measured = evaluate(model, images)
    at_mode = by_hand.joint.gather(0, by_hand.q.argmax(0, keepdim=True))
    assert measured.rate == pytest.approx(by_hand.rate.mean().item(), abs=1e-5)
    assert measured.entropy == pytest.approx(by_hand.entropy.mean().item(), abs=1e-5)
    assert measured.elbo_map == pytest.approx(at_mode.mean().item(), abs=1e-5)
    torch.testing.assert_close(measured.usage, by_hand.marginals.mean(0).float())


def test_the_log_likelihood_is_the_sum_over_all_codes(model, images, by_hand):
    assert log_likelihood(model, images) == pytest.approx(by_hand.log_p.mean().item(), abs=1e-5)


def test_bounds_are_below_the_log_likelihood(model, images):
    measured, truth = evaluate(model, images), log_likelihood(model, images)
    assert measured.elbo < truth
    assert measured.elbo_map < truth


def test_one_importance_weighted_sample_is_the_elbo(model, images, by_hand):
    error = by_hand.error(by_hand.log_weight)
    elbo = by_hand.expectation(by_hand.log_weight)
    assert abs(importance_weighted(model, images, 1) - elbo) < 5 * error


def test_the_importance_weighted_bound_rises_with_its_samples(model, images):
    few = images[:300]
    by_hand = ByHand(model, few)
    one, ten = (importance_weighted(model, few, samples) for samples in (1, 10))
    assert ten - one > 5 * by_hand.error(by_hand.log_weight)
    thousand = importance_weighted(model, few, 1000)
    assert thousand - ten > 5 * by_hand.bound_error(10)


def test_the_importance_weighted_bound_tends_to_the_log_likelihood(model, images):
    few = images[:100]
    by_hand = ByHand(model, few)
    bound, truth = importance_weighted(model, few, 2000), by_hand.log_p.mean().item()
    assert truth - 0.05 < bound < truth + 5 * by_hand.bound_error(2000)


@pytest.mark.parametrize("samples", [1, 7, 25])
def test_all_importance_samples_are_drawn_whatever_the_chunks(monkeypatch, images, samples):
    """With posterior = prior and one decoder output the bound is exact at any number of them."""
    flat = CategoricalVAE(Linear(), N, K, image_shape=(4, 4))
    for weight in (flat.encoder.weight, flat.encoder.bias, flat.decoder.weight):
        nn.init.zeros_(weight)
    monkeypatch.setattr(evaluation, "_IMAGES", 300)
    monkeypatch.setattr(evaluation, "_ROWS", 1000)
    bound = importance_weighted(flat, images, samples)
    assert bound == pytest.approx(log_likelihood(flat, images), abs=1e-5)


@pytest.mark.parametrize("samples", [1, 50])
def test_codes_decoded_once_or_one_by_one_give_the_same_bound(monkeypatch, model, images, samples):
    at_once = importance_weighted(model, images, samples)
    monkeypatch.setattr(evaluation, "EXACT_LIMIT", 0)
    assert importance_weighted(model, images, samples) == pytest.approx(at_once, abs=1e-4)


def test_a_decoder_that_costs_is_asked_for_each_code_once(model, images):
    decoded = []
    model.decoder.register_forward_hook(lambda module, given, made: decoded.append(len(made)))
    importance_weighted(model, images, 50)
    assert sum(decoded) == K**N


# Determinism and chunks


MEASURES = {
    "evaluate": evaluate,
    "importance_weighted": partial(importance_weighted, samples=10),
    "log_likelihood": log_likelihood,
    "bounds": partial(bounds, importance_samples=10),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_the_same_call_gives_the_same_numbers_and_leaves_the_noise_alone(model, images, measure):
    state = torch.get_rng_state()
    first = measure(model, images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    torch.testing.assert_close(measure(model, images), first, rtol=0, atol=0)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_no_graph_is_built(model, images, measure):
    calls = []
    hook = lambda module, inputs, output: calls.append(output.requires_grad)
    model.decoder.register_forward_hook(hook)
    measure(model, images)
    assert calls
    assert not any(calls)


def test_chunks_do_not_matter(monkeypatch, model, images):
    def exact() -> tuple:
        measured = evaluate(model, images)
        numbers = (measured.rate, measured.elbo_map, measured.perplexity, measured.entropy)
        return *numbers, measured.active, measured.usage, log_likelihood(model, images)

    whole = exact()
    monkeypatch.setattr(evaluation, "_IMAGES", 7)  # does not divide 1000
    monkeypatch.setattr(evaluation, "_ROWS", 4)  # nor 4 the nine codes
    torch.testing.assert_close(exact(), whole, rtol=1e-5, atol=1e-5)


# Where there are too many codes


def test_the_log_likelihood_is_refused_where_it_cannot_be_summed(images):
    model = CategoricalVAE(Linear(), latents=15, categories=2, image_shape=(4, 4))
    assert 2**15 > evaluation.EXACT_LIMIT
    with pytest.raises(ValueError, match=rf"2\*\*15 codes .* {evaluation.EXACT_LIMIT}$"):
        log_likelihood(model, images)


@pytest.mark.parametrize("limit, there", [(K**N, True), (K**N - 1, False)])
def test_bounds_have_a_log_likelihood_up_to_the_limit(monkeypatch, model, images, limit, there):
    monkeypatch.setattr(evaluation, "EXACT_LIMIT", limit)
    assert (bounds(model, images, 1)["log_likelihood"] is not None) == there


def test_bounds_are_what_each_function_says(model, images):
    measured, all_of_it = evaluate(model, images), bounds(model, images, 10)
    alone = {"importance_weighted", "log_likelihood"}
    for name in all_of_it.keys() - alone:
        assert all_of_it[name] == getattr(measured, name)
    assert all_of_it["importance_weighted"] == importance_weighted(model, images, 10)
    assert all_of_it["log_likelihood"] == log_likelihood(model, images)
    assert {"elbo", "elbo_map", "rate", "distortion", "perplexity", "active"} <= set(all_of_it)


# Use of the codes


def constant(logits: Tensor) -> CategoricalVAE:
    """A model whose posterior is Cat(logits) whatever the image."""
    model = CategoricalVAE(Linear(), *logits.shape, image_shape=(4, 4))
    nn.init.zeros_(model.encoder.weight)
    model.encoder.bias.data = logits.flatten()
    return model


ONE = torch.tensor([100.0, 0.0, 0.0, 0.0])
TWO = torch.tensor([100.0, 0.0, 100.0, 0.0])


@pytest.mark.parametrize(
    "logits, perplexity, entropy",
    [
        (torch.zeros(3, 4), 4.0, 3 * math.log(4)),
        (ONE.repeat(3, 1), 1.0, 0.0),
        (torch.stack([ONE, TWO, torch.zeros(4)]), (1 + 2 + 4) / 3, math.log(2) + math.log(4)),
    ],
    ids=["uniform", "one category", "a different number each"],
)
def test_perplexity_counts_the_categories_in_use(images, logits, perplexity, entropy):
    measured = evaluate(constant(logits), images)
    assert measured.perplexity == pytest.approx(perplexity, abs=1e-5)
    assert measured.entropy == pytest.approx(entropy, abs=1e-5)
    assert measured.active == 0


def test_perplexity_is_of_the_aggregate_and_a_latent_that_follows_the_image_is_active():
    model = constant(torch.zeros(2, 2))
    model.encoder.weight.data[0, 0] = 200.0  # latent 0 reads the first pixel, latent 1 nothing
    model.encoder.bias.data = torch.tensor([-100.0, 0.0, 100.0, 0.0])
    images = torch.zeros(10, D, dtype=torch.uint8)
    images[:5, 0] = 255
    measured = evaluate(model, images)
    assert measured.perplexity == pytest.approx((2 + 1) / 2)
    assert measured.entropy == pytest.approx(0, abs=1e-5)
    assert measured.active == 1
    torch.testing.assert_close(measured.usage, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))


def test_active_latents_are_those_whose_posterior_varies():
    middle = torch.tensor([0.2, 0.5, 0.5, 0.5], dtype=torch.float64)
    spread = torch.tensor([0.0, 0.07, 0.0708, 0.5])  # variances 0, 0.0098, 0.01003 and 0.5
    first = torch.stack([middle - spread, middle + spread])  # (images, N), of two categories
    q = torch.stack([first, 1 - first], -1)
    assert active_latents(q.mean(0), q.square().mean(0)) == 2
