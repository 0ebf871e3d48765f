"""ReDGE and ReinDGE: differentiate a diffusion that turns Gaussian noise into a code."""

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vae.categorical import gradient_of, sample
from vae.estimators.base import Pathwise
from vae.estimators.reinmax import reinmax_surrogate
from vae.schedules import Step
from vae.utils.validation import Count, validated


class Redge(Pathwise):
    """Denoise Gaussian noise step by step, and draw z from the last denoised point.

    At time t a code is blurred to x_t = (1 - t) z + t noise. The mean of the code given x_t has
    the closed form y_t = softmax(logits + (1 - t) x_t / t^2). Starting from noise x_1, each step
    replaces the code in x_t by y_t and moves to the next, smaller time s:

        x_s = (1 - s) y_t + s (x_t - (1 - t) y_t) / t.

    The code z is drawn from Cat(y_t) at the last time t.

    Gradient in the logits: the gradient of the last y_t, through all steps, with g at z.

    Bias: yes. With one step, at t = 1, the method is straight-through at the temperature 1.
    Value: with one step an unbiased estimate of L. With more steps no estimate of L, because z is
        not exactly a sample of q, so "distortion + KL" is not a bound. As the number of steps
        grows, z tends to a sample of q.
    Cost: one evaluation of f per sample; each step costs a softmax.
    Reference: Gourevitch et al. (2026), https://arxiv.org/abs/2601.00781. Their `n_steps` also
        counts t = 0, so it is one more than `denoising_steps`.

    Args:
        denoising_steps: The number of times t, evenly spaced from 1 to `last_time`.
        last_time: The last time t, greater than 0. The smaller it is, the nearer y_t is to a
            one-hot code. It is 1 with one step, and less than 1 with more steps.
        samples: S, the number of codes drawn for each image.
    """

    @validated
    def __init__(
        self,
        denoising_steps: Count,
        last_time: Annotated[float, Field(gt=0, le=1)],
        samples: Count = 1,
    ) -> None:
        super().__init__()
        if (denoising_steps == 1) != (last_time == 1):
            raise ValueError(
                f"denoising_steps={denoising_steps} and last_time={last_time:g} do not fit: "
                "last_time must be 1 with one step, and less than 1 with more steps"
            )
        self.times = torch.linspace(1.0, last_time, denoising_steps, dtype=torch.float64).tolist()
        self.samples = samples

    def sample(self, logits: Tensor, step: Step) -> Tensor:
        evidence = self.evidence(logits)  # (S, B, N, K)
        z = sample(logits + evidence, 1).squeeze(0)
        return z + gradient_of(self.surrogate(z, logits, evidence))

    def evidence(self, logits: Tensor) -> Tensor:
        """Draw (1 - t) x_t / t^2 at the last time t: (B, N, K) -> (S, B, N, K).

        It is what x_t adds to the logits, and is differentiable in the logits.
        """
        x = torch.randn(self.samples, *logits.shape, dtype=logits.dtype, device=logits.device)
        for t, s in pairwise(self.times):
            y = (logits + (1 - t) / t**2 * x).softmax(-1)
            x = (1 - s) * y + s * (x - (1 - t) * y) / t
        last = self.times[-1]
        return (1 - last) / last**2 * x

    def surrogate(self, z: Tensor, logits: Tensor, evidence: Tensor) -> Tensor:
        """Return a tensor whose gradient replaces that of z; its value is not used.

        Args:
            z: One-hot codes (S, B, N, K), without a gradient.
            logits: (B, N, K).
            evidence: The result of `evidence`, (S, B, N, K).

        Returns:
            A tensor (S, B, N, K).
        """
        return (logits + evidence).softmax(-1)


class Reindge(Redge):
    """Use ReDGE, with ReinMax in place of straight-through for the last draw.

    Gradient in the logits: let y = softmax(logits + e) be the last denoised point of `Redge`. The
    gradient of y through e is that of `Redge`. The gradient of y at constant e is replaced by that
    of `ReinMax` at the temperature 1 for z ~ Cat(y).

    Bias: yes. With one step the method is ReinMax at the temperature 1.
    Value: as in `Redge`.
    Cost: as in `Redge`.
    Reference: Gourevitch et al. (2026), https://arxiv.org/abs/2601.00781.
    """

    def surrogate(self, z: Tensor, logits: Tensor, evidence: Tensor) -> Tensor:
        through_evidence = (logits.detach() + evidence).softmax(-1)
        return through_evidence + reinmax_surrogate(z, logits + evidence.detach(), 1.0)
