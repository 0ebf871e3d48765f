"""ReinMax-CV: its formula, and that its control variate adds a bias."""

import torch
from torch.testing import assert_close

from tests.helpers import gradient_estimates
from vae.categorical import gumbel_noise, one_hot_argmax
from vae.estimators import Exact, ReinMax, ReinMaxCV

N, K = 2, 3
DRAWS = 20_000


def linear(weight: torch.Tensor):
    return lambda z: (z * weight).sum((-2, -1))


def surrogate_gradients(estimator, temperature, z, logits, g):
    """Return one draw of the surrogate's gradient for each image, (B, N, K)."""
    leaf = logits.clone().requires_grad_()
    surrogate = estimator.surrogate(z.unsqueeze(0), leaf, temperature)
    return torch.autograd.grad((surrogate * g).sum(), leaf)[0]


def test_mean_gradient_given_z_matches_the_formula():
    """The conditional noise is drawn by rejection, and every Jacobian is written out."""
    temperature = 1.3
    logits, g = torch.randn(2, N, K)
    z = one_hot_argmax(torch.randn(N, K))
    p = logits.softmax(-1)
    m = (z + p) / 2

    def jacobians_times_g(s: torch.Tensor) -> torch.Tensor:
        return s * g - s * (s * g).sum(-1, keepdim=True)

    perturbed = m.log() + gumbel_noise(m, 2 * DRAWS)  # (draws, N, K)
    slopes = jacobians_times_g((perturbed / temperature).softmax(-1)) / temperature
    wins = (one_hot_argmax(perturbed) == z).all(-1, keepdim=True)  # (draws, N, 1)
    share = wins.double().mean(0)
    difference = (wins / share - 1) * slopes  # its mean is that of the control variate
    expected = 2 * jacobians_times_g(m) - jacobians_times_g(p) / 2 + 0.7 * difference.mean(0)
    estimator = ReinMaxCV(temperature=1.0, inner_samples=2, scale=0.7)
    repeated = [tensor.expand(DRAWS, N, K) for tensor in (z, logits, g)]
    estimates = surrogate_gradients(estimator, temperature, *repeated)
    error = (estimates.var(0) / DRAWS + 0.7**2 * difference.var(0) / len(difference)).sqrt()
    assert ((estimates.mean(0) - expected).abs() < 5 * error).all()
    assert (0.7 * difference.mean(0)).abs().max() > 10 * error.max()


def test_difference_from_reinmax_at_temperature_one_is_proportional_to_the_scale():
    f, logits = linear(torch.randn(N, K)), torch.randn(5, N, K)

    def gradient(estimator):
        torch.manual_seed(1)
        return gradient_estimates(estimator, f, logits)

    reinmax = gradient(ReinMax(temperature=1.0))
    small, large = (
        gradient(ReinMaxCV(temperature=0.7, inner_samples=3, scale=scale)) - reinmax
        for scale in (0.5, 1.5)
    )
    assert small.abs().max() > 0.01
    assert_close(large, 3 * small, rtol=0, atol=1e-12)


def test_gradient_is_biased_even_if_f_is_linear():
    f, logits = linear(torch.randn(N, K)), torch.randn(N, K)
    truth = gradient_estimates(Exact(limit=K**N), f, logits.unsqueeze(0)).squeeze(0)
    estimator = ReinMaxCV(temperature=1.0, inner_samples=2, scale=1.0)
    estimates = gradient_estimates(estimator, f, logits.expand(DRAWS, N, K))
    error = estimates.std(0) / DRAWS**0.5
    assert ((estimates.mean(0) - truth).abs() > 5 * error).any()
