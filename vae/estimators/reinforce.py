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

    Mnih & Gregor (2014), https://arxiv.org/abs/1402.0030.
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
        baseline = self.average / self.seen.clamp_min(torch.finfo(self.seen.dtype).tiny)
        if self.training:
            mean = loss.detach().mean().to(self.average.dtype)
            for old, now in ((self.average, mean), (self.seen, torch.ones_like(mean))):
                moved = old * self.decay + now * (1 - self.decay)
                old.copy_(torch.where(mean.isfinite(), moved, old))  # no bad step spoils it
        advantage = (loss - baseline).detach()
        return (loss + gradient_of(advantage * log_prob(logits, z))).squeeze(0)


class ReinforceLearnedBaseline(Estimator):
    """f(z) grad log q(z) at one sample; the baseline is a network of the image's logits (NVIL).

    Unbiased for every f. The network is fitted to f by least squares, through the same backward
    pass, and learns nothing else; the encoder learns nothing from the fit. One evaluation of f;
    owns parameters.

    Mnih & Gregor (2014), https://arxiv.org/abs/1402.0030; there the network sees the
    image, here its logits, so that the estimator stays one of a distribution and a function.
    """

    @validated
    def __init__(self, latents: Count, categories: Count, hidden: Count) -> None:
        super().__init__()
        self.baseline = nn.Sequential(
            nn.Flatten(), nn.Linear(latents * categories, hidden), nn.Tanh(), nn.Linear(hidden, 1)
        )

    def forward(self, logits: Tensor, f: Objective, step: Step) -> Tensor:
        z = sample(logits, 1)
        loss = f(z)  # (1, B)
        baseline = self.baseline(logits.detach().log_softmax(-1)).squeeze(-1)  # (B,)
        advantage = (loss - baseline).detach()
        fit = (loss.detach() - baseline).square()
        score = advantage * log_prob(logits, z)
        return (loss + gradient_of(score) + gradient_of(fit)).squeeze(0)
