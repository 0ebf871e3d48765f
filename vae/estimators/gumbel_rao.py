"""Rao-Blackwellized estimators: average over the Gumbel noise that leaves the sample unchanged."""

import torch
from torch import Tensor

from vae.categorical import conditional_gumbel, gradient_of, gumbel_noise
from vae.estimators.base import Surrogate
from vae.estimators.reinmax import reinmax_surrogate
from vae.schedules import PositiveSchedule, Value
from vae.utils.validation import Count, Positive, validated

_CHUNK = 10  # draws of the noise in memory at once


class RaoBlackwellized(Surrogate):
    """Average the Jacobian of a surrogate over `inner_samples` draws of the noise per sample."""

    @validated
    def __init__(
        self, temperature: PositiveSchedule, inner_samples: Count, samples: Count = 1
    ) -> None:
        super().__init__(temperature, samples)
        self.inner_samples = inner_samples


class GumbelRao(RaoBlackwellized):
    """Average the gradient of straight-through Gumbel over the noise, given the sample z.

    Gradient in the logits: E[J(softmax((logits + G) / tau)) | argmax(logits + G) = z] g / tau,
    with the mean over `inner_samples` draws of G.

    Bias: the same as straight-through Gumbel, and the variance is never larger. With one inner
        sample it is straight-through Gumbel. The exact mean over G tends to ReinMax at tau = 1 as
        tau falls to 0; a smaller tau needs more inner samples.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f per sample, and K products per category for each inner sample.
    Reference: Paulus, Maddison & Krause (2021), https://arxiv.org/abs/2010.04838.

    Args:
        temperature: tau, a number or a schedule, greater than 0.
        inner_samples: The number of draws of the noise for each sample.
        samples: S, the number of codes drawn for each image.
    """

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        jacobian = _mean_jacobian(logits, z, temperature, self.inner_samples)
        return _linear(jacobian, logits)


class ReinMaxRao(RaoBlackwellized):
    """Use ReinMax with the Jacobian of Gumbel-Rao at m in place of softmax's.

    Gradient in the logits: 2 J_GR(log m) g - J(p) g / 2 with m = (z + p) / 2 and J_GR the mean
    Jacobian of `GumbelRao`.

    Bias: yes.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f per sample, and K products per category for each inner sample.
    Reference: Wang & Bui (2026), https://arxiv.org/abs/2603.08257.

    Args:
        temperature: tau of J_GR, a number or a schedule, greater than 0.
        inner_samples: The number of draws of the noise for each sample.
        samples: S, the number of codes drawn for each image.
    """

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        p = logits.softmax(-1)
        m = ((z + p) / 2).log()
        jacobian = _mean_jacobian(m, z, temperature, self.inner_samples)
        return 2 * _linear(jacobian, logits) - p / 2


class ReinMaxCV(RaoBlackwellized):
    """Add to ReinMax the difference of Gumbel-Rao and straight-through Gumbel at m, given z.

    Gradient in the logits: 2 J(m) g - J(p) g / 2 + eta (J_GR(log m) - J_STG(log m)) g with
    m = (z + p) / 2 and J_GR as in `ReinMaxRao`. J_STG(log m) is the Jacobian of
    softmax((log m + G) / tau) / tau at one draw of new noise G.

    Bias: yes, even if f is linear. The difference is meant to be a control variate. Its mean would
        be zero if z followed m at a fixed m and g did not depend on z, but z follows q.
    Value: an unbiased estimate of L.
    Cost: one evaluation of f per sample, and K products per category for each inner sample.
    Reference: Wang & Bui (2026), https://arxiv.org/abs/2603.08257.

    Args:
        temperature: tau of the difference, a number or a schedule, greater than 0. The temperature
            of ReinMax is 1.
        inner_samples: The number of draws of the noise of J_GR for each sample.
        scale: eta, greater than 0. At 0 the estimator would be `ReinMax` at the temperature 1.
        samples: S, the number of codes drawn for each image.
    """

    @validated
    def __init__(
        self,
        temperature: PositiveSchedule,
        inner_samples: Count,
        scale: Positive,
        samples: Count = 1,
    ) -> None:
        super().__init__(temperature, inner_samples, samples)
        self.scale = scale

    def surrogate(self, z: Tensor, logits: Tensor, temperature: Value) -> Tensor:
        m = ((z + logits.detach().softmax(-1)) / 2).log()
        conditional = _linear(_mean_jacobian(m, z, temperature, self.inner_samples), logits)
        perturbed = m + gumbel_noise(m, 1).squeeze(0) + gradient_of(logits)
        free = (perturbed / temperature).softmax(-1)
        return reinmax_surrogate(z, logits, 1.0) + self.scale * (conditional - free)


def _linear(jacobian: Tensor, logits: Tensor) -> Tensor:
    """Return a tensor with this Jacobian (..., K, K) in the logits; its value is not used."""
    return (jacobian @ logits.unsqueeze(-1)).squeeze(-1)


def _mean_jacobian(logits: Tensor, z: Tensor, temperature: Value, inner_samples: int) -> Tensor:
    """Return the mean Jacobian of softmax(. / tau) at perturbed logits whose argmax is z.

    The mean is over `inner_samples` draws of the noise, a few at a time, so that the memory does
    not grow with their number. The result (S, B, N, K, K) carries no gradient.
    """
    with torch.no_grad():
        mean, square = torch.zeros_like(z), z.new_zeros(*z.shape, z.shape[-1])
        for start in range(0, inner_samples, _CHUNK):
            draws = min(_CHUNK, inner_samples - start)
            perturbed = conditional_gumbel(logits, z.expand(draws, *z.shape))
            s = (perturbed / temperature).softmax(-1)  # (draws, S, B, N, K)
            mean = mean + s.sum(0)
            square = square + s.movedim(0, -1) @ s.movedim(0, -2)
        return (torch.diag_embed(mean) - square) / (inner_samples * temperature)
