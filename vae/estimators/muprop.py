"""MuProp: the score function with a Taylor expansion at the mean code as its control variate."""

from typing import Literal

import torch
from torch import Tensor
from torch.func import grad

from vae.categorical import gradient_of, sample
from vae.estimators.base import CodeFunction
from vae.estimators.score_function import ScoreFunction, update_averages
from vae.schedules import Step
from vae.utils.validation import Count, Decay, validated

_DECAY = 0.99  # of the moving averages: about 100 steps


class MuProp(ScoreFunction):
    """Subtract the linear part of f at the mean code p, and add its exact gradient back.

    With g = grad f(p), the linear part of f at sample s is t_s = g . (z_s - p). The gradient in
    the logits of latent n is

        mean over s of (f(z_s) - alpha t_s - baseline_s) (z_sn - p_n) + alpha J(p_n) g_n,

    where J(p_n) = diag(p_n) - p_n p_n^T is the Jacobian of the softmax. The last term is the exact
    gradient of the part that was subtracted.

    With one sample, the baseline is f(p). With more samples, it is the mean of f(z) - alpha t over
    the other samples; alpha = 0 is then `Reinforce`.

    Bias: none for every f that is differentiable inside the simplex, and for every alpha. The
        adaptive coefficient depends on past steps alone, so it adds no bias.
    Value: an unbiased estimate of L.
    Cost: S + 1 evaluations of f, and one more backward pass through f; no temperature.
    Reference: Gu et al. (2016), https://arxiv.org/abs/1511.05176, for one sample and alpha = 1.
        With more samples, the control variate is that of Titsias & Shi (2022),
        https://arxiv.org/abs/2111.05300, with the gradient of f at p in place of the gradients at
        the other samples.

    Args:
        samples: S.
        coefficient: alpha, or "adaptive" for the alpha of the least variance of the gradient in
            the logits, from moving averages over past steps. It is 0 in the first step.
        variance_normalization: Weight of the past in the moving average of the squared signal,
            whose root divides the encoder's gradient; None for no normalisation. See
            `ScoreFunction`.
    """

    covariance: Tensor
    variance: Tensor

    @validated
    def __init__(
        self,
        samples: Count,
        coefficient: float | Literal["adaptive"],
        variance_normalization: Decay | None = None,
    ) -> None:
        super().__init__(variance_normalization)
        self.samples = samples
        self.coefficient = coefficient
        if coefficient == "adaptive":
            # Moving averages of <g0, g1> and |g1|^2, in the notation of `past_coefficient`.
            self.register_buffer("covariance", torch.zeros(()))
            self.register_buffer("variance", torch.zeros(()))

    def forward(self, logits: Tensor, f: CodeFunction, step: Step) -> Tensor:
        theta = logits.detach()
        p, z = theta.softmax(-1), sample(theta, self.samples)  # (B, N, K), (S, B, N, K)
        loss = f(z)  # (S, B)

        def at_mean(p: Tensor) -> tuple[Tensor, Tensor]:
            """Return f at the mean codes, summed over the batch, and f (B,) as an extra output."""
            values = f(p.unsqueeze(0)).squeeze(0)
            return values.sum(), values

        with torch.no_grad():  # torch.func.grad records what it needs by itself
            slope, mean_loss = grad(at_mean, has_aux=True)(p)  # (B, N, K), (B,)
            distance = z - p
            centred = self._centre(loss - mean_loss)  # (S, B)
            taylor = self._centre((distance * slope).sum((-2, -1)))  # (S, B)
            score = _mean_score(centred, distance)  # the gradient for alpha = 0
            exact = p * (slope - (p * slope).sum(-1, keepdim=True))  # J(p) g
            control = exact - _mean_score(taylor, distance)  # what alpha multiplies
            if self.coefficient == "adaptive":
                alpha: float | Tensor = self.past_coefficient(score, control)
            else:
                alpha = self.coefficient
            estimate = score + alpha * control  # (B, N, K)
            self.include_signal(centred - alpha * taylor)
        return loss.mean(0) + gradient_of((estimate * logits).sum((-2, -1)))

    def _centre(self, values: Tensor) -> Tensor:
        """Return values (S, B) less the mean of the other samples, if there are other samples."""
        if self.samples == 1:
            return values
        return values - (values.sum(0) - values) / (self.samples - 1)

    def past_coefficient(self, score: Tensor, control: Tensor) -> Tensor:
        """Return the best coefficient of past steps, then include this step if in training mode.

        The estimate is g0 + alpha g1 with E[g1] = 0, so its variance is least at
        alpha = -E<g0, g1> / E|g1|^2.

        Args:
            score: This step's g0, the gradient for alpha = 0, (B, N, K).
            control: This step's g1, (B, N, K). Both are ignored if a mean is not finite.

        Returns:
            The coefficient, a scalar; 0 before the first step.
        """
        tiny = torch.finfo(self.variance.dtype).tiny
        past = -self.covariance / self.variance.clamp_min(tiny)
        if self.training:
            product = (score * control).sum((-2, -1)).mean()
            square = control.square().sum((-2, -1)).mean()
            update_averages(_DECAY, [(self.covariance, product), (self.variance, square)])
        return past


def _mean_score(values: Tensor, distance: Tensor) -> Tensor:
    """Return the mean over samples of values (S, B) times z - p (S, B, N, K), (B, N, K)."""
    return (values[..., None, None] * distance).mean(0)
