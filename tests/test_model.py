"""The model's densities, compared with torch.distributions and with enumeration."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.distributions import Bernoulli
from torch.testing import assert_close

from vae import categorical
from vae.model import CategoricalVAE
from vae.networks import MLP, Conv, Linear

SHAPE, D = (4, 8), 32
S, B, N, K = 5, 6, 3, 4

NETWORKS = {
    "mlp": MLP(encoder_sizes=[16], decoder_sizes=[16], activation="tanh"),
    "linear": Linear(),
    "conv": Conv(channels=2, hidden=16, activation="elu"),
}

every_network = pytest.mark.parametrize("networks", NETWORKS.values(), ids=NETWORKS)
every_prior = pytest.mark.parametrize("prior", ["uniform", "learned"])


def build_model(
    networks=NETWORKS["mlp"], prior="uniform", image_shape=SHAPE, **settings
) -> CategoricalVAE:
    model = CategoricalVAE(
        networks, latents=N, categories=K, prior=prior, image_shape=image_shape, **settings
    )
    if prior == "learned":
        nn.init.normal_(model.prior_logits)
    return model


def random_codes(*leading: int) -> torch.Tensor:
    return categorical.one_hot_argmax(torch.randn(*leading, N, K))


def random_images(count: int = B) -> torch.Tensor:
    return (torch.rand(count, D) < 0.5).double()


# Shapes


@every_network
def test_encode_returns_logits_of_all_latents(networks):
    assert build_model(networks).encode(random_images()).shape == (B, N, K)


@every_network
def test_catnat_posterior_returns_normalised_logits_of_all_latents(networks):
    model, x = build_model(networks, posterior="catnat"), random_images()
    logits = model.encode(x)
    scores = model.encoder(x)
    assert logits.shape == (B, N, K) and scores.shape == (B, N * (K - 1))
    assert torch.equal(logits, categorical.catnat(scores.unflatten(-1, (N, K - 1))))
    assert_close(logits.logsumexp(-1), torch.zeros(B, N), rtol=0, atol=1e-12)


def test_logits_of_a_softmax_posterior_are_the_scores_of_the_encoder():
    model, x = build_model(), random_images()
    assert torch.equal(model.encode(x), model.encoder(x).unflatten(-1, (N, K)))


@pytest.mark.parametrize("categories", [3, 6, 10, 48])
def test_catnat_posterior_needs_a_power_of_two(categories):
    with pytest.raises(ValueError, match=f"catnat: categories={categories} is not a power of 2"):
        CategoricalVAE(Linear(), latents=2, categories=categories, posterior="catnat")


@every_network
@pytest.mark.parametrize("leading", [(), (B,), (S, B), (2, S, B)])
def test_decode_keeps_the_leading_axes(networks, leading):
    model, z = build_model(networks), random_codes(*leading)
    assert model.decode(z).shape == (*leading, D)
    assert model.decode(z[None][:0]).shape == (0, *leading, D)
    one_by_one = torch.stack([model.decode(code) for code in z.reshape(-1, N, K)])
    assert_close(model.decode(z), one_by_one.reshape(*leading, D), rtol=0, atol=1e-12)


@every_network
@every_prior
def test_densities_have_one_entry_per_sample_and_image(networks, prior):
    model, x, z = build_model(networks, prior), random_images(), random_codes(S, B)
    assert model.log_likelihood(x, z).shape == (S, B)
    assert model.log_prior(z).shape == (S, B)
    assert model.joint_log_prob(x, z).shape == (S, B)
    assert model.kl(model.encode(x)).shape == (B,)


def test_images_are_28_by_28_by_default():
    model = CategoricalVAE(Linear(), latents=2, categories=3)
    assert model.encode(torch.rand(1, 784)).shape == (1, 2, 3)


# Independence of images and of samples


@every_network
def test_log_likelihood_of_an_image_depends_on_the_code_of_that_image_alone(networks):
    model, x, z = build_model(networks), random_images(), random_codes(S, B)
    before = model.log_likelihood(x, z)
    for s, b in [(0, 0), (2, 3), (S - 1, B - 1)]:
        changed = z.clone()
        changed[s, b] = z[s, b].roll(1, -1)
        difference = (model.log_likelihood(x, changed) - before).abs()
        assert difference[s, b] > 1e-6
        difference[s, b] = 0
        assert difference.max() < 1e-12


@every_network
def test_logits_of_an_image_depend_on_that_image_alone(networks):
    model, x = build_model(networks), random_images()
    changed = x.clone()
    changed[2] = 1 - x[2]
    difference = (model.encode(changed) - model.encode(x)).abs().amax((1, 2))
    assert difference[2] > 1e-6
    difference[2] = 0
    assert difference.max() < 1e-12


# Densities


@every_network
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_log_likelihood_is_that_of_torch_bernoulli(networks, scale):
    model, x, z = build_model(networks), random_images(), random_codes(S, B)
    with torch.no_grad():
        for p in model.decoder.parameters():
            p *= scale
        expected = Bernoulli(logits=model.decode(z)).log_prob(x).sum(-1)
        assert_close(model.log_likelihood(x, z), expected, rtol=1e-12, atol=1e-10)


def test_log_likelihood_of_grey_pixels_is_the_negative_cross_entropy():
    model, x, z = build_model(), torch.rand(B, D), random_codes(S, B)
    logits = model.decode(z)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(
        logits, x.expand_as(logits), reduction="none"
    )
    assert_close(model.log_likelihood(x, z), -cross_entropy.sum(-1), rtol=0, atol=1e-10)


def test_likelihood_sums_to_one_over_all_binary_images():
    model = build_model(Linear(), image_shape=(2, 4))
    every_image = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    total = model.log_likelihood(every_image, random_codes(S, 1)).logsumexp(1)
    assert_close(total, torch.zeros(S), rtol=0, atol=1e-12)


@every_network
@every_prior
@pytest.mark.parametrize("density", ["log_likelihood", "joint_log_prob"])
def test_density_with_a_batch_axis_of_one_is_that_of_expanded_codes(networks, prior, density):
    model, x, z = build_model(networks, prior), torch.rand(B, D), random_codes(S, 1)
    log_density = getattr(model, density)
    expected = log_density(x, z.expand(S, B, N, K))
    assert_close(log_density(x, z), expected, rtol=0, atol=1e-10)


def test_gradient_with_a_batch_axis_of_one_is_that_of_expanded_codes():
    model, x, z = build_model(), torch.rand(B, D), random_codes(S, 1)
    weights = torch.randn(S, B)

    def gradients(z):
        loss = (weights * model.log_likelihood(x, z)).sum()
        return torch.autograd.grad(loss, list(model.decoder.parameters()))

    assert_close(gradients(z), gradients(z.expand(S, B, N, K)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("samples", [1, S])
def test_log_likelihood_of_a_single_image_is_that_of_torch_bernoulli(samples):
    model, x, z = build_model(), random_images(1), random_codes(samples, 1)
    expected = Bernoulli(logits=model.decode(z)).log_prob(x).sum(-1)
    assert_close(model.log_likelihood(x, z), expected, rtol=0, atol=1e-10)


@every_prior
def test_joint_log_prob_is_log_likelihood_plus_log_prior(prior):
    model, x, z = build_model(prior=prior), random_images(), random_codes(S, B)
    expected = model.log_likelihood(x, z) + categorical.log_prob(
        model.prior_logits.expand(B, N, K), z
    )
    assert_close(model.joint_log_prob(x, z), expected, rtol=0, atol=1e-12)


@every_prior
def test_prior_sums_to_one_over_all_codes(prior):
    total = build_model(prior=prior).log_prior(categorical.codes(N, K)).logsumexp(0)
    assert_close(total, torch.tensor(0.0), rtol=0, atol=1e-12)


def test_uniform_prior_is_uniform():
    log_prior = build_model().log_prior(random_codes(S, B))
    assert_close(log_prior, torch.full((S, B), -N * math.log(K)))


def test_learned_prior_begins_uniform():
    model = CategoricalVAE(Linear(), latents=N, categories=K, prior="learned", image_shape=SHAPE)
    assert torch.equal(model.prior_logits, torch.zeros(N, K))


@every_prior
def test_kl_is_the_enumerated_mean_of_the_log_ratio_under_q(prior):
    model, logits = build_model(prior=prior), 3 * torch.randn(B, N, K)
    z = categorical.codes(N, K)[:, None]
    log_q = categorical.log_prob(logits, z)
    expected = (log_q.exp() * (log_q - model.log_prior(z))).sum(0)
    assert_close(model.kl(logits), expected, rtol=0, atol=1e-12)


# Parameters of the prior


def test_learned_prior_is_a_parameter_with_a_gradient():
    model = build_model(prior="learned")
    assert "prior_logits" in dict(model.named_parameters())
    assert "prior_logits" in model.state_dict()
    model.joint_log_prob(random_images(), random_codes(S, B)).sum().backward()
    assert model.prior_logits.grad.abs().max() > 0
    model.zero_grad()
    model.kl(torch.randn(B, N, K)).sum().backward()
    assert model.prior_logits.grad.abs().max() > 0


def test_uniform_prior_is_a_buffer_that_is_not_saved():
    model = build_model()
    assert "prior_logits" not in dict(model.named_parameters())
    assert "prior_logits" not in model.state_dict()
    buffers = dict(model.named_buffers())  # they move to a device with the model
    assert model.prior_logits is buffers["prior_logits"]


# The mean of the training images


def build_model_of_mean(networks=NETWORKS["mlp"]) -> tuple[CategoricalVAE, torch.Tensor]:
    """Return a model with output_bias=data_mean and center_input=true, and the mean it has."""
    torch.manual_seed(1)
    model = CategoricalVAE(
        networks, N, K, image_shape=SHAPE, output_bias="data_mean", center_input=True
    )
    mean = torch.rand(D)
    mean[:2] = torch.tensor([0.0, 1.0])  # pixels that are the same in every image
    model.set_data_mean(mean)
    return model, mean


@every_network
def test_a_model_of_the_data_mean_shifts_the_input_and_the_output_of_its_networks(networks):
    model, mean = build_model_of_mean(networks)
    x, z = random_images(), random_codes(B)
    assert_close(model.encode(x).flatten(1), model.encoder(x - mean))
    shift = model.decode(z) - model.decoder(z.flatten(1))
    assert_close(shift.sigmoid(), mean.clamp(0.001, 0.999).expand(B, D))
    assert model.log_likelihood(x, z.unsqueeze(0)).isfinite().all()
    samples = random_codes(S, 1)
    exact = Bernoulli(logits=model.decode(samples)).log_prob(x).sum(-1)
    assert_close(model.log_likelihood(x, samples), exact)


@every_network
def test_the_data_mean_is_stored_with_the_weights(networks):
    (model, _), x, z = build_model_of_mean(networks), random_images(), random_codes(B)
    loaded = CategoricalVAE(
        networks, N, K, image_shape=SHAPE, output_bias="data_mean", center_input=True
    )
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded.encode(x), model.encode(x))
    assert torch.equal(loaded.decode(z), model.decode(z))


@every_network
def test_the_options_of_the_data_mean_change_no_initial_weight(networks):
    model, _ = build_model_of_mean(networks)
    torch.manual_seed(1)
    plain = build_model(networks)
    assert not plain.uses_data_mean and model.uses_data_mean
    state, plain_state = model.state_dict(), plain.state_dict()
    assert set(state) == {*plain_state, "mean_logits", "input_mean"}
    assert all(torch.equal(state[name], tensor) for name, tensor in plain_state.items())


def test_with_adam_the_shift_equals_a_bias_that_starts_at_the_logits_of_the_mean():
    model, _ = build_model_of_mean(Linear())
    torch.manual_seed(1)
    plain = CategoricalVAE(Linear(), N, K, image_shape=SHAPE, center_input=True)
    plain.input_mean.copy_(model.input_mean)
    plain.decoder.bias.data += model.mean_logits
    x, z = random_images(), random_codes(1, B)
    for each in (model, plain):
        optimizer = torch.optim.Adam(each.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            each.log_likelihood(x, z).sum().neg().backward()
            optimizer.step()
    assert_close(model.decode(z), plain.decode(z))
    assert (model.decoder.bias + model.mean_logits - plain.decoder.bias).abs().max() < 1e-12


# Precision


@every_network
@pytest.mark.parametrize("prior", ["uniform", "learned", "of the data mean"])
def test_in_bfloat16_every_result_is_finite_and_float32(networks, prior):
    if prior == "of the data mean":
        model = build_model_of_mean(networks)[0].float()
    else:
        model = build_model(networks, prior).float()
    x, z = random_images().float(), random_codes(S, B).float()
    in_float32 = model.encode(x), model.decode(z)
    model.precision = torch.bfloat16
    logits, pixels = model.encode(x), model.decode(z)
    assert not torch.equal(logits, in_float32[0]) and not torch.equal(pixels, in_float32[1])
    assert_close((logits, pixels), in_float32, rtol=0.05, atol=0.05)
    results = [
        logits,
        pixels,
        model.kl(logits),
        model.log_likelihood(x, z),
        model.log_likelihood(x, z[:, :1]),
        model.joint_log_prob(x, z),
        model.sample(3),
    ]
    assert {result.dtype for result in results} == {torch.float32}
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("posterior", ["softmax", "catnat"])
def test_in_bfloat16_saturated_networks_give_a_valid_kl_and_a_finite_likelihood(posterior):
    model = build_model(Linear(), posterior=posterior).float()
    with torch.no_grad():
        for p in model.parameters():
            p *= 1000
    model.precision = torch.bfloat16
    x, z = random_images().float(), random_codes(S, B).float()
    kl = model.kl(model.encode(x))
    assert (kl >= 0).all() and (kl <= N * math.log(K) + 1e-5).all()
    assert model.log_likelihood(x, z).isfinite().all()


def test_in_bfloat16_gradients_are_float32():
    model = build_model().float()
    model.precision = torch.bfloat16
    model.log_likelihood(random_images().float(), random_codes(S, B).float()).sum().backward()
    assert {p.grad.dtype for p in model.decoder.parameters()} == {torch.float32}


# Sampling


@every_network
@every_prior
@pytest.mark.parametrize("count", [1, 7])
def test_samples_are_pixel_probabilities(networks, prior, count):
    pixels = build_model(networks, prior).sample(count)
    assert pixels.shape == (count, D)
    assert ((pixels >= 0) & (pixels <= 1)).all()


def test_samples_depend_on_their_generator_alone():
    model, before = build_model(), torch.get_rng_state()

    def draw(seed):
        return model.sample(20, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_come_from_the_learned_prior():
    model, code = build_model(prior="learned"), random_codes(1)
    with torch.no_grad():
        model.prior_logits.copy_(1000 * code[0])
    expected = model.decode(code).sigmoid().expand(30, D)
    assert_close(model.sample(30), expected, rtol=0, atol=1e-12)


def test_mean_of_samples_is_the_enumerated_mean_under_the_uniform_prior():
    model, draws = build_model(Linear()), 20_000
    means = model.decode(categorical.codes(N, K)).sigmoid()  # (K**N, D)
    error = model.sample(draws).mean(0) - means.mean(0)
    assert (error.abs() < 5 * means.std(0, correction=0) / math.sqrt(draws)).all()


# Checks


@pytest.mark.parametrize(
    "name, wrong",
    [
        *(("latents", wrong) for wrong in (0, -1, 2.0, "3", True, None)),
        *(("categories", wrong) for wrong in (1, 0, 2.5, "3", True)),
        *(("prior", wrong) for wrong in ("Uniform", "vamp", None)),
        *(("posterior", wrong) for wrong in ("Softmax", "sparsemax", None)),
        *(("networks", wrong) for wrong in ("mlp", None, nn.Linear(1, 1), MLP)),
        *(("image_shape", wrong) for wrong in (28, (28,), (28, 28, 1), (28, 28.0), "28")),
        *(("image_shape", wrong) for wrong in ((0, 28), (-28, -28))),
        ("hidden", 3),
    ],
)
def test_invalid_argument_is_refused(name, wrong):
    with pytest.raises(ValidationError):
        CategoricalVAE(**{"networks": Linear(), "latents": 2, "categories": 3} | {name: wrong})


def test_network_that_does_not_fit_the_image_is_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        build_model(NETWORKS["conv"], image_shape=(6, 8))
