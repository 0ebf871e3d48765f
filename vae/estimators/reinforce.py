"""The score function."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ..categorical import gradient_of, log_prob, sample
from ..schedules import Step
from ..validation import Count, Decay, validated
from .base import Estimator, Objective


class Reinforce(Estimator):
    """f(z) grad log q(z) at S samples, each one's baseline the mean of the others.

    Unbiased for every f, differentiable or not. The variance falls with S and grows with the
    number of latents. S >= 2 evaluations of f; no temperature.

    Kool, van Hoof & Welling (2019), https://openreview.net/forum?id=r1lgTGL5DE
    """

    @validated
    def __init__(self, samples: Annotated[int, Field(ge=2)]) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        z = sample(logits, self.samples)  # (S, B, N, K)
        loss = f(z)  # (S, B)
        others = (loss.sum(0) - loss) / (self.samples - 1)
        advantage = (loss - others).detach()
        return (loss + gradient_of(advantage * log_prob(logits, z))).mean(0)


class ReinforceMovingAverage(Estimator):
    """f(z) grad log q(z) at one sample; the baseline is a moving average of f over past steps.

    Unbiased for every f: the baseline is older than the sample. One evaluation of f; a buffer.

    Mnih & Gregor (2014), https://arxiv.org/abs/1402.0030, who also divide by a moving deviation
    where that is above 1: it would weigh this gradient anew against that of the rate.
    """

    average: Tensor
    seen: Tensor

    @validated
    def __init__(self, decay: Decay) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))  # 1 - decay^t: the average starts at 0

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        z = sample(logits, 1)
        loss = f(z)  # (1, B)
        advantage = loss.detach() - self.past(loss.detach())
        return (loss + gradient_of(advantage * log_prob(logits, z))).squeeze(0)

    def past(self, loss: Tensor) -> Tensor:
        """The average before this step, whose (1, B) values of f are then taken in."""
        baseline = self.average / self.seen.clamp_min(torch.finfo(self.seen.dtype).tiny)
        if self.training:
            mean = loss.mean().to(self.average.dtype)
            for old, now in ((self.average, mean), (self.seen, torch.ones_like(mean))):
                moved = old * self.decay + now * (1 - self.decay)
                old.copy_(torch.where(mean.isfinite(), moved, old))  # no bad step spoils it
        return baseline


class ReinforceLearnedBaseline(ReinforceMovingAverage):
    """f(z) grad log q(z) at one sample; to the moving average, a network adds what the image says.

    Unbiased for every f. The network sees the image's logits, and is fitted by least squares to
    what the average leaves of f, through the same backward pass; it learns nothing else, and the
    encoder learns nothing from the fit. One evaluation of f; owns parameters and a buffer.

    The baselines of NVIL, Mnih & Gregor (2014), https://arxiv.org/abs/1402.0030; there the network
    sees the image, here its logits, so that the estimator stays one of a distribution and a
    function.
    """

    @validated
    def __init__(self, latents: Count, categories: Count, hidden: Count, decay: Decay) -> None:
        super().__init__(decay)
        self.baseline = nn.Sequential(
            nn.Flatten(), nn.Linear(latents * categories, hidden), nn.Tanh(), nn.Linear(hidden, 1)
        )

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        z = sample(logits, 1)
        loss = f(z)  # (1, B)
        centred = loss.detach() - self.past(loss.detach())
        predicted = self.baseline(logits.detach().log_softmax(-1)).squeeze(-1)  # (B,)
        advantage = (centred - predicted).detach()
        fit = (centred - predicted).square()
        score = advantage * log_prob(logits, z)
        return (loss + gradient_of(score) + gradient_of(fit)).squeeze(0)
